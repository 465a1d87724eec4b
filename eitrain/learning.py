"""One training iteration under a rule: gradient, STDP, or both; and what each of them did to the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eitrain.cells import Cell
from eitrain.errors import TrainError
from eitrain.nets import Connection, SpikingNet, Tape
from eitrain.schedule import Phase
from eitrain.stdp import STDP, Drive

ACTIVE = 0.01  # share of a layer's gradient step below which its STDP is called inactive
Reduce = Callable[[Tensor, str], Tensor]


def layers_of(net: SpikingNet, layers: str) -> tuple[str, ...]:
    """The connections that STDP trains: "conv", "last" (the last linear layer that feeds neurons), or "both".

    Raises TrainError where a network has none: without spikes behind it, a layer has no post-synaptic activity.
    """
    found: list[str] = []
    spiking = [n for n in net.connections if _cell_behind(net, n) is not None]
    linear = [n for n in spiking if isinstance(net.connections[n], nn.Linear)]
    if layers in ("conv", "both"):
        found += [n for n in spiking if isinstance(net.connections[n], nn.Conv2d)]
    if layers in ("last", "both"):
        if not linear or (linear[-1] != [n for n in net.connections if isinstance(net.connections[n], nn.Linear)][-1]):
            raise TrainError(
                f"stdp_layers = {layers!r}: the last linear layer feeds no neurons, so it has no post-synaptic spikes; "
                "give spiking_head=true or stdp_layers=conv"
            )
        found += linear[-1:]
    if not found:
        raise TrainError(f"stdp_layers = {layers!r}: the network has no such layer that feeds neurons")
    return tuple(found)


def layers_trained(net: SpikingNet, phase: Phase) -> tuple[str, ...]:
    """The connections that STDP trains in a phase."""
    return layers_of(net, phase.layers) if phase.rule.local else ()


def _cell_behind(net: SpikingNet, connection: str) -> str | None:
    way = net.way_out(connection)
    return way[-1] if way and isinstance(net.get_submodule(way[-1]), Cell) else None


@dataclass
class Update:
    """What happened to one layer's weight in an epoch; sums over batches.

    start: the weight before. by_gradient: whether gradients trained it. stdp: STDP's increments. projected: what its
    bounds and normalisation changed besides. descent: minus the loss gradients. drive: largest lr * |drive| seen.
    changed: sum of |increment| as applied, grown: what of it made |w| larger.
    """

    start: Tensor
    by_gradient: bool
    stdp: Tensor
    projected: Tensor
    descent: Tensor
    drive: float = 0.0
    changed: float = 0.0
    grown: float = 0.0

    def row(self, weight: Tensor) -> dict[str, float | None]:
        """For metrics.jsonl: norms of both contributions, their angle, and STDP's share of the change."""
        stdp = float(self.stdp.norm())
        rest = weight - self.start - self.stdp - self.projected
        gradient = float(rest.norm()) if self.by_gradient else 0.0
        both = stdp * float(self.descent.norm())
        return {
            "weight": float(weight.norm()),
            "gradient": gradient,
            "stdp": stdp,
            "projected": float(self.projected.norm()) or None,
            "share": stdp / (stdp + gradient) if stdp + gradient else None,
            "cosine": float((self.stdp * self.descent).sum()) / both if both else None,
            "drive": self.drive if stdp else None,
            "growing": min(1.0, max(0.0, self.grown / self.changed)) if self.changed else None,
        }


@dataclass
class Learner:
    """Trains `net` (inside `model`, which may be wrapped for several devices) by one phase's rule; one an epoch.

    reduce(tensor, "mean" | "sum"): over all processes.
    """

    model: nn.Module
    net: SpikingNet
    optimiser: Any
    phase: Phase
    stdp: STDP
    watched: tuple[str, ...]  # layers whose changes are counted, whatever trains them
    backward: Callable[[Tensor], None]
    reduce: Reduce
    updates: dict[str, Update] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = layers_trained(self.net, self.phase)
        for name in self.watched:
            weight = self.net.connections[name].weight.detach()
            trained = self.phase.rule.gradient and (self.phase.rule.shared or name not in self.layers)
            self.updates[name] = Update(weight.clone(), trained, *weight.new_zeros((3, *weight.shape)))

    def iterate(self, x: Tensor, labels: Tensor, steps: int, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """One batch: the loss, after the weights have been changed.

        M: the gradient step first, then the STDP increment at the weights it left (BIRIL, algorithm 1; its branch on
        the order of spikes is inside the rule already). S: gradients of STDP's layers are dropped. P: no gradient.
        """
        rule = self.phase.rule
        cells = [self.net.way_out(n)[-1] for n in self.layers]
        needed = [t for n in self.layers for t in self._tapped(n)] + (cells if self.stdp.winners else [])
        tape = self.net.tape = Tape(needed, cells)
        try:
            with torch.set_grad_enabled(rule.gradient):
                scores = self.model(x, steps)
                loss = loss_of(scores, labels)
        except ValueError as e:
            if "more than 1 value per channel" not in str(e):
                raise
            raise TrainError(
                "BatchNorm cannot train on one value a channel: give a larger batch or more steps"
            ) from None
        finally:
            self.net.tape = None
        if rule.gradient:
            self.optimiser.zero_grad()
            self.backward(loss)
            for name, update in self.updates.items():
                if (grad := self.net.connections[name].weight.grad) is not None:
                    update.descent -= grad
            if not rule.shared:
                for name in self.layers:
                    self.net.connections[name].weight.grad = None
            self.optimiser.step()
            self.net.project()
        reward = _reward(scores, labels) if self.layers and self.stdp.reward else None
        for name in self.layers:
            self._plastic(name, tape, reward)
        return loss.detach()

    def _tapped(self, name: str) -> list[str]:
        """Modules whose inputs STDP of a layer needs: its own, and those of the pools between it and its neurons."""
        pools = [
            n for n in self.net.way_out(name) if isinstance(self.net.get_submodule(n), nn.MaxPool2d | nn.AvgPool2d)
        ]
        return [name, *pools]

    @torch.no_grad()
    def _plastic(self, name: str, tape: Tape, reward: Tensor | None) -> None:
        layer: Connection = self.net.connections[name]
        cell = self.net.way_out(name)[-1]
        post = tape.outputs[cell]
        if self.stdp.winners:
            post = self.stdp.compete(post, tape.inputs[cell].cumsum(0))
        for pool in reversed(self._tapped(name)[1:]):
            post = unpooled(self.net.get_submodule(pool), tape.inputs[pool], post)
        drive = self.stdp.drive(layer, tape.inputs[name], post, reward)
        how = "mean" if self.stdp.mean else "sum"
        drive = Drive(*(None if d is None else self.reduce(d, how) for d in drive))  # type: ignore[arg-type]
        before, update = layer.weight.abs().sum(), self.updates[name]
        asked = self.stdp.increment(layer.weight, drive) if self.stdp.projects else None
        change = self.stdp.apply(layer.weight, drive)
        if asked is not None:
            update.projected += change - asked
        update.stdp += change if asked is None else asked
        update.drive = max(update.drive, self.stdp.limit(drive))
        size = float(change.abs().sum())
        update.changed += size
        update.grown += (size + float(layer.weight.abs().sum() - before)) / 2

    def rows(self) -> dict[str, dict[str, float | None]]:
        """What the epoch did, by layer."""
        return {n: u.row(self.net.connections[n].weight.detach()) for n, u in self.updates.items()}


def unpooled(pool: nn.Module, x: Tensor, post: Tensor) -> Tensor:
    """Post-synaptic activity behind a pool, at the places before it: a max pool's spike goes to the input that won.

    It is the pool's transpose at its input x: a spike of a neuron behind a max pool belongs to the synapses whose
    current it took, behind an average pool to all in equal shares. x (T or 1, B, C, H, W), post (T, B, C, h, w).
    """
    if len(x) == 1:
        x = x.expand(len(post), *x.shape[1:])
    with torch.enable_grad():
        flat = x.flatten(0, 1).detach().requires_grad_()
        (moved,) = torch.autograd.grad(pool(flat), flat, post.flatten(0, 1))
    return moved.view(x.shape)


def _reward(scores: Tensor, labels: Tensor) -> Tensor:
    """+1 for samples classified rightly, -1 for the others."""
    return (scores.argmax(1) == labels).to(scores.dtype) * 2 - 1


def overshooting(row: dict[str, Any]) -> dict[str, float]:
    """Layers of an epoch where lr times the largest drive exceeded 1: a rule proportional to w turns signs around."""
    return {n: u["drive"] for n, u in row.get("updates", {}).items() if (u["drive"] or 0) > 1}


def inactive(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Layers whose STDP did less than ACTIVE of what a gradient epoch did, with that share; by a run's metrics rows.

    The largest increment of an epoch is held against the mean change of the epochs in which gradients trained the
    layer; where none did, STDP only has to have changed something.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(n for r in rows for n in r.get("stdp_layers", ())):
        updates = [r["updates"][name] for r in rows if name in r.get("updates", {})]
        stdp = max(u["stdp"] for u in updates)
        gradient = [u["gradient"] for u in updates if u["gradient"] > 0]
        share = stdp * len(gradient) / sum(gradient) if gradient else float(stdp > 0)
        if share < ACTIVE:
            found[name] = share
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """phase letter -> layer -> means over its epochs of `Update.row`."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for letter in dict.fromkeys(r["phase"] for r in rows if r.get("updates")):
        chosen = [r for r in rows if r["phase"] == letter and r.get("updates")]
        found[letter] = {n: _means([r["updates"][n] for r in chosen]) for n in chosen[0]["updates"]}
    return found


def _means(updates: list[dict[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for key in updates[0]:
        known = [v for u in updates if (v := u[key]) is not None]
        means[key] = sum(known) / len(known) if known else None
    return means
