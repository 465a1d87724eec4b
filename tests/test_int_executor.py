"""The fast integer executor: bit-equal to the step in float64, on every way that it has, and exact or refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import int_networks as made
import nir
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, interval
from eiexport.connections import Pool
from eiexport.graph import Network
from eiexport.integers import IntFire
from eiexport.ops import NumpyOps, Window
from eiexport.steps import bind
from targets.base import TargetError
from targets.loihi import executor, narrow
from targets.loihi.executor import IntegerExecutor, IntegerOps, self_test, unfolded_conv
from targets.loihi.narrow import WIDEST, Cells, Product, Scratch, events, pooled
from targets.loop import Executor
from targets.pytorch import TorchOps

CASES = made.provoking_cases()
BYTES = frozenset({torch.uint8, torch.int8})
HERE = executor.tested("cpu")  # what this processor multiplies as bytes


def meaning(network: Network, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """Outputs and registers by the generic executor: observable -> node -> (time, sample, *neuron)."""
    states: Any = {}
    with torch.no_grad():
        z = Executor(network, TorchOps(torch.float64)).run(x.double(), states)  # type: ignore[arg-type]
    return {"z": z, **states}


def hold(network: Network, x: np.ndarray | Tensor, wanted: Any = None, fast: IntegerExecutor | None = None) -> None:
    """The fast executor against the generic one, x (sample, time, *neuron) or a tensor (time, sample, *neuron)."""
    moved = x if isinstance(x, Tensor) else torch.from_numpy(np.swapaxes(x, 0, 1).astype(np.float64))
    wanted, fast = wanted or meaning(network, moved), fast or IntegerExecutor(network)
    for probed in (True, True, False):  # later runs find arrays that earlier ones have used
        states: Any = {}
        found = {"z": fast.run(moved, states if probed else None), **states}
        assert list(found["z"]) == list(network.recorded) and found.keys() == (wanted.keys() if probed else {"z"})
        for observable, rows in found.items():
            assert rows.keys() == wanted[observable].keys()
            for name, b in rows.items():
                a = wanted[observable][name]
                assert a.shape == b.shape and torch.equal(a, b.double()), f"{observable} of {name}"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slabs of few samples and chunks of few steps, on two threads, also for the smallest networks."""
    monkeypatch.setattr(executor, "CACHE", 30)
    monkeypatch.setattr(executor, "SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


# --- whole networks


@pytest.mark.parametrize("case", CASES, ids=str)
def test_provoking_networks_come_out_the_same(case: made.Case) -> None:
    hold(case.network(), case.x)


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_slabs_chunks_and_threads_change_nothing(case: made.Case, small: None) -> None:
    x = np.concatenate([case.x, case.x[::-1], case.x])
    network = case.network()
    hold(network, x)
    fast = IntegerExecutor(network)
    whole = fast.run(torch.from_numpy(np.swapaxes(x, 0, 1)))
    alone = fast.run(torch.from_numpy(np.swapaxes(x[-1:], 0, 1)))
    assert all(torch.equal(whole[n][:, -1:], alone[n]) for n in whole)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_come_out_the_same(seed: int) -> None:
    graph, x, alphabet = made.network_of_size(seed, 1500)
    hold(graphs.check(graph, alphabet=alphabet), x)
    graph, x, _ = made.random_network(seed)
    hold(graphs.check(graph), x)  # nothing declared


@pytest.mark.parametrize("types", [frozenset(), frozenset({torch.int8})], ids=["float", "int8"])
def test_processors_without_byte_products_come_out_the_same(types: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "tested", lambda device: types)
    monkeypatch.setattr(Product, "__call__", _refused if not types else Product.__call__)
    for case in CASES[::3]:
        hold(case.network(), case.x)


def _refused(*_: Any) -> Any:
    raise AssertionError("this processor has no byte products")


def test_every_narrow_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests hold equal is the narrow way, not the step that stands in for it."""
    seen: set[Any] = set()

    def spy(owner: Any, name: str, what: Any) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (seen.add(what(*a)), real(*a, **k))[1])

    spy(Product, "__call__", lambda self, *_: ("bytes", len(self.types), self.wraps, self.shift > 0, self.block > 1))
    spy(Cells, "charge", lambda self, a, out, wraps, saturates: (wraps, saturates, self.u is not None))
    spy(Cells, "advance", lambda self, *_: ("advance", self.simple))
    spy(Cells, "fire", lambda self, z: (self.step.reset_mode, self.lower is not None))
    spy(narrow.GatedCells, "charge", lambda self, *_: ("gated", self.feedback is None, self.balance is None))
    spy(executor, "pooled", lambda step, x, dtype, *_: ("pooled", np.dtype(dtype).name))
    for case in [*CASES, *_wide_cases()]:
        IntegerExecutor(case.network()).run(torch.from_numpy(np.swapaxes(case.x, 0, 1)))
    # a register that may wrap may also be full, so saturation is watched with it
    wanted: set[Any] = {(w, s, u) for w, s in ((False, False), (False, True), (True, True)) for u in (False, True)}
    wanted |= {("zero", False), ("zero", True), ("none", False), ("none", True), ("subtract", False)}
    wanted |= {("advance", True), ("advance", False), ("pooled", "int8")}
    if HERE:
        wanted |= {("gated", *g) for g in ((False, True), (True, False), (False, False))}
        wanted |= {("bytes", n, False, False, False) for n in (1, 2)} | {("bytes", 1, False, True, False)}
        wanted |= {("bytes", 2, True, False, True), ("bytes", 1, False, False, True)}
    assert wanted <= seen, wanted - seen


def _wide_cases() -> list[made.Case]:
    """Sums of two-byte messages that wrap, and wide maps."""
    x = made.draw(-32767, 32767, 2, 3, 2, 4, 6)
    layer = made.conv(made.draw(-127, 127, 3, 2, 3, 3), [5, -5, 0], padding=1, weight_exp=3, message_bits=16)
    cells = made.neuron((3, 4, 6), 9000, du=100, dv=4096)
    found = [made.case("wide", made.chain((2, 4, 6), layer, cells), x)]
    bits = made.conv(made.draw(-127, 127, 4, 2, 3, 3), [1, -1, 0, 2])
    parts = bits, made.neuron((4, 4, 8), 90, dv=3277, du=1024, lower=-60), nir.SumPool2d(*np.full((3, 2), (2,)) * 1)
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    graph = made.chain((2, 6, 10), *parts[:2], pool, made.neuron((4, 2, 4), 2))
    found.append(made.case("maps", graph, made.draw(0, 1, 3, 9, 2, 6, 10)))
    turning = np.random.default_rng(5).choice(
        [1 << 18, -1 << 18, 131072, -131072, 131073, 131071, 1, -1, 0], (3, 30, 5)
    )
    for name, x in (("turning", turning), ("turning too far", turning + (turning == 1 << 18))):
        fields = {"du": [-1, -1, 0, 2048, 4095], "bias_mant": [0, 4000, -4000, 0, 9], "bias_exp": 10}
        for dv in (0, 4096):
            cells = made.neuron((5,), (1 << 17) - 1, **fields, dv=dv)
            found.append(made.case(f"{name} {dv}", made.chain((5,), cells), x))
    cells = made.neuron(
        (3,), (1 << 17) - 1, du=[4000, 3000, 4095], dv=[0, 1, 0], bias_mant=[4000, -4000, 4000], bias_exp=9
    )
    found.append(made.case("filling", made.chain((3,), cells), made.draw(-900, 900, 2, 20, 3)))
    cells = made.neuron((3,), 90, du=[4000, 0, 4095], dv=9, bias_mant=[1 << 22, -(1 << 22), 3], bias_exp=[10, 10, 2])
    found.append(made.case("bias beyond int32", made.chain((3,), cells), made.draw(-9, 90, 2, 9, 3)))
    sums = made.conv(np.full((1, 1, 3), 127), message_bits=16)
    found.append(
        made.case("a sum that turns", made.side_by_side((1, 9), {"sums": sums}), made.draw(32000, 32767, 1, 3, 1, 9))
    )
    return [*found, made.case("no synapse", made.chain((5,), made.neuron((5,), 9, dv=4096)), turning)]


@pytest.mark.parametrize("case", _wide_cases(), ids=str)
def test_wide_messages_and_maps(case: made.Case) -> None:
    hold(case.network(), case.x)


@pytest.mark.parametrize("bits", [6, 8, 9, 16, 20])
def test_gates_of_any_message_width(bits: int) -> None:
    parts = {"feedback": made.conv(made.draw(-60, 60, 3, 3, 3, 3), [9, -9, 0], padding=1, message_bits=2)}
    parts["balance"] = made.conv(made.draw(-60, 60, 3, 3, 3, 3), [2, 0, -2], padding=1, message_bits=bits)
    node = made.gated((3, 4, 5), **parts, vth=20, dv=3277, feedback_shift=2, balance_shift=24 - bits, balance_bits=bits)
    case = made.case("gated", made.chain((3, 4, 5), node), made.draw(-90, 200, 3, 12, 3, 4, 5))
    hold(case.network(), case.x)


# --- inputs


def _layer(alphabet: Any = BINARY) -> Network:
    layer, cells = made.conv(made.draw(-99, 99, 3, 1, 3, 3), message_bits=9), made.neuron((3, 4, 4), 80, dv=3277)
    return graphs.check(made.chain((1, 6, 6), layer, cells), alphabet=alphabet)


def test_inputs_of_any_type_and_any_declaration() -> None:
    x = torch.from_numpy(made.draw(0, 1, 7, 3, 1, 6, 6))
    for alphabet in (BINARY, interval(-5, 200, True), REAL):
        wanted = meaning(_layer(alphabet), x)
        for kind in (torch.float32, torch.float64, torch.uint8, torch.int8, torch.int64, torch.bool):
            hold(_layer(alphabet), x.to(kind), wanted)


def test_an_input_beyond_its_declaration_is_not_misread() -> None:
    rng = np.random.default_rng(0)
    for lo, hi in ((0, 2), (-1, 1), (-200, 255), (0, 256), (-40000, 70000)):
        hold(_layer(), rng.integers(lo, hi + 1, (3, 5, 1, 6, 6)))
    layer, cells = made.conv(np.full((3, 1, 3, 3), 200)), made.neuron((3, 4, 4), 80, du=0, dv=4000)
    loud = graphs.check(made.chain((1, 6, 6), layer, cells), alphabet=BINARY)  # spikes alone would never turn u
    hold(loud, np.full((2, 5, 1, 6, 6), 255))
    hold(_layer(), rng.normal(0, 1, (3, 5, 1, 6, 6)))  # `check_input` refuses it; here it must be the step's result


def test_a_still_input_is_summed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.from_numpy(made.draw(0, 1, 1, 3, 1, 6, 6)).double()
    x, calls = image.repeat(9, 1, 1, 1, 1), []
    sums = executor.Drive._made
    monkeypatch.setattr(executor.Drive, "_made", lambda self, x, up: (calls.append(len(x)), sums(self, x, up))[1])
    hold(_layer(), x)
    hold(_layer(), image.expand(9, -1, -1, -1, -1))
    assert set(calls) == {1}
    x[7, 2, 0, 3, 3] = 1 - x[7, 2, 0, 3, 3]
    hold(_layer(), x)
    assert calls[-1] == 9


def test_spikes_and_registers_come_in_narrow_types() -> None:
    graph = made.chain((2,), made.dense([[4, 2], [2, 4]]), made.neuron((2,), 3), made.dense([[2, 4]]))
    states: Any = {}
    z = IntegerExecutor(graphs.check(graph, alphabet=BINARY)).run(torch.ones(4, 3, 2), states)
    assert [a.dtype for a in z.values()] == [torch.int8, torch.float64]
    assert {a.dtype for rows in states.values() for a in rows.values()} == {torch.int32}


# --- bounds


def test_float32_sums_end_exactly_at_two_to_the_24() -> None:
    """One step further the float32 sum is wrong, and float64 is taken."""
    ops, weight = IntegerOps(), torch.ones(1, 2, dtype=torch.float64)
    below, beyond = torch.tensor([[2.0**23 - 1, 2.0**23 - 1]]), torch.tensor([[2.0**23 + 1, 2.0**23]])
    for x, kind in ((below, torch.float32), (beyond, torch.float64)):
        assert ops.narrow(x.double(), weight)[0].dtype == kind
        assert ops.linear(x.double(), weight, None).item() == sum(x[0].tolist())
        kernel, window = weight.view(1, 2, 1, 1), Window((1, 1), (0, 0), (1, 1))
        assert ops.conv(x.double().view(1, 2, 1, 1), kernel, None, window).item() == sum(x[0].tolist())
    assert functional.linear(beyond, weight.float()).item() != sum(beyond[0].tolist())
    limit = torch.tensor([[2.0**23, 0.0]]).double()  # the bound, not the sum, decides
    assert ops.narrow(limit, weight)[0].dtype == torch.float64
    assert ops.narrow(below.double(), weight / 2)[0].dtype == torch.float64
    assert ops.narrow(below.double() / 2, weight)[0].dtype == torch.float64


def test_networks_whose_sums_float32_gets_wrong() -> None:
    x = np.array([[[1 << 23, (1 << 23) + 1], [(1 << 23) - 1, 1 << 23], [-(1 << 23), -1]]])
    graph = made.chain((2,), made.dense([[2, 2], [2, -2]], message_bits=32))
    network = graphs.check(graph, alphabet=interval(-(1 << 24), 1 << 24, True))
    z = next(iter(IntegerExecutor(network).run(torch.from_numpy(np.swapaxes(x, 0, 1))).values()))
    assert z[:, 0].tolist() == [[2 * a + 2 * b, 2 * a - 2 * b] for a, b in x[0].tolist()]
    assert z[0, 0, 0].item() != float(np.float32(2 * x[0, 0].sum()))
    hold(network, x)


def test_byte_sums_end_before_int32_does() -> None:
    rows = 2 * 66_000
    step = made.dense(np.full((1, rows), 254), message_bits=8)
    for top, narrow_enough in ((31, True), (63, False)):
        network = graphs.check(made.chain((rows,), step), alphabet=interval(0, top, True))
        (inner,) = (s for s in network.steps.values() if hasattr(s, "weight"))
        product = Product.of(inner, (rows,), interval(0, top, True), BYTES)
        assert (product is not None) == narrow_enough
        z = next(iter(IntegerExecutor(network).run(torch.full((1, 1, rows), top)).values()))
        assert z.item() == 254 * rows * top


def test_inputs_that_fit_int32_only_before_they_are_aligned() -> None:
    graph = made.chain((4,), made.dense(np.full((2, 4), 128), message_bits=20), made.neuron((2,), 4, dv=99))
    x = made.draw(-5, 5, 2, 6, 4)
    x[:, 3] = 1 << 17  # their sum << 6 is 2^32
    hold(graphs.check(graph), x)


def test_messages_are_cut_into_bytes_that_hold_them() -> None:
    for lo in (0, -1, -128, -129, -(1 << 15), -(1 << 15) - 1):
        for hi in (1, 127, 128, 255, 256, (1 << 15) - 1, 1 << 15):
            types = narrow.message_bytes(interval(lo, hi, True))
            x = np.array([lo, hi, 0], np.int32)
            planes = [narrow._byte(x, i).view(np.dtype(str(t)[6:])).astype(int) << 8 * i for i, t in enumerate(types)]
            assert not types or np.array_equal(sum(planes), x)
            assert bool(types) == (lo >= -(1 << 15) and hi < 1 << 15)


def test_no_wrap_or_saturation_goes_unannounced() -> None:
    """`events` against the step itself, on inputs at the bound."""
    rng, happened = np.random.default_rng(3), set()
    for _ in range(150):
        du, dv = (int(rng.choice([0, 1, 100, 2048, 4000, 4095, 4096])) for _ in range(2))
        most, steps, bias = int(rng.choice([1, 3000, 60000, 131071, 131072, WIDEST])), int(rng.integers(1, 12)), 0
        bias = int(rng.choice([0, 5000, 3_000_000]))
        node = made.neuron((1,), 1 << 18, du=min(du, 4095), dv=dv, bias_mant=bias)
        step = bind(graphs.check(made.chain((1,), node)).steps["n0"], NumpyOps())
        assert isinstance(step, IntFire)
        state, wraps, saturates = step.init(NumpyOps(), (1, 1)), False, False
        for x in (rng.choice([most, most, -most]) for _ in range(steps)):
            free = replace(step, keep_v=None, bias=None)  # its v is u, wrapped
            raw = (np.trunc(state[1] * (step.keep_u or 0) / 4096) + 64 * x).item()
            v, u = step.charge(NumpyOps(), np.array([[float(x)]]), state)
            wraps |= u.item() != raw
            saturates |= abs(np.trunc(state[0] * (step.keep_v or 0) / 4096) + u + bias).item() > (1 << 23) - 1
            state = (v, u)
            assert free.keep_v is None
        told = events(4095 - min(du, 4095), 4096 - dv, bias, most, steps)
        assert told[0] >= wraps and told[1] >= saturates
        happened |= {(told[0], wraps), (told[1], saturates)}
    assert {(True, True), (False, False)} <= happened


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_pools_of_any_geometry(kernel: int) -> None:
    rng = np.random.default_rng(kernel)
    for stride in ((1, 1), (2, 3)):
        for padding in ((0, 0), (kernel // 2, 0), (0, kernel // 2)):
            step = Pool((kernel, max(1, 4 - kernel)), Window(stride, padding, (1, 1)), None)
            for dtype, lo, hi in (("uint8", 0, 20), ("int8", -9, 9), ("int32", -99999, 99999)):
                x = rng.integers(lo, hi + 1, (2, 3, 7, 9))
                if padding[1] * 2 > step.kernel[1]:
                    continue
                wanted = step.drive(NumpyOps(np.int64), x)
                found = pooled(
                    step, np.ascontiguousarray(x.transpose(0, 2, 3, 1), dtype), np.dtype(dtype), Scratch(), 0
                )
                assert found.dtype == dtype and np.array_equal(found.transpose(0, 3, 1, 2), wanted)


# --- devices


def test_the_convolution_for_other_devices_is_one() -> None:
    rng = np.random.default_rng(0)
    for window, shape, weight in (
        (Window((2, 1), (1, 2), (1, 2), 2), (3, 4, 9, 8), (6, 2, 3, 2)),
        (Window((1, 1), (0, 0), (1, 1)), (2, 3, 5, 5), (4, 3, 5, 5)),
        (Window((2,), (1,), (2,), 3), (2, 3, 11), (6, 1, 3)),
    ):
        x, w = (rng.integers(-99, 99, s) for s in (shape, weight))
        wanted = NumpyOps(np.int64).conv(x, w, None, window)
        found = unfolded_conv(torch.from_numpy(x).double(), torch.from_numpy(w).double(), window)
        assert np.array_equal(found.numpy(), wanted)


class _Rounding(IntegerOps):
    """A device that rounds: bits kept of every input of a sum, and the type that it sums in."""

    def __init__(self, bits: int, kind: torch.dtype, only: str) -> None:
        super().__init__()
        self.bits, self.kind, self.only = bits, kind, only

    def rounded(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        fraction, exponent = torch.frexp(x)
        x = torch.ldexp((fraction * 2**self.bits).round(), exponent - self.bits)
        return x.to(self.kind), weight.to(self.kind)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.only == "conv":
            return super().linear(x, weight, bias)
        return functional.linear(*self.rounded(x, weight)).double()

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        if self.only == "linear":
            return super().conv(x, weight, bias, window)
        return functional.conv2d(*self.rounded(x, weight)).double()


@pytest.mark.parametrize("only", ["conv", "linear"])
@pytest.mark.parametrize("bits, kind", [(53, torch.float32), (8, torch.float64), (24, torch.float64)])
def test_a_device_that_rounds_is_refused(bits: int, kind: torch.dtype, only: str) -> None:
    with pytest.raises(TargetError, match=r"rounds whole numbers below 2\^(24|53)"):
        self_test("cpu", _Rounding(bits, kind, only))


class _Winograd(IntegerOps):
    """3 x 3 convolutions in float32 by F(2, 3), whose halves and sums round."""

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        if weight.shape[-1] != 3:
            return super().conv(x, weight, bias, window)
        g = torch.tensor([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2.0]]) / torch.tensor([[1.0], [2], [2], [2]])
        b = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1.0]])
        a = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1.0]])
        tiles = x.float().unfold(2, 4, 2).unfold(3, 4, 2)
        product = torch.einsum("nchwij,ocij->nohwij", b @ tiles @ b.T, g @ weight.float() @ g.T)
        y = a @ product @ a.T  # (N, O, h / 2, w / 2, 2, 2)
        return y.permute(0, 1, 2, 4, 3, 5).reshape(len(x), len(weight), 2 * y.shape[2], -1).double()


def test_winograd_is_refused() -> None:
    x, w = torch.ones(1, 1, 4, 4).double(), torch.ones(1, 1, 3, 3).double()
    assert _Winograd().conv(x, w, None, Window((1, 1), (0, 0), (1, 1))).unique().tolist() == [9]
    with pytest.raises(TargetError, match="convolution"):
        self_test("cpu", _Winograd())


def test_this_processor_passes() -> None:
    assert HERE <= BYTES
    x = torch.from_numpy(np.random.default_rng(0).integers(-9, 9, (1, 2, 3)))
    assert Cells.align == 6 and Scratch()("a", (2, 3), np.int8).sum() == 0 and x.shape == (1, 2, 3)
