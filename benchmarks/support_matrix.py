"""What other tools make of the NIR files that `eiexport --standard-nir` writes: run, compared, and written to docs/.

    python benchmarks/support_matrix.py --python norse=PATH --python sinabs=PATH ... [--only PROBE] [--write]
    python benchmarks/support_matrix.py --render

PATH is the Python of an environment that holds the tool; no PATH means this one. Every probe of peers/probes.py is
written to a file, read and run by the tool's own importer (peers/worker.py), and compared with our reference in
float64, shapes first. Without an equal result the reference is run again with the neurons or delays changed in the
ways of `DEVIATIONS`, one at a time and then together: what makes it equal says what the tool did. `--write` keeps the
results in results/peers.json, and renders docs/support.md from it; `--render` renders alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from copy import copy
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import nir
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peers import table, worker
from benchmarks.peers.probes import PROBES
from eiexport import graph as graphs
from eiexport.errors import GraphError
from eiexport.graph import Network
from eiexport.neurons import Delay, Fire, Leaky, LeakyFire, SynapseFire
from eiexport.nodes import prepare
from eiexport.passes import insert_delays
from eiexport.steps import Clock, Step
from targets import base

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).parent / "peers" / "worker.py"
RESULT = Path(__file__).parent / "results" / "peers.json"
PAGE = ROOT / "docs" / "support.md"
# what each tool computes with: its own dt first, or 1 where it counts time in steps; then others that it may be told
CLOCKS: dict[str, tuple[Clock, ...]] = {
    "snntorch": (Clock(1e-4, "euler"), Clock(1.0, "euler")),
    "norse": (Clock(1e-3, "euler"), Clock(1.0, "euler")),
    "spikingjelly": (Clock(1e-4, "euler"), Clock(1.0, "euler")),
    "sinabs": (Clock(1.0, "exponential"), Clock(1.0, "euler")),
    "sinabs, newer nir": (Clock(1.0, "exponential"), Clock(1.0, "euler")),
    "rockpool": (Clock(1e-3, "exponential"), Clock(1e-3, "euler"), Clock(1.0, "euler")),
}
TOLERANCE = 1e-5  # between float32 there and float64 here, relative to the largest value, where an output is no spike
REFUSALS = ("NotImplementedError", "ValueError", "AssertionError")

Steps = dict[str, Step]


# --- what a tool may have done otherwise: (node, its step, clock) -> another step

Change = Callable[[nir.ir.NIRNode, Step, Clock], Step]


@dataclass(frozen=True, kw_only=True)
class Starting:
    """Mixed into a neuron: its membrane starts at `start`."""

    start: np.ndarray

    def init(self, ops: Any, shape: Any) -> Any:
        v, *others = super().init(ops, shape)  # type: ignore[misc]
        return ops.add(v, self.start), *others


class Several:
    """Mixed into a neuron: floor(V / threshold) spikes in a step, each of which takes a threshold away."""

    def decide(self, ops: Any, membrane: Any) -> Any:
        s = np.maximum(np.floor(membrane[0] / self.threshold), 0)  # type: ignore[attr-defined]
        return s, s


def _mixed(step: Step, mixin: type, **more: Any) -> Step:
    kind = dataclass(frozen=True, kw_only=True)(type(mixin.__name__ + type(step).__name__, (mixin, type(step)), {}))
    return kind(**{**vars(step), **more})


def _several(node: nir.ir.NIRNode, step: Step, clock: Clock) -> Step:
    fits = isinstance(step, LeakyFire | SynapseFire)
    return _mixed(step, Several, reset_mode="subtract", compare="ge") if fits else step


def _own_dt(node: nir.ir.NIRNode, step: Step, clock: Clock) -> Step:
    if not (isinstance(step, SynapseFire) and isinstance(node, nir.CubaLIF)):
        return step
    dt = float(np.min(node.tau_mem / (1 + node.r)))
    return replace(step, decay=np.exp(-dt / node.tau_mem), decay_u=np.exp(-dt / node.tau_syn))


def _own_gains(node: nir.ir.NIRNode, step: Step, clock: Clock) -> Step:
    fits = isinstance(step, SynapseFire)
    return replace(step, gain_u=step.decay_u, gain=None, bias=getattr(node, "v_leak")) if fits else step  # noqa: B009


def _fires(**changed: Any) -> Change:
    return lambda node, step, clock: replace(step, **changed) if isinstance(step, Fire) else step


def _leaks(**changed: Any) -> Change:
    return lambda node, step, clock: replace(step, **changed) if isinstance(step, Leaky) else step


def _reads(**changed: float) -> Change:
    """Another value in fields of the node."""

    def change(node: nir.ir.NIRNode, step: Step, clock: Clock) -> Step:
        if not (isinstance(step, Leaky) and all(hasattr(node, k) for k in changed)):
            return step
        other = copy(node)
        for k, v in changed.items():
            setattr(other, k, np.full(np.shape(getattr(node, k)), v))
        return prepare(other, clock)

    return change


def _starts(at: str) -> Change:
    def change(node: nir.ir.NIRNode, step: Step, clock: Clock) -> Step:
        fits = isinstance(step, LeakyFire | SynapseFire) and np.any(getattr(node, at, 0.0))
        return _mixed(step, Starting, start=np.asarray(getattr(node, at))) if fits else step

    return change


DEVIATIONS: dict[str, Change] = {
    "fires at `v >= threshold`": _fires(compare="ge"),
    "subtracts the threshold where a spike resets": _fires(reset_mode="subtract"),
    "never resets": _fires(reset_mode="none"),
    "takes r for 1": _reads(r=1.0),
    "takes v_reset for 0": _reads(v_reset=0.0),
    "takes v_leak for 0": _reads(v_leak=0.0),
    "takes w_in for 1": _reads(w_in=1.0),
    "starts at v_reset": _starts("v_reset"),
    "starts at v_leak": _starts("v_leak"),
    "adds the input with gain 1, whatever r says": _leaks(gain=None),
    "takes tau_mem / (1 + r) for dt": _own_dt,
    "adds the input to the current before it decays, and the current to v, whatever w_in and r say": _own_gains,
    "sends floor(v / threshold) spikes in a step, and subtracts as often": _several,
}
COMBINED = 4  # deviations at once


def variants(network: Network) -> Iterator[tuple[tuple[str, ...], Network]]:
    """The network itself, and as it would be with deviations: few before many, each only where it changes a node."""
    yield (), network
    useful = [what for what in DEVIATIONS if altered(network, what) is not None]
    for count in range(1, COMBINED + 1):
        for chosen in combinations(useful, count):
            changed: Network | None = network
            for what in chosen:
                changed = changed and altered(changed, what)
            if changed:
                yield chosen, changed
        for part in network.order if count == 1 else ():
            yield from _without(network, part[0]) if len(part) == 1 else _apart(network, part)


def altered(network: Network, what: str) -> Network | None:
    """The network with one of the `DEVIATIONS`; None where that changes nothing."""
    found = {n: DEVIATIONS[what](network.graph.nodes[n], s, network.clock) for n, s in network.steps.items()}
    same = all(_same(s, network.steps[n]) for n, s in found.items())
    return None if same else replace(network, steps=found)


def _same(a: Step, b: Step) -> bool:
    return a is b or (type(a) is type(b) and all(np.array_equal(v, vars(b)[k]) for k, v in vars(a).items()))


def _without(network: Network, name: str) -> Iterator[tuple[tuple[str, ...], Network]]:
    node = network.graph.nodes[name]
    if not isinstance(node, (nir.Input, nir.Output)) and network.shapes[name] == network.input_shape(name):
        yield (
            (f"skips the {type(node).__name__}",),
            replace(network, steps=network.steps | {name: network.steps[network.input]}),
        )


def _apart(network: Network, cycle: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Network]]:
    lines = {n: s for n in cycle if isinstance(s := network.steps[n], Delay)}
    for what, steps in (("lets nothing through the cycle", 1000), ("takes two steps for the cycle", 2)):
        slow = {n: replace(s, shortest=steps, longest=steps) for n, s in lines.items()}
        yield (what,), replace(network, steps=network.steps | slow)
    for name in cycle:  # an affine map in the cycle gives its bias before anything came back
        if isinstance(network.graph.nodes[name], nir.Affine) and (moved := _delay_before(network, name)):
            yield ("delays what goes into the Affine of the cycle, not what comes out",), moved


def _delay_before(network: Network, name: str) -> Network | None:
    """The same network with the Delay behind node `name` in front of it."""
    graph = network.graph
    behind = [b for a, b in graph.edges if a == name and isinstance(graph.nodes[b], nir.Delay)]
    before = [a for a, b in graph.edges if b == name]
    if len(behind) != 1 or len(before) != 1:
        return None
    (line,), (source,) = behind, before
    after = [b for a, b in graph.edges if a == line]
    kept = [e for e in graph.edges if line not in e and e != (source, name)]
    edges = [*kept, (source, line), (line, name), *((name, b) for b in after)]
    found = {**graph.nodes, line: nir.Delay(np.full(network.shapes[source], network.clock.dt))}
    moved = nir.NIRGraph(found, edges, metadata=graph.metadata, type_check=False)
    return graphs.check(moved, network.clock.dt, network.clock.integrator)


# --- one probe


def reference(network: Network, x: np.ndarray) -> np.ndarray:
    (end,) = network.sources[network.outputs[0]]
    return base.get("reference")().compile(network).run(x).z[end].astype(float)


def outcome(network: Network, x: np.ndarray, z: np.ndarray) -> dict[str, Any]:
    """What a tool gave back for input x, in words and numbers."""
    wanted = reference(network, x)
    if z.shape != wanted.shape:
        return {"status": "wrong shape", "found": list(z.shape), "wanted": list(wanted.shape)}
    spiking = bool(np.isin(wanted, (0, 1)).all())
    what = {"differ": differ(z, wanted, spiking), "of": wanted.size, "spikes": int(wanted.sum()) if spiking else None}
    if not what["differ"]:
        return {"status": "equal", **what}
    found = {"status": "differs", **what}
    for chosen, changed in variants(network):
        try:
            same = not differ(z, reference(changed, x), spiking)
        except (ValueError, GraphError):
            continue
        if same:
            return {**found, "because": list(chosen)}
    late = z.shape[1] > 1 and not differ(z[:, 1:], wanted[:, :-1], spiking)
    return {**found, "because": ["answers one step late"]} if late else found


def differ(z: np.ndarray, wanted: np.ndarray, spiking: bool) -> int:
    if spiking:
        return int((z != wanted).sum())
    return int((~(np.abs(z - wanted) <= TOLERANCE * max(1.0, float(np.abs(wanted).max())))).sum())


def answer(network: Network, x: np.ndarray, path: Path) -> dict[str, Any]:
    """The outcome of one run, which the worker left at `path`."""
    if not (told := Path(f"{path}.json")).exists():
        return outcome(network, x, np.load(f"{path}.z.npy"))
    said = json.loads(told.read_text())
    refused = said["stage"] != "run" and said["error"] in REFUSALS
    return {"status": "refuses" if refused else "crashes", **said}


def once(every: list[dict[str, Any]]) -> dict[str, Any]:
    """What all runs say, or that they do not say the same."""
    return (
        every[0]
        if all(e == every[0] for e in every)
        else {"status": "varies", "equal": [e["status"] for e in every].count("equal"), "runs": len(every)}
    )


def label(clock: Clock) -> str:
    return f"dt = {clock.dt:g}, {clock.integrator}"


def run(tool: str, python: str, only: Collection[str] = ()) -> tuple[dict[str, str], dict[str, Any]]:
    """(versions, probe -> clock -> outcome) of one tool, for the probes named `only`, or all."""
    with tempfile.TemporaryDirectory() as name:
        folder, asked, waiting = Path(name), [], {}
        found: dict[str, Any] = {}
        for (i, probe), (j, clock) in product(
            enumerate(p for p in PROBES if not only or p.name in only), enumerate(CLOCKS[tool])
        ):
            key = f"{i}-{j}"
            try:
                graph = probe.graph(clock)
            except GraphError as e:
                found.setdefault(probe.name, {})[label(clock)] = {"status": "not written", "message": str(e)}
                continue
            graphs.write(graph, folder / f"{key}.nir")
            np.save(folder / f"{key}.x.npy", probe.input())
            asked.append({"name": key, "dt": clock.dt})
            waiting[key] = (probe, clock)
        (folder / "jobs.json").write_text(json.dumps(asked))
        # a set's order must not decide what is compared
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run([python, str(WORKER), tool.split(",")[0], name], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tool} does not run in {python}:\n{done.stderr[-1500:]}")
        for key, (probe, clock) in waiting.items():
            graph = graphs.read(folder / f"{key}.nir")
            network = graphs.check(insert_delays(graph)[0])
            every = [answer(network, probe.input(), folder / f"{key}.{n}") for n in range(worker.REPEATS)]
            found.setdefault(probe.name, {})[label(clock)] = once(every)
        return json.loads((folder / "versions.json").read_text()), found


def page() -> str:
    clocks = {tool: [label(c) for c in asked] for tool, asked in CLOCKS.items()}
    return table.render(json.loads(RESULT.read_text()), PROBES, clocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PATH")
    parser.add_argument("--only", action="append", default=[], metavar="PROBE")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if not args.render:
        pythons = dict(pair.split("=", 1) for pair in args.python) or dict.fromkeys(CLOCKS, sys.executable)
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {"versions": {}, "results": {}}
        for tool, python in pythons.items():
            versions, results = run(tool, python, args.only)
            kept["versions"][tool] = versions
            kept["results"].setdefault(tool, {}).update(results)
            for name, by_clock in results.items():
                for clock, result in by_clock.items():
                    print(f"{tool:18} {name:25} {clock:26} {' - '.join(filter(None, table.words(result)))}")
        if not args.write:
            return
        RESULT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
