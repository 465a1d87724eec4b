"""Ways to damage an HDF5 file: what no program writes by mistake, but a file may hold.

Groups that contain themselves, links out of the file, a million times more declared than stored, zeros by the gigabyte,
numbers of every other type and shape.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator


def _found(file: h5py.File, kind: type) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, kind) else None)
    return names


def pick(rng: Rng, names: list[str]) -> str:
    if not names:
        raise ValueError("nothing to pick from")
    return names[rng.integers(len(names))]


def numeric(file: h5py.File) -> list[str]:
    return [n for n in _found(file, h5py.Dataset) if file[n].dtype.kind in "biuf"]


def hdf5(edit: Callable[[Rng, h5py.File], str | None]) -> Callable[[Rng, Path], str | None]:
    def act(rng: Rng, path: Path) -> str | None:
        with h5py.File(path, "r+") as file:
            return edit(rng, file)

    return act


def _replaced(file: h5py.File, name: str, value: Any, **options: Any) -> str:
    """A dataset in another's place, its attributes kept."""
    held = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, data=value, **options)
    made.attrs.update(held)
    return name


def _dropped(rng: Rng, file: h5py.File) -> str:
    del file[name := pick(rng, _found(file, h5py.Dataset) + _found(file, h5py.Group))]
    return name


def _renamed(rng: Rng, file: h5py.File) -> str:
    name = pick(rng, _found(file, h5py.Dataset) + _found(file, h5py.Group))
    new = ("x", "weight", "é" * 30, "a" * 3000, "..", " ", "\t\n\x1b[31m", "type", "nodes")[rng.integers(9)]
    file.move(name, f"{name.rpartition('/')[0]}/{new}")
    return f"{name} to {new[:20]!r}"


OTHER: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda a: "text",
    lambda a: np.array(["a", "b"], "S3"),
    lambda a: a.astype(np.complex128),
    lambda a: np.zeros(np.shape(a), [("r", "f8"), ("i", "i4")]),
    lambda a: np.asarray(a).astype(bool),
    lambda a: np.asarray(a).astype(np.float16),
    lambda a: np.asarray(a).astype("V8") if np.asarray(a).dtype.itemsize == 8 else np.void(b"\x00" * 5),
    lambda a: h5py.Empty("f8"),
    lambda a: b"\xff\xfe\x00",
    lambda a: -np.abs(np.asarray(a)).astype(np.int64) - 1,
    lambda a: np.full(np.shape(a), 2**63, np.uint64),
)


def _dtype(rng: Rng, file: h5py.File) -> str:
    name, i = pick(rng, numeric(file) if rng.random() < 0.8 else _found(file, h5py.Dataset)), rng.integers(len(OTHER))
    return f"{_replaced(file, name, OTHER[i](file[name][()]))} as {i}"


def _ragged(rng: Rng, file: h5py.File) -> str:
    name = pick(rng, _found(file, h5py.Dataset))
    kinds = (h5py.vlen_dtype(np.float64), h5py.string_dtype(), h5py.ref_dtype, h5py.enum_dtype({"A": 1}))
    kind = int(rng.integers(4))
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, kinds[kind])
    return f"{name} as {kind}"


def _shape(rng: Rng, file: h5py.File) -> str:
    name = pick(rng, numeric(file))
    a = np.asarray(file[name][()])
    ways = (a.reshape(-1), a[None], a[..., None], a.T, a.reshape(-1)[:0], a.reshape(-1)[:1], a.reshape(-1)[0])
    ways += (np.stack([a, a]), np.resize(a, (*a.shape[:-1], 7) if a.ndim else (2,)), a.reshape((1,) * 20 + a.shape))
    return f"{_replaced(file, name, ways[i := int(rng.integers(len(ways)))])} in way {i}"


def _values(rng: Rng, file: h5py.File) -> str:
    name = pick(rng, numeric(file))
    a = np.array(file[name][()])
    bad = (np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-320, -1.0, 0.0, 2.0**53 + 2, 1e9, 0.5, 3e38, 2**31, -(2**63))
    value = bad[rng.integers(len(bad))]
    b = a.astype(np.float64)
    if rng.random() < 0.5 or not b.ndim:
        b[...] = value
    else:
        b.reshape(-1)[rng.integers(b.size)] = value
    keep = rng.random() < 0.3
    with np.errstate(all="ignore"):
        return f"{_replaced(file, name, b.astype(a.dtype) if keep else b)} = {value}"


def _huge(rng: Rng, file: h5py.File) -> str:
    """Entries that are declared and not there."""
    name = pick(rng, numeric(file) if rng.random() < 0.7 else _found(file, h5py.Dataset))
    old = file[name]
    axes, dtype, held = max(1, old.ndim), old.dtype, dict(old.attrs)
    shape = tuple(int(n) for n in rng.choice([10**12, 10**6, 10**4, 3], axes))
    shape = (10**12,) * axes if rng.random() < 0.3 and axes < 2 else (10**9, *shape[1:])
    del file[name]
    made = file.create_dataset(name, shape, dtype, chunks=tuple(min(n, 100) for n in shape))
    made.attrs.update(held)
    return f"{name} {shape}"


def _bomb(rng: Rng, file: h5py.File) -> str:
    """Zeros that were pressed to a thousandth."""
    name = pick(rng, numeric(file))
    old = file[name]
    kind, held, n = old.dtype, dict(old.attrs), int(rng.choice([3 * 10**7, 10**8, 10**9]))
    shape = (n, *[1] * (max(1, old.ndim) - 1)) if rng.random() < 0.5 else (*[1] * (max(1, old.ndim) - 1), n)
    del file[name]
    chunk = tuple(min(k, 4 << 20) for k in shape)
    made = file.create_dataset(name, shape, kind, chunks=chunk, compression="gzip")
    made.attrs.update(held)
    block = zlib.compress(b"\x00" * (int(np.prod(chunk)) * kind.itemsize), 9)
    axis = shape.index(n)
    for start in range(0, n, chunk[axis]):
        at = [0] * len(shape)
        at[axis] = start
        made.id.write_direct_chunk(tuple(at), block)
    return f"{name} {shape} {kind}"


def _linked(rng: Rng, file: h5py.File) -> str:
    groups = ["/", *_found(file, h5py.Group)]
    inside, to = pick(rng, groups), pick(rng, groups)
    kind = int(rng.integers(4))
    link: Any = (file[to], h5py.SoftLink(f"/{to}"), h5py.SoftLink("/nowhere/at/all"), h5py.ExternalLink("b.h5", "/"))[
        kind
    ]
    file[inside][("odd", "metadata", "weight")[rng.integers(3)]] = link
    return f"{inside} -> {to} by {kind}"


def _elsewhere(rng: Rng, file: h5py.File) -> str:
    """A part that lies in another file, which is there and would answer."""
    names = numeric(file)
    name, kind = pick(rng, names), int(rng.integers(3))
    a, folder = np.asarray(file[name][()]), Path(file.filename).parent
    with h5py.File(folder / "other.h5", "w") as other:
        other["part"] = a
    del file[name]
    if kind == 0:
        file[name] = h5py.ExternalLink("other.h5", "/part")
    elif kind == 1:
        (folder / "raw").write_bytes(a.tobytes())
        file.create_dataset(name, a.shape or (1,), a.dtype, external=[("raw", 0, a.nbytes)])
    else:
        layout = h5py.VirtualLayout(a.shape or (1,), a.dtype)
        layout[...] = h5py.VirtualSource("other.h5", "part", a.shape or (1,))
        file.create_virtual_dataset(name, layout)
    return f"{name} by {kind}"


def _nested(rng: Rng, file: h5py.File) -> str:
    group = file[pick(rng, ["/", *_found(file, h5py.Group)])]
    depth = int(rng.choice([30, 300, 3000]))
    for _ in range(depth):
        group = group.create_group("g")
    group["x"] = 1.0
    return f"{depth}"


def _many(rng: Rng, file: h5py.File) -> str:
    group = file[pick(rng, ["/", *_found(file, h5py.Group)])]
    for i in range(3000):
        group.create_group(f"many{i}")
    return group.name


def _attribute(rng: Rng, file: h5py.File) -> str:
    holders = [n for n in (*_found(file, h5py.Group), *_found(file, h5py.Dataset)) if len(file[n].attrs)]
    item = file[pick(rng, holders)]
    name = pick(rng, list(item.attrs))
    del item.attrs[name]
    way = int(rng.integers(9))
    values: list[Any] = ["text", np.nan, -5, 10**12, np.zeros(3), np.array([-1, 2]), h5py.Empty("f4"), b"\xff"]
    if way < len(values):
        item.attrs[name] = values[way]
    return f"{item.name}.{name} in way {way}"


def _edges(rng: Rng, file: h5py.File) -> str:
    old = file["node/edges"]
    pairs = [tuple(p) for p in old.asstr()[()]]
    a, b = pairs[rng.integers(len(pairs))]
    nowhere = ("x", "", "in/", "\x1b[2J", "é", "out")[rng.integers(6)]
    ways: list[Any] = [[(a, nowhere)], [(nowhere, b)], [(a, a)], [(b, a)], [(a, b)], [("out", "in")], [(b, b), (b, b)]]
    way = int(rng.integers(len(ways) + 5))
    if way < len(ways):
        value: Any = [*pairs, *ways[way]]
    else:
        value = ([], pairs[:-1], [a for a, _ in pairs], [(*p, "x") for p in pairs], [["", ""]])[way - len(ways)]
    del file["node/edges"]
    empty = np.zeros((0, 2), "S1")
    file.create_dataset("node/edges", data=value or empty, dtype=h5py.string_dtype() if value else None)
    return f"in way {way}"


def _kind(rng: Rng, file: h5py.File) -> str:
    """Another kind of node, or none."""
    names = [n for n in _found(file, h5py.Dataset) if n.endswith("type") and file[n].dtype.kind == "O"]
    kinds = ("Linear", "LIF", "NIRGraph", "Input", "Output", "Nothing", "", "EICircuit", "IntDense", "Flatten", "Delay")
    kind = kinds[rng.integers(len(kinds))]
    name = pick(rng, names)
    return f"{_replaced(file, name, kind, dtype=h5py.string_dtype())} = {kind!r}"


def _exchanged(rng: Rng, file: h5py.File) -> str:
    """A group in a dataset's place, or the other way round."""
    names = _found(file, h5py.Dataset) + _found(file, h5py.Group)
    name = pick(rng, names)
    dataset = isinstance(file[name], h5py.Dataset)
    del file[name]
    if dataset:
        file.create_group(name)
    else:
        file[name] = np.arange(3.0)
    return name


def _extra(rng: Rng, file: h5py.File) -> str:
    group = pick(rng, ["/", *_found(file, h5py.Group)])
    name = ("bias", "lower", "schema", "weight", "metadata", "dilation", "input_type", "nodes", "type_check")[
        rng.integers(9)
    ]
    value = (np.zeros(3), 2, "text", 10**12)[rng.integers(4)]
    file[group].create_dataset(name, data=value)
    return f"{group}/{name}"


HDF5: dict[str, Callable[[Rng, Path], str | None]] = {
    name: hdf5(edit)
    for name, edit in {
        "dropped": _dropped,
        "renamed": _renamed,
        "dtype": _dtype,
        "ragged": _ragged,
        "shape": _shape,
        "values": _values,
        "huge": _huge,
        "bomb": _bomb,
        "linked": _linked,
        "elsewhere": _elsewhere,
        "nested": _nested,
        "many": _many,
        "attribute": _attribute,
        "edges": _edges,
        "kind": _kind,
        "exchanged": _exchanged,
        "extra": _extra,
    }.items()
}
