"""The layers of a lava-dl network file as they stand there, and how its reader `netx` fits weights into synapses.

Every dataset is looked at before it is read: a file that declares more than it should holds no memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import h5py
import numpy as np

from eiexport.errors import GraphError
from eiexport.integers import sign_mode_of, synapse_words
from eiexport.ops import Ints

ENTRIES, WHOLE = 1 << 25, 1 << 26  # numbers of a dataset, and of a file
NEURONS, LAYERS = 1 << 22, 4096
LEAST, MOST = -256, 254  # what netx clips weights of both signs to
GEOMETRY = 127  # Lava's Conv holds its geometry in int8
KINDS = ("input", "flatten", "dense", "dense_rec", "conv")
RAISES = ("pool", "convT", "unpool", "average", "concat", "dense_comp")  # in netx; other names it skips
NEURON = {"iDecay": (0, 4096), "vDecay": (0, 4096), "vThMant": (-(1 << 24), 1 << 24)}


class Words(NamedTuple):
    """The synapse words of a weight matrix: netx shifts weights up by `left` and asks for `width` bits of 8."""

    left: int
    width: int


def words_of(weight: np.ndarray) -> Words:
    """How netx fits whole weights into synapse words; all of them, those of a loop beside the others.

    The largest weight shall fill 8 bits, or 8 and a sign; low bits that no weight uses are saved. Raises GraphError for
    all zeros, and where the shift would be negative, which NumPy does not define.
    """
    lo, hi = int(weight.min()), int(weight.max())
    if lo == hi == 0:
        raise GraphError("all its weights are 0, for which netx finds no exponent; remove the layer")
    signed = hi >= 0 > lo
    room = min(127 / hi if hi else math.inf, -128 / lo) if signed else -256 / lo if lo < 0 else 255 / hi
    left = math.floor(math.log2(room)) + signed
    if left < 0:
        raise GraphError(
            f"its weights of {lo} to {hi} do not fit netx's synapse words, which hold {LEAST} to {MOST}, or 0 to 255 "
            "without negative ones; scale them down"
        )
    used = int(np.bitwise_or.reduce(weight.astype(np.int64), axis=None))
    free = min(8, (used & -used).bit_length() - 1)
    return Words(left, 8 - left - (free - signed))


def held(part: np.ndarray, words: Words) -> np.ndarray:
    """The words that Lava holds for a part of the weights, still shifted up; it tells each part's sign mode itself."""
    shifted = part.astype(np.int64) << words.left
    mode = sign_mode_of(shifted)
    if not 0 <= words.width <= 8 + (mode == "mixed"):
        raise GraphError(
            f"netx asks for words of {words.width} bits for weights of {int(part.min())} to {int(part.max())}, "
            "which have one sign; scale the weights down"
        )
    return synapse_words(shifted, words.width, mode).astype(np.int32)


# --- the file


@dataclass
class Layer:
    """A layer as it stands in the file. cell: datasets of its neurons, None without neurons."""

    index: int
    kind: str
    data: dict[str, np.ndarray]
    cell: dict[str, np.ndarray] | None

    def refuse(self, why: str) -> GraphError:
        return GraphError(f"layer {self.index} ({self.kind}): {why}")

    def need(self, name: str) -> np.ndarray:
        if name not in self.data:
            raise self.refuse(f"it has no dataset {name!r}, which netx needs; export the network again")
        return self.data[name]


class Loaded(NamedTuple):
    layers: list[Layer]
    message_bits: int
    notes: list[str]


def load(file: h5py.File, most: int | None) -> Loaded:
    """All datasets that netx reads, each looked at before it is read."""
    group = file.get("layer")
    if not isinstance(group, h5py.Group) or len(group) == 0:
        kind = " (it holds 'node': is it a .nir file?)" if "node" in file else ""
        raise GraphError(f"an HDF5 file, but no network of lava-dl: no group 'layer' with layers{kind}")
    if len(group) > LAYERS:
        raise GraphError(f"it has {len(group)} layers, more than {LAYERS}")
    count = len(group) if most is None else min(most, len(group))
    if count < 1:
        raise GraphError(f"layers = {most}; give at least 1")
    if missing := [i for i in range(count) if not isinstance(group.get(str(i)), h5py.Group)]:
        raise GraphError(f"group 'layer' has {len(group)} entries and no layer {missing[0]}; layers are 0, 1, 2, ...")
    kinds = [_text(group[str(i)], f"layer {i}") for i in range(count)]
    for i, kind in enumerate(kinds):
        if kind not in KINDS:
            last = f"; netx leaves it out with num_layers={i}" if i == count - 1 else ""
            why = "netx does not run it" if kind in RAISES else "netx skips it without a word"
            raise GraphError(f"layer {i} ({kind}): {why}, it has {', '.join(KINDS)}{last}")
    budget = [WHOLE]
    layers = [_layer(group[str(i)], i, kind, budget) for i, kind in enumerate(kinds)]
    bits = file.attrs.get("input_message_bits", 0)
    if not np.isscalar(bits) or not isinstance(bits, int | np.integer):
        raise GraphError("attribute 'input_message_bits' is no whole number")
    notes = []
    steps = file.get("simulation/tSample")
    if isinstance(steps, h5py.Dataset) and steps.shape in ((), (1,)) and steps.dtype.kind in "iu":
        notes.append(f"made for samples of {int(np.ravel(steps[()])[0])} steps")
    return Loaded(layers, int(bits), notes)


def _layer(group: h5py.Group, index: int, kind: str, budget: list[int]) -> Layer:
    where = f"layer {index} ({kind})"
    names = ["shape", "weight", "bias"] + (["delay"] if kind != "input" else [])
    names += ["weight_rec"] if kind == "dense_rec" else []
    names += ["stride", "padding", "dilation", "groups"] if kind == "conv" else []
    cell = None
    if "neuron" in group and kind != "flatten":
        neuron = group["neuron"]
        if not isinstance(neuron, h5py.Group):
            raise GraphError(f"{where}: 'neuron' is no group")
        model = _text(neuron, f"{where}: its neurons")
        if model not in ("CUBA", "LOIHI"):
            raise GraphError(f"{where}: its neurons are {model!r}, and read are those of type CUBA (or LOIHI)")
        if "messageBits" in neuron:
            raise GraphError(
                f"{where}: neuron/messageBits, with which netx 0.6.0 fails; its CUBA neurons send spikes: remove it"
            )
        wanted = [*NEURON, "refDelay", "gradedSpike", "weight_exp"]
        cell = {n: _numbers(neuron, n, where, budget) for n in wanted if n in neuron}
    if isinstance(group.get("weight"), h5py.Group):
        raise GraphError(f"{where}: complex weights, which netx has for resonators (RF) alone; CUBA takes real ones")
    data = {n: _numbers(group, n, where, budget) for n in names if n in group} if kind != "flatten" else {}
    return Layer(index, kind, data, cell)


def _text(group: h5py.Group, where: str) -> str:
    """Dataset `type`: one string, or an array of which netx takes the first."""
    held = group.get("type")
    if not isinstance(held, h5py.Dataset) or held.shape not in ((), (1,)) or held.dtype.kind not in "SO":
        raise GraphError(f"{where}: no dataset 'type' that is one string; export the network again")
    if held.dtype.itemsize > 256:
        raise GraphError(f"{where}: 'type' is a string of {held.dtype.itemsize} bytes")
    value = np.ravel(held[()])[0] if held.shape else held[()]
    text = value.decode("ascii") if isinstance(value, bytes) else str(value)
    return text if text.isprintable() and len(text) < 64 else repr(text)[:64]


def _numbers(group: h5py.Group, name: str, where: str, budget: list[int]) -> np.ndarray:
    """A numeric dataset; refused before it is read where it is no numbers, or too many of them."""
    found = group[name]
    label = f"{where}: dataset {name!r}"
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "biuf":
        kind = found.dtype if isinstance(found, h5py.Dataset) else type(found).__name__
        raise GraphError(f"{label} is {kind}, not numbers; export the network again")
    size = math.prod(found.shape)
    if size == 0 or len(found.shape) > 5:
        raise GraphError(f"{label} has shape {found.shape}; every axis needs at least one entry, and 5 axes are most")
    budget[0] -= size
    if size > ENTRIES or budget[0] < 0 or math.prod(found.chunks or ()) > ENTRIES:
        raise GraphError(f"{label} has shape {found.shape}: more than {ENTRIES} numbers, or {WHOLE} in the file")
    return np.asarray(found[()])


def shape_of(layer: Layer) -> Ints:
    a = layer.need("shape")
    if a.dtype.kind not in "iu" or a.ndim > 1 or a.min() < 1 or math.prod(int(n) for n in a.reshape(-1)) > NEURONS:
        raise layer.refuse(f"shape is {a.reshape(-1)[:5].tolist()}; expected 1 to {NEURONS} neurons as whole numbers")
    return tuple(int(n) for n in a.reshape(-1))


def geometry(layer: Layer, name: str, least: int, alone: bool = False) -> Ints:
    """(H, W) of the window, from one number or two; alone: one number."""
    a = layer.need(name)
    if a.dtype.kind not in "iu" or a.shape not in (((),) if alone else ((), (2,))):
        wanted = "one whole number" if alone else "one whole number or two"
        raise layer.refuse(f"{name} has shape {a.shape} and type {a.dtype}; netx takes {wanted}")
    if a.min() < least or a.max() > GEOMETRY:
        raise layer.refuse(f"{name} = {a.tolist()}; Lava's Conv takes {least} to {GEOMETRY}")
    return tuple(int(n) for n in np.broadcast_to(a.reshape(-1), 2))
