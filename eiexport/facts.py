"""What a prepared step computes with, in a few short lines for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from eiexport.alphabet import Alphabet
from eiexport.circuits import DIVIDING, Circuit, IntCircuitStep
from eiexport.connections import Conv, Dense, Flatten, Identity, MaxPool, Pool, Scale
from eiexport.graph import details
from eiexport.integers import ALIGN, UNITY, IntFire, IntGatedFire, IntLinear
from eiexport.neurons import Delay, Fire, GatedFire, Leaky, Synapse, Threshold
from eiexport.ops import Ints
from eiexport.steps import Step

COUNTED = ("weight", "bias", "scale", "gain_i", "gain_e")
RESETS = {"subtract": "reset by subtraction", "none": "no reset"}


def facts(step: Step) -> list[str]:
    """Lines about a step, without its parts; a step of a family that is not known here shows all that it holds."""
    known = [line for family, tell in TELLING if isinstance(step, family) for line in tell(step)]
    if known or isinstance(step, Identity):
        return known
    return [f"{key} {value}" for key, value in details(step)]


def parts(step: Step) -> dict[str, tuple[str, Step]]:
    """What a step is made of: (short text, the part) by name; gates of a gated neuron, matrices of a circuit."""
    if isinstance(step, GatedFire):
        gates = {"feedback": step.feedback, "balance": step.balance}
        return {name: (f"{name} {_form(gate)}", gate) for name, gate in gates.items() if gate is not None}
    if isinstance(step, Circuit):
        cells = {name: len(getattr(step, name).weight) for name in ("excite", "inhibit")}
        held = {n: (f"{n} {_form(getattr(step, n))}, {many(k, 'cell')}", getattr(step, n)) for n, k in cells.items()}
        return held | {"spread": (f"spread {cells['inhibit']:,} to {cells['excite']:,}", step.spread)}
    return {}


def parameters(step: Step) -> int:
    """Numbers that a step computes with and that were learned, those of its parts included: weights, biases of
    connections, factors, gains. One where all agree, none where they do nothing."""
    own = [] if step.neuron else [getattr(step, name, None) for name in COUNTED]
    held = sum(a.size for a in own if isinstance(a, np.ndarray))
    return held + sum(parameters(part) for _, part in parts(step).values())


def later(step: Step) -> str:
    """After how many steps a delay's input goes on."""
    shortest, longest = getattr(step, "shortest", 0), getattr(step, "longest", 0)
    return many(longest, "step") if shortest == longest else f"{shortest} to {longest} steps"


def carried(a: Alphabet) -> str:
    """An edge's alphabet, short: intervals to three digits, and none where there is no end."""
    if a.kind in ("binary", "ternary"):
        return a.kind
    if not np.isfinite([a.lo, a.hi]).all():
        return a.kind
    return f"{a.kind}[{_short(a.lo, 3)},{_short(a.hi, 3)}]"


def dims(shape: Ints) -> str:
    """A shape as `30x28x28`."""
    return "x".join(map(str, shape)) or "1"


def many(count: int, what: str) -> str:
    """A number and its noun."""
    return f"{count:,} {what}" + ("s" if count != 1 else "")


def _short(value: float, digits: int) -> str:
    """Whole numbers as they are, others to some digits."""
    return f"{value:.0f}" if value == np.rint(value) and abs(value) < 1e9 else f"{value:.{digits}g}"


def _range(a: object) -> str:
    """One number, or from the least to the most."""
    values = np.asarray(a, np.float64)
    ends = [_short(float(v), 4) for v in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _pixels(values: Ints) -> str:
    return str(values[0]) if len(set(values)) == 1 else dims(values)


def _form(step: Step) -> str:
    """A kernel's extent, or that there is none."""
    return dims(step.weight.shape[2:]) if isinstance(step, Conv) else "dense"


# --- families


def _windowed(step: Conv | Pool | MaxPool) -> Iterator[str]:
    window = step.window
    if isinstance(step, Conv):
        yield f"{dims(step.weight.shape[2:])} kernel"
    else:
        what = "max" if isinstance(step, MaxPool) else "sum" if step.factor is None else "mean"
        yield f"{what} over {dims(step.kernel)}"
    told = {"stride": (window.stride, 1), "padding": (window.padding, 0), "dilation": (window.dilation, 1)}
    said = [f"{name} {_pixels(v)}" for name, (v, neutral) in told.items() if set(v) != {neutral}]
    if window.groups > 1:
        said.append(f"groups {window.groups}")
    for i in range(0, len(said), 2):
        yield ", ".join(said[i : i + 2])


def _dense(step: Dense) -> Iterator[str]:
    outputs, inputs = step.weight.shape
    yield f"{inputs:,} to {outputs:,}"


def _weights(step: Conv | Dense) -> Iterator[str]:
    yield many(step.weight.size, "weight")
    if step.bias is not None:
        yield f"{step.bias.size:,} bias" + ("es" if step.bias.size != 1 else "")


def _whole(step: IntLinear) -> Iterator[str]:
    if step.shift:
        yield f"sum >> {step.shift}"
    yield f"{step.message_bits}-bit messages" if step.message_bits else "messages: spikes"


def _scale(step: Scale) -> Iterator[str]:
    yield f"times {_range(step.scale)}"
    if step.scale.size > 1:
        yield many(step.scale.size, "factor")


def _flatten(step: Flatten) -> Iterator[str]:
    yield "all axes joined" if (step.start, step.end) == (0, -1) else f"axes {step.start} to {step.end} joined"


def _leaky(step: Leaky) -> Iterator[str]:
    yield "no leak" if (np.asarray(step.decay) == 1).all() else f"decay {_range(step.decay)}"
    if step.gain is not None:
        yield f"gain {_range(step.gain)}"
    if step.bias is not None:
        yield f"bias {_range(step.bias)}"


def _synapse(step: Synapse) -> Iterator[str]:
    yield f"current: decay {_range(step.decay_u)}, gain {_range(step.gain_u)}"


def _registers(step: IntFire) -> Iterator[str]:
    for name, keep in (("v", step.keep_v), ("u", step.keep_u)):
        if keep is None:
            yield f"{name} keeps nothing"
        else:
            yield f"{name} keeps {_range(keep)} of {1 << UNITY}"
    if step.bias is not None:
        yield f"bias {_range(step.bias)}"


def _fire(step: Fire) -> Iterator[str]:
    # integer neurons hold their thresholds as the registers do
    unit, shown = (1 << ALIGN, f" << {ALIGN}") if isinstance(step, IntFire) else (1, "")
    up, down = (">", "<") if step.compare == "gt" else ("≥", "≤")
    # a balance gate may turn or swallow what fires, so only two thresholds tell what z is
    yield f"{'fires' if step.lower is None else 'z = 1'}: V {up} {_range(step.threshold / unit)}{shown}"
    if step.lower is not None:
        yield f"z = -1: V {down} {_range(step.lower / unit)}{shown}"
    level = 0.0 if step.v_reset is None else step.v_reset
    yield RESETS.get(step.reset_mode, f"reset to {_range(level)}")


def _threshold(step: Threshold) -> Iterator[str]:
    yield f"fires: x > {_range(step.threshold)}"


def _gated(step: GatedFire) -> Iterator[str]:
    yield from facts(step.inner)


def _int_gated(step: IntGatedFire) -> Iterator[str]:
    if step.feedback is not None:
        yield f"feedback >> {step.feedback_shift}"
    if step.balance is not None:
        yield f"balance: v >> {step.balance_shift}, {step.balance_bits} bits"


def _delay(step: Delay) -> Iterator[str]:
    yield f"{later(step)} later"


def _circuit(step: Circuit) -> Iterator[str]:
    yield "no division" if step.form == "none" else f"division: {step.form}"
    if step.form in DIVIDING:
        yield "zeros: sample's least" if step.zero == "sample_min" else f"zeros: {_range(step.epsilon)}"
    if isinstance(step.excite, Conv):
        yield from list(_windowed(step.excite))[1:]
    yield many(parameters(step), "parameter")


def _int_circuit(step: IntCircuitStep) -> Iterator[str]:
    yield f"shifts: gain {step.gain_shift}, {step.shift}"


TELLING: tuple[tuple[Any, Callable[[Any], Iterator[str]]], ...] = (
    (Conv | Pool | MaxPool, _windowed),
    (Dense, _dense),
    (Conv | Dense, _weights),
    (IntLinear, _whole),
    (Scale, _scale),
    (Flatten, _flatten),
    (Leaky, _leaky),
    (Synapse, _synapse),
    (IntFire, _registers),
    (Fire, _fire),
    (Threshold, _threshold),
    (GatedFire, _gated),
    (IntGatedFire, _int_gated),
    (Delay, _delay),
    (Circuit, _circuit),
    (IntCircuitStep, _int_circuit),
)
