"""Wrong plasticity and wrong schedules must be caught: a fragment of the source is changed, and a named test must fail.

As in `test_mutants_proof`, this file as a script runs the tests unchanged and with every mutant, each in a process of
its own, forked before any module of the project is loaded.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from test_mutants import AGREES, CAUGHT
from test_mutants_proof import alone, forked, outcomes

STDP, SCHEDULE, LEARNING = (f"eitrain.{m}" for m in ("stdp", "schedule", "learning"))
S1, LINEAR = "test_stdp.py::test_s1_and_s2", "test_stdp.py::test_linear_is_the_sum_of_its_pairs"
PATCHES = "test_stdp.py::test_convolution_is_its_patches"
BOTH = "self.a_plus * scale * future - self.a_minus * scale * past"
SILENT = "            if not rule.shared:\n                for name in self.layers:\n"
STEP = "            self.optimiser.step()\n"
PLASTIC = "        for name in self.layers:\n            self._plastic(name, tape, reward)\n"
UNPOOLED = "post = unpooled(self.net.get_submodule(pool), tape.inputs[pool], post)"
SPREAD = "torch.nn.functional.interpolate(post.flatten(0, 1), tape.inputs[pool].shape[3:])"

# name: the test that must fail, the module, and what is changed in it
MUTANTS: dict[str, tuple[str, ...]] = {
    "depression strengthens": (S1, STDP, BOTH, BOTH.replace(" - ", " + ")),
    "depression of separate sums strengthens": (
        *("test_stdp.py::test_s3_soft_bounds", STDP),
        *("drive.up * up - drive.down * down", "drive.up * up + drive.down * down"),
    ),
    "tau_pre and tau_post swapped": (
        S1,
        STDP,
        "(self.tau_pre), kinds[self.decay](self.tau_post)",
        "(self.tau_post), kinds[self.decay](self.tau_pre)",
    ),
    "always exponential": ("test_stdp.py::test_decays", STDP, "kinds[self.decay]", 'kinds["exponential"]'),
    "include and exclude swapped": (
        LINEAR,
        STDP,
        'first = 1 if self.same_step == "exclude"',
        'first = 1 if self.same_step == "include"',
    ),
    "include and exclude swapped, nearest": (
        LINEAR,
        STDP,
        "out[t] = faded if late else held",
        "out[t] = held if late else faded",
    ),
    "nearest is all": (LINEAR, STDP, 'if self.pairs == "nearest":', "if False:"),
    "mean forgotten": (
        "test_stdp.py::test_s7_sum_or_mean_over_the_batch",
        STDP,
        "if self.mean else 1.0",
        "if False else 1.0",
    ),
    "positions not counted": (
        "test_stdp.py::test_mean_counts_samples_and_positions",
        STDP,
        "y.shape[1] * math.prod(y.shape[3:])",
        "y.shape[1]",
    ),
    "padding ignored": (
        *(PATCHES, STDP, "    module: Any = layer\n"),
        "    module: Any = layer\n    if any(module.padding):\n"
        "        x = torch.nn.functional.pad(x[..., 1:-1, 1:-1], (1, 1, 1, 1))\n",
    ),
    "traces of the smaller side turned around": (
        *("test_stdp.py::test_either_side_may_be_the_larger", STDP),
        *("torch.tensordot(window, x, 1)", "torch.tensordot(window.T, x, 1)"),
    ),
    "input that stays counted once": (
        "test_stdp.py::test_input_that_stays_counts_at_every_step",
        STDP,
        "window.sum(1, keepdim=True)",
        "window[:, :1]",
    ),
    "reward forgotten": (
        "test_stdp.py::test_reward_turns_the_pairs_of_its_sample",
        STDP,
        "y = y * reward",
        "y = y * reward.abs()",
    ),
    "unbounded": ("test_stdp_bounds.py::test_bounds", STDP, "weight.clamp_(self.low, self.high)", "pass"),
    "f not of the weight": (S1, STDP, 'f = w.clamp(-1, 1) if self.weight == "clamp" else w', "f = torch.ones_like(w)"),
    "reward turned around": (
        "test_learning.py::test_reward_is_right_or_wrong",
        LEARNING,
        ".to(scores.dtype) * 2 - 1",
        ".to(scores.dtype) * -2 + 1",
    ),
    "S keeps the gradients": (
        "test_learning.py::test_s_drops_the_gradients_of_its_layers_and_trains_the_rest",
        LEARNING,
        "if not rule.shared:",
        "if False:",
    ),
    "S sets gradients to zero": (
        *("test_learning.py::test_s_leaves_the_moments_of_its_layers_as_g_left_them", LEARNING),
        *("self.net.connections[name].weight.grad = None", "self.net.connections[name].weight.grad.zero_()"),
    ),
    "M drops the gradients": (
        "test_learning.py::test_m_without_plasticity_is_g",
        LEARNING,
        "if not rule.shared:",
        "if rule.local:",
    ),
    "M increments before the gradient step": (
        *("test_learning.py::test_m_is_the_gradient_step_and_then_the_increment", LEARNING),
        *(PLASTIC, ""),
        *(STEP, "            for name in self.layers:\n                self._plastic(name, tape, None)\n" + STEP),
    ),
    "P follows gradients": (
        "test_learning.py::test_p_changes_weights_of_its_layers_only",
        SCHEDULE,
        '"P", "STDP on its layers alone (S-pure); no labels are used", False',
        '"P", "", True',
    ),
    "spikes spread evenly over a max pool's window": (
        *("test_learning.py::test_unpooled", LEARNING, "    return moved.view(x.shape)\n"),
        "    return torch.nn.functional.interpolate(post.flatten(0, 1), flat.shape[2:]).view(x.shape)\n",
    ),
    "the windows of a pool skipped": (
        *("test_learning.py::test_synapses_before_a_pool_are_those_that_won", LEARNING),
        *(UNPOOLED, f"post = {SPREAD}.view(len(post), *tape.inputs[pool].shape[1:])"),
    ),
    "hidden layer is the last": (
        "test_learning.py::test_heterogeneous_split",
        LEARNING,
        "found += linear[-1:]",
        "found += linear[:1]",
    ),
    "K one epoch late": (
        "test_schedule.py::test_eicil_table",
        SCHEDULE,
        "else (1 if k > 0 else 0)",
        "else (2 % k if k > 0 else 0)",
    ),
    "K at the start of the cycle": (
        "test_schedule.py::test_eicil_table",
        SCHEDULE,
        "else (1 if k > 0 else 0)",
        "else 0",
    ),
    "negative K as positive": (
        "test_schedule.py::test_eicil_table",
        SCHEDULE,
        'if k > 0 else (other, "G")',
        'if True else (other, "G")',
    ),
    "small K accepted": ("test_schedule.py::test_small_k_is_refused", SCHEDULE, "if abs(k) < 2:", "if abs(k) < 1:"),
    "M before S": (
        "test_schedule.py::test_biril_cycles",
        SCHEDULE,
        'return "GGS" * s + "GGM" * m, ""',
        'return "GGM" * m + "GGS" * s, ""',
    ),
    "fallback counts wrong": ("test_schedule.py::test_interleaving", SCHEDULE, "n * (i + 1) - found", "n * i - found"),
    "phases forget the cycle": (
        "test_schedule.py::test_phases_are_a_pure_function_of_the_epoch",
        SCHEDULE,
        "left = epoch % self.length",
        "left = min(epoch, self.length - 1)",
    ),
}


def cases(test: Any) -> Iterator[dict[str, Any]]:
    """The arguments of each of a test's cases, as its marks give them."""
    marks = [m.args for m in getattr(test, "pytestmark", ()) if m.name == "parametrize"]
    for chosen in itertools.product(*(values for _, values in marks)):
        arguments: dict[str, Any] = {}
        for (names, _), value in zip(marks, chosen, strict=True):
            several = names.split(", ")
            arguments |= zip(several, value if len(several) > 1 else (value,), strict=True)
        yield arguments


def named(tests: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Whether the named tests hold, run without pytest, which would take most of the time."""
    for module, _, name in (t.partition(".py::") for t in tests):
        test = getattr(importlib.import_module(module), name)
        try:
            for arguments in cases(test):
                test(**arguments)
        except (AssertionError, pytest.fail.Exception):
            yield name, False
        yield name, True


def test_unchanged_source_agrees() -> None:
    code, said = outcomes(__file__)[""]
    assert code == AGREES, said


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    code, said = outcomes(__file__)[name]
    assert code != AGREES, f"the mutant survives {MUTANTS[name][0]}"
    assert code == CAUGHT, said


if __name__ == "__main__":
    alone("h5py", "hypothesis", "nir", "norse.torch", "torch")
    every = tuple(dict.fromkeys(m[0] for m in MUTANTS.values()))
    found = {"": forked(partial(named, every), ())}
    found |= {name: forked(partial(named, (test,)), changes) for name, (test, *changes) in MUTANTS.items()}
    print(json.dumps(found))
