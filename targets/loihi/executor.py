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
from eiexport.circuits import IntCircuitStep
from eiexport.connections import Flatten, Identity, Pool
from eiexport.graph import Network
from eiexport.integers import IntFire, IntGatedFire, IntLinear
from eiexport.ops import Array, Ints, NumpyOps, Window
from targets.base import TargetError
from targets.loihi.narrow import (
    PLAIN,
    WIDEST,
    Cells,
    FloatSums,
    GatedCells,
    Gates,
    Product,
    Scratch,
    Summing,
    TooWide,
    first,
    last,
    message_bytes,
    planar,
    pooled,
    reach,
    shifted,
)
from targets.loop import Executor, States, fold
from targets.pytorch import TorchOps

SINGLE = 1 << 24  # below it every whole number is exact in float32
CACHE = 1 << 19  # values of a population worked on at once: two megabytes in int32
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
    w = weight.detach()
    return float(w.abs().flatten(1).sum(1).max()) if torch.equal(w, w.round()) else math.inf


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

    def __init__(self, network: Network, entering: Alphabet, ops: Any, types: frozenset[torch.dtype]) -> None:
        self.network, self.entering, self.alphabets = network, entering, {network.input: entering}
        self.ops, self.types = ops, types
        for component in network.order:
            for name in component:
                if name != network.input:
                    self.alphabets[name] = network.steps[name].alphabet(self.arriving(name))
        self.sums: dict[str, Summing] = {}
        self.gates: dict[str, Gates] = {}
        for name, step in network.steps.items():
            if name in network.cycles:
                continue
            shape = network.input_shape(name)
            if isinstance(step, IntLinear) and (sums := self._sums(step, shape, self.arriving(name))):
                self.sums[name] = sums
            elif isinstance(step, IntGatedFire):
                top = (1 << (step.balance_bits - 1)) - 1
                fed = self._sums(step.feedback, shape, BINARY if step.balance is None else TERNARY)
                self.gates[name] = fed, self._sums(step.balance, shape, interval(-top, top, True))
        self.narrow = {n for n in network.steps if n not in network.cycles and self._fits(n)}
        # sums that one neuron alone reads are made as it goes, and never stand in memory
        self.fused = {n for n in self.sums if self._lone(n)}

    def _lone(self, name: str) -> bool:
        readers = [n for n, came in self.network.sources.items() if name in came]
        return len(readers) == 1 and self.network.sources[readers[0]] == (name,) and readers[0] in self.narrow

    def _sums(self, step: Any, shape: Ints, a: Alphabet) -> Summing | None:
        """The fastest exact way to int32; None where the sums are too wide for it."""
        if not isinstance(step, IntLinear) or not a.discrete or reach(step, a) >= 1 << 30:
            return None
        return Product.of(step, shape, a, self.types) or FloatSums(step, self.ops)

    def arriving(self, name: str) -> Alphabet:
        first, *rest = (self.alphabets.get(s, REAL) for s in self.network.sources[name])
        return sum(rest, first)

    def spikes(self, name: str) -> bool:
        return self.alphabets[name].kind in ("binary", "ternary")

    def _fits(self, name: str) -> bool:
        """Whether a neuron may run in int32."""
        step = self.network.steps[name]
        fire = step.inner if isinstance(step, IntGatedFire) else step
        if not isinstance(fire, IntFire) or holds(self.arriving(name)) == torch.float64:
            return False
        gates = (step.feedback, step.balance) if isinstance(step, IntGatedFire) else ()
        gated = all(p is not None or g is None for g, p in zip(gates, self.gates.get(name, ()), strict=True))
        return gated and (fire.bias is None or bool(np.abs(fire.bias).max() < 1 << 28))


def holds(a: Alphabet) -> torch.dtype:
    """What a signal lies in between nodes."""
    if not a.discrete or max(-a.lo, a.hi) >= 1 << 31:
        return torch.float64
    return message_bytes(a)[0] if len(message_bytes(a)) == 1 else torch.int32


class Drive:
    """What drives a neuron in int32, made some time steps at a time."""

    def __init__(self, name: str, sums: Summing | None, x: Tensor, scratch: Scratch) -> None:
        self.name, self.sums, self.x, self.scratch = name, sums, x, scratch
        self.still = x.stride(0) == 0 and len(x) > 1  # an input that does not change is summed once
        self.first: np.ndarray | None = None

    def __call__(self, start: int, end: int, up: int = 0) -> np.ndarray:
        """The input of these steps << up; the array is the caller's, until the next call."""
        x = last(self.x[start:end])
        if not self.still:
            return self._made(x, up)
        if self.first is None:
            self.first = self._made(x[:1], up).copy()
        return self._copied(np.broadcast_to(self.first, (len(x), *self.first.shape[1:])))

    def _made(self, x: np.ndarray, up: int) -> np.ndarray:
        if self.sums is None:
            return shifted(self._copied(x), -up)
        y = self.sums(x.reshape(-1, *x.shape[2:]), self.scratch, up)
        return y.reshape(*x.shape[:2], *y.shape[1:])

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
                self._plans[entering] = Plan(self.network, entering, self.ops, types)
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
                    # NumPy asks the system for large pages
                    kept[name] = first(np.empty(_physical((steps, samples, *z.shape[2:])), _numpy(z.dtype)))
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
        room = self._here.scratch("input", last(x).shape, _numpy(kind))
        with np.errstate(invalid="ignore"):
            np.copyto(room, last(x), casting="unsafe")
        if not np.array_equal(room, last(x)) or room.min() < a.lo or room.max() > a.hi:
            raise TooWide
        still = len(room) > 1 and np.array_equal(room[1], room[0]) and (room == room[0]).all()
        return first(room[:1]).expand(x.shape) if still else first(room)

    def _input(self, name: str, values: dict[str, Array]) -> Array:
        plan, came = self._here.plan, self.network.sources[name]
        if plan is None or len(came) == 1:
            return super()._input(name, values)
        kind = holds(plan.arriving(name))
        return super()._input(name, {s: self._tensor(values[s]).to(kind) for s in came})

    def _cycle(self, component: tuple[str, ...], values: dict[str, Array], samples: int, kept: States | None) -> None:
        # step by step, with samples alone to fold: float64, whose sums `IntegerOps` makes
        came = {s for n in component for s in self.network.sources[n] if s not in component}
        real = {s: self._tensor(values[s]).double() for s in came}
        super()._cycle(component, real, samples, kept)
        values.update({n: real[n] for n in component})

    def _node(self, name: str, values: dict[str, Array], states: States | None) -> Array:
        plan, step = self._here.plan, self.network.steps[name]
        if plan is not None:
            kind, scratch, x = holds(plan.alphabets[name]), self._here.scratch, self._input(name, values)
            if name in plan.sums:
                drive = Drive(name, plan.sums[name], x, scratch)
                return drive if name in plan.fused else self._sums(name, drive, kind)
            if name in plan.narrow:
                with suppress(TooWide):
                    return self._fire(name, x, states)
            elif isinstance(step, Identity | Flatten):
                return fold(step, self.ops, self._tensor(x))
            elif isinstance(step, Pool) and kind != torch.float64:
                a = last(self._tensor(x))
                y = pooled(step, a.reshape(-1, *a.shape[2:]), _numpy(kind), scratch, name)
                return first(y.reshape(*a.shape[:2], *y.shape[1:]))
            elif isinstance(step, IntCircuitStep):
                return self._circuit(name, self._tensor(x), kind)
            values = {s: self._tensor(values[s]).double() for s in self.network.sources[name]}
        return super()._node(name, values, states)

    def _sums(self, name: str, drive: Drive, kind: torch.dtype) -> Tensor:
        """All sums of a linear step, for several readers or the record."""
        shape = _physical((*drive.x.shape[:2], *self.network.shapes[name]))
        out, size = self._here.scratch((name, "sums"), shape, _numpy(kind)), _chunk(shape)
        for start in range(0, len(out), size):
            np.copyto(out[start : start + size], drive(start, start + size), casting="unsafe")
        return first(out)

    def _circuit(self, name: str, x: Tensor, kind: torch.dtype) -> Tensor:
        """A circuit by its step in float64, some time steps at once; one step where the input does not change."""
        still, size = x.stride(0) == 0 and len(x) > 1, _chunk((len(x), x.shape[1], *self.network.shapes[name]))
        parts = (x[:1] if still else x).split(size)
        y = torch.cat([fold(self.steps[name], self.ops, part.double()).to(kind) for part in parts])
        return y.expand(len(x), *y.shape[1:]) if still else y

    def _tensor(self, x: Any) -> Tensor:
        return fold(self.steps[x.name], self.ops, x.x.double()) if isinstance(x, Drive) else x

    def _fire(self, name: str, x: Any, states: States | None) -> Tensor:
        """A neuron over time in int32; TooWide where its inputs are."""
        plan, scratch, step = self._here.plan, self._here.scratch, self.network.steps[name]
        assert isinstance(step, IntFire | IntGatedFire)
        drive = x if isinstance(x, Drive) else Drive(name, None, x, scratch)
        whole = _physical((*drive.x.shape[:2], *self.network.shapes[name]))
        cells: Cells
        if isinstance(step, IntGatedFire):
            cells = GatedCells(step, plan.gates[name], whole[1:], scratch, name)
        else:
            cells = Cells(step, whole[1:], scratch, name)
        z = scratch((name, "z"), whole, np.int8)
        rows = {o: scratch((name, "row", o), whole, np.int32) for o in step.observed if states is not None}
        for some, chunk, happens in _chunks(drive, cells, plan.arriving(name), whole):
            cells.advance(chunk, z[some], happens, {o: r[some] for o, r in rows.items()})
        for observable, found in rows.items():
            assert states is not None
            states.setdefault(observable, {})[name] = first(found)
        return first(z)


def _chunks(
    drive: Drive, cells: Cells, a: Alphabet, whole: Ints
) -> Iterator[tuple[slice, np.ndarray, tuple[bool, bool]]]:
    """(steps, their aligned input, whether a register can wrap or saturate in them).

    The alphabet tells once for all, or the largest input so far has to.
    """
    bound, steps, size = max(-a.lo, a.hi), whole[0], _chunk(whole)
    quiet = bound <= WIDEST and not any(cells.events(int(bound), steps))
    most, happens = 0, (False, False)
    early = cells.align if bound < 1 << 24 else 0  # shifting what does not fit would hide it
    for start in range(0, steps, size):
        chunk = drive(start, start + size, early)
        if not quiet:
            most = max(most, int(chunk.max()) >> early, -int(chunk.min()) >> early)
            happens = cells.events(most, steps)
        yield slice(start, start + size), shifted(chunk, early - cells.align), happens


def _physical(shape: Ints) -> Ints:
    """(time, sample, *neuron) with the channels last."""
    return (*shape[:2], *shape[3:], *shape[2:3])


def _chunk(shape: Ints) -> int:
    """Time steps to work on at once."""
    return max(1, CACHE // math.prod(shape[1:]))


def _numpy(kind: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=kind).numpy().dtype


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
