"""Generated networks on every target, and damaged files through the readers.

    python tests/fuzz.py --floats 2000 --integers 2000 --files 500 --targets torch,torch32,onnx,c

Float networks: each target's trace is checked as an execution of the graph in the target's own dtype, and must be equal
or explained. Integer networks: spikes and registers, bit by bit. Files: a clear refusal or a right answer, in bounded
time and memory. Prints a table, writes benchmarks/results/fuzz.json with the seeds of what failed, and exits 1 where
anything differs, where a branch never occurred, or where too much was silent: an equality of nothing is none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import campaign as whole
import float_features
import nir
import numpy as np
from float_networks import made
from int_circuits import circuit_network
from int_networks import Made, random_network

from eiexport.check import MARGIN, ExecutionCheck, drifts
from eiexport.console import bar
from eiexport.graph import Network
from eiexport.trace import NodeResult, Trace, compare_entries
from targets import base

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "fuzz.json"
ENOUGH = 500  # networks from which on every branch has to occur
LIVE = 0.7  # share of the float networks whose output must not be silent
WHOLE = ("torch", "loihi", "onnx", "onnx-step", "c")  # targets that run integers
FREE = ("loihi",)  # these may refuse an integer network by a rule of their hardware
Progress = Callable[[str, int, int], None]


@dataclass
class Row:
    """What one target made of all networks."""

    target: str
    networks: int = 0
    status: Counter[str] = field(default_factory=Counter)  # networks: equal, explained, drifted, differs, ...
    entries: Counter[str] = field(default_factory=Counter)  # entries, registers, mismatches, ties, free-running
    margin: float = 0.0
    seconds: float = 0.0
    version: str = ""
    kinds: Counter[str] = field(default_factory=Counter)  # of nodes, in networks that it ran
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)  # (seed, what)

    @property
    def ok(self) -> bool:
        refused = 0 if self.target in FREE else self.status["refused"]
        return not self.failures and not refused and self.entries["entries"] > 0

    def fail(self, seed: int, status: str, what: str) -> None:
        self.status[status] += 1
        self.failures.append((seed, what))

    def record(self) -> dict[str, Any]:
        about: dict[str, Any] = {"version": self.version, "networks": self.networks, "status": dict(self.status)}
        about |= {**{k: int(v) for k, v in self.entries.items()}, "largest_margin": self.margin}
        about |= {"kinds": dict(sorted(self.kinds.items())), "refusals": dict(self.refusals.most_common(20))}
        return about | {"seconds": round(self.seconds, 1), "failures": self.failures[:50]}

    def line(self) -> str:
        e, s = self.entries, self.status
        told = ", ".join(
            f"{s[k]} {k}" for k in ("equal", "explained", "drifted", "differs", "failed", "refused") if s[k]
        )
        text = f"  {self.target:10} {self.networks} networks: {told or 'nothing'}; {e['entries']:,} outputs"
        text += f", {e['registers']:,} registers" if e["registers"] else ""
        text += (
            f", {e['mismatches']:,} differ, {e['ties']:,} ties (margin {self.margin:.1g}), {e['free-running']:,} free"
        )
        return f"{text}, {self.seconds:.0f} s"


def kinds_of(network: Network) -> Counter[str]:
    return Counter({type(n).__name__ for n in network.graph.nodes.values()})


# --- float networks


@dataclass
class Floats:
    """near: networks whose thresholds were put onto membranes; of their ties there may be many."""

    rows: dict[str, Row]
    networks: int = 0
    live: int = 0
    near: int = 0
    features: Counter[str] = field(default_factory=Counter)
    far_ties: Counter[str] = field(default_factory=Counter)  # by target, of networks that are not near
    far_entries: Counter[str] = field(default_factory=Counter)

    @property
    def problems(self) -> list[str]:
        found = [f"{r.target}: network {s}: {what}" for r in self.rows.values() for s, what in r.failures]
        found += [f"{r.target}: {n} refused: {text}" for r in self.rows.values() for text, n in r.refusals.items()]
        found += [f"{r.target}: compared nothing" for r in self.rows.values() if not r.entries["entries"]]
        if self.networks >= ENOUGH:
            found += [f"never occurred: {what}" for what in float_features.unseen(self.features)]
        if self.live < LIVE * self.networks:
            found.append(f"only {self.live} of {self.networks} networks send anything")
        return found

    def record(self) -> dict[str, Any]:
        about: dict[str, Any] = {k: getattr(self, k) for k in ("networks", "live", "near")}
        about |= {"features": dict(sorted(self.features.items())), "unseen": float_features.unseen(self.features)}
        shares = {t: self.far_ties[t] / max(1, n) for t, n in self.far_entries.items()}
        return {**about, "share_of_ties": shares, "targets": {t: r.record() for t, r in self.rows.items()}}


def judged(row: Row, seed: int, network: Network, results: dict[str, NodeResult], free: dict[str, NodeResult]) -> None:
    """Count one float network; a tie must be one of rounding, and without ties spikes are the reference's.

    Behind a neuron that sends its membrane, spikes may differ without a tie: each run is checked from the real values
    that it sent itself, and these are not the reference's to the bit.
    """
    ties, wrong = (sum(getattr(r, k) for r in results.values()) for k in ("explained_ties", "mismatches"))
    different, margin = sum(r.mismatches for r in free.values()), max(r.margin for r in results.values())
    row.entries.update(entries=sum(r.entries for r in results.values()), mismatches=wrong, ties=ties)
    row.entries["free-running"] += different
    row.margin = max(row.margin, margin)
    first = next((str(r.first) for r in [*results.values(), *free.values()] if r.first), "")
    if wrong:
        row.fail(seed, "differs", f"{wrong} entries: {first}")
    elif margin > MARGIN:
        row.fail(seed, "differs", f"a tie {margin:.2g} off its threshold")
    elif different and not ties and not all(drifts(network, n) for n, r in free.items() if r.mismatches):
        row.fail(seed, "differs", f"an execution, yet with other spikes than the reference: {first}")
    else:
        row.status["explained" if ties else "drifted" if different else "equal"] += 1


def held(target: base.Target, network: Network, x: np.ndarray) -> tuple[ExecutionCheck, Trace]:
    target.check(network)
    trace = target.compile(network).run(x)
    check = ExecutionCheck(network, target.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        check.add(x, trace.z)
    return check, trace


def floats(names: list[str], count: int, seed: int, progress: Progress = lambda *_: None) -> Floats:
    """Networks seed, seed + 1, ... on the reference and on each target."""
    targets = {n: base.get(n)() for n in ("reference", *names)}
    found = Floats({n: Row(n, version=t.version) for n, t in targets.items()})
    for number in range(seed, seed + count):
        net, network = made(number), made(number).network()
        reference, taken = float_features.watched(network, net.x)
        found.features += taken + float_features.seen(network, net.x)
        found.networks += 1
        found.near += net.near
        ends = (s for o in network.outputs for s in network.sources[o])
        found.live += any(reference.z[s].any() for s in ends if s in reference.z)
        for name, target in targets.items():
            row, start = found.rows[name], time.monotonic()
            row.networks += 1
            try:
                check, trace = held(target, network, net.x)
            except base.Unsupported as e:
                row.status["refused"] += 1
                row.refusals[_rule(e)] += 1
            except Exception as e:  # whatever it is, it is a finding
                row.fail(number, "failed", f"{type(e).__name__}: {_line(e)}")
            else:
                free: dict[str, NodeResult] = {}
                spikes = {n: a for n, a in reference.z.items() if a.dtype == np.int8}
                compare_entries(free, trace, Trace(spikes))
                judged(row, number, network, check.results, free)
                row.kinds += kinds_of(network)
                if not net.near:
                    found.far_ties[name] += sum(r.explained_ties for r in check.results.values())
                    found.far_entries[name] += sum(r.entries for r in check.results.values())
            row.seconds += time.monotonic() - start
        progress("float networks", found.networks, count)
    return found


def _line(e: BaseException) -> str:
    return (str(e).splitlines() or [""])[0][:300]


def _rule(e: BaseException) -> str:
    """A refusal without the name of the node, so that equal ones are counted together."""
    text = _line(e)
    return text.split("': ", 1)[-1][:90] if text.startswith("node ") else text[:90]


# --- integer networks

MAKERS: tuple[Callable[[int], Made], ...] = (
    random_network,
    lambda seed: random_network(seed, stock=True),
    random_network,
    circuit_network,
)


def integer_network(seed: int) -> Made:
    """Every option, what a chip has, every option again, circuits: by turns."""
    return MAKERS[seed % 4](seed)


@dataclass
class Integers:
    rows: dict[str, Row]
    networks: int = 0
    live: int = 0
    counts: whole.Counts = field(default_factory=lambda: {k: Counter() for k in whole.BRANCHES})
    forms: Counter[str] = field(default_factory=Counter)

    @property
    def unseen(self) -> list[str]:
        forms = ("none", "exact", "frozen", "shift", "table")
        found = [f"IntCircuit {f}" for f in forms if not self.forms[f]]
        return found + (whole.unhit(self.counts, stock=False) if self.networks >= ENOUGH else [])

    @property
    def problems(self) -> list[str]:
        found = [f"{r.target}: integer network {s}: {what}" for r in self.rows.values() for s, what in r.failures]
        for r in self.rows.values():
            found += [f"{r.target}: {n} refused: {t}" for t, n in r.refusals.items() if r.target not in FREE]
            found += [] if r.entries["entries"] else [f"{r.target}: compared nothing"]
        return found + ([f"never occurred: {u}" for u in self.unseen] if self.networks >= ENOUGH else [])

    def record(self) -> dict[str, Any]:
        about: dict[str, Any] = {"networks": self.networks, "live": self.live, "unseen": self.unseen}
        about |= {"branches": {k: dict(c) for k, c in self.counts.items()}, "circuits": dict(self.forms)}
        return {**about, "targets": {t: r.record() for t, r in self.rows.items()}}


def integers(names: list[str], count: int, seed: int, progress: Progress = lambda *_: None) -> Integers:
    """Integer networks on each target, spikes and registers against the reference's."""
    targets = {n: base.get(n)() for n in names}
    found = Integers({n: Row(n, version=t.version) for n, t in targets.items()})
    for number in range(seed, seed + count):
        network, x = whole.checked(integer_network(number))
        wanted = whole.reference(network, x)
        found.networks += 1
        ends = [s for o in network.outputs for s in network.sources[o]]
        found.live += any(wanted.z[s].any() for s in ends if s in wanted.z)
        circuits = [n for n in network.graph.nodes.values() if type(n).__name__ == "IntCircuit"]
        found.forms.update(n.form for n in circuits)
        for name, branches in ({} if circuits else whole.coverage(network, x, wanted)).items():
            found.counts[whole.kind_of(network.graph.nodes[name])].update(branches)
        for name, target in targets.items():
            row, start = found.rows[name], time.monotonic()
            row.networks += 1
            try:
                target.check(network)
                trace = target.compile(network).run(x, probe=True)
            except base.Unsupported as e:
                row.status["refused"] += 1
                row.refusals[_rule(e)] += 1
                if number % 4 == 1:  # a chip's own
                    row.fail(number, "failed", f"refused what a chip has: {_line(e)}")
            except Exception as e:
                row.fail(number, "failed", f"{type(e).__name__}: {_line(e)}")
            else:
                entries, words = whole.compared(trace, wanted)
                row.entries.update(entries=entries.get("z", 0), registers=entries.get("v", 0) + entries.get("u", 0))
                row.entries["mismatches"] += entries["mismatches"]
                row.kinds += kinds_of(network)
                if entries["mismatches"]:
                    row.fail(number, "differs", f"{entries['mismatches']} entries: {words[0]}")
                else:
                    row.status["equal"] += 1
            row.seconds += time.monotonic() - start
        progress("integer networks", found.networks, count)
    return found


# --- all of it


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floats", type=int, default=2000, help="float networks")
    parser.add_argument("--integers", type=int, default=2000, help="integer networks")
    parser.add_argument("--files", type=int, default=500, help="damaged files")
    parser.add_argument("--targets", default="torch,torch32,loihi,onnx,c", help="names, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of the first network and file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes for the files")
    parser.add_argument("--write", type=Path, default=RESULT, help="where the result goes")
    args = parser.parse_args(argv)
    names = [n for n in args.targets.split(",") if n in base.REGISTRY]
    missing = [n for n in args.targets.split(",") if n not in base.REGISTRY]
    start, result, problems = time.monotonic(), {}, [f"target {n}: not in this version" for n in missing]
    with bar() as progress:
        if args.floats:
            f = floats([n for n in names if n != "loihi"], args.floats, args.seed, progress)
            progress.line(f"float networks: {f.networks}, {f.live} of them send something, {f.near} near a threshold")
            for row in f.rows.values():
                progress.line(row.line())
            result["floats"], problems = f.record(), problems + f.problems
        if args.integers:
            i = integers([n for n in names if n in WHOLE], args.integers, args.seed, progress)
            progress.line(f"integer networks: {i.networks}, {i.live} of them send something")
            for row in i.rows.values():
                progress.line(row.line())
            result["integers"], problems = i.record(), problems + i.problems
        if args.files:
            import file_mutants

            m = file_mutants.campaign(args.files, args.seed, args.workers, progress)
            for text in m.lines():
                progress.line(text)
            result["files"], problems = m.record(), problems + m.problems
    versions = {"python": sys.version.split()[0], "numpy": np.__version__, "nir": nir.version}
    about = {"ok": not problems, "seed": args.seed, "versions": versions, "seconds": round(time.monotonic() - start, 1)}
    args.write.write_text(json.dumps({**about, **result, "problems": problems}, indent=1) + "\n")
    for text in problems[:40]:
        print(text)
    print("all equal or explained, all files told" if not problems else f"NOT so: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
