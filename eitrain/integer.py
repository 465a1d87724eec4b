"""Quantisation-aware training: the forward pass is the integer network itself, gradients pass straight through.

What is trained is what is deployed: weights and biases are rounded by the very plan that `eiexport` lowers with, and
the integer graph's own steps run on them. Backward, rounding is the identity (Bengio, Leonard, Courville 2013,
arXiv 1308.3432), the table has the slope of its entries, spikes have the recipe's surrogate in the float network's
units, and a max pool hands its gradient to one spike of each window, as torch's does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eiexport import divide, quantise
from eiexport import graph as graphs
from eiexport.connections import Conv
from eiexport.explicit import explicit
from eiexport.integers import ALIGN, TOP, IntConvStep, IntGatedFire
from eiexport.neurons import GatedFire, Threshold
from eiexport.plans import GatePlan, LayerPlan, Plan
from eiexport.quantise import Layer, Readout
from eiexport.steps import Step
from eitrain.cells import SURROGATES
from eitrain.nets import SpikingNet
from targets.loihi.executor import IntegerOps
from targets.loop import Executor
from targets.pytorch import Surrogate, TorchOps


class _Through(torch.autograd.Function):
    """hard(x) forward, the gradient times `slope` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hard: Callable[[Tensor], Tensor], slope: float) -> Tensor:
        ctx.slope = slope
        return hard(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.slope, None, None


class _Table(torch.autograd.Function):
    """values[index] forward; backward the central difference of the entries."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, values: Tensor) -> Tensor:
        where = index.long()
        ctx.save_for_backward(where, torch.gradient(values)[0])
        return values[where]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        where, slope = ctx.saved_tensors
        return grad * slope[where], None


class _WindowSums(IntConvStep):
    """The connection of ones that a max pool on spikes has become: backward, its output is the pool's maximum."""

    def product(self, ops: Any, x: Tensor) -> Tensor:
        sums = super().product(ops, x)
        if not sums.requires_grad:
            return sums
        window = self.window
        largest = functional.max_pool2d(x, self.weight.shape[2:], window.stride, window.padding)  # type: ignore[arg-type]
        meant = largest * self.weight.flatten()[0]
        return meant + (sums - meant).detach()  # whole numbers, so this is the sum to the bit


def _straight(x: Tensor) -> Tensor:
    """Derivative 1 everywhere."""
    return torch.ones_like(x)


class StraightThroughOps(IntegerOps):
    """Whole numbers in float64 with gradients. unit, sign_unit: float value of one unit of v and of balance sums."""

    name = "straight-through"

    def __init__(self, device: torch.device | str, surrogate: Surrogate | None) -> None:
        super().__init__(device)
        self.surrogate = surrogate
        self.unit = self.sign_unit = 1.0

    def fire(self, v: Tensor, threshold: Any, compare: str) -> Tensor:
        if self.surrogate is None:
            return super().fire(v, threshold, compare)
        return _with(self, self.unit).fire(v, threshold, compare)

    def sign(self, x: Tensor) -> Tensor:
        return super().sign(x) if self.surrogate is None else _with(self, self.sign_unit).sign(x)

    def shift_floor(self, x: Tensor, bits: int) -> Tensor:
        return _Through.apply(x, lambda a: TorchOps.shift_floor(self, a, bits), 2.0**-bits)

    def shift_zero(self, x: Tensor, bits: int) -> Tensor:
        return _Through.apply(x, lambda a: TorchOps.shift_zero(self, a, bits), 2.0**-bits)

    def wrap(self, x: Tensor, bits: int) -> Tensor:
        return _Through.apply(x, lambda a: TorchOps.wrap(self, a, bits), 1.0)

    def modulo(self, x: Tensor, bits: int) -> Tensor:
        return _Through.apply(x, lambda a: TorchOps.modulo(self, a, bits), 1.0)

    def table(self, index: Tensor, values: Tensor) -> Tensor:
        return _Table.apply(index, values)


def _with(ops: StraightThroughOps, unit: float) -> TorchOps:
    """Decisions whose surrogate sees the float network's numbers: d/dx f(x * unit) = f'(x * unit) * unit."""
    surrogate = ops.surrogate
    assert surrogate is not None
    return TorchOps(ops.dtype, ops.device, lambda x: surrogate(x * unit) * unit)


def _round(x: Tensor) -> Tensor:
    return _Through.apply(x, torch.round, 1.0)


class _Training(Executor):
    """The one executor; each population has its own surrogate, which works in its own units."""

    ops: Any
    decisions: dict[str, tuple[Surrogate, float, float]]  # surrogate, unit, sign_unit; empty without gradients

    def _node(self, name: str, values: dict[str, Any], states: Any) -> Any:
        if name in self.decisions:
            self.ops.surrogate, self.ops.unit, self.ops.sign_unit = self.decisions[name]
        return super()._node(name, values, states)


class IntegerNet(nn.Module):
    """A spiking network that computes in the integers of a plan; parameters are `net`'s own, in float.

    forward: as `SpikingNet`, whose scores it returns in the float network's unit; a float input is encoded first.
    `record` takes spikes and a readout's whole sums, `states` the registers u and v.
    """

    def __init__(self, net: SpikingNet, plan: Plan) -> None:
        super().__init__()
        self.net, self.plan = net, plan
        network = explicit(graphs.check(divide.fold(net.graph())))
        self._found = quantise.layers(network, plan.input_scale)
        self.network = graphs.check(quantise.apply(network, plan), alphabet=plan.alphabet)
        # whether a sum fits 24 bits was proven for the weights of now, and training moves them
        wrapping = {n: replace(s, wraps=True) for n, s in self.network.steps.items() if isinstance(s, IntConvStep)}
        self.network = replace(self.network, steps=self.network.steps | wrapping)
        (self._end,) = self.network.sources[self.network.outputs[0]]

    def forward(self, x: Tensor, steps: int | None = None, record: dict[str, Tensor] | None = None) -> Tensor:
        return self.run(self.plan.encode(x.double()), steps, record)

    def run(
        self,
        x: Tensor,
        steps: int | None = None,
        record: dict[str, Tensor] | None = None,
        states: dict[str, dict[str, Tensor]] | None = None,
    ) -> Tensor:
        """The same for whole-number input, (T, B, C, H, W), or (1, B, ...) for a static one."""
        steps = steps or len(x)
        executor = _Training(self.network, StraightThroughOps(x.device, None))  # type: ignore[arg-type]
        executor.decisions = self._decisions() if torch.is_grad_enabled() else {}
        executor.steps = self._live(executor.steps)
        x = x.double()
        z = executor.run(x if len(x) == steps else x.expand(steps, *x.shape[1:]), states)
        if record is not None:
            record.update(z)
        scores = z[self._end].mean(0)
        return scores * self.plan.layers[self._end].alpha if isinstance(self._found.get(self._end), Readout) else scores

    def _decisions(self) -> dict[str, tuple[Surrogate, float, float]]:
        found = {}
        for name, layer in self._found.items():
            if isinstance(layer, Layer):
                plan, cell = self.plan.layers[name], self.net.cells.get(name)
                sums = 1.0
                if plan.balance is not None:
                    sums = 2.0**-plan.balance.exponent * quantise.message_unit(plan)
                # what is no cell of the network's is a max pool's threshold
                surrogate = _straight if cell is None else SURROGATES[cell.p.surrogate]
                found[name] = surrogate, plan.alpha / (1 << ALIGN), sums
        return found

    def _live(self, steps: dict[str, Step]) -> dict[str, Step]:
        """The integer steps with numbers rounded from the present parameters; connections without any stay."""
        live = dict(steps)
        for name, layer in self._found.items():
            plan = self.plan.layers[name]
            register = None
            for c in layer.weights:
                if c not in self.net.connections and c not in self.net.circuits:
                    if isinstance(layer, Layer) and isinstance(layer.step, Threshold):
                        live[c] = _WindowSums(**vars(steps[c]))
                    continue
                weight, bias = self.net.folded(c, torch.float64)
                factor = weight.new_tensor(layer.factors[c])
                effective = weight * factor.view(-1, *[1] * (weight.ndim - 1)) * 2.0**plan.exponent
                changed: dict[str, Any] = {"weight": _through(plan.connections[c].units, effective)}
                if bias is not None:
                    meant = weight.new_tensor(layer.factors[c] / layer.units[c])
                    units = bias * meant * 2.0**plan.exponent
                    if layer.carried[c]:
                        placed = quantise.over_neurons(steps[c], units, len(self.network.shapes[name]))
                        register = placed if register is None else register + placed
                    else:
                        changed["bias"] = _wide(_round(units), steps[c])
                live[c] = replace(steps[c], **changed)
            if register is not None:
                live[name] = replace(steps[name], bias=_mantissa(register, plan.bias_exp))  # type: ignore[call-arg]
            if isinstance(layer, Layer) and isinstance(layer.step, GatedFire):
                live[name] = self._gates(name, layer, plan, steps[name])
        return live

    def _gates(self, name: str, layer: Layer, plan: LayerPlan, step: Any) -> IntGatedFire:
        cell = self.net.cells[name].p
        gates: dict[str, Any] = {}
        for kind, module, chosen in (
            ("feedback", cell.feedback, plan.feedback),
            ("balance", cell.balance, plan.balance),
        ):
            if module is None or chosen is None:
                continue
            unit = 1.0 if kind == "feedback" else quantise.message_unit(plan)
            gates[kind] = _gate(getattr(step, kind), module, chosen, unit)
        return replace(step, **gates)


def _gate(step: Any, module: Any, plan: GatePlan, unit: float) -> Any:
    weight = module.weight.double() * 2.0**plan.exponent
    if module.bias is None:
        return replace(step, weight=_through(lambda w: quantise.gate_units(plan, w)[0], weight))
    bias = module.bias.double() * 2.0**plan.exponent / unit
    units = _through(lambda w: quantise.gate_units(plan, w, bias.detach())[0], weight)
    return replace(step, weight=units, bias=_wide(_round(bias).clip(-(TOP // 2), TOP // 2), step))


def _through(rounded: Callable[[Tensor], Tensor], x: Tensor, exponent: int = ALIGN) -> Tensor:
    """Rounded and clipped forward, backward the identity, or what a mantissa's exponent makes of it."""
    return _Through.apply(x, rounded, 2.0 ** (ALIGN - exponent))


def _mantissa(units: Tensor, exponent: int) -> Tensor:
    """A bias in the neuron's register: mantissa << exponent."""
    return _through(lambda b: quantise.mantissa(b, exponent), units, exponent) * 2.0**exponent


def _wide(bias: Tensor, step: Step) -> Tensor:
    """One number an output channel, with axes of length 1 for a map."""
    return bias.view(-1, *[1] * len(step.window.stride)) if isinstance(step, Conv) else bias
