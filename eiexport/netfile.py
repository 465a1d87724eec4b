"""lava-dl's network exchange files (`.net`, HDF5) as integer graphs: what its reader `netx` makes of them on Lava.

A file is a row of layers `/layer/<i>`: type, shape, weight, bias, delay, geometry, neuron/{type, iDecay, ...}. It is
read as by lava-dl 0.6.0: weights are whole numbers, shifted up to fill a synapse word and back again behind the sum;
neurons are IntCubaLIF with du = iDecay - 1, dv = vDecay, vth = vThMant and biases `mant << 6`; maps are (C, H, W).
What netx changes or ignores is done here too, and told in a note; what it cannot run is refused by name.

Hops are no part of the graph: it is what netx computes with `reset_interval` = the steps of a sample and `reset_offset`
= 1 (0 where the input has neurons), the n-th connection's neurons shifted back by n steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport.errors import GraphError
from eiexport.hdf5 import DAMAGE, damage, opened
from eiexport.integers import (
    ALIGN,
    TOP,
    IntConv,
    IntCubaLIF,
    IntDense,
    grid_limits,
    grid_step,
    sign_mode_of,
    synapse_words,
)
from eiexport.netlayers import GEOMETRY, LEAST, MOST, NEURON, WHOLE, Layer, geometry, held, load, shape_of, words_of
from eiexport.ops import Ints, Window

LONGEST = 62  # steps of delay; netx cuts longer ones
MANTISSA = 1 << 15  # Lava's neurons have their bias mantissas in int16
# netx's neurons for a dense layer that has none: u sums up its input, v = u, and nothing reaches the threshold
WITHOUT = {"iDecay": 0, "vDecay": 4096, "vThMant": 1 << 17}


def read_net(
    path: str | Path, input_message_bits: int | None = None, layers: int | None = None
) -> tuple[nir.NIRGraph, list[str]]:
    """Read a `.net` file: (graph with dt = 1 step, notes in words); raises GraphError in one line for anything else.

    input_message_bits: netx's argument of this name, which no file of lava-dl's holds: 0, and every message is a spike,
    or the width of graded input. None: the attribute of this name that our own files have, or 0. layers: netx's
    num_layers, to leave out what stands at the end.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"{path}: no such file; give a lava-dl network file (.net)")
    file = opened(path, GraphError)
    try:
        try:
            with file:
                loaded = load(file, layers)
        except DAMAGE as e:
            raise GraphError(damage(e)) from None
        found = loaded.message_bits if input_message_bits is None else input_message_bits
        if not 0 <= found <= 31:
            raise GraphError(f"input_message_bits = {found}; give 0 (spikes) to 31")
        row = _Row(found)
        for layer in loaded.layers:
            row.add(layer)
        graph = row.finished()
    except GraphError as e:
        raise GraphError(f"{path}: {e}") from None
    graph = graphs.stamp(graph, dt=1.0, integrator="euler", dtype="int32", read_from="lava-dl netx")
    return graph, [*row.notes(), *loaded.notes]


# --- the row of layers


@dataclass
class _Row:
    """The graph as far as it has been read. shape: what the last layer gives, None while nobody has told."""

    message_bits: int
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    at: str = "input"
    shape: Ints | None = None
    hops: int = 0
    fed: bool = False  # the input has neurons
    flatten: bool = False  # netx flattens before the next dense layer, wherever the flatten stands
    said: list[str] = field(default_factory=list)
    early: bool = False  # a bias lets neurons fire by itself
    carries: list[str] = field(default_factory=list)  # layers that hold spikes for later

    def add(self, layer: Layer) -> None:
        if layer.kind == "input":
            self._input(layer)
        elif layer.kind == "flatten":
            self.flatten = True
        elif layer.kind == "conv":
            self._conv(layer)
        else:
            self._dense(layer)

    def finished(self) -> nir.NIRGraph:
        if not self.hops and not self.fed:
            raise GraphError("it holds no layer with neurons")
        assert self.shape is not None
        self._node("output", nir.Output(output_type={"output": np.array(self.shape)}), self.at)
        return nir.NIRGraph(self.nodes, self.edges, type_check=False)

    def notes(self) -> list[str]:
        offset = 0 if self.fed else 1
        hops = f"layer n of {self.hops}" if self.hops > 1 else "it"
        found = [
            f"in netx {hops} answers {'n steps' if self.hops > 1 else 'a step'} later, latency {self.hops}; with "
            f"reset_interval = the steps of a sample and reset_offset = {offset} it computes this graph"
        ] * bool(self.hops)
        if self.carries:
            found.append(
                f"loops and delays ({', '.join(self.carries)}) bring in netx what the sample before has sent last, as "
                "its resets leave them out; here every sample starts from zero, as in netx with one sample a run"
            )
        if self.carries and self.early:
            found.append("positive biases act in netx before a sample's first step: spikes that they cause by then "
                         "come back through loops and delays there, and not here")  # fmt: skip
        return found + self.said

    def _node(self, name: str, node: Any, *sources: str) -> str:
        self.nodes[name] = node
        self.edges += [(s, name) for s in sources]
        return name

    def _say(self, layer: Layer, text: str) -> None:
        self.said.append(f"layer {layer.index} ({layer.kind}): {text}")

    # layers

    def _input(self, layer: Layer) -> None:
        if layer.index:
            raise layer.refuse("an input stands first in netx, which would leave what is before it unconnected")
        if "shape" in layer.data:
            self.shape = shape_of(layer)
            self._node("input", nir.Input(np.array(self.shape)))
        if layer.cell is None:
            return
        shape = tuple(int(n) for n in layer.need("shape"))
        if len(shape) not in (1, 3):
            raise layer.refuse(f"its shape is {shape}, and neurons of an input stand in (N) or (C, H, W)")
        scale = []
        for name, default in (("weight", 64), ("bias", 0)):
            given = self._whole(layer, name) if name in layer.data else np.array(default)
            if given.size != 1:
                raise layer.refuse(f"its {name} has shape {given.shape}, and netx takes one number")
            scale.append(int(given.reshape(-1)[0]))
        # their bias is the input in netx, so nothing reaches u; here u is the input, and keeps nothing of it
        cell = replace(self._neuron(layer, shape, np.array(0)), du=np.array(4095))
        self.at = self._node("neuron0", cell, "input")
        self.shape, self.fed, self.message_bits = shape, True, 0
        self._say(
            layer,
            "its neurons get the input as bias mantissa (netx connects nothing to them): whole numbers of 16 bits, "
            f"for a value x of the training {scale[0]} * x + {scale[1]}",
        )

    def _dense(self, layer: Layer) -> None:
        outputs = math.prod(shape_of(layer))
        raw = self._whole(layer, "weight")
        if raw.ndim == 1 and raw.size % outputs == 0:
            weight = raw.reshape(outputs, -1)
        else:
            weight = raw
        if weight.ndim != 2 or len(weight) != outputs:
            raise layer.refuse(f"weight has shape {raw.shape}, and its shape says {outputs} neurons")
        inputs = weight.shape[1]
        source = self._entered(layer, inputs)
        parts = [weight]
        if layer.kind == "dense_rec":
            back = self._whole(layer, "weight_rec")
            if raw.ndim == 1 and back.size == outputs**2:
                back = back.reshape(outputs, outputs)
            if back.shape != (outputs, outputs):
                raise layer.refuse(f"weight_rec has shape {back.shape}, not {(outputs, outputs)}")
            parts.append(back)
        parts = self._clipped(layer, parts)
        try:
            words = words_of(np.hstack(parts))
            lava = [held(part, words) for part in parts]
        except GraphError as e:
            raise layer.refuse(str(e)) from None
        for part, got in zip(parts, lava, strict=True):
            if (wrong := got != part << words.left).any():
                self._say(
                    layer,
                    f"netx computes with other weights than the file holds, {int(wrong.sum())} of {part.size}: it "
                    f"shifts them until one is -256, which Lava cuts to -255 where none is positive, and "
                    f"{int(part[wrong][0])} becomes {got[wrong][0] / 2**words.left + 0.0:g}; so does this graph",
                )
        delays, left = self._delays(layer, weight.shape), words.left
        if delays is not None and len(parts) > 1:
            if inputs != outputs:
                raise layer.refuse(
                    f"delays in a loop, and {inputs} inputs of {outputs} neurons; netx has the delays of "
                    "both in one matrix, which then does not fit: remove them"
                )
            left = 0
            if words.left:
                text = f"netx forgets the exponent of a loop with delays: all its weights count {1 << words.left} times"
                self._say(layer, text + ", here too")
        name = self._spikes(layer, (outputs,))
        joined = _Joined(f"dense{layer.index}", left, words.width, self.message_bits)
        self._connect(joined, lava[0], delays, 0, source, name)
        if len(parts) > 1:
            joined = joined._replace(name=f"loop{layer.index}", message_bits=0)
            self._connect(joined, lava[1], delays, 1, name, name)
        self._passed(name, (outputs,), [*["loop"] * (len(parts) > 1), *["delays"] * (delays is not None)], layer)

    def _conv(self, layer: Layer) -> None:
        if self.shape is None or len(self.shape) != 3:
            found = "no input layer says the shape of the map" if self.shape is None else f"it gets shape {self.shape}"
            raise layer.refuse(f"{found}, and a convolution takes (C, H, W)")
        weight, shape = self._whole(layer, "weight"), shape_of(layer)
        if weight.ndim == 5 and weight.shape[4] == 1:
            weight = weight[..., 0]
        if weight.ndim != 4 or len(shape) != 3:
            raise layer.refuse(
                f"weight has shape {weight.shape} and the layer {shape}; expected (O, I, kH, kW), (C, H, W)"
            )
        if max(-int(weight.min()), int(weight.max())) > TOP:
            raise layer.refuse("its weights leave 24 bits; export the network again, quantised")
        groups = geometry(layer, "groups", 1, alone=True)[0]
        if weight.shape[1] * groups != self.shape[0] or len(weight) % groups:
            raise layer.refuse(f"weight of shape {weight.shape} in {groups} groups does not fit {self.shape}")
        stride, padding, dilation = (
            geometry(layer, name, least) for name, least in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        if max(weight.shape[2:]) > GEOMETRY:
            raise layer.refuse(f"kernel {weight.shape[2:]}, and Lava's Conv has at most {GEOMETRY}")
        size = Window(stride, padding, dilation, groups).output(self.shape[1:], weight.shape[2:])
        if (len(weight), *size) != shape:
            raise layer.refuse(f"it gives {(len(weight), *size)} from {self.shape}, and the file says {shape}")
        if "delay" in layer.data:
            self._say(layer, "netx ignores the delays of convolutions, here too")
        mode, exponent = sign_mode_of(weight), 0
        if mode == "mixed" and (weight % 2).any() and weight.min() >= LEAST // 2 and weight.max() <= MOST // 2:
            weight, exponent = weight << 1, -1  # mixed words of 8 bits are even
        lo, hi = grid_limits(8, mode)
        if weight.min() < lo or weight.max() > hi or (weight % grid_step(8, mode)).any():
            text = f"weights of {weight.min()} to {weight.max()} fit no synapse word of 8 bits; Lava's Conv takes them"
            self._say(layer, text + " as they are, a chip does not")
        connection = IntConv(
            weight.astype(np.int32),
            np.zeros(len(weight), np.int32),
            *(np.array(g) for g in (stride, padding, dilation)),
            groups=groups,
            weight_exp=exponent,
            sign_mode=mode,
            message_bits=self.message_bits,
        )
        self._node(f"conv{layer.index}", connection, self.at)
        name = self._spikes(layer, shape)
        self.edges.append((f"conv{layer.index}", name))
        self._passed(name, shape, [], layer)

    # parts of layers

    def _whole(self, layer: Layer, name: str) -> np.ndarray:
        """A dataset that netx casts to whole numbers, cutting fractions off."""
        a = layer.need(name)
        if a.dtype.kind == "f":
            if not np.isfinite(a).all():
                raise layer.refuse(f"{name} holds NaN or infinite values; train again or repair the file")
            if (a != (cut := np.trunc(a))).any():
                self._say(layer, f"netx cuts the fractions off its {name}: was the network exported unquantised?")
            a = cut
        if max(-float(a.min()), float(a.max())) >= 1 << 31:
            raise layer.refuse(f"{name} holds {float(np.abs(a).max()):g}, which 32 bits do not hold")
        return a.astype(np.int64)

    def _clipped(self, layer: Layer, parts: list[np.ndarray]) -> list[np.ndarray]:
        lo, hi = (int(f([f(p) for p in parts])) for f in (np.min, np.max))
        if not (lo < 0 < hi and (lo < LEAST or hi > MOST)):
            return parts
        self._say(layer, f"netx clips its weights of {lo} to {hi} to {LEAST}..{MOST}, here too")
        return [np.clip(p, LEAST, MOST) for p in parts]

    def _entered(self, layer: Layer, inputs: int) -> str:
        """The node that a dense layer reads, flat."""
        flatten, self.flatten = self.flatten, False
        first = not self.fed and not self.hops
        if self.shape is None:
            self.shape = (inputs,)
            self._node("input", nir.Input(np.array(self.shape)))
        if math.prod(self.shape) != inputs:
            raise layer.refuse(f"its weights take {inputs} inputs, and {self.shape} comes in")
        if len(self.shape) == 1:
            if flatten and not first:
                raise layer.refuse("a flatten stands before it, which netx can only do to maps; remove it")
            return self.at
        if first and not flatten:
            self.nodes["input"] = nir.Input(np.array([inputs]))
            self._say(layer, f"no flatten stands before it, and netx takes its input as {inputs} values in a row")
            return self.at
        if not flatten:
            raise layer.refuse(f"it gets a map {self.shape}, which netx does not connect: put a flatten before it")
        if len(self.shape) != 3:
            raise layer.refuse(f"netx flattens (C, H, W), and {self.shape} comes in")
        node = nir.Flatten({"input": np.array(self.shape)}, 0, -1)
        return self._node(f"flatten{layer.index}", node, self.at)

    def _delays(self, layer: Layer, shape: Ints) -> np.ndarray | None:
        """Steps of each synapse (O, I) beyond the hop, as netx spreads and cuts them; None without delays."""
        if "delay" not in layer.data:
            return None
        delay = layer.data["delay"]
        if delay.dtype.kind == "f" and not np.isfinite(delay).all():
            raise layer.refuse("delay holds NaN or infinite values")
        if delay.max() > LONGEST:
            self._say(layer, f"netx cuts its delays of up to {float(delay.max()):g} steps to {LONGEST}, here too")
            delay = np.clip(delay, 0, LONGEST)
        steps = np.trunc(delay.astype(np.float64)).astype(np.int64)
        if steps.min() < 0:
            raise layer.refuse(f"it has a delay of {int(steps.min())} steps; delays are 0 or more")
        if steps.shape == shape[:1]:  # of its neurons, also where there are as many inputs
            steps = steps[:, None]
        elif steps.shape not in ((), shape[1:], shape):
            raise layer.refuse(f"delay has shape {steps.shape}, and weight {shape}")
        return np.broadcast_to(steps, shape)

    def _connect(
        self, made: _Joined, words: np.ndarray, delays: np.ndarray | None, more: int, source: str, sink: str
    ) -> None:
        """A matrix of synapse words between two nodes, `more` steps beside the delays."""
        for i, (steps, part) in enumerate(_branches(words, delays, more, made.left)):
            name, start = f"{made.name}_{i}" if i else made.name, source
            if np.any(steps):
                delay = np.broadcast_to(steps, part.shape[1:]).astype(float)
                start = self._node(f"{name}_delay", nir.Delay(delay), source)
            for j, (weight, mode, bits) in enumerate(_words_of_8_bits(part, sign_mode_of(words), made.width)):
                node = IntDense(
                    weight, np.zeros(len(weight), np.int32), -made.left, bits, mode, message_bits=made.message_bits
                )
                self.edges.append((self._node(f"{name}_odd" if j else name, node, start), sink))

    def _spikes(self, layer: Layer, shape: Ints) -> str:
        """The neurons of a layer, with their bias; they get their edges later."""
        bias = np.array(0)
        if "bias" in layer.data:
            whole = self._whole(layer, "bias")
            bias = (whole + MANTISSA) % (2 * MANTISSA) - MANTISSA
            if (bias != whole).any():
                worst = int(whole[bias != whole].reshape(-1)[0])
                self._say(layer, f"Lava keeps 16 bits of a bias: {worst} wraps round there, here too")
            bias = self._spread(layer, "bias", bias, shape)
        self.early |= bool((bias > 0).any())
        name = f"neuron{layer.index}"
        self.nodes[name] = self._neuron(layer, shape, bias)
        return name

    def _neuron(self, layer: Layer, shape: Ints, bias: np.ndarray) -> IntCubaLIF:
        if layer.cell is None:
            if layer.kind == "conv":
                raise layer.refuse("it has no neurons (no group 'neuron'), which netx gives to dense layers alone")
            self._say(layer, "it has no neurons, for which netx takes some that sum up their input and never fire")
        cell = {k: np.array(v) for k, v in WITHOUT.items()} if layer.cell is None else layer.cell
        p = {}
        for name, (lo, hi) in NEURON.items():
            if name not in cell:
                raise layer.refuse(f"its neurons have no {name}, which netx needs; export the network again")
            a = cell[name]
            if a.dtype.kind not in "iu":
                raise layer.refuse(f"neuron/{name} is {a.dtype}, and netx shifts its bits: store whole numbers (int64)")
            if int(a.min()) < lo or int(a.max()) > hi:
                raise layer.refuse(f"neuron/{name} must lie in {lo} to {hi}, found {int(a.min())} to {int(a.max())}")
            worst = max(-int(a.min()), int(a.max())) << ALIGN if name == "vThMant" else 0
            if worst > np.iinfo(a.dtype).max or (a.dtype.kind == "u" and name == "iDecay" and a.min() == 0):
                raise layer.refuse(f"neuron/{name} overflows in netx, which computes in its {a.dtype}: store int64")
            p[name] = self._spread(layer, f"neuron/{name}", a.astype(np.int64), shape)
        if layer.cell is not None and p["vThMant"].min() > TOP >> ALIGN:
            self._say(layer, "its threshold is above all that a membrane holds: it never fires, read its membrane v")
        for name, plain, what in (
            ("refDelay", 1, "refractory delay"),
            ("gradedSpike", 0, "graded spikes"),
            ("weight_exp", 0, "weight_exp"),
        ):
            if np.any(cell.get(name, plain) != plain):
                self._say(layer, f"netx ignores the {what} of its neurons, here too")
        vth = np.broadcast_to(p["vThMant"], shape).astype(np.int32)
        return IntCubaLIF(vth, p["iDecay"] - 1, p["vDecay"], bias, np.array(ALIGN))

    def _spread(self, layer: Layer, name: str, a: np.ndarray, shape: Ints) -> np.ndarray:
        """One number, or an array of the neuron shape, as netx spreads what it has for (O) or (W, H, C)."""
        if a.size == 1 and a.ndim < 2 and not (name == "bias" and len(shape) == 3 and a.shape != shape[:1]):
            return a.reshape(())
        if a.shape == shape[:1]:
            return np.broadcast_to(a.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()
        if len(shape) == 3 and a.shape == shape[::-1]:
            return a.transpose(2, 1, 0).copy()
        wanted = f"({shape[0]},)" + (f" or {shape[::-1]}, which is (W, H, C)" if len(shape) == 3 else "")
        raise layer.refuse(f"{name} has shape {a.shape}; netx takes {wanted}")

    def _passed(self, name: str, shape: Ints, holds: list[str], layer: Layer) -> None:
        self.at, self.shape, self.message_bits = name, shape, 0
        self.hops += 1
        self.carries += [f"{what} of layer {layer.index}" for what in holds]


class _Joined(NamedTuple):
    """What the branches of a connection share."""

    name: str
    left: int
    width: int
    message_bits: int


def _branches(
    words: np.ndarray, delays: np.ndarray | None, more: int, left: int
) -> Iterator[tuple[np.ndarray | int, np.ndarray]]:
    """(steps, words): a Delay of inputs where each has one, else the matrix in parts of one delay each.

    Lava shifts the sums of each delay apart, which makes a difference where the shift drops bits.
    """
    if delays is None:
        yield more, words
    elif (delays == delays[0]).all() and not (words % (1 << left)).any():
        yield delays[0] + more, words
    else:
        found = np.unique(delays[words != 0])
        if len(found) * words.size > WHOLE:
            raise GraphError(f"its {words.shape} weights have {len(found)} different delays, too many to keep apart")
        for steps in found if len(found) else [0]:
            yield int(steps) + more, np.where(delays == steps, words, 0)


def _words_of_8_bits(words: np.ndarray, mode: str, width: int) -> Iterator[tuple[np.ndarray, str, int]]:
    """(words, sign mode, bits): Lava has mixed words of 8 bits and a sign, a synapse one bit less: some are split."""
    bits = width if 1 <= width <= 8 else 8
    if (synapse_words(words, bits, mode) == words).all():
        yield words, mode, bits
        return
    if (synapse_words(words, 8, mode) == words).all():
        yield words, mode, 8
        return
    yield words & ~1, mode, 8
    yield words & 1, "excitatory", 8
