"""A trained run as something to export: its graph, its encoded test samples, and its own float64 trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eiexport.model import Model
from eitrain import data, fit, runs
from eitrain.errors import TrainError
from eitrain.integer import IntegerNet
from eitrain.runs import Run
from targets.pytorch import device_of


def open_run(path: Path, *, checkpoint: str = "best", samples: int = 100, device: str = "cpu") -> Model:
    """The model of a run folder with its first `samples` test samples.

    The trained network is the reference of all comparisons: evaluated in float64, its weights upcast exactly.
    Raises TrainError for a folder without checkpoint, weights that do not fit, missing data.
    """
    run = Run(path)
    recipe = run.recipe()
    runs.load(run.checkpoint(checkpoint))  # a missing checkpoint is told before the data is looked for
    dataset = data.load(recipe.data, run.data_dir(), steps=recipe.steps)
    if samples < 1:
        raise TrainError(f"--samples {samples}: must be at least 1")
    count = min(samples, len(dataset.test))
    trained, meta = fit.load_model(run, checkpoint, dataset)
    net = trained.net if isinstance(trained, IntegerNet) else trained
    # test sets may be sorted by class: take samples spread over the whole set
    chosen = (
        np.arange(count)
        if count == len(dataset.test)
        else np.random.default_rng(recipe.seed).permutation(len(dataset.test))[:count]
    )
    said = {"recipe": recipe.name, "checkpoint": checkpoint, "epoch": int(meta.get("epoch", -1))}
    graph = net.graph(tool="eitrain", classes=json.dumps(list(dataset.classes)), **said)
    where = device_of(device)
    double = net.double().to(where)

    def chunks(size: int) -> Iterator[np.ndarray]:
        for start in range(0, count, size):
            yield fit.encode(recipe, dataset.test, chosen[start : start + size])

    @torch.no_grad()
    def trace(x: np.ndarray) -> dict[str, np.ndarray]:
        record: dict[str, Tensor] = {}
        moved = torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1))).to(where, torch.float64)
        double(moved, moved.shape[0], record)
        return {n: z.transpose(0, 1).cpu().numpy() for n, z in record.items()}

    def calibrating(most: int) -> Iterator[np.ndarray]:
        train, _ = data.split_validation(dataset.train.labels, recipe.validation, recipe.seed)
        picked = fit.calibration_samples(recipe, train, most)
        return (fit.encode(recipe, dataset.train, picked[i : i + 50]) for i in range(0, len(picked), 50))

    labels = dataset.test.labels[chosen]
    notes = () if count == samples else (f"{dataset.name} has {count} test samples, not {samples}: all were taken",)
    model = Model(f"{recipe.name} ({checkpoint})", graph, count, chunks, labels, trace, notes, calibrating)
    return replace(model, **_integer(trained.to(where))) if isinstance(trained, IntegerNet) else model


def _integer(net: IntegerNet) -> dict[str, Any]:
    """What an integer run adds: its plan, and the training code's own forward pass."""

    @torch.no_grad()
    def trace(x: np.ndarray) -> dict[str, np.ndarray]:
        record: dict[str, Tensor] = {}
        device = next(net.parameters()).device
        net.run(torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1))).to(device), None, record)
        return {n: z.transpose(0, 1).cpu().numpy() for n, z in record.items()}

    return {"plan": net.plan, "integer_trace": trace}
