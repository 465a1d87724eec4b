"""Wrong torch ops, wrong gradients and a check that looks away must be caught: `test_mutants` for the proof itself.

Each script of `claims` says what must hold of one part. This file as a script, `test_mutants_proof.py SCRIPT`, runs it
unchanged and once with every mutant, each in a process of its own, forked before any module of the project is loaded.
Exit codes of these processes as in `test_mutants`: agrees, caught, and anything else where the mutant itself is broken.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import claims
import pytest
from test_mutants import AGREES, CAUGHT, Finder

TORCH, KERNELS, CHECK, BOUNDS, TRACE, SESSION, REPORT, STANDARD = (
    *("targets.pytorch", "targets.kernels", "eiexport.check", "eiexport.bounds", "eiexport.trace"),
    *("eiexport.session", "eiexport.report", "eiexport.standard"),
)
COMPARE, AFTER = '(torch.ge if compare == "ge" else torch.gt)(v', "carried.mul_(inner.decay).add_(g * x[t])"
BEFORE = "torch.sign(ops.conv(x[t], wb, bb, step.balance.window)) * (x[t] > inner.threshold)"
WINDOW = "window.stride, window.padding, window.dilation, window.groups"
UNLESS_ZERO = "*((window.padding, window.stride) if min(window.padding) else (window.stride, window.padding))"

MUTANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "torch_target": {
        "> for >=": (TORCH, COMPARE, "torch.gt(v"),
        ">= for >": (TORCH, COMPARE, "torch.ge(v"),
        "training: > for >=": (TORCH, '_at_or_above if compare == "ge" else', "_above if True else"),
        "training: >= for >": (TORCH, "else _above", "else _at_or_above"),
        "sign(0) = 1": (TORCH, "return torch.sign(x) if", "return torch.sign(x).add(x == 0) if"),
        "training: sign(0) = 1": (TORCH, "(x, torch.sign,", "(x, lambda x: torch.sign(x).add(x == 0),"),
        "bias of a matrix dropped": (TORCH, "functional.linear(x, weight, bias)", "functional.linear(x, weight)"),
        "bias of a convolution dropped": (TORCH, "run(x, weight, bias,", "run(x, weight, None,"),
        "groups read the first channels": (
            TORCH,
            f"run(x, weight, bias, {WINDOW})",
            f"run(x[:, : weight.shape[1]], weight, bias, {WINDOW.replace('window.groups', '1')})",
        ),
        "padding and stride exchanged": (TORCH, "bias, window.stride, window.padding", f"bias, {UNLESS_ZERO}"),
        "dilation ignored": (TORCH, "window.dilation, window.groups", "1, window.groups"),
        "sum averaged": (TORCH, "divisor_override=1", "divisor_override=None"),
        "padding of a pool ignored": (TORCH, "kernel, window.stride, window.padding,", "kernel, window.stride, 0,"),
        "padding of a maximum is zero": (
            TORCH,
            "functional.max_pool2d(x, kernel, window.stride, window.padding,",
            "functional.max_pool2d(functional.pad(x, [p for p in window.padding[::-1] for _ in (0, 1)]), kernel, "
            "window.stride, 0,",
        ),
        "window of a maximum off by one": (
            TORCH,
            "functional.max_pool2d(x, kernel, window.stride, window.padding,",
            "functional.max_pool2d(x.roll(1, 3), kernel, window.stride, window.padding,",
        ),
        "-1 lost when stored": (TRACE, "return z.astype(np.int8)", "return np.abs(z).astype(np.int8)"),
        "time and samples exchanged": (
            TORCH,
            "(np.swapaxes(x, 0, 1))",
            "(x)",
            "{n: a.cpu()",
            "{n: a.transpose(0, 1).cpu()",
        ),
        "float32 as float64": (TORCH, "TorchOps(getattr(torch, self.dtype)", "TorchOps(torch.float32"),
    },
    "fused_scan": {
        "feedback ignored": (
            KERNELS,
            ".conv(sent[t - 1], wf, bf, step.feedback.window).sigmoid_()",
            ".zeros(v.shape) + 1",
        ),
        "feedback of this step": (KERNELS, "ops.conv(sent[t - 1], wf", f"ops.conv({BEFORE}, wf"),
        "decay ignored": (KERNELS, AFTER, "carried + g * x[t]"),
        "decay missing backward": (KERNELS, "to_carried = to_v.mul_(inner.decay)", "to_carried = to_v"),
        "reset not in the gradient": (KERNELS, "to_spike.addcmul_(v, to_carried, value=-1)", "pass"),
        "gradient passes a reset": (KERNELS, "addcmul_(to_carried, spike.neg_().add_(1))", "add_(to_carried)"),
        "slope of the balance missing": (KERNELS, "slope(c).mul_(to_sent).mul_(spike)", "to_sent * spike"),
        "slope of the spike missing": (
            KERNELS,
            "to_v.addcmul_(to_spike, slope(v - inner.threshold))",
            "to_v += to_spike",
        ),
        "balance in the feedback's window": (KERNELS, "wb, bb, step.balance.window", "wb, bb, step.feedback.window"),
        "its window missing backward": (KERNELS, "back_b, None, balance.window", "back_b, None, feedback.window"),
        "its window missing in the weights": (KERNELS, "wb, to_c, balance)", "wb, to_c, feedback)"),
        "kernel not turned": (KERNELS, "w.flip(2, 3).transpose(0, 1)", "w.transpose(0, 1)"),
        "feedback's bias without gradient": (KERNELS, "to_bf += to_fed.sum((0, 2, 3))", "pass"),
        "balance's bias without gradient": (KERNELS, "to_bb += to_c.sum((0, 2, 3))", "pass"),
        "balance: t = 0 skipped": (KERNELS, "(v, wb, to_c, balance)", "(v, wb, to_c * (t > 0), balance)"),
        "feedback's weights see this step": (KERNELS, "_weight_grad(sent[t - 1]", "_weight_grad(sent[t]"),
        "loss of earlier steps dropped": (KERNELS, ".add_(grad[t - 1])", ""),
        "sigmoid's slope missing": (KERNELS, ".mul_(g.neg().add_(1))", ""),
        ">= for >": (KERNELS, "torch.gt(v, inner.threshold", "torch.ge(v, inner.threshold"),
        "sign(0) = 1": (KERNELS, "torch.mul(torch.sign(c), spike", "torch.mul(torch.sign(c).add(c == 0), spike"),
    },
    "check": {
        "exact hit is a tie": (CHECK, "(distance <= e) & (e > 0) &", "(distance <= e) &"),
        "any distance is a tie": (CHECK, "(distance <= e) & (e > 0) &", ""),
        "share of ties not capped": (CHECK, "ties > TIES[dtype] * entries or ", ""),
        "distance of ties not capped": (CHECK, " or margin > MARGIN", ""),
        "real values not capped": (CHECK, "np.minimum(e, MARGIN * np.abs(expected).max(initial=1.0))", "e"),
        "ties told as equal": (CHECK, '"explained" if ties else "equal"', '"equal"'),
        "nothing compared is equal": (CHECK, "if not entries or any(", "if any("),
        "mismatches not summed": (CHECK, "result.mismatches += int", "result.mismatches = int"),
        "mismatches not judged": (CHECK, "any(r.mismatches for r in results.values())", "False"),
        "state follows the reference": (
            *(CHECK, "state = step.reset(self.ops, membrane, sent, self.ops.exact(reset))"),
            "state = step.reset(self.ops, membrane, nominal, s)",
        ),
        "a tie resets as the reference": (CHECK, "np.where(hit, other.x, reset), wrong", "reset, wrong"),
        "inputs follow the reference": (CHECK, "(self._spikes(name) or", "(False or"),
        "NaN passes": (
            CHECK,
            "~((difference == 0) | (difference <= allowed) & np.isfinite(e))",
            "difference > allowed",
        ),
        "first node only": (CHECK, "result in self.results.items():", "result in [*self.results.items()][:1]:"),
        "any shape accepted": (CHECK, "if z[name].shape != expected:", "if False:"),
        "absolute values checked": (CHECK, "wrong = sent != nominal", "wrong = np.abs(sent) != np.abs(nominal)"),
        "offset of a sample lost": (CHECK, "sample + i", "i"),
        "everything fits": (BOUNDS, "return k is not None and (", "return True or ("),
        "nothing fits": (BOUNDS, "return k is not None and (", "return False and ("),
        "mantissa too long": (BOUNDS, "nmant + 1", "nmant + 29"),
        "products exact": (BOUNDS, "relative = roundings * self.u", "relative = 0.0"),
        "sums exact": (BOUNDS, "e + n * self.u * (magnitude + e)", "e"),
        "bounds too wide": (BOUNDS, "self.u = ", "self.u = 1e6 * "),
        "cancellation forgotten": (BOUNDS, "magnitude = apply(np.abs(x.x), w)", "magnitude = np.abs(y)"),
        "bias not in the bound": (BOUNDS, "magnitude + np.abs(bias.x)", "magnitude"),
        "error of the input lost": (BOUNDS, "apply(x.e, w) if x.e.any()", "apply(x.e, w) if False"),
        "error of the membrane lost": (BOUNDS, "a.x + b.x, a.e + b.e,", "a.x + b.x, 0 * (a.e + b.e),"),
        "folded factors forgotten": (BOUNDS, "magnitude = a.rough * b.rough", "magnitude = np.abs(a.x * b.x)"),
        "error of a maximum lost": (BOUNDS, "largest(np.broadcast_to(x.e,", "0 * largest(np.broadcast_to(x.e,"),
        "error of a maximum too small": (
            *(BOUNDS, "largest(np.broadcast_to(x.e, x.shape))"),
            "-largest(-np.broadcast_to(x.e, x.shape))",
        ),
        "folded factors before a maximum forgotten": (BOUNDS, "m = None if x.m is None else largest", "m = None and "),
        "signs ignored, free-running": (TRACE, "wrong = x != y", "wrong = np.abs(x) != np.abs(y)"),
        "offset lost, free-running": (TRACE, "sample + s,", "s,"),
        "last divergence first": (TRACE, "(found.step, found.sample) <", "(found.step, found.sample) >"),
        "anything is a spike": (TRACE, "and np.isin(z, (-1, 0, 1)).all()", ""),
    },
    "export": {
        "delivered samples not counted": (SESSION, "if start != len(self.x):", "if False:"),
        "offset of a chunk lost": (SESSION, "chunk.z, start)", "chunk.z, 0)"),
        "offset lost, free-running": (SESSION, "Trace(spikes), start)", "Trace(spikes), 0)"),
        "always equal": (SESSION, "judge(check.results, row.dtype)", '"equal"'),
        "another run than the reference's": (SESSION, 'if row.status == "equal" and row.free_running:', "if False:"),
        "wrong reference accepted": (
            REPORT,
            "(self.reference,) if self.float_row is None",
            "() if self.float_row is None",
        ),
        "failed is ok": (REPORT, 'in ("equal", "explained")', 'in ("equal", "explained", "failed")'),
        "one good row is enough": (
            REPORT,
            "all(r.ok for r in (*first, *self.rows))",
            "any(r.ok for r in (*first, *self.rows))",
        ),
    },
    "standard_form": {
        "lowered by float64's rounding": (STANDARD, "held = threshold.astype(dtype)", "held = threshold.astype(float)"),
        "threshold not lowered": (STANDARD, "below = np.nextafter(held, held.dtype.type(-np.inf))", "below = held"),
        "threshold raised": (STANDARD, "held.dtype.type(-np.inf)", "held.dtype.type(np.inf)"),
        "lowered after its last rounding": (
            *(STANDARD, "below = np.nextafter(held, held.dtype.type(-np.inf))"),
            "below = np.nextafter(threshold, -np.inf).astype(dtype)",
        ),
        "strict thresholds lowered too": (
            *(STANDARD, 'if step.compare == "ge" else step.threshold'),
            "if True else step.threshold",
        ),
        "exact everywhere": (STANDARD, "made_for = made_for if everywhere else dtype", "made_for = made_for"),
        "exact in the dtype alone": (STANDARD, "made_for = made_for if everywhere else dtype", "made_for = dtype"),
        "another dtype accepted": (STANDARD, "if made_for not in (ANY, dtype):", "if False:"),
        "any decay accepted": (STANDARD, "if (best == 0).any():", "if False:"),
        "no neighbours tried": (STANDARD, "range(-4, 5)", "range(0, 1)"),
        "reset to 0": (STANDARD, "if step.v_reset is None else", "if True else"),
        "gain dropped": (STANDARD, "return np.ones(()) if step.gain is None else step.gain", "return np.ones(())"),
        "no reset taken for hard": (STANDARD, 'if step.reset_mode == "none":', "if False:"),
        "soft reset taken for hard": (STANDARD, 'if plain.reset_mode == "subtract":', "if False:"),
        "soft reset two steps later": (STANDARD, "np.full(shape, clock.dt)", "np.full(shape, 2 * clock.dt)"),
        "soft reset added": (STANDARD, "0 - step.threshold * step.decay", "step.threshold * step.decay"),
        "soft reset without decay": (STANDARD, "step.threshold * step.decay / gain", "step.threshold / gain"),
        "soft reset without gain": (STANDARD, "step.decay / gain", "step.decay"),
        "soft reset by the lowered threshold": (
            *(STANDARD, "uniform(0 - step.threshold * "),
            "uniform(0 - next_below(step.threshold, DTYPES[0]) * ",
        ),
        "soft threshold not lowered": (
            *(STANDARD, "nir.Threshold(np.broadcast_to(_passed(step, dtype)"),
            "nir.Threshold(np.broadcast_to(step.threshold",
        ),
        "soft threshold exact everywhere": (
            *(STANDARD, '*pairwise(way)], exact and step.compare == "gt"'),
            "*pairwise(way)], exact",
        ),
        "delay written unasked": (STANDARD, "if how == EXPLICIT:", "if True:"),
        "delay never written": (STANDARD, "if how == EXPLICIT:", "if False:"),
        "recurrence not said": (STANDARD, "= IMPLICIT if left else EXPLICIT", "= EXPLICIT"),
        "a cycle in the neuron's own bounds": (SESSION, "meant = standard.as_run(meant, self.lowered)", "pass"),
        "a cycle's bounds without its spikes": (STANDARD, "ops.mul(state[1], self.back)", "ops.mul(state[1], 0.0)"),
        "lower threshold dropped": (STANDARD, "if step.lower is not None:", "if False:"),
        "gates dropped": (STANDARD, "and step.feedback is None and step.balance is None", ""),
        "any maximum taken for spikes": (STANDARD, 'if total.kind != "binary":', "if False:"),
        "threshold of a sum": (STANDARD, "network.shapes[name], 0.5)", "network.shapes[name], 1.5)"),
        "engines run the graph before": (SESSION, "or self.lowered is None else", "or True else"),
        "held against itself": (SESSION, "progress, lowered)", "progress, lowered)\n        session.network = lowered"),
        "another dtype not told": (SESSION, "made_for not in (graph.ANY, r.dtype)", "False"),
        "told of every dtype": (SESSION, "made_for not in (graph.ANY, r.dtype)", "made_for not in (graph.ANY,)"),
    },
}


@cache
def outcomes(file: str, *arguments: str) -> dict[str, tuple[int, str]]:
    """What a file of mutants says as a script, in a process that has not loaded the project: name -> `forked`."""
    root = Path(__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, file, *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", MUTANTS)
def test_unchanged_source_agrees(script: str) -> None:
    code, said = outcomes(__file__, script)[""]
    assert code == AGREES, said


@pytest.mark.parametrize("script, name", [(s, n) for s, mutants in MUTANTS.items() for n in mutants])
def test_mutant_is_caught(script: str, name: str) -> None:
    code, said = outcomes(__file__, script)[name]
    assert code != AGREES, "the mutant survives: nothing tells it from the original"
    assert code == CAUGHT, said


# --- the script


def run(script: Callable[[], claims.Claims], changes: tuple[str, ...]) -> str:
    """The first claim that does not hold, or nothing."""
    finder = Finder(changes[0], changes[1:]) if changes else None
    if finder:
        sys.meta_path.insert(0, finder)
    warnings.simplefilter("ignore")  # a mutant may divide by zero
    wrong = next((f"{what} does not hold" for what, holds in script() if not holds), "")
    if finder and not finder.used:
        raise RuntimeError(f"{finder.name} was never imported")
    return wrong


def forked(script: Callable[[], claims.Claims], changes: tuple[str, ...]) -> tuple[int, str]:
    """(exit code, what was said) of a child that gets the mutant."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with open(reader) as said:
            text = said.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
    signal.alarm(60)
    code = 1
    try:
        wrong = run(script, changes)
        code = CAUGHT if wrong else AGREES
    except BaseException as e:  # SystemExit too: a fragment that is not there
        wrong = f"the mutant breaks down: {e!r}"
    os.write(writer, wrong.encode()[:4000])
    os._exit(code)


def alone(*heavy: str) -> None:
    """Load what every process of a script shares, and make sure that nothing of the project is among it."""
    for name in heavy:
        importlib.import_module(name)
    if any(m.partition(".")[0] in ("eiexport", "targets", "eitrain") for m in sys.modules):
        raise SystemExit("a module of the project is loaded already: mutants of it would not be seen")


if __name__ == "__main__":
    alone("h5py", "matplotlib.pyplot", "nir", "torch")
    mutants = {"": (), **MUTANTS[sys.argv[1]]}
    print(json.dumps({name: forked(getattr(claims, sys.argv[1]), changes) for name, changes in mutants.items()}))
