"""Watching a network's circuits in training: what `eiexport.insight` counts, on a few samples after every epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eiexport.insight import Seen, Summary, joined, look
from eitrain.circuits import Circuit
from eitrain.nets import SpikingNet
from targets.pytorch import TorchOps

PIECE = 16  # samples watched at once, so that a large network's currents fit into memory


@torch.no_grad()
def watch(net: SpikingNet, x: Tensor, steps: int) -> dict[str, Seen]:
    """Every circuit of a network in evaluation, for input x (T, B, ...), or (1, B, ...) for a static one.

    Nothing random is drawn, and the network is left in the mode that it was in.
    """
    trained = net.training
    net.eval()
    try:
        pieces = [_pass(net, part, steps) for part in x.split(PIECE, dim=1)]
    finally:
        net.train(trained)
    return {n: joined([piece[n] for piece in pieces]) for n in net.circuits}


def _pass(net: SpikingNet, x: Tensor, steps: int) -> dict[str, Seen]:
    found: dict[str, Seen] = {}
    spikes: dict[str, Tensor] = {}

    def note(name: str, circuit: Circuit, rows: Tensor) -> None:
        ops: Any = TorchOps(rows.dtype, rows.device)
        found[name] = look(ops, circuit.step(), rows, x.shape[1])

    with net.entering_circuits(note):
        net(x, steps, spikes)
    for name in found:
        cell = net.way_out(name)[-1:]
        if cell and cell[0] in net.cells:
            fired = (spikes[cell[0]] != 0).flatten(2).double().mean(2)
            found[name] = found[name].rated(np.array(fired.tolist()))
    return found


def measure(net: SpikingNet, x: Tensor, steps: int) -> dict[str, Summary]:
    """What every circuit did on some samples, over all of them; keys as `eiexport.insight.Seen.summary` gives them."""
    return {n: seen.summary() for n, seen in watch(net, x, steps).items()}


def samples(net: SpikingNet, x: Tensor, steps: int) -> dict[str, dict[str, np.ndarray]]:
    """The same sample by sample, (B,) each; keys as `eiexport.insight.Seen.samples` gives them."""
    return {n: seen.samples() for n, seen in watch(net, x, steps).items()}
