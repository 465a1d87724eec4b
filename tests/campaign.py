"""Random integer networks on every engine, bit by bit against the reference, and the reference against the oracle.

    python tests/campaign.py --networks 200 --engines torch,loihi,loihi-file,lava

Prints what was compared and how often every branch of the arithmetic was taken. Exit 1 where anything differs, where
an engine refuses a network, or where a branch was never taken: an equality of what never happened is none.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import int_oracle
import numpy as np
from int_networks import HALF, Made, network_of_size, provoking_cases, random_network

from eiexport.graph import Network, check
from eiexport.integers import IntConv, IntGatedLIF, synapse_words
from eiexport.neurons import Delay
from eiexport.ops import NumpyOps
from eiexport.trace import NodeResult, Trace, compact, compare_entries
from targets import base
from targets.loop import fold, scan

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "campaign.json"
Pair = tuple[Network, np.ndarray]
Counts = dict[str, Counter[str]]  # kind of node -> branch -> how often

# --- branches: the ways a value can go

NEURON = ("wrap top", "wrap bottom", "saturation top", "saturation bottom", "negative v", "positive v", "kept")
NEURON += ("tie gt", "reset zero", "v toward zero")
FREE = ("tie ge", "reset subtract", "reset none")
BRANCHES: dict[str, tuple[str, ...]] = {
    "IF": tuple(b for b in NEURON if b != "v toward zero"),  # without a leak nothing is rounded
    "LIF": NEURON,
    "CUBA": (*NEURON, "u toward zero"),
    "ternary": (*NEURON, "negative spike", "lower tie"),
    "gated": (*NEURON, "negative spike", "table start", "table end", "gate floor")
    + ("message top", "message bottom", "swallowed"),
    "IntDense": ("message -1", "floor", "clipped weight", "truncated weight"),
    "IntConv": ("message -1", "modulo top", "modulo bottom"),
}


def kind_of(node: Any) -> str:
    """The row of `BRANCHES` that a node belongs to."""
    if type(node).__name__ != "IntCubaLIF":
        return "gated" if type(node).__name__ == "IntGatedLIF" else type(node).__name__
    if node.lower is not None:
        return "ternary"
    if (np.asarray(node.du) == 4095).all():
        return "IF" if (np.asarray(node.dv) == 0).all() else "LIF"
    return "CUBA"


def required(stock: bool) -> dict[str, tuple[str, ...]]:
    """Branches that a campaign has to take. A double threshold has no subtractive reset, stock Lava no gates."""
    found = {}
    for kind, branches in BRANCHES.items():
        more = () if stock or kind.startswith("Int") else FREE
        if not (stock and kind == "gated"):
            found[kind] = (*branches, *(b for b in more if (kind, b) != ("ternary", "reset subtract")))
    return found


def unhit(counts: Counts, stock: bool) -> list[str]:
    """Branches that were never taken."""
    return [f"{kind}: {b}" for kind, branches in required(stock).items() for b in branches if not counts[kind][b]]


def coverage(network: Network, x: np.ndarray, trace: Trace) -> Counts:
    """How often each branch was taken in a trace that holds v and u, by node."""
    values: dict[str, np.ndarray] = {network.input: np.asarray(x, np.float64)}
    ops = NumpyOps()

    def value(name: str) -> np.ndarray:
        step = network.steps[name]
        if name not in values:
            if step.neuron:
                values[name] = trace.z[name].astype(np.float64)
            else:
                came = np.swapaxes(total(name), 0, 1)
                moved = scan(step, ops, came) if isinstance(step, Delay) else fold(step, ops, came)
                values[name] = np.swapaxes(moved, 0, 1)
        return values[name]

    def total(name: str) -> np.ndarray:
        return np.sum([value(s) for s in network.sources[name]], axis=0)

    found = {}
    for name, node in network.graph.nodes.items():
        kind, step = kind_of(node), network.steps[name]
        if kind in ("IntDense", "IntConv"):
            found[name] = _connection(node, step, total(name))
        elif kind in BRANCHES:
            registers = (trace.states[k][name].astype(np.int64) for k in ("v", "u"))
            found[name] = _neuron(node, step, total(name), value(name), *registers)
    return found


def _counted(branches: dict[str, Any]) -> Counter[str]:
    return Counter({name: int(np.count_nonzero(where)) for name, where in branches.items()})


def _connection(node: Any, step: Any, x: np.ndarray) -> Counter[str]:
    sums = step.product(NumpyOps(), x.reshape(-1, *x.shape[2:])).astype(np.int64)
    shifted = sums >> step.shift
    branches = {"message -1": x == -1, "floor": (sums < 0) & (sums % (1 << step.shift) != 0)}
    if isinstance(node, IntConv):
        return _counted({**branches, "modulo top": shifted >= HALF, "modulo bottom": shifted < -HALF})
    w, held = np.asarray(node.weight), synapse_words(np.asarray(node.weight), node.bits, node.sign_mode)
    limits = {"mixed": (-256, 255), "excitatory": (0, 255), "inhibitory": (-255, 0)}[node.sign_mode]
    clipped = (w < limits[0]) | (w > limits[1])
    return _counted({**branches, "clipped weight": clipped, "truncated weight": (held != w) & ~clipped})


def _zero(p: np.ndarray) -> np.ndarray:
    return np.sign(p) * (np.abs(p) >> 12)


def _before(a: np.ndarray) -> np.ndarray:
    """The value of the step before, zero at first."""
    return np.concatenate([np.zeros_like(a[:, :1]), a[:, :-1]], axis=1)


def _neuron(node: Any, step: Any, x: np.ndarray, z: np.ndarray, v: np.ndarray, u: np.ndarray) -> Counter[str]:
    lif, found, a = getattr(node, "neuron", node), {}, x.astype(np.int64)
    if isinstance(node, IntGatedLIF) and step.feedback is not None:
        late = np.swapaxes(_before(z), 0, 1)
        fed = np.swapaxes(fold(step.feedback, NumpyOps(), late), 0, 1).astype(np.int64) >> node.feedback_shift
        product = np.asarray(node.table, np.int64)[np.clip(fed, -128, 127) + 128] * a
        a = product >> 8
        found |= {
            "table start": fed <= -128,
            "table end": fed >= 127,
            "gate floor": (product < 0) & (product % 256 > 0),
        }
    p = {k: np.asarray(getattr(lif, k), np.int64) for k in ("vth", "du", "dv", "bias_mant", "bias_exp")}
    bias = p["bias_mant"] >> np.maximum(-p["bias_exp"], 0) << np.maximum(p["bias_exp"], 0)
    old_u, old_v = _before(u) * (4095 - p["du"]), _before(v) * (4096 - p["dv"])
    turned, raw = _zero(old_u) + (a << 6), _zero(old_v) + u + bias
    charged, threshold = np.clip(raw, 1 - HALF, HALF - 1), p["vth"] << 6
    fired = charged >= threshold if lif.compare == "ge" else charged > threshold
    if lif.lower is not None:
        low = np.asarray(lif.lower, np.int64) << 6
        down = charged <= low if lif.compare == "ge" else charged < low
        found |= {"lower tie": charged == low, "negative spike": down}
        fired = fired | down
    found |= {
        "wrap top": turned > HALF,
        "wrap bottom": turned <= -HALF,
        "saturation top": raw >= HALF,
        "saturation bottom": raw <= -HALF,
        "negative v": charged < 0,
        "positive v": charged > 0,
        f"tie {lif.compare}": charged == threshold,
        f"reset {lif.reset}": fired,
        "kept": ~fired & (charged != 0),
        "u toward zero": (old_u < 0) & (old_u % 4096 > 0),
        "v toward zero": (old_v < 0) & (old_v % 4096 > 0),
    }
    if isinstance(node, IntGatedLIF) and step.balance is not None:
        top, sent = (1 << (node.balance_bits - 1)) - 1, charged >> node.balance_shift
        found |= {"message top": sent > top, "message bottom": sent < -top}
        found |= {"swallowed": fired & (z == 0), "negative spike": z < 0}
    return _counted(found)


# --- comparison


def expected(network: Network, x: np.ndarray) -> Trace:
    """What the oracle says of the recorded nodes, as a trace."""
    rows = int_oracle.run(network.graph, x)
    made: dict[str, dict[str, np.ndarray]] = {"z": {}, "v": {}, "u": {}}
    for kind, found in made.items():
        for name in rows[0][0][kind]:
            shape = tuple(max(axis) + 1 for axis in zip(*rows[0][0][kind][name], strict=True))
            flat = [[[step[kind][name][i] for i in np.ndindex(shape)] for step in sample] for sample in rows]
            if name in network.recorded:
                found[name] = np.array(flat, np.int64).reshape(*x.shape[:2], *shape)
    z = {n: compact(a.astype(np.float64), network.alphabets[n]) for n, a in made["z"].items()}
    states = {k: {n: a.astype(np.int32) for n, a in made[k].items()} for k in ("v", "u") if made[k]}
    return Trace(z, network.clock.dt, states=states)


def compared(found: Trace, wanted: Trace) -> tuple[dict[str, int], list[str]]:
    """(entries of z, v, u and mismatches; what differs, in words). Nodes, shapes and dtypes first, then every entry."""
    held = [{(k, n): a for k, n, a in trace.observables()} for trace in (found, wanted)]
    if held[0].keys() != held[1].keys():
        return {"mismatches": 1}, [f"only one side holds {sorted(held[0].keys() ^ held[1].keys())}"]
    for key, a in held[1].items():
        other = held[0][key]
        # numbers that are no spikes come in the engine's own type
        own = key[0] == "z" and np.int8 not in (a.dtype, other.dtype)
        if other.shape != a.shape or (other.dtype != a.dtype and not own):
            return {"mismatches": 1}, [f"{key}: {other.dtype} {other.shape}, expected {a.dtype} {a.shape}"]
    results: dict[str, NodeResult] = {}
    compare_entries(results, found, wanted)
    entries = Counter({"mismatches": sum(r.mismatches + r.state_mismatches for r in results.values())})
    for kind, _, a in wanted.observables():
        entries[kind] += a.size
    if entries["z"] + entries["v"] + entries["u"] != sum(r.entries + r.state_entries for r in results.values()):
        return {"mismatches": 1}, ["not everything was compared"]
    return dict(entries), [str(r.first) for r in results.values() if r.first]


# --- engines

Outcome = Trace | base.Unsupported


def one_by_one(run: Callable[[Network, np.ndarray], Trace]) -> Callable[[list[Pair]], list[Outcome]]:
    def attempt(network: Network, x: np.ndarray) -> Outcome:
        try:
            return run(network, x)
        except base.Unsupported as e:
            return e

    return lambda pairs: [attempt(*pair) for pair in pairs]


def from_file(network: Network, x: np.ndarray) -> Trace:
    """The simulator that knows a program file and nothing else."""
    from targets.loihi import program
    from targets.loihi.simulator import Simulator

    with tempfile.TemporaryDirectory() as folder:
        return Simulator(program.write(network, "loihi2", Path(folder))).run(x, probe=True)


def lava(pairs: list[Pair]) -> list[Outcome]:
    """All in as few starts of Lava as it takes."""
    target: Any = base.get("lava")()
    planned = one_by_one(lambda network, x: target.check(network))(pairs)
    traces = iter(target.run_many([p for p, e in zip(pairs, planned, strict=True) if e is None], probe=True))
    return [next(traces) if e is None else e for e in planned]


def engine_of(name: str) -> Callable[[list[Pair]], list[Outcome]]:
    plain = one_by_one(lambda network, x: base.get(name)().compile(network).run(x, probe=True))
    return ENGINES.get(name, plain)


ENGINES: dict[str, Callable[[list[Pair]], list[Outcome]]] = {"lava": lava, "loihi-file": one_by_one(from_file)}
NEEDS = {"loihi-file": "targets.loihi.simulator"}
STOCK = ("lava", "loihi", "loihi-file")  # these get only what Lava's stock processes do, unless told otherwise


def present(name: str) -> bool:
    """True for an engine that this version has."""
    module = NEEDS.get(name)
    return name in base.REGISTRY if module is None else importlib.util.find_spec(module) is not None


@dataclass
class Row:
    """One engine's result."""

    engine: str
    stock: bool
    networks: int = 0
    refused: int = 0
    entries: Counter[str] = field(default_factory=Counter)  # z, v, u, mismatches
    counts: Counts = field(default_factory=lambda: {k: Counter() for k in BRANCHES})
    processes: Counter[str] = field(default_factory=Counter)  # of nodes: "stock" or "custom"
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)

    @property
    def unhit(self) -> list[str]:
        return unhit(self.counts, self.stock)

    @property
    def ok(self) -> bool:
        """An engine may refuse what stock Lava has not: by a rule, in words."""
        wrong = self.entries["mismatches"] or self.unhit or (self.refused and self.stock)
        return not wrong and self.entries["u"] > 0

    def refuse(self, number: int, e: base.Unsupported) -> None:
        self.refused += 1
        self.remarks.append(f"network {number} refused: {e}")

    def add(self, label: str, network: Network, x: np.ndarray, found: Trace, wanted: Trace) -> None:
        entries, words = compared(found, wanted)
        self.networks += 1
        self.entries.update(entries)
        self.remarks += [f"{label}: {w}" for w in words]
        target = base.get("lava")() if self.engine == "lava" else None
        for name, counted in coverage(network, x, wanted).items():
            self.counts[kind_of(network.graph.nodes[name])].update(counted)
            if target is not None:
                self.processes[target.process(network, name)] += 1

    def lines(self) -> Iterator[str]:
        e = self.entries
        what = "oracle" if self.engine == "reference" else "reference"
        nodes = f", {self.processes['stock']} of {self.processes.total()} nodes on stock processes"
        yield (
            f"{self.engine} against {what}: {self.networks} networks, {e['z']:,} z, {e['u']:,} u, {e['v']:,} v, "
            f"{e['mismatches']:,} differ, {self.refused} refused, {self.seconds:.0f} s"
            + (nodes if self.processes else "")
        )
        for kind, branches in required(self.stock).items():
            yield f"  {kind:9}" + ", ".join(f"{b} {self.counts[kind][b]:,}" for b in branches)
        yield from (f"  {r}" for r in self.remarks[:10])
        if self.unhit:
            yield f"  never taken: {'; '.join(self.unhit)}"

    def record(self) -> dict[str, Any]:
        numbers = {k: self.entries[k] for k in ("z", "v", "u", "mismatches")}
        about = {"networks": self.networks, "refused": self.refused, "stock": self.stock, "unhit": self.unhit}
        branches = {kind: {b: self.counts[kind][b] for b in bs} for kind, bs in required(self.stock).items()}
        return {**about, **numbers, "processes": dict(self.processes), "seconds": round(self.seconds, 1)} | {
            "branches": branches,
            "remarks": self.remarks[:10],
        }


def reference(network: Network, x: np.ndarray) -> Trace:
    return base.get("reference")().compile(network).run(x, probe=True)


def checked(made: Made) -> Pair:
    graph, x, alphabet = made
    return check(graph, alphabet=alphabet), x


def against_oracle(networks: int) -> Row:
    """The reference itself, on cases and networks that the oracle can afford."""
    row, start = Row("reference", stock=False), time.monotonic()
    small = [(case.name, (case.graph, case.x, case.alphabet)) for case in provoking_cases()]
    small += [(f"{s}-{stock}", random_network(s, stock)) for s in range(networks) for stock in (False, True)]
    for label, made in small:
        network, x = checked(made)
        row.add(label, network, x, reference(network, x), expected(network, x))
    row.seconds = time.monotonic() - start
    return row


def campaign(engine: str, stock: bool, networks: int, values: int, seed: int, pack: int = 20) -> Row:
    """One engine on networks seed, seed + 1, ... with `values` values of each observable in all."""
    row, each = Row(engine, stock), -(-values // networks)
    numbers = iter(range(seed, seed + networks))
    while some := list(islice(numbers, pack)):
        pairs, start = [checked(network_of_size(s, each, stock)) for s in some], time.monotonic()
        outcomes = engine_of(engine)(pairs)
        row.seconds += time.monotonic() - start
        for number, (network, x), found in zip(some, pairs, outcomes, strict=True):
            if isinstance(found, base.Unsupported):
                row.refuse(number, found)
            else:
                row.add(f"network {number}", network, x, found, reference(network, x))
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--engines", default="torch,loihi,loihi-file,lava", help="names, with commas between")
    parser.add_argument("--full", default="", help="engines that also get what stock Lava has not: gates, ge, resets")
    parser.add_argument("--values", type=int, default=5_000_000, help="of each of z, u, v, over all networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--oracle", type=int, default=100, help="pairs of small networks for reference and oracle")
    parser.add_argument("--allow-missing", action="store_true", help="skip engines that this version does not have")
    parser.add_argument(
        "--write", nargs="?", const=RESULT, type=Path, help=f"a file, {RESULT.name} in benchmarks/results"
    )
    args = parser.parse_args(argv)
    rows, missing = [], []
    for engine in args.engines.split(","):
        if not present(engine):
            missing.append(engine)
            print(f"{engine}: not in this version, skipped")
    if missing and not args.allow_missing:
        print("an engine is missing; --allow-missing goes on without it")
        return 1

    def report(row: Row) -> None:
        rows.append(row)
        print("\n".join(row.lines()), flush=True)

    if args.oracle:
        report(against_oracle(args.oracle))
    for engine in (e for e in args.engines.split(",") if e not in missing):
        stock = engine in STOCK and engine not in args.full.split(",")
        report(campaign(engine, stock, args.networks, args.values, args.seed))
    ok = all(row.ok for row in rows)
    if args.write:
        about = {k: getattr(args, k) for k in ("networks", "values", "seed", "oracle")}
        versions = {"python": sys.version.split()[0], "numpy": np.__version__}
        found = {"ok": ok, **about, "versions": versions, "skipped": missing, "engines": {}}
        found["engines"] = {row.engine: row.record() for row in rows}
        args.write.write_text(json.dumps(found, indent=1) + "\n")
    print("all equal, every branch taken" if ok else "NOT equal, or not complete")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
