"""Wrong integer arithmetic must be caught: one fragment of the source is changed, and the integer oracle has to notice.

As in `test_mutants_proof`, this file as a script runs the comparison unchanged and once with every mutant, each in a
process of its own, forked before any module of the project is loaded.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from test_mutants import AGREES, CAUGHT
from test_mutants_proof import alone, forked, outcomes

OPS, NEURONS, INTEGERS, LOOP = "eiexport.ops", "eiexport.neurons", "eiexport.integers", "targets.loop"
DECAY_U = "ops.shift_zero(ops.mul(state[1], self.keep_u), UNITY)"
DECAY_V = "ops.shift_zero(ops.mul(state[0], self.keep_v), UNITY)"
WRAP = "np.where(x > top, x - 2 * top, np.where(x <= -top, x + 2 * top, x))"
CLIPPED = 'np.clip(flip * weight, -256 if sign_mode == "mixed" else 0, 255)'
RESET = "return self.after(ops, membrane[0], z, s), membrane[1]"

MUTANTS: dict[str, tuple[str, ...]] = {
    # decisions
    "> for >=": (OPS, "v >= threshold if", "v > threshold if"),
    ">= for >": (OPS, "else v > threshold)", "else v >= threshold)"),
    "lower threshold ignored": (
        INTEGERS,
        'lower=None if node.lower is None else uniform(p["lower"] * (1 << ALIGN))',
        "lower=None",
    ),
    "lower threshold always strict": (NEURONS, ", 0.0, self.compare)", ', 0.0, "gt")'),
    "sign of the lower spike lost": (NEURONS, "return ops.sub(s, down), ", "return ops.add(s, down), "),
    "threshold shifted by 5": (
        INTEGERS,
        'threshold=uniform(p["vth"] * (1 << ALIGN))',
        'threshold=uniform(p["vth"] * 32)',
    ),
    "threshold not shifted": (INTEGERS, 'threshold=uniform(p["vth"] * (1 << ALIGN))', 'threshold=uniform(p["vth"])'),
    # resets
    "no reset": (NEURONS, 'if self.reset_mode == "none":', "if True:"),
    "always hard reset": (NEURONS, 'if self.reset_mode == "subtract":', "if False:"),
    "reset of u too": (INTEGERS, RESET, f"{RESET[: -len('membrane[1]')]}self.after(ops, membrane[1], z, s)"),
    "reset by the signed spike": (NEURONS, "ops.mul(v, ops.sub(1.0, s))", "ops.mul(v, ops.sub(1.0, z))"),
    "gated reset by the signed spike": (NEURONS, "membrane[:-1], s, s), z", "membrane[:-1], z, z), z"),
    # charge
    "align shift 5": (INTEGERS, "ops.shift_floor(driven, -ALIGN)", "ops.shift_floor(driven, -5)"),
    "u decays downward": (INTEGERS, DECAY_U, DECAY_U.replace("shift_zero", "shift_floor")),
    "v decays downward": (INTEGERS, DECAY_V, DECAY_V.replace("shift_zero", "shift_floor")),
    "u decays after the input": (
        *(INTEGERS, f"ops.add({DECAY_U}, u)"),
        "ops.shift_zero(ops.mul(ops.add(state[1], u), self.keep_u), UNITY)",
    ),
    "du without its one": (INTEGERS, 'uniform(4095 - p["du"])', 'uniform(4096 - p["du"])'),
    "dv with one more": (INTEGERS, 'uniform(4096 - p["dv"])', 'uniform(4095 - p["dv"])'),
    "synaptic current forgotten": (INTEGERS, "if self.keep_u is not None:", "if False:"),
    "membrane forgotten": (INTEGERS, "if self.keep_v is not None:", "if False:"),
    "wrap missing": (INTEGERS, "u = ops.wrap(u, REGISTER)", "pass"),
    "wrap as often as it takes": (INTEGERS, "u = ops.wrap(u, REGISTER)", "u = ops.modulo(u, REGISTER)"),
    "wrap at the top itself": (OPS, WRAP, WRAP.replace("x > top", "x >= top")),
    "wrap below the bottom only": (OPS, WRAP, WRAP.replace("x <= -top", "x < -top")),
    "wrap to the top only": (OPS, WRAP, "np.where(x > top, x - 2 * top, x)"),
    "saturation missing": (INTEGERS, "return ops.saturate(v, -TOP, TOP), u", "return v, u"),
    "saturation at 2^23": (INTEGERS, "ops.saturate(v, -TOP, TOP)", "ops.saturate(v, -TOP, TOP + 1)"),
    "saturation at -2^23": (INTEGERS, "ops.saturate(v, -TOP, TOP)", "ops.saturate(v, -TOP - 1, TOP)"),
    "u saturates": (INTEGERS, "u = ops.wrap(u, REGISTER)", "u = ops.saturate(u, -TOP, TOP)"),
    "bias dropped": (INTEGERS, "if self.bias is not None:\n            v =", "if False:\n            v ="),
    "bias exponent toward zero": (INTEGERS, 'np.floor(np.ldexp(p["bias_mant"]', 'np.trunc(np.ldexp(p["bias_mant"]'),
    "bias aligned": (INTEGERS, "v = ops.add(v, self.bias)", "v = ops.add(v, ops.shift_floor(self.bias, -ALIGN))"),
    # gates
    "feedback gate ignored": (NEURONS, "driven if fed is None else", "driven if True else"),
    "product toward zero": (
        INTEGERS,
        "return ops.shift_floor(ops.mul(ops.table(",
        "return ops.shift_zero(ops.mul(ops.table(",
    ),
    "table one off": (INTEGERS, "ops.add(index, 128.0)", "ops.add(index, 127.0)"),
    "table clipped at -127": (INTEGERS, "self.feedback_shift), -128, 127)", "self.feedback_shift), -127, 127)"),
    "table clipped at 126": (INTEGERS, "self.feedback_shift), -128, 127)", "self.feedback_shift), -128, 126)"),
    "feedback shift ignored": (INTEGERS, "ops.shift_floor(fed, self.feedback_shift)", "fed"),
    "feedback shift toward zero": (INTEGERS, "ops.shift_floor(fed,", "ops.shift_zero(fed,"),
    "feedback of the unsigned spike": (
        NEURONS,
        "self.feedback.drive(ops, state[-1])",
        "self.feedback.drive(ops, abs(state[-1]))",
    ),
    "balance gate ignored": (NEURONS, "return ops.mul(e, s), s", "return s, s"),
    "balance after the reset": (
        *(INTEGERS, "return super().weigh(ops, self.message(ops, v))"),
        "return super().weigh(ops, self.message(ops, self.inner.after(ops, v, *self.inner.decide(ops, (v,)))))",
    ),
    "balance message not saturated": (
        *(INTEGERS, "return ops.saturate(ops.shift_floor(v, self.balance_shift), -top, top)"),
        "return ops.shift_floor(v, self.balance_shift)",
    ),
    "balance message one larger": (INTEGERS, "self.balance_shift), -top, top)", "self.balance_shift), -top - 1, top)"),
    "balance shift toward zero": (
        INTEGERS,
        "ops.shift_floor(v, self.balance_shift)",
        "ops.shift_zero(v, self.balance_shift)",
    ),
    "sign(0) = 1": (OPS, "return np.sign(x)", "return np.where(x < 0, -1.0, 1.0)"),
    # connections
    "-1 read as +1": (INTEGERS, "y = self.product(ops, x)", "y = self.product(ops, abs(x))"),
    "shift before the sum": (
        *(INTEGERS, "return ops.linear(x, self.weight, None)"),
        "return ops.linear(x, ops.shift_floor(self.weight, self.shift) * 2.0**self.shift, None)",
    ),
    "shift toward zero": (INTEGERS, "y = ops.shift_floor(y, self.shift)", "y = ops.shift_zero(y, self.shift)"),
    "shift ignored": (INTEGERS, "        if self.shift:\n            y", "        if False:\n            y"),
    "wrap before the shift": (
        *(INTEGERS, "y = ops.shift_floor(y, self.shift)"),
        "y = ops.shift_floor(ops.modulo(y, REGISTER) if self.wraps else y, self.shift)",
    ),
    "bias before the shift": (
        *(INTEGERS, "y = ops.shift_floor(y, self.shift)"),
        "y = ops.shift_floor(y if self.bias is None else ops.add(y, self.bias), self.shift)",
    ),
    "convolution does not wrap": (INTEGERS, "y = ops.modulo(y, REGISTER)", "pass"),
    "convolution wraps once": (INTEGERS, "y = ops.modulo(y, REGISTER)", "y = ops.wrap(y, REGISTER)"),
    "wrapping ruled out": (INTEGERS, "wraps=self.wraps and _overflows(self.sums(a))", "wraps=False"),
    "connection's bias dropped": (INTEGERS, "return y if self.bias is None else ops.add(y, self.bias)", "return y"),
    "positive exponent ignored": (INTEGERS, "np.ldexp(weight, exponent.", "np.ldexp(weight, np.minimum(exponent, 0)."),
    "negative exponent ignored": (INTEGERS, "np.ldexp(weight, exponent.", "np.ldexp(weight, np.maximum(exponent, 0)."),
    "one exponent for all": (
        INTEGERS,
        "exponent = uniform(exponent).reshape(rows)",
        "exponent = uniform(exponent).reshape(rows)[:1]",
    ),
    "odd weights halved": (INTEGERS, "shift = 0\n", "shift, scaled = 0, np.floor(scaled)\n"),
    "weights not clipped": (INTEGERS, CLIPPED, "flip * weight"),
    "weights clipped at 256": (INTEGERS, CLIPPED, CLIPPED.replace("255)", "256)")),
    "weights clipped at -254": (INTEGERS, CLIPPED, CLIPPED.replace("-256", "-254")),
    "weights not truncated": (INTEGERS, "return flip * np.floor(clipped / step) * step", "return flip * clipped"),
    "mixed weights toward zero": (INTEGERS, "flip * np.floor(clipped", "flip * np.trunc(clipped"),
    "inhibitory weights downward": (INTEGERS, "flip * np.floor(clipped / step)", "np.floor(flip * clipped / step)"),
    "no bit for the sign": (INTEGERS, 'bits + (sign_mode == "mixed"))', "bits)"),
    "convolution truncates": (INTEGERS, "if isinstance(node, IntDense):", "if True:"),
    "groups read the first channels": (OPS, "g * per : (g + 1) * per]", ":per]"),
    "stride H and W swapped": (OPS, "for s in window.stride]", "for s in window.stride[::-1]]"),
    # delays and sums
    "delay one step long": (NEURONS, "shortest, longest = (", "steps += 1\n    shortest, longest = ("),
    "delay one step short": (NEURONS, "shortest, longest = (", "steps -= steps > 1\n    shortest, longest = ("),
    "second source dropped": (LOOP, "for other in rest:", "for other in rest[:0]:"),
}


def conformance(known: Path) -> Iterator[tuple[str, bool]]:
    """Every provoking case: the reference does what the oracle says, to the bit. known: what the oracle said before."""
    from campaign import compared, expected, reference
    from int_networks import provoking_cases

    wanted = pickle.loads(known.read_bytes()) if known.exists() else {}
    for case in provoking_cases():
        network = case.network()
        if case.name not in wanted:
            wanted[case.name] = expected(network, case.x)
        yield case.name, not compared(reference(network, case.x), wanted[case.name])[1]
    known.write_bytes(pickle.dumps(wanted))


def test_unchanged_source_agrees() -> None:
    code, said = outcomes(__file__)[""]
    assert code == AGREES, said


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    code, said = outcomes(__file__)[name]
    assert code != AGREES, "the mutant survives: no case tells it from the original"
    assert code == CAUGHT, said


if __name__ == "__main__":
    alone("argparse", "h5py", "nir", "numpy.random")
    with tempfile.TemporaryDirectory() as folder:
        script = partial(conformance, Path(folder) / "oracle.pickle")  # the unchanged source comes first and writes it
        print(json.dumps({name: forked(script, changes) for name, changes in {"": (), **MUTANTS}.items()}))
