"""Schedules: the tables of EICIL and BIRIL, which epoch is trained by which rule, and the learning rate's cosine."""

from __future__ import annotations

import math
import random
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eitrain.errors import TrainError
from eitrain.recipes import RECIPES, adjust
from eitrain.schedule import FORMS, RULES, Phase, Schedule, alternating, parse, ratio, runs, sequence

quick = settings(max_examples=60, deadline=None, derandomize=True)
counts = st.integers(0, 40)
# the sheet's table 4.3, X for S (GSI) or M (GSGI), first 18 epochs, share of X in 350
EICIL = {
    2: ("GXGXGXGXGXGXGXGXGX", 0.500),
    3: ("GXGGXGGXGGXGGXGGXG", 0.334),
    4: ("GXGGGXGGGXGGGXGGGX", 0.251),
    5: ("GXGGGGXGGGGXGGGGXG", 0.200),
    -3: ("GXXGXXGXXGXXGXXGXX", 0.666),
    -4: ("GXXXGXXXGXXXGXXXGX", 0.749),
    -5: ("GXXXXGXXXXGXXXXGXX", 0.800),
    # not in the published code, which would train nothing
    -2: ("GXGXGXGXGXGXGXGXGX", 0.500),
    7: ("GXGGGGGGXGGGGGGXGG", 0.143),
}
BIRIL = {
    "1:4:1": ("GGSGGM", (58, 234, 58)),
    "2:6:1": ("GGSGGSGGM", (78, 234, 38)),
    "1:6:2": ("GGSGGMGGM", (39, 234, 77)),
    "1:8:3": ("GGSGGMGGMGGM", (29, 234, 87)),
    "3:8:1": ("GGSGGSGGSGGM", (87, 234, 29)),
}


@pytest.mark.parametrize("mode, other", [("GSI", "S"), ("GSGI", "M")])
@pytest.mark.parametrize("k", EICIL)
def test_eicil_table(k: int, mode: str, other: str) -> None:
    """K1, K2."""
    pattern, share = EICIL[k]
    schedule = parse(f"{mode}:{k}")
    assert schedule.letters(18) == pattern.replace("X", other) and schedule.length == abs(k)
    letters = schedule.letters(350)
    assert letters.count(other) / 350 == pytest.approx(share, abs=5e-4)
    assert letters.count("G") + letters.count(other) == 350


def test_phase_offset_reproduces_the_published_k_of_5() -> None:
    assert parse("GSI:5@0").letters(18) == "SGGGGSGGGGSGGGGSGG"
    assert parse("GSI:5@0").letters(350).count("S") == 70
    assert parse("GSGI:5@1").letters(18) == parse("GSGI:5").letters(18) == "GMGGGGMGGGGMGGGGMG"
    assert parse("GSI:-3@2").letters(6) == "SSGSSG"


@pytest.mark.parametrize("k", [-1, 0, 1])
@pytest.mark.parametrize("mode", ["GSI", "GSGI"])
def test_small_k_is_refused(mode: str, k: int) -> None:
    """K3: a schedule that would train nothing, or by one rule only, does not pass in silence."""
    with pytest.raises(TrainError, match=rf"K = {k}: .* K is 2, 3, ... or -2, -3"):
        parse(f"{mode}:{k}")
    with pytest.raises(TrainError, match=f"K = {k}"):
        alternating("S", k)


@pytest.mark.parametrize("text", ["GSI:5@5", "GSGI:-3@3", "GSI:2@9"])
def test_offset_outside_the_cycle_is_refused(text: str) -> None:
    with pytest.raises(TrainError, match=r"phase offset \d: must lie in the cycle, 0 to \d"):
        parse(text)


@pytest.mark.parametrize("text", BIRIL)
def test_biril_cycles(text: str) -> None:
    """K4."""
    cycle, wanted = BIRIL[text]
    schedule = parse(text)
    assert schedule.letters(schedule.length) == cycle and schedule.remark == ""
    letters = schedule.letters(350)
    assert tuple(letters.count(k) for k in "SGM") == wanted and sum(wanted) == 350


@quick
@given(counts, counts, counts)
def test_any_ratio_has_its_counts(s: int, g: int, m: int) -> None:
    """Interleaved where G is not 2 (S + M): the counts are exact, no rule ever runs more than one epoch ahead."""
    if s + g + m == 0:
        with pytest.raises(TrainError, match="not all 0"):
            ratio(s, g, m)
        return
    letters, remark = ratio(s, g, m)
    assert tuple(letters.count(k) for k in "SGM") == (s, g, m) and len(letters) == s + g + m
    assert bool(remark) == (g != 2 * (s + m))
    if remark:
        assert f"{s}:{g}:{m}" in remark and "largest remainder" in remark
        for i in range(1, len(letters) + 1):
            assert all(letters[:i].count(k) < n * i / len(letters) + 1 for k, n in zip("SGM", (s, g, m), strict=True))


def test_interleaving() -> None:
    assert parse("1:1:1").letters(6) == "GSMGSM"
    assert parse("1:3:0").letters(8) == "GGSGGGSG"
    assert parse("0:1:0").letters(3) == "GGG" and parse("1:0:0").letters(3) == "SSS"
    assert "interleaved by largest remainder" in parse("1:3:0").remark
    with pytest.raises(TrainError, match="numbers of epochs, 0 or more"):
        ratio(-1, 0, 3)


FORMS_THAT_FIT = ["G", "S", "M", "P", "GGSGGM", "PPPG", "GSI:2", "GSGI:-5", "GSI:5@0", "1:8:3", "3:1:2", "0:0:1"]


@pytest.mark.parametrize("text", FORMS_THAT_FIT)
def test_phases_are_a_pure_function_of_the_epoch(text: str) -> None:
    """K5: whatever order epochs are asked for in, as after resuming."""
    schedule = parse(text)
    wanted = [schedule.phase_at(e) for e in range(60)]
    order = random.Random(1).sample(range(60), 60)
    assert all(parse(text).phase_at(e) == schedule.phase_at(e) == wanted[e] for e in order)
    assert all(wanted[e] == wanted[e + schedule.length] for e in range(60 - schedule.length))
    letters = schedule.letters(60)
    assert letters == "".join(p.rule.letter for p in wanted)
    assert schedule.local == any(k in "SMP" for k in letters[: schedule.length])
    assert schedule == parse(text) and hash(schedule) == hash(parse(text))
    with pytest.raises(FrozenInstanceError):
        schedule.remark = "no"  # type: ignore[misc]


@pytest.mark.parametrize("text", FORMS_THAT_FIT)
def test_starts(text: str) -> None:
    schedule = parse(text)
    letters = schedule.letters(40)
    assert [schedule.starts(e) for e in range(40)] == [e > 0 and letters[e] != letters[e - 1] for e in range(40)]


def test_a_change_of_layers_starts_a_phase_too() -> None:
    phases = (Phase(RULES["S"], 2), Phase(RULES["S"], 1, "last"), Phase(RULES["S"], 1, "both"))
    schedule = Schedule(phases)
    assert [schedule.starts(e) for e in range(9)] == [False, False, True, True, True, False, True, True, True]
    assert schedule.phase_at(6).layers == "last" and schedule.letters(5) == "SSSSS"


def test_layers_go_to_every_phase() -> None:
    for text in ("GGSM", "GSI:2", "1:4:1"):
        for layers in ("conv", "last", "both"):
            assert {p.layers for p in parse(text, layers).phases} == {layers}
    with pytest.raises(TrainError, match="stdp_layers = 'fc'; valid: conv, last, both"):
        parse("G", "fc")


def test_rules() -> None:
    """Which increments each letter stands for (gradient, STDP, gradient on STDP's layers too)."""
    found = {k: (r.gradient, r.local, r.shared) for k, r in RULES.items()}
    assert found["G"][:2] == (True, False) and found["P"][:2] == (False, True)
    assert found["S"] == (True, True, False) and found["M"] == (True, True, True)
    assert sequence("GGM").phases == (Phase(RULES["G"], 2), Phase(RULES["M"], 1))


@pytest.mark.parametrize(
    "text",
    ["", "g", "GX", "GSI", "GSI:", "GSI:2.5", "GSI:x", "GSGL:2", "GSI:2@", "GSI:2@-1", "GSI: 2", "1:2", "1:2:3:4"],
)
def test_unknown_forms_are_refused_with_the_valid_ones(text: str) -> None:
    with pytest.raises(TrainError) as caught:
        parse(text)
    assert str(caught.value) == f"schedule {text!r}; valid: {FORMS}"
    assert all(form in FORMS for form in ("GGSGGM", "GSI:K", "GSGI:K", "1:8:3", "GSI:5@0")) and "\n" not in FORMS


@pytest.mark.parametrize("text", ["1:-2:3", "-1:4:1", "1:4:1 ", "G\n", "GSI:2\n", "0:0:0"])
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(TrainError):
        parse(text)


@pytest.mark.parametrize("setting", ["schedule=GSI:1", "schedule=XYZ", "stdp_layers=fc"])
def test_settings_are_refused_before_a_run_starts(setting: str) -> None:
    with pytest.raises(TrainError):
        adjust(RECIPES["eicil-digits"], [setting])


@quick
@given(st.text("GSMP", min_size=1, max_size=30))
def test_runs(letters: str) -> None:
    found = list(runs(letters))
    assert "".join(k * n for k, _, n in found) == letters
    assert [start for _, start, _ in found] == [sum(n for _, _, n in found[:i]) for i in range(len(found))]
    assert all(a[0] != b[0] for a, b in pairwise(found))


# --- the learning rate


def test_cosine() -> None:
    """K6: lr at 0, 0 at T_max, and rising again behind it, which the user is told."""
    recipe = replace(RECIPES["eicil-cifar10"], lr=1e-3, cosine=320, epochs=320)
    assert recipe.lr_at(0) == 1e-3 and recipe.lr_at(320) == 0
    assert recipe.lr_at(160) == pytest.approx(5e-4) and recipe.lr_at(80) == pytest.approx(5e-4 * (1 + math.sqrt(0.5)))
    assert all(recipe.lr_at(e) > recipe.lr_at(e + 1) for e in range(320))
    assert recipe.lr_at(350) == pytest.approx(2.15e-5, abs=5e-8)  # the published code's last epoch
    assert recipe.remarks == ()
    (remark,) = replace(recipe, epochs=350).remarks
    assert "epochs = 350 > cosine = 320" in remark and "rises again" in remark


def test_steps_of_the_rate_without_a_cosine() -> None:
    recipe = replace(RECIPES["backei-digits"], lr=1e-2, lr_drop=0.5, lr_every=3)
    assert [recipe.lr_at(e) for e in range(7)] == [1e-2] * 3 + [5e-3] * 3 + [2.5e-3]
    assert recipe.remarks == ()


def test_plasticity_follows_the_rate() -> None:
    recipe = replace(RECIPES["eicil-digits"], stdp_lr=0.25, cosine=8)
    assert [recipe.stdp(e).lr for e in (0, 4, 8)] == pytest.approx([0.25, 0.125, 0])
    assert recipe.stdp(3) == replace(recipe.stdp(0), lr=0.25 * recipe.lr_share(3))


def test_remark_of_an_interleaved_ratio() -> None:
    (remark,) = replace(RECIPES["biril-digits"], schedule="1:1:1").remarks
    assert "interleaved" in remark
    assert RECIPES["biril-digits"].remarks == ()


def test_published_schedules_are_the_recipes() -> None:
    found = {name: r.schedule for name, r in RECIPES.items() if r.system in ("eicil", "biril")}
    assert found["biril-cifar10"] == found["biril-cifar100"] == "1:8:3" and found["biril-mnist"] == "1:6:2"
    assert found["biril-dvsgesture"] == "2:6:1" and found["eicil-cifar10"] == "GSGI:2"
    methods = {"-gs": "G", "-stdp-bw": "S", "-stdp-bw-gs": "M", "-gsi": "GSI:2"}
    assert all(found[f"eicil-cifar100{k}"] == v for k, v in methods.items())
    assert all(RECIPES[n].phases.letters(3) for n in found)
