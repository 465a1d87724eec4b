"""Wrong circuits, wrong gradients and wrong bounds of them must be caught: `test_mutants` for the E-I circuit.

As in `test_mutants_proof`, this file as a script, `test_circuit_mutants.py SCRIPT`, runs one comparison unchanged and
once with every mutant, each in a process of its own, forked before any module of the project is loaded.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_mutants import AGREES, CAUGHT
from test_mutants_proof import alone, forked, outcomes

CIRCUITS, OPS, INTEGERS, BOUNDS, TORCH = (
    *("eiexport.circuits", "eiexport.ops", "eiexport.integers", "eiexport.bounds", "targets.pytorch"),
)
Claims = Iterator[tuple[str, Any]]

TAKEN, D = "taken = spread.drive(ops, s)", "spread.drive(ops, self.weighed(ops, s)) if"
LEAST = "np.where(x == 0, np.inf, x).min(axis=tuple(range(1, x.ndim)), keepdims=True)"
FLOOR = "ops.shift_floor(ops.mul(m, 2.0 ** (self.table_bits + 1)), 1)"
ROUNDED = FLOOR.replace("(ops.mul", "(ops.add(1.0, ops.mul").replace(", 1)", "), 1)")
GAINED = "n, (share, d) = self.scaled(ops, n), self.reciprocal(ops, d)"
SCALED = "ops.shift_floor(y, -self.shift) if"
CLIP = "ops.saturate(y, -CURRENT, CURRENT)"
SHIFTED = "y = ops.shift_floor(y, self.shift)"
THROUGH = "Through.apply(x, filled) if self.straight_through else filled"
TURNED = "replace(spread, weight=spread.weight.T if len(set(spread.weight.shape[:2])) == 1 else spread.weight)"

MUTANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "conformance": {
        # the two inhibitions
        "relu dropped": (CIRCUITS, "ops.relu(self.inhibit.drive(ops, x))", "self.inhibit.drive(ops, x)"),
        "magnitude for relu": (OPS, "return np.maximum(x, 0)", "return np.abs(x)"),
        "relu of N": (CIRCUITS, "n = ops.sub(e, taken)", "n = ops.relu(ops.sub(e, taken))"),
        "inhibition added": (CIRCUITS, "n = ops.sub(e, taken)", "n = ops.add(e, taken)"),
        "inhibition forgotten": (CIRCUITS, "n = ops.sub(e, taken)", "n = e"),
        "g_I ignored": (CIRCUITS, "return ops.mul(s, self.gain_i)", "return s"),
        "D of s": (CIRCUITS, D, "spread.drive(ops, s) if"),
        "N of g_I s": (
            CIRCUITS,
            TAKEN,
            "taken = spread.drive(ops, s if self.gain_i is None else self.weighed(ops, s))",
        ),
        "D of e": (CIRCUITS, D, "e if"),
        "spread of its own, turned around": (CIRCUITS, D, D.replace("spread", TURNED, 1)),
        # gains and bias
        "g_E ignored": (CIRCUITS, "return ops.mul(n, self.gain_e)", "return n"),
        "bias dropped": (CIRCUITS, "y if self.bias is None else ops.add(y, self.bias)", "y"),
        "bias before the division": (
            *(CIRCUITS, "return self.biased(ops, self.divided(ops, n, self.filled(ops, d)))"),
            "return self.divided(ops, self.biased(ops, n), self.filled(ops, d))",
        ),
        "frozen D ignored": (CIRCUITS, 'numbers["gain_e"] / denominator', 'numbers["gain_e"]'),
        "frozen D multiplies": (CIRCUITS, 'numbers["gain_e"] / denominator', 'numbers["gain_e"] * denominator'),
        "output layer divides": (
            *(CIRCUITS, 'if self.form == "none":\n            return self.biased(ops, n)'),
            'if self.form == "none":\n            return self.biased(ops, ops.div(n, 2.0))',
        ),
        # zeros of D
        "filled with the largest": (OPS, LEAST, LEAST.replace("np.inf", "-np.inf").replace("min", "max")),
        "least of the whole batch": (OPS, LEAST, LEAST.replace("range(1, x.ndim)", "range(x.ndim)")),
        "least of every place": (OPS, LEAST, LEAST.replace("tuple(range(1, x.ndim))", "1")),
        "zeros are the least": (OPS, LEAST, LEAST.replace("np.where(x == 0, np.inf, x)", "np.maximum(x, 1e-9)")),
        "epsilon dropped": (CIRCUITS, 'if self.zero == "sample_min" else self.epsilon', "if True else None"),
        "epsilon added": (OPS, "return np.where(x == 0, y, x)", "return x + np.where(np.isinf(y), 0, y)"),
        "epsilon is a floor": (OPS, "return np.where(x == 0, y, x)", "return np.maximum(x, y)"),
        "epsilon of 1": (CIRCUITS, 'np.asarray(float(one["epsilon"]))', "np.asarray(1.0)"),
        # what hardware does for a division
        "octave below, for the nearest": (CIRCUITS, "ops.octave(d, HALF_OCTAVE)", "ops.octave(d, 1.0)"),
        "octave above, for the nearest": (CIRCUITS, "ops.octave(d, HALF_OCTAVE)", "ops.octave(d, 0.5)"),
        "nearest by difference": (CIRCUITS, "ops.octave(d, HALF_OCTAVE)", "ops.octave(d, 0.75)"),
        "octave one too low": (OPS, "np.ldexp(np.ones_like(fraction), exponent - 1)", "np.ldexp(0.5, exponent - 1)"),
        "part of the table rounded": (
            CIRCUITS,
            FLOOR,
            ROUNDED,
        ),
        "twice as many parts": (CIRCUITS, "(self.table_bits + 1)), 1)", "(self.table_bits + 2)), 1)"),
        "table of lower ends": (CIRCUITS, "np.arange(1 << bits) + 0.5", "np.arange(1 << bits)"),
        "table truncated": (CIRCUITS, "return np.rint((1 <<", "return np.floor((1 <<"),
        "table in 11 bits": (CIRCUITS, "return np.rint((1 <<", "return 2 * np.rint(0.5 * (1 <<"),
        "table without the octave": (CIRCUITS, "self.table), p\n", "self.table), ops.add(ops.mul(p, 0.0), 1.0)\n"),
        # integers
        "quotient toward zero": (OPS, "return np.floor(a / b)", "return np.trunc(a / b)"),
        "quotient to the nearest": (OPS, "return np.floor(a / b)", "return np.rint(a / b)"),
        "quotient upward": (OPS, "return np.floor(a / b)", "return np.ceil(a / b)"),
        "g_E after the floor": (
            *(CIRCUITS, GAINED, GAINED.replace("self.scaled(ops, n)", "n")),
            *("return ops.quotient(n, d)", "return self.scaled(ops, ops.quotient(n, d))"),
        ),
        "shift after the floor": (
            *(CIRCUITS, "            n = ops.shift_floor(n, -self.shift)\n", "            pass\n"),
            "return ops.quotient(n, d)",
            "return ops.shift_floor(ops.quotient(n, d), -self.shift if share is None else 0)",
        ),
        "shift ignored by the table": (CIRCUITS, "RECIPROCAL_BITS - self.shift", "RECIPROCAL_BITS"),
        "table's product toward zero": (
            CIRCUITS,
            "shift_floor(ops.mul(n, share)",
            "shift_zero(ops.mul(n, share)",
        ),
        "clip missing": (CIRCUITS, CLIP, "y"),
        "clip before the bias": (CIRCUITS, "y = super().biased(ops, y)\n", "y = super().biased(ops, " + CLIP + ")\n"),
        "clip one larger": (CIRCUITS, CLIP, "ops.saturate(y, -CURRENT - 1, CURRENT)"),
        "clip to the register": (CIRCUITS, "CURRENT = TOP >> ALIGN", "CURRENT = TOP"),
        "gain_shift upward": (
            *(CIRCUITS, "return ops.shift_floor(super().weighed(ops, s), self.gain_shift)"),
            "return ops.mul(ops.shift_floor(ops.mul(super().weighed(ops, s), -1.0), self.gain_shift), -1.0)",
        ),
        "gain_shift ignored": (CIRCUITS, "super().weighed(ops, s), self.gain_shift)", "super().weighed(ops, s), 0)"),
        "gain_shift before the gain": (
            *(CIRCUITS, "ops.shift_floor(super().weighed(ops, s), self.gain_shift)"),
            "super().weighed(ops, ops.shift_floor(s, self.gain_shift))",
        ),
        "gain_shift behind the sums": (
            *(CIRCUITS, "ops.shift_floor(super().weighed(ops, s), self.gain_shift)", "super().weighed(ops, s)"),
            *("return ops.fill(d, ", "return ops.fill(ops.shift_floor(d, getattr(self, 'gain_shift', 0)), "),
        ),
        "frozen shift toward zero": (CIRCUITS, SCALED, SCALED.replace("shift_floor", "shift_zero")),
        "frozen shift the other way": (CIRCUITS, SCALED, SCALED.replace("-self", "self")),
        "exponents round toward zero": (INTEGERS, SHIFTED, SHIFTED.replace("floor", "zero")),
        "exponents ignored": (INTEGERS, SHIFTED, "pass"),
    },
    "learning": {
        "gradient goes to the donor": (
            TORCH,
            "Through.apply(x, filled) if self.straight_through else filled",
            "filled",
        ),
        "gradient stops at a filled zero": (
            *(TORCH, "Through.apply(x, filled) if self.straight_through else filled"),
            "torch.where(x == 0, y if isinstance(y, float) else y.detach(), x)",
        ),
        "no gradient where nothing inhibits": (TORCH, "return x.clamp(min=0)", "return torch.relu(x)"),
        "gradient of W_EI not scaled": (TORCH, "return grad * ctx.factor", "return grad"),
        "gradient scaled by d": (CIRCUITS, "1 / self.fan_in", "self.fan_in"),
        "scaled by the number of cells": (
            CIRCUITS,
            "math.prod(self.excite.weight.shape[1:])",
            "len(self.excite.weight)",
        ),
        "one of both uses scaled": (CIRCUITS, D, f"self.{D}"),
        "the other use scaled": (CIRCUITS, TAKEN, TAKEN.replace("spread", "self.spread")),
        "W_EI learns from N alone": (CIRCUITS, D, f"replace(spread, weight=spread.weight.detach()).{D[7:]}"),
        "D not in the gradient": (CIRCUITS, "self.filled(ops, d)))", "ops.stop_gradient(self.filled(ops, d))))"),
    },
    "bounds": {
        "an uncertain inf is known": (BOUNDS, "np.isinf(b.x) & (b.e == 0)", "np.isinf(b.x)"),
        "numerator's error dropped": (BOUNDS, "(np.abs(y) * b.e + a.e) / room", "(np.abs(y) * b.e) / room"),
        "divisor's error dropped": (BOUNDS, "(np.abs(y) * b.e + a.e) / room", "a.e / room"),
        "divisor not made smaller": (BOUNDS, "np.abs(b.x) - b.e\n", "np.abs(b.x)\n"),
        "a divisor may cross 0": (BOUNDS, "np.where((room > 0) | endless, e, np.inf)", "np.abs(e)"),
        "quotient not rounded": (BOUNDS, "e = np.where(inexact & ~endless, e + self.u * (magnitude + e), e)", "pass"),
        "every quotient rounded": (BOUNDS, "np.where(inexact & ~endless,", "np.where(~endless,"),
        "grid of a quotient forgotten": (BOUNDS, "None if e.any() else grid(y)", "None"),
        "least: error of the smallest": (BOUNDS, "y - self.np.least(x.x - x.e)", "self.np.least(x.x + x.e) - y"),
        "least: zeros are known": (BOUNDS, "np.where(unsure, np.inf, e)", "e"),
        "least: error of the largest": (
            *(BOUNDS, "y - self.np.least(x.x - x.e)"),
            "np.broadcast_to(x.e, x.shape).max(axis=tuple(range(1, x.x.ndim)), keepdims=True)",
        ),
        "fill: zeros are known": (BOUNDS, "np.where(self._maybe_zero(x), np.inf, e), None)", "e, None)"),
        "fill: known where filled": (BOUNDS, "np.where(x.x == 0, np.broadcast_to(y.e, x.shape), x.e)", "x.e"),
        "flushed numbers are known": (BOUNDS, "| (size < self.tiny) & (size > 0)", ""),
        "octave of a rounded factor": (BOUNDS, "0.0 if np.frexp(low)[0] == 0.5 else 4 * self.u", "0.0"),
        "octave of an exact factor": (BOUNDS, "0.0 if np.frexp(low)[0] == 0.5 else 4 * self.u", "4 * self.u"),
        "octave is known": (BOUNDS, "low), x, x.e + rounded * np.abs(x.x))", "low), x, 0 * x.e)"),
        "rising: off upward only": (BOUNDS, "np.maximum(f(x.x + e) - y, y - f(x.x - e))", "f(x.x + e) - y"),
        "rising: off downward only": (BOUNDS, "np.maximum(f(x.x + e) - y, y - f(x.x - e))", "y - f(x.x - e)"),
        "rising: unknown stays finite": (BOUNDS, "np.where(np.isinf(e), np.inf, off)", "np.minimum(off, 1.0)"),
        "quotient is known": (BOUNDS, "np.where(exact, 0.0, y.e)", "0.0 * y.x"),
        "quotient is never known": (BOUNDS, "np.where(exact, 0.0, y.e)", "y.e"),
        "part of the table is known": (BOUNDS, "for s in (-1, 1))", "for s in (0, 0))"),
        "table: lower parts only": (BOUNDS, "for s in (-1, 1))", "for s in (-1, -1))"),
        "table: higher parts only": (BOUNDS, "for s in (-1, 1))", "for s in (1, 1))"),
        "saturated is known": (BOUNDS, "np.where(x.e > 0, e + 1, 0.0)", "np.zeros_like(y)"),
        "relu is known": (
            BOUNDS,
            "return Bounded(np.maximum(x.x, 0), x.e,",
            "return Bounded(np.maximum(x.x, 0), 0 * x.e,",
        ),
    },
}


def conformance(known: Path) -> Claims:
    """Every case, floats and integers: the NumPy ops do what the oracle says. known: what it said before."""
    from circuit_cases import FLOATS, WHOLE, apart, expected, ran

    from eiexport.ops import NumpyOps

    wanted = pickle.loads(known.read_bytes()) if known.exists() else {}
    for case in (*FLOATS, *WHOLE):
        if case.name not in wanted:
            wanted[case.name] = expected(case)
        try:
            found = ran(case.network(), case.x, NumpyOps())
        except ValueError as e:  # shapes that no longer fit are a loud way of being wrong
            yield f"{case.name}: {e}", False
            return
        wrong = apart(case, found, wanted[case.name])
        yield wrong, not wrong
    known.write_bytes(pickle.dumps(wanted))


def learning() -> Claims:
    """Gradients of torch are those by hand."""
    import circuit_oracle
    import numpy as np
    from circuit_cases import gradients, learning

    for seed in range(4):
        for zero in ("sample_min", "constant"):
            node, rows, weight = learning(seed, zero)
            found = gradients(node, rows, weight)
            for name, g in circuit_oracle.gradients(node, rows.tolist(), weight.tolist()).items():
                yield f"{zero}, {seed}: gradient of {name}", np.allclose(found[name], g, rtol=1e-9, atol=1e-9)


def bounds() -> Claims:
    """They hold op by op and for circuits, and say what they can."""
    import test_circuit_bounds as tests

    yield from tests.ops_hold(range(60))
    yield from tests.circuits_hold(range(6))
    by_hand = {"ops": tests.test_ops_say_something}
    by_hand |= {
        f"dyadic {form}": partial(tests.test_dyadic_circuits_are_exact, form, zero) for form, zero in tests.FORMS
    }
    for what, test in by_hand.items():
        yield what, passes(test)


def passes(test: Callable[[], None]) -> bool:
    try:
        test()
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("script", MUTANTS)
def test_unchanged_source_agrees(script: str) -> None:
    code, said = outcomes(__file__, script)[""]
    assert code == AGREES, said


@pytest.mark.parametrize("script, name", [(s, n) for s, mutants in MUTANTS.items() for n in mutants])
def test_mutant_is_caught(script: str, name: str) -> None:
    code, said = outcomes(__file__, script)[name]
    assert code != AGREES, "the mutant survives: no case tells it from the original"
    assert code == CAUGHT, said


if __name__ == "__main__":
    name = sys.argv[1]
    alone("argparse", "h5py", "nir", "numpy.random", *(() if name == "conformance" else ("pytest", "torch")))
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "oracle.pickle"  # the unchanged source comes first and writes it
        scripts = {"conformance": partial(conformance, known), "learning": learning, "bounds": bounds}
        print(json.dumps({n: forked(scripts[name], changes) for n, changes in {"": (), **MUTANTS[name]}.items()}))
