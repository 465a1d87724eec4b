"""How a circuit divides once it leaves training: numbers chosen by what it did on real samples, and graphs with them.

DeepEISNN divides every current by a sum that its own input brings, and fills zeros by a minimum over the sample. Chips
have neither, so a graph can be given another form of its circuits (`eiexport.circuits`): exact with a constant for
zeros, a frozen denominator, a shift, or a table. Linear forms then fold into one stock connection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from eiexport import circuits
from eiexport import graph as graphs
from eiexport.alphabet import interval
from eiexport.circuits import DIVIDING, Circuit, EICircuit
from eiexport.errors import GraphError
from eiexport.graph import Network

FORMS = ("exact", "frozen", "shift", "table")
DALE = ("fold", "apart")
NOT_NEGATIVE = interval(0, 1e9, False)


@dataclass
class Denominators:
    """What one circuit's denominators were on the samples; total and count, one number a cell: of those that are not 0.

    least: the smallest of these. zeros: entries that were 0; silent: samples and steps that had nothing else; entries,
    rows: of them all.
    """

    total: np.ndarray
    count: np.ndarray
    least: float = np.inf
    zeros: int = 0
    silent: int = 0
    entries: int = 0
    rows: int = 0

    @property
    def frozen(self) -> np.ndarray:
        """The mean of each cell's denominators; that of all cells, or 1, where there was none."""
        mean = self.total.sum() / max(1, self.count.sum()) or 1.0
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), mean)

    @property
    def epsilon(self) -> float:
        """What zeros of D become: the smallest other value seen; 1 where there was none."""
        return self.least if np.isfinite(self.least) else 1.0


@dataclass(frozen=True)
class Numbers:
    """What takes a circuit's denominator: (nE,), and a number for its zeros."""

    denominator: np.ndarray
    epsilon: float


@dataclass
class Division:
    """What another form of the circuits cost, on the exported samples; accuracies None without labels.

    layers: per circuit `error`, root mean square error of its current over the current's standard deviation, given what
    it gets in the exact network; `zeros`, share of its denominators that were 0; `silent`, share of samples and steps
    with nothing else; `epsilon`, what zeros become. changed: share of the decisions that the forms of all together
    changed. own: the calibration was made on the exported samples themselves.
    """

    form: str
    calibrated_on: int
    layers: dict[str, dict[str, float]]
    accuracy_exact: float | None = None
    accuracy: float | None = None
    changed: float = 0.0
    own: bool = False

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "layers"} | {"per_layer": self.layers}


def dividing(network: Network) -> dict[str, Circuit]:
    """The circuits of a float network that divide by what their input brings."""
    steps = network.steps
    return {n: s for n, s in steps.items() if type(s) is Circuit and s.form in DIVIDING}


def choose(network: Network, seen: dict[str, Denominators]) -> dict[str, Numbers]:
    """The numbers of every dividing circuit; raises GraphError where one was not seen."""
    found = {}
    for name in dividing(network):
        if name not in seen or not seen[name].rows:
            raise GraphError(f"node {name!r}: its denominators were not calibrated; give samples")
        found[name] = Numbers(seen[name].frozen, seen[name].epsilon)
    return found


def reform(graph: nir.NIRGraph, form: str, numbers: dict[str, Numbers]) -> nir.NIRGraph:
    """The graph with its dividing circuits in another form, zeros of denominators a constant; said in its metadata.

    Raises GraphError for an unknown form, and where a circuit has no numbers.
    """
    if form not in FORMS:
        raise GraphError(f"--divide {form}; valid: {', '.join(FORMS)}")
    found: dict[str, nir.ir.NIRNode] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, EICircuit) and node.form in DIVIDING:
            if name not in numbers:
                raise GraphError(f"node {name!r}: its denominators were not calibrated; give samples")
            chosen = numbers[name]
            given: dict[str, Any] = {"zero": "constant", "epsilon": chosen.epsilon}
            if form == "frozen":
                given = {"denominator": chosen.denominator}
            node = replace(node, form=form, **given)
        found[name] = node
    return _restamped(graph, found, divide=form)


def fold(graph: nir.NIRGraph, network: Network | None = None) -> nir.NIRGraph:
    """The graph with every linear circuit as one stock Conv2d or Affine, in float64; its nodes keep their names.

    network: the graph as it was verified, with what its input carries; without it, the input is taken to be >= 0.
    Circuits stay that see only groups of their input, or whose input may be negative: there the relu does something.
    Dale's law holds for the circuit's matrices, not for their difference: the metadata says that they were folded.
    """
    network = network or graphs.check(graph, alphabet=NOT_NEGATIVE)
    found: dict[str, nir.ir.NIRNode] = {}
    for name, node in graph.nodes.items():
        step = network.steps[name]
        if isinstance(node, EICircuit) and isinstance(step, Circuit) and step.linear and network.arriving(name).lo >= 0:
            node = connection(node, *circuits.fold(step))
        found[name] = node
    folded = [n for n in found if found[n] is not graph.nodes[n]]
    return _restamped(graph, found, dale="folded") if folded else graph


def connection(node: EICircuit, weight: np.ndarray, bias: np.ndarray | None) -> nir.ir.NIRNode:
    """A stock connection of the circuit's geometry."""
    bias = np.zeros(len(weight)) if bias is None else np.broadcast_to(bias, len(weight)).copy()
    if weight.ndim == 2:
        return nir.Affine(weight, bias)
    like = node.excite
    return replace(like, weight=weight, bias=bias)


def _restamped(graph: nir.NIRGraph, found: dict[str, nir.ir.NIRNode], **said: str) -> nir.NIRGraph:
    result = nir.NIRGraph(found, list(graph.edges), metadata=dict(graph.metadata), type_check=False)
    meta = dict(graph.metadata.get("eiexport", {}))
    provenance = dict(meta.get("provenance", {}) or {"tool": "eiexport"}) | said
    result.metadata["eiexport"] = {**meta, "provenance": provenance}
    return result
