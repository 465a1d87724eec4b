"""Builds a planned network from Lava's processes and our own. Runs inside Lava's environment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lava.magma.core.model.py.type import LavaPyType
from lava.proc.conv.models import AbstractPyConvModel
from lava.proc.conv.process import Conv as LavaConv
from lava.proc.dense.process import Dense as LavaDense
from lava.proc.lif.process import LIFReset

from eiexport.connections import Conv, Dense, Flatten, Pool
from eiexport.graph import Network
from eiexport.neurons import Delay, GatedFire, LeakyFire, SynapseFire, Threshold
from eiexport.ops import Ints, Window
from eiexport.steps import Neuron, Step
from targets.lava.plan import CUSTOM, OPS, STOCK, Plan, hop, message_bits
from targets.lava.processes.delay import DelayLine
from targets.lava.processes.neuron import StepGated, StepMap, StepNeuron
from targets.lava.processes.player import Player
from targets.lava.processes.recorder import Recorder

# Lava's Conv holds its geometry in int8, which NumPy 2 no longer widens beside an image of more than 127 pixels.
for _field in ("kernel_size", "stride", "padding", "dilation", "groups"):
    setattr(AbstractPyConvModel, _field, LavaPyType(np.ndarray, np.int32))

View = tuple[tuple[str, Ints], ...]  # methods of a port, in order: ("reshape", shape), ("transpose", axes)
TURN: View = (("transpose", (2, 1, 0)),)  # (C, H, W) to Lava's (W, H, C), and back


class Placed(NamedTuple):
    """A process with its ports, and the views that lead from and to the shapes of the graph."""

    process: Any
    inp: Any
    out: Any
    enter: View = ()
    leave: View = ()


class Build:
    """One network as connected processes: a node's model step t of sample k is engine step k * period + t + latency.

    Edges into one node become ports connected to one port, which Lava sums.
    """

    def __init__(self, network: Network, plan: Plan, steps: int, inputs: Path) -> None:
        self.network, self.plan, self.period = network, plan, steps
        self._lines: dict[tuple[str, int], DelayLine] = {}
        self.player = Player(inputs)
        self._placed = {network.input: Placed(self.player, None, self.player.out)}
        rest = [n for n in plan.process if n != network.input]
        self._placed |= {n: self._place(n, network.steps[n]) for n in rest}
        for name in rest:
            placed = self._placed[name]
            for port in self._arriving(name):
                _view(port, placed.enter).connect(placed.inp)

    @property
    def processes(self) -> dict[str, str]:
        """The kind of process that each node got, read off the process itself."""
        modules = {n: type(p.process).__module__ for n, p in self._placed.items()}
        return {n: STOCK if m.startswith("lava.") else CUSTOM for n, m in modules.items()}

    def record(self, name: str, path: Path, samples: int) -> None:
        """Write a node's output to a file (samples * steps, *neuron), int8 for spikes, without its constant."""
        spikes = self.network.alphabets[name].kind in ("binary", "ternary") and not self.plan.leaving[name].any()
        steps, latency = samples * self.period, self.plan.latency[name]
        recorder = Recorder(path, self.network.shapes[name], steps, latency, "int8" if spikes else "float64")
        for port in self._ports(name):
            port.connect(recorder.inp)

    def _ports(self, name: str) -> Iterator[Any]:
        """Ports, in the graph's shape, whose sum is a node's output without its constant."""
        if name in self._placed:
            yield _view(self._placed[name].out, self._placed[name].leave)
            return
        flat = isinstance(self.network.steps[name], Flatten)
        views: View = (("reshape", self.network.shapes[name]),) if flat else ()
        yield from (_view(port, views) for port in self._arriving(name))

    def _arriving(self, name: str) -> Iterator[Any]:
        """Ports that feed a node, the early ones held back until they meet the others."""
        due = self.plan.arrival(self.network, name)
        for source in self.network.sources[name]:
            slack = due - self.plan.latency[source]
            if not slack:
                yield from self._ports(source)
                continue
            if (source, slack) not in self._lines:
                line = self._lines[source, slack] = DelayLine(self.network.shapes[source], slack)
                for port in self._ports(source):
                    port.connect(line.inp)
            yield self._lines[source, slack].out

    def _place(self, name: str, step: Step) -> Placed:
        shape, plan = self.network.input_shape(name), self.plan
        if hop(step):
            return _connection(step, shape, plan.gain.get(name, 1.0), message_bits(self.network, plan, name))
        if isinstance(step, Delay):
            return self._delay(name, step, shape)
        if plan.process[name] == STOCK:
            return self._lif(name, step, shape)
        if not isinstance(step, Neuron):
            scale = StepMap(shape, step)
            return Placed(scale, scale.inp, scale.out)
        own = (step, plan.entering[name], self.period, plan.latency[name])
        if not isinstance(step, GatedFire) or step.feedback is None:
            neuron = StepNeuron(shape, *own)
            return Placed(neuron, neuron.inp, neuron.out)
        gated = StepGated(shape, *own)
        # its own output, through Lava's connection, is late by the one step that the feedback asks for
        feedback = _connection(step.feedback, shape, 1.0, 0 if step.balance is None else 24)
        _view(gated.out, feedback.enter).connect(feedback.inp)
        _view(feedback.out, feedback.leave).connect(gated.fed)
        return Placed(gated, gated.inp, gated.out)

    def _delay(self, name: str, step: Delay, shape: Ints) -> Placed:
        delay = np.full(shape, step.shortest)
        for longer, mask in enumerate(step.masks):
            delay = np.where(mask, step.shortest + longer, delay)
        latency = self.plan.latency[name]
        # in a cycle, connections may have taken some of the steps
        length = delay + latency - self.plan.arrival(self.network, name)
        line = DelayLine(shape, length, delay, self.plan.entering[name], self.period, latency)
        return Placed(line, line.inp, line.out)

    def _lif(self, name: str, step: Step, shape: Ints) -> Placed:
        """Lava's LIF: u = u (1 - du) + a, v = v (1 - dv) + u + bias, spike where v > vth, then v = 0.

        The reset before a sample's first step also wipes what the bias has done since the engine's start.
        """
        assert isinstance(step, (LeakyFire, SynapseFire, Threshold))
        if isinstance(step, SynapseFire):
            assert step.decay_u is not None
            bias = np.zeros(shape) if step.bias is None else np.broadcast_to(step.bias, shape)
            du = 1 - float(step.decay_u)
        else:
            bias, du = step.drive(OPS, self.plan.entering[name][None])[0], 1.0
        lif = LIFReset(
            shape=shape,
            du=du,
            dv=1.0 if isinstance(step, Threshold) else 1 - float(step.decay),
            vth=float(step.threshold),
            bias_mant=bias,
            reset_interval=self.period,
            reset_offset=(self.plan.latency[name] + 1) % self.period,
        )
        return Placed(lif, lif.a_in, lif.s_out)


def _view(port: Any, views: View) -> Any:
    for method, argument in views:
        port = getattr(port, method)(argument)
    return port


def _connection(step: Step, shape: Ints, gain: float, bits: int) -> Placed:
    """The linear part of a Dense, Conv or Pool, times `gain`, as Lava's Dense or Conv for inputs of `shape`."""
    if isinstance(step, Dense) and len(shape) == 1:
        dense = LavaDense(weights=step.weight * gain, num_message_bits=bits)
        return Placed(dense, dense.s_in, dense.a_out)
    out = ("reshape", step.output_shape(shape))
    image: Ints = shape
    enter: View = TURN
    leave: View = TURN
    if isinstance(step, Dense):
        # other axes are places that share the weights: a convolution by one pixel, with the last axis as channels
        image = (shape[-1], 1, math.prod(shape[:-1]))
        weight, window = step.weight[:, :, None, None], Window((1, 1), (0, 0), (1, 1))
        enter, leave = (("reshape", image[::-1]),), (out,)
    elif isinstance(step, Pool):
        window = replace(step.window, groups=shape[0])
        weight = np.full((shape[0], 1, *step.kernel), 1.0 if step.factor is None else step.factor)
    else:
        assert isinstance(step, Conv)
        weight, window = step.weight, step.window
        if len(shape) == 2:  # one row
            image = (shape[0], 1, shape[1])
            weight = weight[:, :, None]
            window = Window((1, *window.stride), (0, *window.padding), (1, *window.dilation), window.groups)
            enter, leave = (("reshape", image), *TURN), (*TURN, out)
    conv = _conv(weight * gain, image, window, bits)
    return Placed(conv, conv.s_in, conv.a_out, enter, leave)


def _conv(weight: np.ndarray, shape: Ints, window: Window, bits: int) -> LavaConv:
    """Cross-correlation of (C, H, W) by (O, I / groups, H, W): Lava convolves, so the kernel is flipped."""
    return LavaConv(
        weight=np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)),
        input_shape=shape[::-1],
        stride=window.stride[::-1],
        padding=window.padding[::-1],
        dilation=window.dilation[::-1],
        groups=window.groups,
        num_message_bits=bits,
    )
