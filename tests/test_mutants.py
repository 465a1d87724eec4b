"""Wrong engines must be caught: one fragment of the source is changed, and the oracle has to notice.

Each mutant runs in an interpreter of its own, this file as a script: `test_mutants.py MODULE OLD NEW ...`.
Exit 0: agrees with the oracle on every case; 3: caught; anything else: the mutant itself is broken.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest

AGREES, CAUGHT = 0, 3

OPS, CONNECTIONS, NEURONS, STEPS = (f"eiexport.{m}" for m in ("ops", "connections", "neurons", "steps"))
LOOP = "targets.loop"
CARRY = "getattr(step, 'left', None) or step.init"

MUTANTS: dict[str, tuple[str, ...]] = {
    # decisions
    "> for >=": (OPS, "v >= threshold if", "v > threshold if"),
    ">= for >": (OPS, "else v > threshold)", "else v >= threshold)"),
    "sign(0) = 1": (OPS, "return np.sign(x)", "return np.where(x < 0, -1.0, 1.0)"),
    "lower threshold ignored": (NEURONS, "if self.lower is None:\n", "if True:\n"),
    "lower threshold always strict": (NEURONS, ", 0.0, self.compare)", ', 0.0, "gt")'),
    "sign of the lower spike lost": (NEURONS, "return ops.sub(s, down), ", "return ops.add(s, down), "),
    # resets
    "no reset": (NEURONS, 'if self.reset_mode == "none":', "if True:"),
    "always hard reset": (NEURONS, 'if self.reset_mode == "subtract":', "if False:"),
    "reset by the signed spike": (NEURONS, "ops.mul(v, ops.sub(1.0, s))", "ops.mul(v, ops.sub(1.0, z))"),
    "gated reset by the signed spike": (NEURONS, "membrane[:-1], s, s), z", "membrane[:-1], z, z), z"),
    "v_reset ignored": (NEURONS, "kept if self.v_reset is None else", "kept if True else"),
    "lower reset not subtracted": (NEURONS, "ops.sub(ops.sub(v, up), low)", "ops.sub(v, up)"),
    "current reset too": (
        NEURONS,
        "return self.after(ops, membrane[0], z, s), membrane[1]",
        "return self.after(ops, membrane[0], z, s), self.after(ops, membrane[1], z, s)",
    ),
    # gates
    "feedback gate ignored": (NEURONS, "driven if fed is None else", "driven if True else"),
    "feedback of this step": (
        NEURONS,
        "self.feedback.drive(ops, state[-1])",
        "self.feedback.drive(ops, self.inner.decide(ops, self.inner.charge(ops, driven, state[:1]))[0])",
    ),
    "feedback one step late": (
        NEURONS,
        "return *self.inner.reset(ops, membrane if self.balance is None else membrane[:-1], s, s), z",
        "late = globals().get('LATE', z * 0)\n        globals()['LATE'] = z\n"
        "        kept = membrane if self.balance is None else membrane[:-1]\n"
        "        return *self.inner.reset(ops, kept, s, s), late if late.shape == z.shape else z * 0",
    ),
    "balance gate ignored": (NEURONS, "return ops.mul(e, s), s", "return s, s"),
    "sign of the balance lost": (NEURONS, "return ops.mul(e, s), s", "return ops.mul(ops.mul(e, e), s), s"),
    "balance from the membrane after reset": (
        NEURONS,
        "self.balance.drive(ops, v)",
        "self.balance.drive(ops, self.inner.after(ops, v, *self.inner.decide(ops, (v,))))",
    ),
    # charge
    "decay applied to the input": (
        NEURONS,
        "ops.add(ops.mul(state[0], self.decay), driven)",
        "ops.mul(ops.add(state[0], driven), self.decay)",
    ),
    "leak potential dropped": (NEURONS, "y if self.bias is None else", "y if True else"),
    "gain dropped": (NEURONS, "x if self.gain is None else", "x if True else"),
    "current updated after the membrane": (NEURONS, "super().drive(ops, u)", "super().drive(ops, state[1])"),
    "always Euler": (STEPS, 'if self.integrator == "euler" else', "if True else"),
    # delays and cycles
    "delay one step long": (NEURONS, "shortest, longest = (", "steps += 1\n    shortest, longest = ("),
    "delay one step short": (
        NEURONS,
        "shortest, longest = (",
        "steps -= steps > 0\n    shortest, longest = (",
    ),
    "delay ignores dt": (
        NEURONS,
        "shortest, longest = (",
        "steps = steps if clock.dt == 1 else np.ones_like(steps)\n    shortest, longest = (",
    ),
    "state carried over to the next run": (
        LOOP,
        "state = step.init",
        f"state = {CARRY}",
        "    return stack(rows)\n",
        "    object.__setattr__(step, 'left', state)\n    return stack(rows)\n",
    ),
    "state carried over in cycles": (
        LOOP,
        "states = initial(",
        "states = getattr(self, 'left', None) or initial(",
        "        for name, sent in outputs.items():",
        "        self.left = states\n        for name, sent in outputs.items():",
    ),
    "second source dropped": (LOOP, "for other in rest:", "for other in rest[:0]:"),
    # connections
    "bias of a matrix dropped": (OPS, "x @ weight.T if bias is None else", "x @ weight.T if True else"),
    "bias of a convolution dropped": (OPS, "result if bias is None else", "result if True else"),
    "groups read the first channels": (OPS, "g * per : (g + 1) * per]", ":per]"),
    "groups ignored in the output": (OPS, "weight[g * out : (g + 1) * out]", "weight[:out]"),
    "kernel flipped": (OPS, "(g + 1) * out].reshape", "(g + 1) * out, :, ::-1].reshape"),
    "stride H and W swapped": (OPS, "for s in window.stride]", "for s in window.stride[::-1]]"),
    "padding H and W swapped": (OPS, "for p in window.padding]", "for p in window.padding[::-1]]"),
    "stride and padding exchanged": (
        CONNECTIONS,
        "Window(stride, padding, dilation",
        "Window(*((padding, stride) if max(stride) > 1 and min(padding) else (stride, padding)), dilation",
    ),
    "dilation ignored": (OPS, "slice(None, None, d) for d", "slice(None, None, 1) for d"),
    "padding of a maximum is zero": (OPS, "window, -np.inf)", "window, 0.0)"),
    "window of a maximum off by one": (
        OPS,
        "window, -np.inf).max(",
        "window, -np.inf)[..., : max(1, kernel[-1] - 1)].max(",
    ),
    "average pool not divided": (CONNECTIONS, "y if self.factor is None else", "y if True else"),
    "scale ignored": (CONNECTIONS, "return ops.mul(x, self.scale)", "return x"),
}


def interpreter(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_unchanged_source_agrees() -> None:
    """Else "caught" would mean nothing."""
    done = interpreter()
    assert done.returncode == AGREES, done.stdout + done.stderr


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    done = interpreter(*MUTANTS[name])
    assert done.returncode != AGREES, "the mutant survives: no case tells it from the original"
    assert done.returncode == CAUGHT, done.stdout + done.stderr


# --- the script


class Mutant(SourceFileLoader):
    """Loads a module with fragments of its source replaced; each must occur."""

    def __init__(self, name: str, path: str, changes: tuple[str, ...]) -> None:
        super().__init__(name, path)
        self.changes = changes

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text()
        for old, new in zip(self.changes[::2], self.changes[1::2], strict=True):
            if old not in source:
                raise SystemExit(f"{fullname} does not hold {old!r}: bring the mutant up to date")
            source = source.replace(old, new)
        return compile(source, self.path, "exec")


class Finder(MetaPathFinder):
    """Puts the mutant in the place of one module."""

    def __init__(self, name: str, changes: tuple[str, ...]) -> None:
        self.name, self.changes, self.used = name, changes, False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec is None or spec.origin is None:
            return None
        self.used = True
        loader = Mutant(name, spec.origin, self.changes)
        return importlib.util.spec_from_file_location(name, spec.origin, loader=loader)


def caught() -> str:
    """The first case on which the reference engine and the oracle differ, or nothing."""
    from cases import CASES, expected

    from targets import base

    for case in CASES:
        try:
            program = base.get("reference")().compile(case.network())
            whole = program.run(case.x).z
            # the same program sample by sample: shows what is left over from the run before
            single = [program.run(case.x[i : i + 1]).z for i in range(len(case.x))]
        except ValueError as e:  # shapes that no longer fit are a loud way of being wrong
            return f"{case.name}: {e}"
        for name, z in whole.items():
            wanted = expected(case)[name]
            for found in (z, np.concatenate([one[name] for one in single])):
                if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-12, atol=1e-14):
                    return f"{case.name}: node {name}"
    return ""


if __name__ == "__main__":
    finder = Finder(sys.argv[1], tuple(sys.argv[2:])) if len(sys.argv) > 1 else None
    if finder:
        sys.meta_path.insert(0, finder)
    try:
        found = caught()
    except Exception as e:
        raise SystemExit(f"the mutant breaks down: {e!r}") from e
    if finder and not finder.used:
        raise SystemExit(f"{finder.name} was never imported")
    print(found)
    sys.exit(CAUGHT if found else AGREES)
