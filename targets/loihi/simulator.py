"""A second simulator: it reads a program file, and nothing else, and runs it core by core, message by message.

Each core has its axon table, its synapse words and its neurons. A message that is sent at engine step e reaches its
core one hop later and is added to the sum that the core will use at e + 1 + delay. Membranes of a balance gate travel
within the step. Samples follow each other; between them the registers are written as the file says. What happens
inside a neuron is the one step of `eiexport.integers` or `eiexport.circuits`, made from the file's numbers; all else is
this module's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eiexport.circuits import DIVIDING, IntCircuitStep
from eiexport.connections import Identity
from eiexport.integers import PREPARE, IntCubaLIF, IntGatedFire
from eiexport.ops import Ints, NumpyOps
from eiexport.steps import Clock, State
from eiexport.trace import Trace
from targets.base import TargetError
from targets.loihi.assembly import Routes
from targets.loihi.image import CoreImage, GroupImage, Image, PopulationImage, read
from targets.loihi.kernel import ranges
from targets.loihi.plan import FIRING, LIF_FIELDS

OPS = NumpyOps()
HALF = 1 << 23  # of a 24-bit register


class Simulator:
    """A program file, ready to run; raises TargetError for a file that is none."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.image = read(self.path)

    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        """Run input (sample, time, *neuron) of whole numbers; rows are shifted back by each population's latency.

        probe: also v and u after each step.
        """
        image = self.image
        source = image.populations[image.input]
        values = self._checked(x, source)
        samples, steps = values.shape[:2]
        record = _Record(image, samples, steps, probe)
        cores = [_Core(k, image) for k in range(len(image.cores))]
        pending = _Sender(image.injection, cores)
        for s in range(samples):
            for core in cores if image.reset == "state_writes" else ():
                core.reset()
            self._sample(values[s].reshape(steps, -1), cores, pending, record, s)
        return record.trace()

    def _sample(self, x: np.ndarray, cores: list[_Core], host: _Sender, record: _Record, sample: int) -> None:
        steps = len(x)
        senders = [_Sender(c.image.spikes, cores) for c in cores]
        membranes = [None if c.image.membranes is None else _Sender(c.image.membranes, cores) for c in cores]
        for e in range(steps + self.image.tail):
            if e < steps:
                host.send(x[e], e + 1)
            awake = [k for k, c in enumerate(cores) if 0 <= e - c.latency < steps]
            for k in awake:
                cores[k].charge(e)
            for k in awake:
                if (sender := membranes[k]) is not None:
                    sender.send(cores[k].message(), e)
            for k in awake:
                z = cores[k].decide(e)
                record.keep(cores[k], sample, e, z)
                for port, sent in enumerate(cores[k].sent(z)):
                    senders[k].send(sent, e + 1, port)

    def _checked(self, x: np.ndarray, source: PopulationImage) -> np.ndarray:
        if x.ndim != len(source.shape) + 2 or tuple(x.shape[2:]) != source.shape or 0 in x.shape:
            expected = ", ".join(map(str, source.shape))
            raise TargetError(f"{self.path}: input has shape {x.shape}; expected (samples, steps, {expected})")
        bits = source.message_bits
        top = (1 << bits) - 1 if bits else 1
        low = -(1 << bits) // 2 if bits else 0
        if not ((np.rint(x) == x) & (x >= low) & (x <= top)).all():
            raise TargetError(f"{self.path}: messages of {source.name!r} hold whole numbers from {low} to {top}")
        return x.astype(np.int64)


class _Core:
    """A core's registers and sums while it runs."""

    def __init__(self, number: int, whole: Image) -> None:
        image = whole.cores[number]
        self.number, self.image = number, image
        self.population = whole.populations[image.population]
        self.latency = self.population.latency
        self.n = len(image.neurons)
        self.step, self.circuit = _step(image, self.population), _circuit(image, self.population)
        ports = [(i, port) for i in image.groups for port in range(whole.groups[i].ports)]
        self.groups = [_Sum(whole.groups[i], port, image.exponent[i], image.constant[i]) for i, port in ports]
        self.slots = whole.longest_delay + 2
        words, place = image.synapses, {g: ports.index((g, 0)) for g in image.groups}
        row = np.array([place[g] for g in words.group.tolist()], np.int64) * self.n
        # where a word's product goes: one sum a group, port and neuron
        self.goal = np.repeat(row, np.diff(words.start)) + words.target
        self.word = words.word.astype(np.int64)
        self.start, self.count = words.start[:-1], np.diff(words.start)
        self.reset()

    def reset(self) -> None:
        """State writes at the start of a sample: registers, sums, and messages still waiting become zero."""
        self.sums = np.zeros((self.slots, len(self.groups) * self.n), np.int64)
        self.state: State = () if self.step is None else self.step.init(OPS, (self.n,))
        self.membrane: State = ()
        self.z = np.zeros(self.n)

    def receive(self, axon: np.ndarray, value: np.ndarray, use: np.ndarray, port: int) -> None:
        """Add messages to the sums of the engine steps at which they are used."""
        count = self.count[axon]
        words = ranges(self.start[axon], count)
        at = np.repeat(use % self.slots * self.sums.shape[1], count) + self.goal[words] + port * self.n
        np.add.at(self.sums.reshape(-1), at, self.word[words] * np.repeat(value, count))

    def _take(self, e: int, role: str, port: int = 0) -> np.ndarray:
        """The sums of a role at this step, shifted, wrapped, with their constants; they are zero afterwards."""
        slot = self.sums[e % self.slots].reshape(len(self.groups), self.n)
        total = np.zeros(self.n, np.int64)
        for i, group in enumerate(self.groups):
            if (group.role, group.port) == (role, port):
                total += group.value(slot[i])
                slot[i] = 0
        return total

    def charge(self, e: int) -> None:
        a = self._take(e, "input").astype(np.float64)
        if self.circuit is not None:
            a = self._current(e, self.circuit, a)
        if self.step is None:
            self.z = a
        elif isinstance(self.step, IntGatedFire):
            if self.step.feedback is not None:
                a = self.step.open(OPS, a, self._take(e, "feedback").astype(np.float64))
            self.membrane = self.step.inner.charge(OPS, a, self.state[:-1])
        else:
            self.membrane = self.step.charge(OPS, a, self.state)

    def _current(self, e: int, circuit: IntCircuitStep, a: np.ndarray) -> np.ndarray:
        """s of inhibitory cells, else the circuit's current."""
        if self.population.kind == "inhibitory":
            return circuit.currents(OPS, a)[1]
        taken, weighed = (self._take(e, "spread", port).astype(np.float64) for port in (0, 1))
        return circuit.settle(OPS, a, taken, weighed if circuit.form in DIVIDING else None)

    def sent(self, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """The messages of this step, by port."""
        if self.circuit is None or not self.population.sends_twice:
            return (z,)
        return z, self.circuit.weighed(OPS, self.z).astype(np.int64)

    def message(self) -> np.ndarray:
        """The membranes as messages."""
        assert isinstance(self.step, IntGatedFire)
        return self.step.message(OPS, self.membrane[0]).astype(np.int64)

    def decide(self, e: int) -> np.ndarray:
        """Fire and reset; what the neurons send."""
        if self.step is None:
            return self.z.astype(np.int64)
        if isinstance(self.step, IntGatedFire) and self.step.balance is not None:
            self.membrane = (*self.membrane, self._take(e, "balance").astype(np.float64))
        self.z, s = self.step.decide(OPS, self.membrane)
        self.state = self.step.reset(OPS, self.membrane, self.z, s)
        return self.z.astype(np.int64)


@dataclass(frozen=True)
class _Sum:
    """What becomes of a group's sums: << or >> (rounding down), modulo 2^24, + constant."""

    group: GroupImage
    port: int
    exponent: np.ndarray
    constant: np.ndarray

    @property
    def role(self) -> str:
        return self.group.role

    def value(self, total: np.ndarray) -> np.ndarray:
        shifted = (total << np.maximum(self.exponent, 0)) >> np.maximum(-self.exponent, 0)
        if self.group.wraps:
            shifted = ((shifted + HALF) & (2 * HALF - 1)) - HALF
        return shifted + self.constant


class _Sender:
    """Routes of one core, or of the host, split by the core they lead to."""

    def __init__(self, routes: Routes, cores: list[_Core]) -> None:
        self.parts: list[tuple[_Core, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        source = np.repeat(np.arange(len(routes.start) - 1), np.diff(routes.start))
        for k in np.unique(routes.core).tolist():
            mine = routes.core == k
            count = np.bincount(source[mine], minlength=len(routes.start) - 1)
            self.parts.append((cores[k], np.cumsum(count) - count, count, routes.axon[mine], routes.delay[mine]))

    def send(self, z: np.ndarray, use: int, port: int = 0) -> None:
        """Send what is not zero; `use` is the engine step at which a message without delay is used."""
        active = np.flatnonzero(z)
        if not len(active):
            return
        for core, start, count, axon, delay in self.parts:
            rows = ranges(start[active], count[active])
            if len(rows):
                core.receive(axon[rows], np.repeat(z[active], count[active]), use + delay[rows], port)


class _Record:
    """What the populations sent, and their registers, in model steps."""

    def __init__(self, image: Image, samples: int, steps: int, probe: bool) -> None:
        self.image = image
        self.rows: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # of a core: (neurons that the host reads, their slots)
        for r in image.readout:
            for k in np.unique(r.core).tolist():
                ids = np.flatnonzero(r.core == k)
                self.rows[k] = ids, r.slot[ids]
        kept = [image.populations[r.population] for r in image.readout]
        self.shapes: dict[str, Ints] = {p.name: (samples, steps, *p.shape) for p in kept}
        neurons = [p for p in kept if p.kind in FIRING]
        spiking = {p.name for p in neurons}
        size = {p.name: (samples, steps, int(np.prod(p.shape))) for p in kept}
        self.z = {n: np.zeros(s, np.int8 if n in spiking else np.int64) for n, s in size.items()}
        names = ("v", "u") if probe else ()  # the first two of a state
        self.registers = {k: {p.name: np.zeros(size[p.name], np.int32) for p in neurons} for k in names}

    def keep(self, core: _Core, sample: int, e: int, z: np.ndarray) -> None:
        if core.number not in self.rows:
            return
        name, t = core.population.name, e - core.latency
        ids, slots = self.rows[core.number]
        self.z[name][sample, t, ids] = z[slots]
        for value, rows in zip(core.state, self.registers.values(), strict=False):
            if name in rows:
                rows[name][sample, t, ids] = value[slots]

    def trace(self) -> Trace:
        latency = {p.name: p.latency for p in self.image.populations if p.name in self.z}
        z = {n: a.reshape(self.shapes[n]) for n, a in self.z.items()}
        held = {k: rows for k, rows in self.registers.items() if rows}
        states = {k: {n: a.reshape(self.shapes[n]) for n, a in rows.items()} for k, rows in held.items()}
        return Trace(z, self.image.dt, latency, states)


def _step(image: CoreImage, population: PopulationImage) -> Any:
    """The neuron's step with this core's numbers; None for sums that are read as they are."""
    if population.kind not in FIRING:
        return None
    p = {k: v for k, v in image.parameters.items() if k in LIF_FIELDS}
    full = {k: np.broadcast_to(p.pop(k), len(image.neurons)) for k in ("vth", "lower") if k in p}
    lif = IntCubaLIF(**full, **p, compare=population.compare, reset=population.reset)  # type: ignore[arg-type]
    fire = PREPARE["IntCubaLIF"](lif, Clock(1.0, "euler"))
    if population.kind != "gated":
        return fire
    present = Identity()  # its sums come from the core, so nothing but the gate's presence is told
    return IntGatedFire(
        inner=fire,
        feedback=present if population.feedback else None,
        balance=present if population.balance else None,
        values=population.table.astype(np.float64),
        feedback_shift=population.feedback_shift,
        balance_shift=population.balance_shift,
        balance_bits=population.balance_bits,
    )


def _circuit(image: CoreImage, population: PopulationImage) -> IntCircuitStep | None:
    """The circuit's step likewise; of its inhibitory cells it tells s and what they send, else the current."""
    if not population.form:
        return None
    own = Identity()  # its sums come from the core
    numbers: dict[str, Any] = {
        k: image.parameters[k].astype(np.float64) for k in ("gain_i", "gain_e") if k in image.parameters
    }
    return IntCircuitStep(
        excite=own,
        inhibit=own,
        spread=own,
        form=population.form,
        zero="constant",
        **numbers,
        bias=image.parameters.get("current"),
        epsilon=np.asarray(float(population.epsilon)),
        table=population.table.astype(np.float64),
        table_bits=len(population.table).bit_length() - 1,
        gain_shift=population.gain_shift,
        shift=population.shift,
    )
