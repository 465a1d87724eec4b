"""Integer networks on Lava's fixed-point models: what is stock, what is ours, and what Lava cannot do.

Decided like the rest of the plan, before any Lava is needed. Lava's models get a node's own numbers (weights,
exponents, mantissas) and derive from them what they compute with, so that they stay a second reading of the node.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eiexport.alphabet import Alphabet
from eiexport.circuits import Circuit
from eiexport.connections import Pool
from eiexport.graph import Network
from eiexport.integers import (
    ALIGN,
    REGISTER,
    TOP,
    IntConvStep,
    IntDense,
    IntDenseStep,
    IntFire,
    IntGatedFire,
    IntLinear,
)
from eiexport.neurons import Threshold
from eiexport.ops import Ints
from eiexport.steps import Step, linear_alphabet
from targets.base import Unsupported

KINDS = {"Input", "Output", "Flatten", "Delay", "Threshold", "SumPool2d"}
KINDS |= {"IntDense", "IntConv", "IntCubaLIF", "IntGatedLIF", "IntCircuit"}
PARTS = ("excite", "inhibit")  # of a circuit: those of its connections that are Lava's own
WORD = 1 << 31  # Lava's signals are int32
MANTISSA = (1 << 15) - 1  # and its bias mantissas int16
MATRIX = 1 << 24  # entries of a Dense that stands for the same weights at several places


def check(network: Network, entering: dict[str, np.ndarray]) -> None:
    """Raise Unsupported for what fixed-point Lava lacks; entering: the constant that belongs to a node's input."""
    for name in (n for component in network.order for n in component):
        kind, step = type(network.graph.nodes[name]).__name__, network.steps[name]
        if kind not in KINDS:
            raise Unsupported(
                f"node {name!r} ({kind}) has no integers, and Lava's fixed-point models take nothing else; "
                "quantise the whole graph (--quantize)"
            )
        trouble = _trouble(network, name, step, entering[name])
        if trouble:
            raise Unsupported(f"Lava cannot run node {name!r} ({kind}) in fixed point: {trouble}")


def _trouble(network: Network, name: str, step: Step, constant: np.ndarray) -> str:
    """Why Lava would compute something else, and what would help; "" where it would not."""
    if not network.sources[name]:
        return ""
    a = network.arriving(name)
    if largest(a) >= WORD:
        return f"it gets {a}, and signals have 32 bits; scale the weights before it down"
    node, shape = network.graph.nodes[name], network.input_shape(name)
    if isinstance(step, IntLinear):
        if constant.any() and (step.shift or step.wraps):
            return "it rounds or wraps what the bias before it adds; move that bias behind this node"
        return _unlike(step, node, a, shape)
    if isinstance(step, Circuit):
        found = {part: _unlike(getattr(step, part), getattr(node, part), a, shape) for part in PARTS}
        return next((f"in {part}, {trouble}" for part, trouble in found.items() if trouble), "")
    if isinstance(step, Pool) and largest(network.alphabets[name]) > TOP:
        return (
            f"it sums up to {network.alphabets[name]}, and Lava's Conv wraps at {REGISTER} bits; pool smaller messages"
        )
    return ""


def _unlike(step: IntLinear, node: Any, a: Alphabet, shape: Ints) -> str:
    """What Lava's Dense or Conv, in place of a connection that gets `a` of this shape, would do otherwise."""
    if isinstance(step, IntConvStep) and step.shift:
        exponent = number(node.weight_exp)
        return f"Lava's Conv has no weight_exp, and {exponent} does not divide its weights; use weight_exp >= 0"
    if (total := accumulated(step, a, node)) >= WORD:
        return f"its sums reach {total:g}, and Lava's have 32 bits; use smaller weights or messages"
    places = math.prod(shape[:-1])
    if isinstance(step, IntDenseStep) and places**2 * step.weight.size > MATRIX:
        return f"its weights serve {places} places, and Lava's Dense has one; use an IntConv of one pixel"
    return ""


def number(value: Any) -> int:
    """A field that is one number, or the same number all over; files may hold it as an array."""
    return int(np.asarray(value).reshape(-1)[0])


def exponents(node: Any) -> tuple[int, ...]:
    """The weight exponents of a connection, each once: there is a Dense for each; one for any other node."""
    return tuple(int(e) for e in np.unique(node.weight_exp)) if isinstance(node, IntDense) else (0,)


def largest(a: Alphabet) -> float:
    """Largest magnitude; 0 where nothing is known, so that nothing is refused."""
    return 0.0 if a.kind == "real" else max(-a.lo, a.hi)


def accumulated(step: IntLinear, a: Alphabet, node: Any) -> float:
    """Largest sum in Lava's accumulators, before it is shifted down."""
    total = linear_alphabet(a, step.weight.reshape(len(step.weight), -1), None)
    folded = max(0, -int(np.min(node.weight_exp))) - step.shift  # what the step has divided its weights by
    return largest(total) * 2.0**folded


def routed(step: Step, node: Any) -> bool:
    """True where a gated neuron's feedback runs through Lava's own connection."""
    feedback = getattr(step, "feedback", None)
    if not isinstance(step, IntGatedFire) or feedback is None:
        return feedback is not None
    sent = step.alphabet(Alphabet("binary", 0, 1))
    shifted = isinstance(feedback, IntConvStep) and feedback.shift
    return not shifted and accumulated(feedback, sent, node.feedback) < WORD


def lif(network: Network, name: str, constant: np.ndarray) -> dict[str, Any] | None:
    """Parameters for Lava's LIFReset (with `vth`) or TernaryLIF (`vth_hi`, `vth_lo`), or None: only our step will do.

    The constant, given at every step with the input, stands in the bias instead: `mant << 6`. It may do so where there
    is no synaptic memory and where no sum can wrap.
    """
    step, node, a = network.steps[name], network.graph.nodes[name], network.arriving(name)
    shape = network.input_shape(name)
    if isinstance(step, Threshold):
        if step.threshold.ndim or not _straight(a, constant):
            return None
        # x > th is x > floor(th) for whole x; du and dv leave no memory
        numbers = {"du": 4095, "dv": 4096, "vth": math.floor(step.threshold)}
        bias = _bias(np.zeros(shape, np.int64), np.zeros(shape, np.int64), constant)
        return None if bias is None or abs(numbers["vth"]) > TOP else {**numbers, **bias}
    if not isinstance(step, IntFire) or step.compare != "gt" or step.reset_mode != "zero":
        return None
    if any(p is not None and p.ndim for p in (step.keep_u, step.keep_v, step.threshold, step.lower)):
        return None  # Lava has one number for all neurons
    if constant.any() and (step.keep_u is not None or not _straight(a, constant)):
        return None
    bias = _bias(np.asarray(node.bias_mant, np.int64), np.asarray(node.bias_exp, np.int64), constant)
    if bias is None or not _fits(step, a):
        return None
    one = {k: number(getattr(node, k)) for k in ("du", "dv", "vth")}
    if step.lower is not None:
        one |= {"vth_hi": one.pop("vth"), "vth_lo": number(node.lower)}
    return {**one, **bias}


def _straight(a: Alphabet, constant: np.ndarray) -> bool:
    """True where neither the input nor the input without the constant can leave the 24 bits of u."""
    if a.kind == "real":
        return False
    limit = 1 << (REGISTER - 1 - ALIGN)
    return -limit < min(a.lo, a.lo - constant.max()) and max(a.hi, a.hi - constant.min()) < limit


def _fits(step: IntFire, a: Alphabet) -> bool:
    """True where no sum of Lava's int32 arithmetic can overflow."""
    a6, bias = largest(a) * (1 << ALIGN), 0.0 if step.bias is None else float(np.abs(step.bias).max())
    turn = 1 << REGISTER  # up to here one turn brings u back into its register
    u = a6 - turn if step.keep_u is None or a6 <= turn else math.inf
    return a6 < WORD and max(u, TOP + 1) + TOP + bias < WORD


def _bias(mant: np.ndarray, exp: np.ndarray, constant: np.ndarray) -> dict[str, np.ndarray] | None:
    """Mantissas and exponents as the node has them, or of their sum with a constant; None where int16 is too small."""
    mant, exp = np.broadcast_to(mant, constant.shape), np.broadcast_to(exp, constant.shape)
    if constant.any():
        total = np.floor(np.ldexp(mant.astype(float), exp)).astype(np.int64) + (constant.astype(np.int64) << ALIGN)
        exp = np.where(total == 0, 0, np.log2((total & -total).clip(1)).astype(np.int64))
        mant = total >> exp
    return None if np.abs(mant).max() > MANTISSA else {"bias_mant": mant, "bias_exp": exp}
