"""Builds a planned network from Lava's processes and our own. Runs inside Lava's environment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lava.proc.conv.process import Conv as LavaConv
from lava.proc.dense.process import Dense as LavaDense
from lava.proc.lif.process import LIFReset, TernaryLIF
from lava.utils.weightutils import SignMode

from eiexport.circuits import Circuit
from eiexport.connections import Conv, Dense, Flatten, MaxPool, Pool
from eiexport.graph import Network
from eiexport.integers import IntConvStep, IntDenseStep
from eiexport.neurons import Delay, GatedFire, LeakyFire, SynapseFire, Threshold
from eiexport.ops import Ints, Window
from eiexport.standard import next_below
from eiexport.steps import Neuron, Step
from targets.lava import fixed
from targets.lava.plan import CUSTOM, OPS, STOCK, Plan, connects, message_bits
from targets.lava.processes.circuit import StepCircuit
from targets.lava.processes.delay import DelayLine
from targets.lava.processes.neuron import StepGated, StepMap, StepNeuron
from targets.lava.processes.player import Player
from targets.lava.processes.recorder import Recorder
from targets.lava.watch import WATCH, Watched

View = tuple[tuple[str, Ints], ...]  # methods of a port, in order: ("reshape", shape), ("transpose", axes)
TURN: View = (("transpose", (2, 1, 0)),)  # (C, H, W) to Lava's (W, H, C), and back


class Placed(NamedTuple):
    """A node's process, its ports, and the views that lead from and to the shapes of the graph.

    A node may be several processes: all in-ports get the same, and what the out-ports send is summed. `process` is
    then one that does a share, or the one that sends.
    """

    process: Any
    inps: tuple[Any, ...]
    outs: tuple[Any, ...]
    enter: View = ()
    leave: View = ()

    def feed(self, port: Any) -> None:
        """Connect a port of the graph's shape to whatever takes the input."""
        for inp in self.inps:
            _view(port, self.enter).connect(inp)

    @property
    def outputs(self) -> Iterator[Any]:
        """Ports of the graph's shape, whose sum is the output."""
        for out in self.outs:
            yield _view(out, self.leave)


class Build:
    """One network as connected processes: a node's model step t of sample k is engine step k * period + t + latency.

    Edges into one node become ports connected to one port, which Lava sums.
    """

    def __init__(self, network: Network, plan: Plan, steps: int, inputs: Path) -> None:
        self.network, self.plan, self.period = network, plan, steps
        self._lines: dict[tuple[str, int], DelayLine] = {}
        self.player = Player(inputs)
        self._placed = {network.input: Placed(self.player, (), (self.player.out,))}
        rest = [n for n in plan.process if n != network.input]
        self._placed |= {n: self._place(n, network.steps[n]) for n in rest}
        for name in rest:
            for port in self._arriving(name):
                self._placed[name].feed(port)

    @property
    def processes(self) -> dict[str, str]:
        """The kind of process that each node got, read off the process itself."""
        modules = {n: type(p.process).__module__ for n, p in self._placed.items()}
        return {n: STOCK if m.startswith("lava.") else CUSTOM for n, m in modules.items()}

    def record(self, name: str, path: Path, samples: int) -> None:
        """Write a node's output to a file (samples * steps, *neuron), int8 for spikes, without its constant."""
        spikes = self.network.alphabets[name].kind in ("binary", "ternary") and not self.plan.leaving[name].any()
        steps, latency = samples * self.period, self.plan.latency[name]
        recorder = Recorder(path, self.network.shapes[name], steps, latency, "int8" if spikes else self._numbers)
        for port in self._ports(name):
            port.connect(recorder.inp)

    def watch(self, name: str, files: dict[str, Path], samples: int) -> None:
        """Write a neuron's registers after each step to files (samples * steps, *neuron), as its process holds them."""
        shape = (samples * self.period, *self.network.shapes[name])
        for path in files.values():
            np.lib.format.open_memmap(path, "w+", np.dtype(self._numbers), shape)
        watched = Watched({k: str(path) for k, path in files.items()}, self.plan.latency[name])
        self._placed[name].process.proc_params[WATCH] = watched

    @property
    def _numbers(self) -> str:
        return "int32" if self.network.integer else "float64"

    def _ports(self, name: str) -> Iterator[Any]:
        """Ports, in the graph's shape, whose sum is a node's output without its constant."""
        if name in self._placed:
            yield from self._placed[name].outputs
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
        shape, plan, node = self.network.input_shape(name), self.plan, self.network.graph.nodes[name]
        if connects(step):
            bits = message_bits(self.network, plan, name, step)
            return _connection(step, node, shape, bits, plan.gain.get(name, 1.0))
        if isinstance(step, Circuit):
            return self._circuit(name, step, node, shape)
        if isinstance(step, Delay):
            return self._delay(name, step, shape)
        if plan.process[name] == STOCK:
            return self._lif(name, step, shape)
        if not isinstance(step, Neuron):
            # a constant passes a linear node beside the ports, but a maximum has to see it
            moved = StepMap(shape, step, plan.entering[name] if isinstance(step, MaxPool) else np.zeros(()))
            return Placed(moved, (moved.inp,), (moved.out,))
        own = (step, plan.entering[name], self.period, plan.latency[name])
        if not fixed.routed(step, node):
            neuron = StepNeuron(shape, *own)
            return Placed(neuron, (neuron.inp,), (neuron.out,))
        assert isinstance(step, GatedFire) and step.feedback is not None
        gated = StepGated(shape, *own)
        # its own output, through Lava's connection, is late by the one step that the feedback asks for
        feedback = _connection(step.feedback, getattr(node, "feedback", None), shape, 0 if step.balance is None else 24)
        feedback.feed(gated.out)
        for port in feedback.outputs:
            port.connect(gated.fed)
        return Placed(gated, (gated.inp,), (gated.out,))

    def _circuit(self, name: str, step: Circuit, node: Any, shape: Ints) -> Placed:
        """W_EE and W_IE as Lava's own connections, which take the hop, and what is left of the circuit behind them."""
        own = StepCircuit(shape, step)
        parts = []
        for part, port in zip(fixed.PARTS, (own.excited, own.inhibited), strict=True):
            linear = getattr(step, part)
            bits = message_bits(self.network, self.plan, name, linear)
            parts.append(_connection(linear, getattr(node, part), shape, bits))
            for out in parts[-1].outputs:
                out.connect(port)
        constant = self.plan.entering[name]
        if not constant.any():
            return Placed(own, tuple(i for p in parts for i in p.inps), (own.out,), parts[0].enter)
        # behind the connections it would come too late: they round, and a sum that is zero must be so exactly
        line = DelayLine(shape, 0, constant=constant)
        for placed in parts:
            placed.feed(line.out)
        return Placed(own, (line.inp,), (own.out,))

    def _delay(self, name: str, step: Delay, shape: Ints) -> Placed:
        delay = np.full(shape, step.shortest)
        for longer, mask in enumerate(step.masks):
            delay = np.where(mask, step.shortest + longer, delay)
        latency = self.plan.latency[name]
        # in a cycle, connections may have taken some of the steps
        length = delay + latency - self.plan.arrival(self.network, name)
        line = DelayLine(shape, length, delay, self.plan.entering[name], self.period, latency)
        return Placed(line, (line.inp,), (line.out,))

    def _lif(self, name: str, step: Step, shape: Ints) -> Placed:
        """Lava's LIF: u = u (1 - du) + a, v = v (1 - dv) + u + bias, spike where v > vth, then v = 0.

        The reset before a sample's first step also wipes what the bias has done since the engine's start.
        """
        reset = {"reset_interval": self.period, "reset_offset": (self.plan.latency[name] + 1) % self.period}
        if (numbers := self.plan.lif.get(name)) and "vth_lo" in numbers:
            ternary = TernaryLIF(shape=shape, **numbers)
            for key, value in reset.items():  # see `targets.lava.models`
                ternary.proc_params[key] = value
            return Placed(ternary, (ternary.a_in,), (ternary.s_out,))
        lif = LIFReset(shape=shape, **(numbers or self._real(name, step, shape)), **reset)
        return Placed(lif, (lif.a_in,), (lif.s_out,))

    def _real(self, name: str, step: Step, shape: Ints) -> dict[str, Any]:
        """The parameters of Lava's LIF in floating point."""
        assert isinstance(step, (LeakyFire, SynapseFire, Threshold))
        if isinstance(step, SynapseFire):
            assert step.decay_u is not None
            bias = np.zeros(shape) if step.bias is None else np.broadcast_to(step.bias, shape)
            du = 1 - float(step.decay_u)
        else:
            bias, du = step.drive(OPS, self.plan.entering[name][None])[0], 1.0
        dv = 1.0 if isinstance(step, Threshold) else 1 - float(step.decay)
        vth = float(step.threshold)
        if getattr(step, "compare", "gt") == "ge":  # of Lava's float64, none lies between: v > vth is v >= threshold
            vth = float(next_below(step.threshold, "float64"))
        return {"du": du, "dv": dv, "vth": vth, "bias_mant": bias}


def _view(port: Any, views: View) -> Any:
    for method, argument in views:
        port = getattr(port, method)(argument)
    return port


def _connection(step: Step, node: Any, shape: Ints, bits: int, gain: float = 1.0) -> Placed:
    """The linear part of a Dense, Conv or Pool, times `gain`, as Lava's Dense or Conv for inputs of `shape`."""
    if isinstance(step, IntDenseStep):
        return _words(step, node, shape, bits)
    if isinstance(step, Dense) and len(shape) == 1:
        dense = LavaDense(weights=step.weight * gain, num_message_bits=bits)
        return Placed(dense, (dense.s_in,), (dense.a_out,))
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
        if isinstance(step, IntConvStep):  # Lava's Conv has no exponent; a negative one divides these weights
            rows = np.reshape(node.weight_exp, (-1, *[1] * (step.weight.ndim - 1))).astype(np.int64)
            weight = np.ldexp(np.asarray(node.weight, np.float64), rows)
        if len(shape) == 2:  # one row
            image = (shape[0], 1, shape[1])
            weight = weight[:, :, None]
            window = Window((1, *window.stride), (0, *window.padding), (1, *window.dilation), window.groups)
            enter, leave = (("reshape", image), *TURN), (*TURN, out)
    conv = _conv(weight * gain, image, window, bits)
    return Placed(conv, (conv.s_in,), (conv.a_out,), enter, leave)


def _words(step: IntDenseStep, node: Any, shape: Ints, bits: int) -> Placed:
    """Lava's Dense with the node's own weights, of which it makes synapse words itself; one for each exponent.

    Over the last of several axes, the weights stand once for each place.
    """
    weight, places = np.asarray(node.weight, np.int64), math.prod(shape[:-1])
    each = np.broadcast_to(np.reshape(node.weight_exp, -1), len(weight))
    parts = [
        LavaDense(
            weights=np.kron(np.eye(places, dtype=np.int64), weight * (each == exponent)[:, None]),
            weight_exp=exponent,
            num_weight_bits=fixed.number(node.bits),
            sign_mode=SignMode[node.sign_mode.upper()],
            num_message_bits=bits,
        )
        for exponent in fixed.exponents(node)
    ]
    flat = len(shape) == 1
    enter: View = () if flat else (("reshape", (math.prod(shape),)),)
    leave: View = () if flat else (("reshape", step.output_shape(shape)),)
    return Placed(parts[0], tuple(p.s_in for p in parts), tuple(p.a_out for p in parts), enter, leave)


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
