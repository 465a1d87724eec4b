"""What circuits did on real samples: currents, their balance, denominators, and the rate of the neurons behind.

The numbers come from the steps of `eiexport.circuits`, on whichever op set runs them; here they are only averaged.
A row is one step of one sample, over all cells and positions of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from eiexport.check import ExecutionCheck
from eiexport.circuits import DIVIDING, PARTS, Circuit
from eiexport.graph import Network
from eiexport.ops import Array, NumpyOps, Ops
from eiexport.steps import bind

Summary = dict[str, float | None]

DIVIDED = ("denominator", "denominator_std", "denominator_least", "zeros", "silent")  # of circuits that divide
TITLES = ("excitation", "inhibition", "I : E", "denominator", "zeros of D", "rate behind")


@dataclass(frozen=True)
class Seen:
    """What one circuit did. rows: arrays (steps, samples); one step where a static input makes all of them equal.

    excitation, inhibition: mean of W_EE x and of W_EI s; current, variance: mean of I, and mean square around it.
    Of circuits that divide: denominator, scatter: mean of the D that are not 0, and mean square around it (0 where
    there is none); least: the smallest of them (infinite); zeros: share of D that are 0, before they are replaced.
    rate: spikes per neuron behind the circuit, where there is one.
    at_zero: share of the weights that are exactly 0, where Dale's law holds them, of excite, inhibit and spread.
    """

    rows: dict[str, np.ndarray]
    at_zero: dict[str, float]

    def summary(self) -> Summary:
        """Means over rows; None for what the circuit does not have.

        balance: sum of inhibition over sum of excitation. denominator, denominator_std, denominator_least: of all D
        that are not 0. zeros: share of D that are; silent: share of the rows that hold nothing else. current_std: of
        all I. rate: per neuron and step. zero_excite, zero_inhibit, zero_spread: `at_zero`.
        """
        rows = self.rows
        e, i = rows["excitation"].mean(), rows["inhibition"].mean()
        found = {"excitation": e, "inhibition": i, "balance": i / e if e > 0 else None}
        found |= dict.fromkeys(DIVIDED)
        if "zeros" in rows:
            found |= {"zeros": rows["zeros"].mean(), "silent": (rows["zeros"] == 1).mean()}
            if (share := 1 - rows["zeros"]).any():
                mean = np.average(rows["denominator"], weights=share)
                square = np.average(rows["scatter"] + (rows["denominator"] - mean) ** 2, weights=share)
                numbers = (mean, math.sqrt(square), rows["least"].min())
                found |= dict(zip(DIVIDED[:3], numbers, strict=True))
        spread = math.sqrt(rows["variance"].mean() + rows["current"].var())
        found |= {"current": rows["current"].mean(), "current_std": spread}
        found |= {"rate": rows["rate"].mean() if "rate" in rows else None}
        found |= {f"zero_{k}": share for k, share in self.at_zero.items()}
        return {k: None if v is None else float(v) for k, v in found.items()}

    def samples(self) -> dict[str, np.ndarray]:
        """excitation, inhibition, and where there are any denominator and rate, of each sample: (samples,).

        denominator: mean of those that are not 0; NaN where a sample has none.
        """
        rows = self.rows
        found: dict[str, np.ndarray] = {k: rows[k].mean(0) for k in ("excitation", "inhibition", "rate") if k in rows}
        if "zeros" in rows:
            share = 1 - rows["zeros"]
            count = share.sum(0)
            total = (rows["denominator"] * share).sum(0)
            found["denominator"] = np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
        return found

    def rated(self, rate: np.ndarray) -> Seen:
        """The same with what the neurons behind did, (steps, samples)."""
        return Seen(self.rows | {"rate": rate}, self.at_zero)


def look(ops: Ops, step: Circuit, x: Array, samples: int) -> Seen:
    """What a bound step does with rows x (steps x samples, *neuron), in the engine's own arrays."""
    e, s = step.currents(ops, x)
    taken, d = step.spread.drive(ops, s), None
    rows: dict[str, Any] = {"excitation": _flat(e).mean(1), "inhibition": _flat(taken).mean(1)}
    if step.form in DIVIDING:
        d = step.spread.drive(ops, step.weighed(ops, s))
        rows |= _denominators(ops, _flat(d))
    current = _flat(step.settle(ops, e, taken, d))
    mean = current.mean(1)
    rows |= {"current": mean, "variance": ((current - mean[:, None]) ** 2).mean(1)}
    weights = {k: getattr(step, k).weight for k in PARTS}
    at_zero = {k: float((w == 0).sum()) / math.prod(w.shape) for k, w in weights.items()}
    return Seen({k: np.array(a.tolist(), np.float64).reshape(-1, samples) for k, a in rows.items()}, at_zero)


def _flat(a: Array) -> Array:
    return a.reshape(len(a), -1)


def _denominators(ops: Ops, d: Array) -> dict[str, Array]:
    other = d != 0
    some, size = other.sum(1), d.shape[1]
    count = some.clip(1)
    mean = d.sum(1) / count
    square = (((d - mean[:, None]) * other) ** 2).sum(1) / count
    return {"denominator": mean, "scatter": square, "least": ops.least(d).reshape(-1), "zeros": (size - some) / size}


def joined(parts: Sequence[Seen]) -> Seen:
    """Of more samples."""
    rows = {k: np.concatenate([p.rows[k] for p in parts], axis=1) for k in parts[0].rows}
    return Seen(rows, parts[0].at_zero)


def circuits(network: Network) -> dict[str, Circuit]:
    """The circuits of a network, in order of execution; none where they were folded."""
    steps = {n: network.steps[n] for component in network.order for n in component}
    return {n: s for n, s in steps.items() if isinstance(s, Circuit)}


def of_trace(network: Network, x: np.ndarray, z: Mapping[str, np.ndarray]) -> dict[str, Seen]:
    """Every circuit of a network, by its input x and what its neurons sent, (sample, time, *neuron) each.

    What enters a circuit is recomputed from these through the nodes between, as the execution check does.
    """
    ops, check = NumpyOps(), ExecutionCheck(network, "float64")
    known = {n: check._exact(z[n]) for n in network.recorded if network.steps[n].neuron}
    known[network.input] = check._exact(x)
    found = {}
    for name, step in circuits(network).items():
        rows = check._input(name, known).x
        seen = look(ops, bind(step, ops), rows.reshape(-1, *rows.shape[2:]), len(x))
        if behind := neurons_behind(network, name):
            seen = seen.rated((z[behind] != 0).reshape(*x.shape[:2], -1).mean(2).T)
        found[name] = seen
    return found


def neurons_behind(network: Network, name: str) -> str:
    """The spiking node that a circuit drives, through pools and the like; "" where there is none, or more than one."""
    passed = {name}
    while True:
        after = [n for n in network.steps if name in network.sources[n]]
        after = [n for n in after if not isinstance(network.graph.nodes[n], nir.Output)]
        if len(after) != 1 or after[0] in passed:
            return ""
        (name,) = after
        if network.steps[name].neuron:
            return name if network.alphabets[name].kind in ("binary", "ternary") else ""
        passed.add(name)


def cells(found: Mapping[str, float | None]) -> tuple[str, ...]:
    """A circuit's summary as text, under TITLES."""
    said = [f"{found[k]:.4g}" if found[k] is not None else "-" for k in ("excitation", "inhibition", "balance")]
    mean, spread, zeros, rate = (found[k] for k in ("denominator", "denominator_std", "zeros", "rate"))
    said += ["-" if mean is None or spread is None else f"{mean:.4g} ± {spread:.2g}"]
    said += ["-" if zeros is None else f"{100 * zeros:.2f} %"]
    return (*said, "-" if rate is None else f"{rate:.4f}" if rate else "silent")
