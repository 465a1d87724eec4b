"""Runs under schedules: what their rows hold, that an interruption leaves no mark, and which samples a phase sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fit import rows, same, train, weights

from eitrain import fit
from eitrain.errors import TrainError
from eitrain.fit import Fitting, labelled
from eitrain.learning import Learner, inactive
from eitrain.recipes import RECIPES, Recipe, adjust

TINY = replace(RECIPES["eicil-digits"], width=2, steps=2, batch=128, batches=2, epochs=2, cosine=4, schedule="GSGI:2")
SHAKY = replace(TINY, lr=0.3, epochs=4)  # the third epoch is worse than the second
CONVS = {f"conv{i}" for i in range(1, 8)} | {f"shortcut{i}" for i in range(1, 4)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY's run, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out, TINY)
    return out


def test_rows_hold_phase_and_updates(whole: Path) -> None:
    first, second = rows(whole)
    assert (first["phase"], second["phase"]) == ("G", "M")
    assert first["updates"].keys() == second["updates"].keys() == CONVS
    assert first["stdp_layers"] == [] and set(second["stdp_layers"]) == CONVS
    for name in CONVS:
        gradient, mixed = first["updates"][name], second["updates"][name]
        assert gradient["stdp"] == 0 < gradient["gradient"] and gradient["drive"] is None
        assert mixed["stdp"] > 0 < mixed["gradient"] and 0 < mixed["share"] < 1 and mixed["drive"] > 0
    assert first["lr"] == TINY.lr and second["lr"] == TINY.lr_at(1) < TINY.lr
    json.dumps(rows(whole), allow_nan=False)


def test_stored_weights_moved_as_the_rows_say(whole: Path) -> None:
    stored, last = weights(whole), rows(whole)[-1]["updates"]
    for name in CONVS:
        assert float(stored[f"{name}.weight"].norm()) == pytest.approx(last[name]["weight"], rel=1e-5)


def test_seeds_reproduce(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "again", TINY)
    same(tmp_path / "again", whole)
    train(tmp_path / "other", replace(TINY, seed=1, epochs=1))
    assert rows(tmp_path / "other")[0]["train_loss"] != rows(whole)[0]["train_loss"]


def test_rows_of_gradient_runs_stay_as_they_were(tmp_path: Path) -> None:
    train(tmp_path / "run", replace(TINY, schedule="G", epochs=1))
    (row,) = rows(tmp_path / "run")
    assert row["phase"] == "G" and not row.keys() & {"updates", "stdp_layers"}


def test_plasticity_changes_the_run(whole: Path, tmp_path: Path) -> None:
    """And without step size, M is G to the last bit."""
    train(tmp_path / "g", replace(TINY, schedule="G"))
    train(tmp_path / "m", replace(TINY, stdp_lr=0.0))
    gradient, none, mixed = (weights(p) for p in (tmp_path / "g", tmp_path / "m", whole))
    assert all(torch.equal(gradient[k], none[k]) for k in gradient)
    assert all(not torch.equal(gradient[f"{n}.weight"], mixed[f"{n}.weight"]) for n in CONVS)
    assert rows(tmp_path / "g")[0]["train_loss"] == rows(whole)[0]["train_loss"]


def test_resumed_is_uninterrupted(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", replace(TINY, epochs=1))
    assert [r["phase"] for r in train(tmp_path / "run", TINY, resume=True)] == ["M"]
    same(tmp_path / "run", whole)


def test_resumed_from_best_is_uninterrupted(tmp_path: Path) -> None:
    """K = 2 starts a phase at each epoch; the best weights so far are no longer those of the last epoch."""
    best = replace(SHAKY, resume_from_best=True)
    train(tmp_path / "whole", best)
    train(tmp_path / "run", replace(best, epochs=3))
    train(tmp_path / "run", best, resume=True)
    same(tmp_path / "run", tmp_path / "whole")
    held = [r["val_accuracy"] for r in rows(tmp_path / "whole")]
    assert max(held[:3]) > held[2] and [r["phase"] for r in rows(tmp_path / "whole")] == ["G", "M", "G", "M"]


def test_a_phase_starts_from_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, torch.Tensor]] = []
    before = Fitting._train

    def watched(self: Fitting, *given: Any) -> Any:
        started.append({k: v.clone() for k, v in self.net.state_dict().items()})
        return before(self, *given)

    monkeypatch.setattr(Fitting, "_train", watched)
    for keep in (True, False):
        train(tmp_path / str(keep), replace(SHAKY, resume_from_best=keep))
    assert int(np.argmax([r["val_accuracy"] for r in rows(tmp_path / "True")[:3]])) == 1
    best = started[2]  # what the second epoch left
    equal = [all(torch.equal(state[k], best[k]) for k in best) for state in started]
    assert equal == [False, False, True, True, *(False, False, True, False)]


class Watching(Learner):
    """Notes what every iteration is given."""

    seen: list[tuple[str, torch.Tensor, torch.Tensor]]

    def iterate(self, x: torch.Tensor, labels: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.seen.append((self.phase.rule.letter, x, labels))
        return super().iterate(x, labels, *rest)


def test_few_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 samples a class wherever gradients use labels, always the same; all of them where none are used."""
    monkeypatch.setattr(fit, "Learner", Watching)
    Watching.seen = []
    recipe = replace(TINY, width=1, steps=1, batches=0, batch=400, schedule="GPMS", labels=5, epochs=4)
    fitting = Fitting(recipe, tmp_path / "run", device="cpu")
    list(fitting.epochs())
    samples = {}
    for letter in "GPMS":
        x, labels = (torch.cat(parts, -1 if parts[0].ndim == 1 else 1) for parts in _of(letter))
        counts = np.bincount(labels.numpy(), minlength=10)
        samples[letter] = {image.numpy().tobytes() for image in x[0]}
        if letter == "P":
            np.testing.assert_array_equal(counts, np.bincount(fitting.dataset.train.labels[fitting.train_indices]))
            assert len(labels) == len(fitting.train_indices) > 1000
        else:
            assert counts.tolist() == [5] * 10
    assert samples["G"] == samples["M"] == samples["S"] < samples["P"]


def _of(letter: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    found = [s for s in Watching.seen if s[0] == letter]
    return [x for _, x, _ in found], [labels for _, _, labels in found]


def test_labelled() -> None:
    labels = np.repeat(np.arange(3), [20, 7, 4])
    train_indices = np.setdiff1d(np.arange(31), [0, 5, 21])
    recipe = replace(TINY, labels=5)
    found = labelled(labels, train_indices, recipe)
    assert np.bincount(labels[found]).tolist() == [5, 5, 4]  # the last class has only 4
    assert set(found) <= set(train_indices) and len(set(found)) == len(found)
    np.testing.assert_array_equal(found, labelled(labels, train_indices, recipe))
    assert any(list(found) != list(labelled(labels, train_indices, replace(recipe, seed=s))) for s in range(3))
    np.testing.assert_array_equal(labelled(labels, train_indices, replace(recipe, labels=0)), train_indices)


def test_last_layer_under_stdp(tmp_path: Path) -> None:
    recipe = replace(TINY, schedule="P", spiking_head=True, stdp_layers="last", epochs=1)
    train(tmp_path / "run", recipe)
    assert rows(tmp_path / "run")[0]["updates"].keys() == {"linear1"}
    with pytest.raises(TrainError, match="give spiking_head=true or stdp_layers=conv"):
        Fitting(replace(recipe, spiking_head=False), tmp_path / "none", device="cpu")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("changes", [{"schedule": "GSI:1"}, {"schedule": "hello"}, {"stdp_layers": "fc"}], ids=str)
def test_bad_schedules_leave_nothing_behind(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainError):
        Fitting(replace(TINY, **changes), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_changed_schedule_is_not_resumed(whole: Path, tmp_path: Path) -> None:
    for changes, key in (({"schedule": "M"}, "schedule"), ({"stdp_tau_pre": 3.0}, "stdp_tau_pre")):
        with pytest.raises(TrainError, match=f"continues the same config, but {key} was"):
            Fitting(replace(TINY, epochs=3, **changes), whole, device="cpu", resume=True)


def test_integers_are_trained_by_gradients() -> None:
    with pytest.raises(TrainError, match="give --set schedule=G"):
        adjust(RECIPES["eicil-digits"], ["quantize=8"])
    assert adjust(RECIPES["eicil-digits"], ["quantize=8", "schedule=G"]).quantize == 8


def inactive_layers(recipe: Recipe, out: Path) -> set[str]:
    return set(inactive(train(out, recipe)))


def test_inactive_layers_of_a_run(tmp_path: Path) -> None:
    for lr, wanted in ((TINY.stdp_lr, set()), (1e-4, CONVS)):
        assert inactive_layers(replace(TINY, steps=4, schedule="GM", stdp_lr=lr), tmp_path / str(lr)) == wanted
        assert set(rows(tmp_path / str(lr))[-1]["stdp_layers"]) == CONVS


def test_layers_that_stdp_did_not_move_are_inactive(tmp_path: Path) -> None:
    """In a single step the pairs of the default rule cancel."""
    assert inactive_layers(replace(TINY, steps=1, schedule="GM"), tmp_path / "run") == CONVS
