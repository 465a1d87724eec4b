"""The fast executor of integer networks, bit-equal to `targets.loop.Executor` in float64, which is the meaning.

All values are whole numbers, so a narrow type is exact wherever a bound shows that it holds every intermediate:

    sums        bytes into int32 where the processor multiplies bytes; float32 where sum|w| max|x| < 2^24; else float64
    registers   int32; the products of the decays, 36 bits wide, in float64
    wrapping and saturation are passes of their own, left out where the greatest input rules them out

Samples go through the network in slabs that fit the caches, one thread a slab. Maps lie channels last inside.
What has no narrow way here runs its step in float64.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.connections import Flatten, Identity, Pool
from eiexport.graph import Network
from eiexport.integers import IntFire, IntGatedFire, IntLinear
from eiexport.ops import Array, Ints, NumpyOps, Window
from targets.base import TargetError
from targets.loihi.narrow import (
    PLAIN,
    WIDEST,
    Cells,
    GatedCells,
    Gates,
    Product,
    Scratch,
    TooWide,
    first,
    last,
    message_bytes,
    planar,
    pooled,
)
from targets.loop import Executor, States, fold
from targets.pytorch import TorchOps

SINGLE = 1 << 24  # below it every whole number is exact in float32
CACHE = 1 << 18  # values of a population worked on at once: a megabyte in int32
SMALL = 1 << 18  # values below which threads cost more than they bring
ALONE = 1 << 24  # values below which torch's own threads do, in a single slab


# --- sums in float: every step may use them


class IntegerOps(TorchOps):
    """torch in float64, with sums of whole numbers in float32 where that is exact.

    float32 holds every partial sum, in any order, where the largest sum|w| of an output times max|x| is below 2^24.
    On CUDA a convolution is unfold and matrix product and TF32 is off, since its libraries choose FFT or Winograd.
    """

    name = "integer"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(torch.float64, device)
        self._known: dict[int, tuple[Tensor, Tensor, float]] = {}

    def const(self, a: np.ndarray) -> Array:
        found = super().const(a)
        if a.ndim > 1:  # a weight, perhaps; holding it keeps its id
            self._known[id(found)] = (found, found.float(), _reach(found))
        return found

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = functional.linear(*self.narrow(x, weight)).double()
        return y if bias is None else y + bias

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        a, w = self.narrow(x, weight)
        y = (unfolded_conv(a, w, window) if x.is_cuda else super().conv(a, w, None, window)).double()
        return y if bias is None else y + bias.view(-1, *[1] * (weight.dim() - 2))

    def narrow(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x and weight in float32 where their sums of products are exact in it, else as they are."""
        torch.backends.cuda.matmul.allow_tf32 = False
        _, single, reach = self._known.get(id(weight)) or (weight, weight.float(), _reach(weight))
        if reach < SINGLE and reach * float(x.abs().max()) < SINGLE and torch.equal(x, x.round()):
            return x.float(), single
        return x, weight


def _reach(weight: Tensor) -> float:
    """The largest sum|w| of an output; infinite where weights are not whole."""
    return float(weight.abs().flatten(1).sum(1).max()) if torch.equal(weight, weight.round()) else math.inf


def unfolded_conv(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """A convolution as one matrix product a group."""
    if x.dim() == 3:
        return unfolded_conv(x.unsqueeze(2), weight.unsqueeze(2), planar(window)).squeeze(2)
    size = window.output(x.shape[2:], weight.shape[2:])
    columns = functional.unfold(x, weight.shape[2:], window.dilation, window.padding, window.stride)
    columns = columns.view(len(x), window.groups, -1, math.prod(size))
    return (weight.reshape(window.groups, len(weight) // window.groups, -1) @ columns).view(len(x), -1, *size)


def self_test(device: torch.device | str, ops: IntegerOps | None = None) -> frozenset[torch.dtype]:
    """Hold a device's sums of whole numbers against int64, up to the limits of float32 and float64.

    Raises TargetError where it rounds. Returns the byte types that it multiplies exactly, and fast, into int32.
    """
    ops = ops or IntegerOps(device)
    for bits, x, w in _trials():
        flat, rows = x.reshape(len(x), -1)[:, : w[0].size], w.reshape(len(w), -1)
        image, kernel, inputs, weight = (torch.from_numpy(v).double().to(ops.device) for v in (x, w, flat, rows))
        sums = NumpyOps(np.int64).conv(x, w, None, PLAIN)
        forms = [image.contiguous(memory_format=f) for f in (torch.contiguous_format, torch.channels_last)]
        found = [(ops.conv(f, kernel, None, PLAIN), sums, "convolution") for f in forms]
        for y, wanted, what in (*found, (ops.linear(inputs, weight, None), flat @ rows.T, "matrix product")):
            if not np.array_equal(y.cpu().numpy(), wanted):
                where = f"device {ops.device} rounds whole numbers below 2^{bits} in a {what}"
                raise TargetError(f"{where}, so integer networks are not exact there; use --device cpu")
    return _byte_types() if ops.device.type == "cpu" else frozenset()


tested = cache(self_test)


def _trials() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(bits, images, kernels) whose sums need all the bits: in even and uneven shares, with signs and without.

    Without signs nothing cancels, so sums reach the limit. Shapes are those that Winograd and FFT are taken for.
    """
    draw = np.random.default_rng(1)
    for bits, channels, side in itertools.product((24, 53), (1, 15, 16), (3, 5)):
        room = bits - math.ceil(math.log2(channels * side**2))
        for wide, signed in itertools.product((room // 2, room - 3), (0, 1)):
            x, w = (
                draw.integers(signed * (1 - (1 << share)), 1 << share, shape)
                for share, shape in ((wide, (2, channels, 8, 8)), (room - wide, (16, channels, side, side)))
            )
            yield bits, x, w


def _byte_types() -> frozenset[torch.dtype]:
    """Byte types that `torch._int_mm` takes beside int8; none without an instruction for it, when it is slow."""
    found, draw = set(), np.random.default_rng(2)
    for kind in (torch.uint8, torch.int8) if getattr(torch.cpu, "_is_vnni_supported", lambda: False)() else ():
        lo, hi = torch.iinfo(kind).min, torch.iinfo(kind).max
        # extremes first: processors without the instruction saturate pairs of products at 16 bits
        x = np.concatenate([np.full((8, 75), hi), np.full((8, 75), lo), draw.integers(lo, hi + 1, (16, 75))])
        w = np.concatenate([np.full((75, 3), 127), np.full((75, 3), -128), draw.integers(-128, 128, (75, 34))], 1)
        with suppress(RuntimeError, AttributeError):  # a torch that has no such product
            y = torch._int_mm(torch.from_numpy(x).to(kind), torch.from_numpy(w).to(torch.int8))
            if y.dtype == torch.int32 and np.array_equal(y.numpy(), x @ w):
                found.add(kind)
    return frozenset(found)


# --- the executor


class Plan:
    """What a network allows for inputs of one alphabet."""

    def __init__(self, network: Network, entering: Alphabet, types: frozenset[torch.dtype]) -> None:
        self.network, self.entering, self.alphabets = network, entering, {network.input: entering}
        for component in network.order:
            # in a cycle, the second round knows what comes back
            for name in component * (1 + (component[0] in network.cycles)):
                if name != network.input:
                    self.alphabets[name] = network.steps[name].alphabet(self.arriving(name))
        self.products: dict[str, Product | None] = {}
        self.gates: dict[str, Gates] = {}
        for name, step in network.steps.items():
            if isinstance(step, IntLinear) and name not in network.cycles:
                self.products[name] = Product.of(step, network.input_shape(name), self.arriving(name), types)
            elif isinstance(step, IntGatedFire):
                top, shape = (1 << (step.balance_bits - 1)) - 1, network.input_shape(name)
                fed = Product.of(step.feedback, shape, BINARY if step.balance is None else TERNARY, types)
                self.gates[name] = fed, Product.of(step.balance, shape, interval(-top, top, True), types)
        # sums that one neuron alone reads are made as it goes, and never stand in memory
        self.fused = {n for n in self.products if n not in network.recorded and self._lone(n)}

    def _lone(self, name: str) -> bool:
        readers = [n for n, came in self.network.sources.items() if name in came]
        return len(readers) == 1 and self.network.sources[readers[0]] == (name,) and self.narrow(readers[0])

    def arriving(self, name: str) -> Alphabet:
        first, *rest = (self.alphabets.get(s, REAL) for s in self.network.sources[name])
        return sum(rest, first)

    def spikes(self, name: str) -> bool:
        return self.alphabets[name].kind in ("binary", "ternary")

    def narrow(self, name: str) -> bool:
        """Whether a neuron may run in int32."""
        step = self.network.steps[name]
        fire = step.inner if isinstance(step, IntGatedFire) else step
        if not isinstance(fire, IntFire) or name in self.network.cycles:
            return False
        gates = (step.feedback, step.balance) if isinstance(step, IntGatedFire) else ()
        gated = all(p is not None or g is None for g, p in zip(gates, self.gates.get(name, ()), strict=True))
        small = fire.bias is None or np.abs(fire.bias).max() < 1 << 28
        # taking a negative threshold off would let a membrane grow
        falls = fire.reset_mode != "subtract" or fire.threshold.min() >= 0
        return bool(gated and small and falls) and holds(self.arriving(name)) != torch.float64


def holds(a: Alphabet) -> torch.dtype:
    """What a signal lies in between nodes."""
    if not a.discrete or max(-a.lo, a.hi) >= 1 << 31:
        return torch.float64
    return message_bytes(a)[0] if len(message_bytes(a)) == 1 else torch.int32


class Drive:
    """A linear step's sums in int32, made some time steps at a time; without a product, by the step in float64."""

    def __init__(self, name: str, step: Any, product: Product | None, x: Tensor, ops: Any, scratch: Scratch) -> None:
        self.name, self.step, self.product, self.x, self.ops, self.scratch = name, step, product, x, ops, scratch
        self.still = x.stride(0) == 0 and len(x) > 1  # an input that does not change is summed once
        self.first: np.ndarray | None = None

    def whole(self) -> Tensor:
        return fold(self.step, self.ops, self.x.double())

    def __call__(self, start: int, end: int, up: int = 0) -> np.ndarray:
        """Sums of these steps << up; the array is the caller's, until the next call."""
        x = self.x[start:end]
        if not self.still:
            return self._sums(x, up)
        if self.first is None:
            self.first = self._sums(x[:1], up).copy()
        return self._copied(np.broadcast_to(self.first, (len(x), *self.first.shape[1:])))

    def _sums(self, x: Tensor, up: int) -> np.ndarray:
        if self.product is None:
            y = self._copied(last(fold(self.step, self.ops, x.double()) if self.step else x))
            return np.left_shift(y, up, out=y) if up else y
        a = last(x)
        y = self.product(a.reshape(-1, *a.shape[2:]), self.scratch, up)
        return y.reshape(*a.shape[:2], *y.shape[1:])

    def _copied(self, y: np.ndarray) -> np.ndarray:
        room = self.scratch((self.name, "driven"), y.shape, np.int32)
        np.copyto(room, y, casting="unsafe")
        return room


class IntegerExecutor(Executor):
    """An integer network on the CPU or CUDA, from and to torch tensors (time, sample, *neuron).

    On the CPU spikes come back as int8, registers as int32, what is neither as float64.
    """

    ops: Any

    def __init__(self, network: Network, device: torch.device | str = "cpu") -> None:
        super().__init__(network, IntegerOps(device))  # type: ignore[arg-type]
        self._plans: dict[Alphabet, Plan] = {}
        self._idle: list[Scratch] = []
        self._here = threading.local()  # a thread's plan and scratch

    @torch.no_grad()
    def run(self, x: Tensor, states: States | None = None) -> dict[str, Array]:
        types, x = tested(self.ops.device), x.detach().to(self.ops.device)
        x = x.to(torch.uint8) if x.dtype == torch.bool else x
        if self.ops.device.type != "cpu":
            self._here.plan = None
            return super().run(x.double(), states)
        for entering in self._guesses(x):
            if entering not in self._plans:
                self._plans[entering] = Plan(self.network, entering, types)
            try:
                return self._run(x, self._plans[entering], states)
            except TooWide:  # not what was declared
                continue
        raise AssertionError("the last guess fits everything")

    def _guesses(self, x: Tensor) -> Iterator[Alphabet]:
        """What the input may carry, each verified slab by slab: what was declared, what it holds, anything."""
        declared = self.network.alphabets.get(self.network.input, REAL)
        if declared.discrete:
            yield declared
        lo, hi = (float(v) for v in torch.aminmax(x))
        if max(-lo, hi) < SINGLE:  # up to powers of two, so that other inputs share the plan
            lo, hi = (2.0 ** math.ceil(math.log2(max(v, 0) + 1)) for v in (-lo, hi))
            yield interval(-lo if lo > 1 else 0, max(hi - 1, 1), True)
        yield REAL

    def _run(self, x: Tensor, plan: Plan, states: States | None) -> dict[str, Array]:
        network, (steps, samples) = self.network, x.shape[:2]
        counts = [math.prod(s) for s in network.shapes.values()]
        values = sum(counts) * steps * samples
        threads = 1 if values < SMALL else torch.get_num_threads()
        # as many slabs as the caches ask for, and as many for each thread
        size = -(-samples // (threads * -(-samples * max(counts) // (threads * CACHE))))
        lock, slabs = threading.Lock(), [slice(i, i + size) for i in range(0, samples, size)]
        out: dict[str, Tensor] = {}
        held: States = {}

        def keep(kept: dict[str, Any], name: str, z: Tensor, slab: slice) -> None:
            with lock:
                if name not in kept:
                    kept[name] = _empty((steps, samples, *z.shape[2:]), z.dtype)
            kept[name][:, slab] = z

        def job(slab: slice) -> None:
            try:
                scratch = self._idle.pop()
            except IndexError:
                scratch = Scratch()
            self._here.plan, self._here.scratch = plan, scratch
            rows: States | None = None if states is None else {}
            for name, z in Executor.run(self, self._enter(x[:, slab], plan), rows).items():
                keep(out, name, z.to(torch.int8 if plan.spikes(name) else torch.float64), slab)
            for observable, found in (rows or {}).items():
                for name, v in found.items():
                    keep(held.setdefault(observable, {}), name, v, slab)
            self._idle.append(scratch)

        if len(slabs) > 1 and threads > 1:
            with _threads(1), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(job, slabs))
        else:
            with _threads(threads if values > ALONE else 1):
                for slab in slabs:
                    job(slab)
        if states is not None:
            for observable, found in held.items():
                states.setdefault(observable, {}).update(found)
        return {n: out[n] for n in network.recorded}

    def _enter(self, x: Tensor, plan: Plan) -> Tensor:
        """A slab of the input as the plan holds it; TooWide where it is not of the plan's alphabet."""
        a, kind = plan.entering, holds(plan.entering)
        if kind == torch.float64:
            return x.double()
        room = self._here.scratch("input", last(x).shape, torch.empty(0, dtype=kind).numpy().dtype)
        first(room).copy_(x)
        if not np.array_equal(room, last(x)) or room.min() < a.lo or room.max() > a.hi:
            raise TooWide
        still = len(room) > 1 and np.array_equal(room[1], room[0]) and (room == room[0]).all()
        return first(room[:1]).expand(x.shape) if still else first(room)

    def _input(self, name: str, values: dict[str, Array]) -> Array:
        plan, came = self._here.plan, self.network.sources[name]
        if plan is None or len(came) == 1:
            return super()._input(name, values)
        kind = holds(plan.arriving(name))
        return super()._input(name, {s: _tensor(values[s]).to(kind) for s in came})

    def _cycle(self, component: tuple[str, ...], values: dict[str, Array], samples: int, kept: States | None) -> None:
        # step by step, with samples alone to fold: float64, whose sums `IntegerOps` makes
        came = {s for n in component for s in self.network.sources[n] if s not in component}
        real = {s: _tensor(values[s]).double() for s in came}
        super()._cycle(component, real, samples, kept)
        values.update({n: real[n] for n in component})

    def _node(self, name: str, values: dict[str, Array], states: States | None) -> Array:
        plan, step = self._here.plan, self.network.steps[name]
        if plan is not None:
            kind, scratch, x = holds(plan.alphabets[name]), self._here.scratch, self._input(name, values)
            if name in plan.fused or plan.products.get(name):
                drive = Drive(name, self.steps[name], plan.products[name], x, self.ops, scratch)
                return drive if name in plan.fused else first(drive(0, len(x))).to(kind, copy=True)
            if plan.narrow(name):
                with suppress(TooWide):
                    return self._fire(name, x, states)
            elif isinstance(step, Identity | Flatten):
                return fold(step, self.ops, _tensor(x))
            elif isinstance(step, Pool) and kind != torch.float64:
                a = last(_tensor(x))
                y = pooled(step, a.reshape(-1, *a.shape[2:]), torch.empty(0, dtype=kind).numpy().dtype)
                return first(y.reshape(*a.shape[:2], *y.shape[1:]))
            values = {s: _tensor(values[s]).double() for s in self.network.sources[name]}
        return super()._node(name, values, states)

    def _fire(self, name: str, x: Any, states: States | None) -> Tensor:
        """A neuron over time in int32; TooWide where its inputs are."""
        plan, scratch, step = self._here.plan, self._here.scratch, self.network.steps[name]
        assert isinstance(step, IntFire | IntGatedFire)
        drive = x if isinstance(x, Drive) else Drive(name, None, None, x, self.ops, scratch)
        steps, samples, *axes = drive.x.shape[0], drive.x.shape[1], *self.network.shapes[name]
        shape = (samples, *axes[1:], *axes[:1])
        cells: Cells
        if isinstance(step, IntGatedFire):
            cells = GatedCells(step, plan.gates[name], shape, scratch, name)
        else:
            cells = Cells(step, shape, scratch, name)
        z = scratch((name, "z"), (steps, *shape), np.int8)
        rows = {o: scratch((name, "row", o), (steps, *shape), np.int32) for o in step.observed if states is not None}
        a = plan.arriving(name)
        bound = max(-a.lo, a.hi)
        most, size = int(min(bound, WIDEST + 1)), max(1, CACHE // math.prod(shape))
        known = most <= WIDEST and not any(cells.events(most, steps))
        happens, most = (False, False), most if known else 0
        early = cells.align if bound < 1 << 24 else 0  # shifting what does not fit would hide it
        for start in range(0, steps, size):
            chunk = drive(start, start + size, early)
            if not known:
                most = max(most, int(chunk.max()) >> early, -int(chunk.min()) >> early)
                happens = cells.events(most, steps)
            if early != cells.align:
                chunk <<= cells.align
            for t, row in enumerate(chunk, start):
                u = cells.charge(row, *happens)
                if rows:
                    np.copyto(rows["u"][t], u)
                cells.fire(z[t])
                if rows:
                    np.negative(cells.w, rows["v"][t])
        for observable, found in rows.items():
            assert states is not None
            states.setdefault(observable, {})[name] = first(found)
        return first(z)


def _tensor(x: Any) -> Tensor:
    return x.whole() if isinstance(x, Drive) else x


def _empty(shape: Ints, dtype: torch.dtype) -> Tensor:
    """(time, sample, *neuron), with the channels last in memory as in the slabs; NumPy asks for large pages."""
    physical = (*shape[:2], *shape[3:], *shape[2:3])
    return first(np.empty(physical, torch.empty(0, dtype=dtype).numpy().dtype))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
