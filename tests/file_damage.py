"""Ways to damage a file: its bytes, its HDF5 structure, its JSON, its tensors; and whether an answer is the file's.

`damage` takes a random number generator, so a number names a damaged file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from file_hdf5 import HDF5, numeric, pick

Rng = np.random.Generator
TARGETS = {"trace": "net.nir", "input trace": "x.h5", "npy": "x.npy", "compare": "a.h5", "net": "net.net"}
TARGETS |= {"checkpoint": "best.safetensors", "integer checkpoint": "best.safetensors"}
TARGETS |= {"config": "config.json", "plan": "plan.json"}


def damage(rng: Rng, source: str, case: Path) -> tuple[Path, str]:
    """Damage one file of a case; (the file, what was done)."""
    path = case / TARGETS.get(source, "net.nir")
    kinds = {".nir": HDF5, ".h5": HDF5, ".net": HDF5, ".json": JSON, ".safetensors": TENSORS, ".npy": ARRAY}
    special, general = kinds[path.suffix], BYTES
    ways = special if rng.random() < 0.75 else general
    name = list(ways)[rng.integers(len(ways))]
    try:
        told = ways[name](rng, path) or ""
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as e:
        # not everything can be done to every file: then bytes are flipped
        name, told = "flipped", f"{BYTES['flipped'](rng, path)} (no {name}: {type(e).__name__})"
    return path, f"{name}: {told}"


# --- bytes


def _flipped(rng: Rng, path: Path) -> str:
    data = bytearray(path.read_bytes())
    at = rng.integers(0, len(data), rng.integers(1, 12))
    if rng.random() < 0.5:  # structure stands at the start
        at %= 2048
    for i in at % len(data):
        data[i] ^= 1 << rng.integers(8) if rng.random() < 0.5 else rng.integers(1, 256)
    path.write_bytes(data)
    return str(sorted(map(int, at)))


def _truncated(rng: Rng, path: Path) -> str:
    data = path.read_bytes()
    keep = int(rng.integers(0, len(data)))
    path.write_bytes(data[:keep])
    return f"to {keep} of {len(data)}"


def _block(rng: Rng, path: Path) -> str:
    data = bytearray(path.read_bytes())
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 400))
    fill = rng.choice([0, 255, -1])
    block = rng.bytes(size) if fill < 0 else bytes([fill]) * size
    data[at : at + size] = block
    path.write_bytes(data)
    return f"{size} at {at} are {fill}"


def _grown(rng: Rng, path: Path) -> str:
    data = path.read_bytes()
    at = int(rng.integers(len(data)))
    path.write_bytes(data[:at] + rng.bytes(int(rng.integers(1, 100))) + data[at:])
    return f"at {at}"


def _other(rng: Rng, path: Path) -> str:
    contents = (
        b"",
        b"\x00" * 4096,
        b"PK\x03\x04" + rng.bytes(500),
        b"\x89HDF\r\n\x1a\n" + rng.bytes(800),
        b"{}",
        b"\xff\xfe",
    )
    path.write_bytes(contents[i := int(rng.integers(len(contents)))])
    return f"content {i}"


BYTES: dict[str, Callable[[Rng, Path], str | None]] = {
    "flipped": _flipped,
    "truncated": _truncated,
    "block": _block,
    "grown": _grown,
    "other content": _other,
}

# --- JSON

ODD = (
    "null",
    '"text"',
    "[]",
    "{}",
    "true",
    "-1",
    "0",
    "1e999",
    "NaN",
    "-Infinity",
    "1e300",
    "9" * 400,
    "9" * 5000,
    "0.5",
)
ODD += ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, '"' + "x" * 10**6 + '"', "1000000000")
ODD += ('"\\ud800"', '"1e3"', "[1, 2, 3]", '[["a"]]', "100000", '"9C3-P2-99999999999-10"', '"/etc"', "-0.0", '""')


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inside for p in _paths(v, (*path, k)))]


def _json(rng: Rng, text: str) -> tuple[str, str]:
    """JSON text with one value replaced, dropped or added."""
    value = json.loads(text)
    path = (paths := _paths(value))[rng.integers(1, len(paths))]
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    way = int(rng.integers(len(ODD) + 4))
    if way < len(ODD):
        holder[path[-1]] = "@@odd@@"
        return json.dumps(value).replace('"@@odd@@"', ODD[way]), f"{path} = {ODD[way][:20]}"
    if way == len(ODD):
        holder["@extra"] = 1
    else:
        del holder[path[-1]]
    return json.dumps(value), f"{path} is gone"


def _value(rng: Rng, path: Path) -> str:
    text, told = _json(rng, path.read_text())
    path.write_text(text)
    return told


def _top(rng: Rng, path: Path) -> str:
    path.write_text(ODD[i := int(rng.integers(len(ODD)))])
    return f"all of it = {ODD[i][:20]}"


JSON: dict[str, Callable[[Rng, Path], str | None]] = dict.fromkeys(("value", "another value", "third value"), _value)
JSON["top"] = _top

# --- safetensors and .npy


def _header(rng: Rng, path: Path) -> str:
    """The JSON at the head of the tensors: their types, shapes and places."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    text, told = _json(rng, data[8 : 8 + size].decode())
    raw = text.encode("utf8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])
    return told


def _meta(rng: Rng, path: Path) -> str:
    """What the training noted beside the tensors."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8 : 8 + size])
    head["__metadata__"]["eitrain"], told = _json(rng, head["__metadata__"]["eitrain"])
    raw = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])
    return told


def _length(rng: Rng, path: Path) -> str:
    data = path.read_bytes()
    size = (0, 1, 2**63, 2**64 - 1, len(data), 10**9)[rng.integers(6)]
    path.write_bytes(struct.pack("<Q", size) + data[8:])
    return f"header of {size}"


def _tensor(rng: Rng, path: Path) -> str:
    import safetensors.torch
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118
    name, way = pick(rng, sorted(tensors)), int(rng.integers(9))
    t = tensors[name]
    ways = (
        lambda: t.to(torch.float16),
        lambda: t.to(torch.int64),
        lambda: t.to(torch.bool),
        lambda: t.reshape(-1).clone(),
    )
    ways += (
        lambda: t[..., :0].clone() if t.ndim else t,
        lambda: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
    )
    ways += (lambda: torch.full_like(t, 1e30) if t.is_floating_point() else t * 0 - 1, lambda: torch.zeros(1, *t.shape))
    if way < len(ways):
        tensors[name] = ways[way]().contiguous()
    else:
        tensors["extra" if rng.random() < 0.5 else name + ".x"] = tensors.pop(name)
    path.write_bytes(safetensors.torch.save(tensors, meta))
    return f"{name} in way {way}"


TENSORS: dict[str, Callable[[Rng, Path], str | None]] = {
    "header": _header,
    "meta": _meta,
    "length": _length,
    "tensor": _tensor,
}


def _array(rng: Rng, path: Path) -> str:
    a = np.load(path)
    ways = (
        a.astype("U5"),
        a.astype(complex),
        a[0],
        a[:0],
        a[:, :0],
        a[..., :1],
        a.astype(bool),
        a.astype(object),
        a * np.nan,
    )
    ways += (a * 1e300, np.zeros(a.shape, [("a", "f8")]), a.astype(">f4"), np.asfortranarray(a), a.astype("M8[s]"))
    np.save(path, ways[i := int(rng.integers(len(ways)))], allow_pickle=True)
    return f"in way {i}"


def _head(rng: Rng, path: Path) -> str:
    """The header of a .npy says something else."""
    shapes = (
        "(10**12,)",
        "(1000000000000,)",
        "(-1, 2, 3)",
        "(2, 2, 3, 1)",
        "()",
        "'x'",
        "(" * 90,
        "(2.5, 3)",
        "None",
        "(True,)",
    )
    kinds = ("'<f8'", "'|O'", "'<U99999999'", "[('a', '<f8')]", "'<f99'", "None", "'|V0'", "'<c16'")
    shape, kind = shapes[rng.integers(len(shapes))], kinds[rng.integers(len(kinds))]
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + rng.bytes(192))
    return f"{kind} {shape[:20]}"


ARRAY: dict[str, Callable[[Rng, Path], str | None]] = {"array": _array, "head": _head}


# --- is an answer the file's?


def wrong(source: str, case: Path) -> str:
    """What a run that succeeded held otherwise than its file says, or nothing. Read with h5py alone."""
    if source == "input trace":
        with h5py.File(case / "x.h5") as a, h5py.File(case / "out" / "input.h5") as b:
            name = "in" if "in" in a["nodes"] else next(iter(a["nodes"]))
            x, y = (f["nodes"][n]["observables/z/data"] for f, n in ((a, name), (b, next(iter(b["nodes"])))))
            same = np.array_equal(np.asarray(x[:2]).reshape(y.shape).astype(np.float64), y[()].astype(np.float64))
            return "" if same else "the input that ran is not the file's"
    if not (case / "net.nir").exists() or not (case / "out" / "model.nir").exists():
        return ""
    with h5py.File(case / "net.nir") as a, h5py.File(case / "out" / "model.nir") as b:
        for name in numeric(a):
            if not name.startswith("node/nodes/") or name.split("/")[-1] in DERIVED or "metadata" in name.split("/"):
                continue
            if name not in b:
                return f"{name} was left out of the graph that ran"
            x, y = np.asarray(a[name][()], np.float64), np.asarray(b[name][()], np.float64)
            alike = x.size == y.size and np.array_equal(x.reshape(-1), y.reshape(-1))
            if not alike and not (x.size == 1 and (y == x.reshape(-1)[0]).all()):
                return f"{name} is not the file's in the graph that ran"
    return ""


DERIVED = ("input_type", "output_type", "input_shape", "schema", "input", "output")
