"""Where the values of a traced step live in C: what shares a loop, what gets an array, when a state is overwritten."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np

from eiexport.ops import Ints, NumpyOps
from eiexport.tracing import Dag, Line, Symbol
from targets.c.ranges import Found, Range

SAME = ("reshape", "stop_gradient", "scale_gradient")  # the same numbers, in C order
HEAVY = ("linear", "conv", "pool", "max_pool", "least")  # read other places than the one they write
BYTES = {"int8_t": 1, "int16_t": 2, "int32_t": 4, "int64_t": 8, "float": 4, "double": 8}
DTYPES: dict[str, Any] = {
    "int8_t": np.int8,
    "int16_t": np.int16,
    "int32_t": np.int32,
    "int64_t": np.int64,
    "float": np.float32,
    "double": np.float64,
}
# Arrays are called in two words at least, or so:
OWN = re.compile(r"in|input|work\d+")
# All else in the file is called so: one word is a keyword, a local, an argument of a helper, or a name of the C library
# or of POSIX, which may be a macro; then macros and types of stdint.h and others, and helpers.
FOREIGN = re.compile(r"[A-Za-z0-9]+|[A-Z0-9_]+|\w+_t|ei_\w*")
LOCAL = re.compile(r"[a-z]|past\d+")  # what a local may be called, before its number


class Names:
    """Identifiers of C from names of nodes: letters, digits and _, none twice, none that means anything else."""

    def __init__(self, prefix: str = "", taken: tuple[str, ...] = ()) -> None:
        self.prefix, self._taken = prefix, {*taken}

    def make(self, wanted: str) -> str:
        clean = re.sub(r"[^A-Za-z0-9]+", "_", wanted)[-40:].rstrip("_")
        clean = clean if clean[:1].isalpha() else f"n{clean}"
        if FOREIGN.fullmatch(clean) and not OWN.fullmatch(clean):
            clean = f"n_{clean}"
        clean = self.prefix + clean
        name, n = clean, 1
        while name in self._taken:
            n += 1
            name = f"{clean}_{n}"
        self._taken.add(name)
        return name


@dataclass(frozen=True)
class Form:
    """integer: whole numbers in int32_t or int64_t, fractions in double; else all in float."""

    integer: bool

    @property
    def real(self) -> str:
        return "double" if self.integer else "float"

    def computed(self, r: Range) -> str:
        """The type in which a value is computed."""
        if not (self.integer and r.whole):
            return self.real
        return "int32_t" if r.within(-(2.0**31), 2.0**31 - 1) else "int64_t"

    def held(self, r: Range) -> str:
        """The type in which an array holds it: a float network keeps its spikes in bytes."""
        if not r.whole:
            return self.real
        kinds = (8, 16, 32) if self.integer else (8,)
        narrow = [n for n in kinds if r.within(-(2.0 ** (n - 1)), 2.0 ** (n - 1) - 1)]
        return f"int{narrow[0]}_t" if narrow else "int64_t" if self.integer else self.real


@dataclass(frozen=True)
class Store:
    """An array in C. last: (channels, places) of a convolution's sums, which lie [place][channel]."""

    name: str
    kind: str
    size: int
    last: Ints = ()

    @property
    def bytes(self) -> int:
        return self.size * BYTES[self.kind]


@dataclass
class Block:
    """A loop over `size` places that computes some lines one by one, or one line that reads elsewhere."""

    lines: list[int]
    size: int
    heavy: bool = False


def size_of(shape: Ints) -> int:
    """Values of a result; its sample axis is 1."""
    return math.prod(shape)


def folded(dag: Dag, ops: NumpyOps) -> Dag:
    """Constants in the dtype of `ops`, and what is computed of constants alone as one."""
    lines: list[Line] = []
    same: dict[int, int] = {}  # a symbol that is another one

    def known(a: Any) -> Any:
        return Symbol(same.get(a.index, a.index), a.shape) if isinstance(a, Symbol) else a

    def value(a: Any) -> Any:
        return lines[a.index].args[0] if isinstance(a, Symbol) else a

    for i, old in enumerate(dag.lines):
        line = replace(old, args=tuple(map(known, old.args)))
        made = [a.index for a in line.args if isinstance(a, Symbol)]
        if line.op == "const":
            line = replace(line, args=(ops.const(line.args[0]),))
        elif line.op == "zeros":
            line = Line("const", (ops.zeros(line.args[0][1:]),), line.shape, line.label)
        elif made and all(lines[n].op == "const" for n in made):
            if line.op in SAME:
                same[i] = made[0]
            else:
                found = np.asarray(getattr(ops, line.op)(*map(value, line.args)), ops.dtype)
                line = Line("const", (found,), line.shape, f"{line.label}.{line.op}")
        lines.append(line)
    ends = tuple(Symbol(same.get(o.index, o.index), o.shape) for o in dag.outputs)
    return Dag(tuple(lines), ends, dag.names).pruned()


def live(dag: Dag) -> Dag:
    """Without the states that nothing reads."""
    ends = dict(zip(dag.names, dag.outputs, strict=True))
    states = {s.index: n for n, s in dag.inputs.items() if n in ends}
    uses = Counter(a.index for line in dag.lines for a in line.args if isinstance(a, Symbol))
    uses.update(o.index for o in dag.outputs)
    dead = {n for i, n in states.items() if not uses[i]}
    unread = [ends[n].index for n in dead]
    while unread:
        i = unread.pop()
        uses[i] -= 1
        if not uses[i]:
            unread += [a.index for a in dag.lines[i].args if isinstance(a, Symbol)]
            if i in states:
                dead.add(states[i])
                unread.append(ends[states[i]].index)
    kept = [(n, o) for n, o in zip(dag.names, dag.outputs, strict=True) if n not in dead]
    lines: list[Line] = []
    moved: dict[int, int] = {}
    for i, line in enumerate(dag.lines):
        if line.op == "input" and line.args[0] in dead:
            continue
        moved[i] = len(lines)
        args = (Symbol(moved[a.index], a.shape) if isinstance(a, Symbol) else a for a in line.args)
        lines.append(replace(line, args=tuple(args)))
    ends_ = tuple(Symbol(moved[o.index], o.shape) for _, o in kept)
    return Dag(tuple(lines), ends_, tuple(n for n, _ in kept)).pruned()


@dataclass
class Plan:
    """stores: where the value of a line lies, the first is where it is read; copies: made when all is computed."""

    dag: Dag
    found: Found
    form: Form
    names: Names
    blocks: list[Block] = field(default_factory=list)
    stores: dict[int, list[Store]] = field(default_factory=dict)
    states: dict[str, Store] = field(default_factory=dict)
    outputs: dict[str, Store] = field(default_factory=dict)
    copies: list[tuple[Store, int]] = field(default_factory=list)
    slots: list[Store] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)  # name of an array -> the slot that it lies in

    def __post_init__(self) -> None:
        dag = self.dag
        self.root = list(range(len(dag.lines)))
        self.block: dict[int, int] = {}  # where a root is computed
        for i, line in enumerate(dag.lines):
            if line.op in SAME:
                self.root[i] = self.root[line.args[0].index]
            elif line.op not in ("input", "const"):
                self._place(i, line)
        self.read: dict[int, list[int]] = {}  # root -> blocks that read it
        for b, block in enumerate(self.blocks):
            for r in {self.root[a.index] for i in block.lines for a in dag.lines[i].args if isinstance(a, Symbol)}:
                self.read.setdefault(r, []).append(b)
        self._keep()
        self._share()

    def shape(self, i: int) -> Ints:
        """Neuron shape of a line's result."""
        return self.dag.lines[i].shape[1:]

    def _place(self, i: int, line: Line) -> None:
        """Into the last loop if that has as many places, else into one of its own."""
        size, heavy = size_of(line.shape), line.op in HEAVY
        last = self.blocks[-1] if self.blocks else None
        if heavy or last is None or last.heavy or last.size != size:
            self.blocks.append(Block([], size, heavy))
        self.blocks[-1].lines.append(i)
        self.block[i] = len(self.blocks) - 1

    def _keep(self) -> None:
        """Arrays of inputs, states, recorded nodes and sums; a state that none reads later is overwritten in place."""
        dag, inputs = self.dag, {n: s.index for n, s in self.dag.inputs.items()}
        ends = {n: self.root[o.index] for n, o in zip(dag.names, dag.outputs, strict=True)}
        own = {n: r for n, r in self.found.states.items() if n in inputs}
        for name, i in inputs.items():
            kind = self.form.held(own.get(name, self.found.ranges[i]))
            wanted = name if name in own or OWN.fullmatch(name) else f"in.{name}"
            store = Store(self.names.make(wanted), kind, size_of(dag.lines[i].shape))
            self.stores[i] = [store]
            if name in own:
                self.states[name] = store
        taken = set(inputs.values())
        copied = {r for n, r in ends.items() if r in taken and r != inputs.get(n)}
        for name in self.states:
            r, i = ends[name], inputs[name]
            if r == i:
                continue
            b = self.block.get(r)
            late = (
                b is None or self.blocks[b].heavy or i in copied or any(reader > b for reader in self.read.get(i, ()))
            )
            if late:
                self.copies.append((self.states[name], r))
            else:
                self.stores.setdefault(r, []).append(self.states[name])
        for name, r in ends.items():
            if name in self.states:
                continue
            if r in self.block and r in self.stores:  # its new state is the same
                self.outputs[name] = self.stores[r][0]
                continue
            line = dag.lines[r]
            store = Store(self.names.make(f"{name}.z"), self.form.held(self.found.ranges[r]), size_of(line.shape))
            self.outputs[name] = store
            if r in self.block and not self.blocks[self.block[r]].heavy:
                self.stores[r] = [store]
            else:
                self.copies.append((store, r))
        late_reads = {r for _, r in self.copies}
        for r, b in self.block.items():
            crossing = r in late_reads or any(reader != b for reader in self.read.get(r, ()))
            if (crossing or self.blocks[b].heavy) and r not in self.stores:
                self.stores[r] = [self._array(r)]
        self.copies = _ordered(self.copies, self.stores)

    def _array(self, r: int) -> Store:
        line, ranges = self.dag.lines[r], self.found.ranges
        sums = line.op in ("linear", "conv", "pool")
        kind = self.form.computed(ranges[r]) if sums else self.form.held(ranges[r])
        last: Ints = ()
        if line.op == "conv":
            last = (line.shape[1], math.prod(line.shape[2:]))
            last = () if 1 in last else last
        wanted = f"{line.label}.{'sum' if sums else line.op}"
        return Store(self.names.make(wanted), kind, size_of(line.shape), last)

    def _share(self) -> None:
        """Arrays of sums share memory where one is read for the last time before the other is written."""
        kept = {s.name for s in (*self.states.values(), *self.outputs.values())}
        ends = {r: len(self.blocks) for _, r in self.copies}
        busy: list[int] = []  # of each slot: the last block that reads it
        for r, b in sorted(self.block.items(), key=lambda p: p[1]):
            for store in self.stores.get(r, ()):
                if store.name in kept:
                    continue
                until = max([b, ends.get(r, 0), *self.read.get(r, ())])
                free = [k for k, s in enumerate(self.slots) if busy[k] < b and s.kind == store.kind]
                if free:
                    k = min(free, key=lambda k: (self.slots[k].size < store.size, abs(self.slots[k].size - store.size)))
                    self.slots[k] = replace(self.slots[k], size=max(self.slots[k].size, store.size))
                    busy[k] = until
                else:
                    k = len(self.slots)
                    self.slots.append(Store(self.names.make(f"work{k}"), store.kind, store.size))
                    busy.append(until)
                self.places[store.name] = k


def _ordered(copies: list[tuple[Store, int]], stores: dict[int, list[Store]]) -> list[tuple[Store, int]]:
    """So that none is overwritten before it was copied itself; else as they come."""
    sources = [stores[r][0].name for _, r in copies]
    left = Counter(sources)  # copies still to be made of an array
    waiting: dict[str, list[int]] = {}
    for k, (to, _) in enumerate(copies):
        waiting.setdefault(to.name, []).append(k)
    ready = [k for k, (to, _) in enumerate(copies) if to.name not in left or sources[k] == to.name]
    seen, done = set(ready), []
    while ready:
        k = heappop(ready)
        done.append(copies[k])
        left[sources[k]] -= 1
        if not left[sources[k]]:
            for free in set(waiting.get(sources[k], ())) - seen:
                seen.add(free)
                heappush(ready, free)
    if len(done) < len(copies):
        stuck = (to.name for k, (to, _) in enumerate(copies) if k not in seen)
        raise ValueError("states that take each other's place: " + ", ".join(stuck))
    return done
