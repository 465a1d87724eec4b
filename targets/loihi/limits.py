"""Named limits of the chips, each with its public source or marked as assumed, and one function a rule.

A rule raises Unsupported in one line: node, rule, value, limit, what would help. Sources: Davies et al., IEEE Micro
2018 (Loihi 1); nengo-loihi (what fits its core); Intel's Loihi 2 technology brief, 2021; Lava 0.10.0, lava-dl 0.6.0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from targets.base import TargetError, Unsupported

NENGO = "nengo-loihi 1.0"
BRIEF = "Intel, Loihi 2 technology brief, 2021"
LAVA = "lava-nc 0.10.0, fixed_pt"


@dataclass(frozen=True)
class Limit:
    """A number of the chip. value None: the chip has no limit of this kind. assumed: without a public source."""

    value: float | None
    source: str
    assumed: bool = False

    def __str__(self) -> str:
        return f"{self.value:g}" + (" (assumed)" if self.assumed else "")

    def holds(self, value: float) -> bool:
        return self.value is None or value <= self.value


def _assumed(value: float, why: str) -> Limit:
    return Limit(value, why, assumed=True)


@dataclass(frozen=True)
class Chip:
    """What a chip holds and computes. Memory in bits, widths in bits, delays in steps, all of one core or one word."""

    name: str
    microcode: bool  # neurons may be programmed
    cores: Limit  # of a chip
    cores_per_tile: Limit  # a tile is one router of the mesh
    mesh_width: Limit  # tiles
    chips: Limit
    neurons: Limit
    axons_in: Limit
    axons_out: Limit
    synapse_bits: Limit  # synapse memory, where it is a memory of its own
    core_bits: Limit  # one memory for state, synapses, axons and program
    thresholds: Limit  # different vth on a core
    neuron_profiles: Limit  # different (du, dv)
    synapse_formats: Limit  # different (bits, sign mode, exponent)
    utilisation: Limit  # share of a core's memory that is used
    vth: Limit
    decay: Limit  # du and dv
    bias_mantissa: Limit  # magnitude
    bias_exponent: Limit
    constant: Limit  # magnitude of a connection's bias, sent by a constant axon
    weight_bits: Limit
    exponent_low: Limit  # weight_exp
    exponent_high: Limit
    message_bits: Limit  # payload; 0: a message is one spike
    delay: Limit  # steps beyond the hop
    register_bits: Limit  # of a state variable
    index_bits: Limit  # of a synapse's target
    delay_bits: Limit
    synapse_header: Limit  # of each list of at most `synapse_group` words, which is padded to `memory_word`
    synapse_group: Limit
    memory_word: Limit
    axon_in_bits: Limit  # a table entry
    axon_out_bits: Limit
    program_bits: Limit  # microcode of one neuron kind
    packet_bits: Limit  # a message on a link, without its payload

    def assumed(self) -> list[str]:
        """Names of the limits without a public source."""
        return [f.name for f in fields(self) if isinstance(v := getattr(self, f.name), Limit) and v.assumed]


_ENCODING = {
    "synapse_header": Limit(10, f"{NENGO}, bits_per_axon: 4 bits format, 6 bits count"),
    "synapse_group": Limit(64, f"{NENGO}, bits_per_axon"),
    "memory_word": Limit(64, f"{NENGO}, bits_per_axon"),
    "delay_bits": Limit(6, f"{NENGO}; 62 steps, see delay"),
    "delay": Limit(62, "lava-dl 0.6.0, slayer blocks: Delay(max_delay=62)"),
    "axon_in_bits": _assumed(32, "pointer to a list, its length"),
    "axon_out_bits": _assumed(32, "core, axon, delay"),
    "packet_bits": _assumed(32, "address of core and axon"),
    "register_bits": Limit(24, LAVA),
    "utilisation": _assumed(0.9, "room for what is not modelled"),
    "vth": Limit((1 << 17) - 1, f"{LAVA}: 17 bits"),
    "decay": Limit(4095, f"{LAVA}: 12 bits"),
    "bias_mantissa": Limit(4095, f"{LAVA}: 13 bits with sign"),
    "bias_exponent": Limit(7, f"{LAVA}: 3 bits"),
    "weight_bits": Limit(8, f"{LAVA}: 8 bits, the lowest dropped for a sign"),
    "exponent_low": Limit(-8, f"{LAVA}: 4 bits with sign"),
    "exponent_high": Limit(7, f"{LAVA}: 4 bits with sign"),
    "cores": Limit(128, "Davies et al. 2018; Intel brief 2021: nominal, fewer may be usable"),
    "cores_per_tile": _assumed(4, "as Timcheck, Pierro, Shrestha 2026 describe Loihi 2"),
    "mesh_width": _assumed(8, "8 x 4 tiles, as Timcheck, Pierro, Shrestha 2026 describe Loihi 2"),
}

LOIHI1 = Chip(
    name="loihi1",
    microcode=False,
    chips=Limit(768, "Intel, Pohoiki Springs, 2020"),
    neurons=Limit(1024, f"{NENGO}; Davies et al. 2018"),
    axons_in=Limit(4096, NENGO),
    axons_out=Limit(4096, NENGO),
    synapse_bits=Limit(16384 * 64, NENGO),
    core_bits=Limit(None, "memories are apart"),
    thresholds=Limit(16, NENGO),
    neuron_profiles=Limit(32, NENGO),
    synapse_formats=Limit(16, NENGO),
    constant=_assumed((255 << 7) + 127, "two synapse words, weight_exp 7 and 0"),
    message_bits=Limit(0, "Davies et al. 2018: a message is a spike"),
    index_bits=Limit(10, "1024 neurons"),
    program_bits=Limit(0, "fixed neuron"),
    **_ENCODING,
)

LOIHI2 = Chip(
    name="loihi2",
    microcode=True,
    chips=Limit(1152, "Intel, Hala Point, 2024"),
    neurons=Limit(8192, f"{BRIEF}: a maximum, for simple neurons"),
    axons_in=Limit(None, "part of core_bits"),
    axons_out=Limit(None, "part of core_bits"),
    synapse_bits=Limit(None, "part of core_bits"),
    core_bits=_assumed(192 * 1024 * 8, f"192 KB, as {BRIEF} is quoted; how it is divided is not public"),
    thresholds=Limit(None, "a parameter of each neuron"),
    neuron_profiles=Limit(None, "parameters of each neuron"),
    synapse_formats=_assumed(16, "as on Loihi 1"),
    constant=_assumed((1 << 23) - 1, "a constant axon with a graded message"),
    message_bits=Limit(32, f"{BRIEF}: graded spikes of up to 32 bits"),
    index_bits=Limit(13, "8192 neurons"),
    program_bits=_assumed(8192, "one neuron program"),
    **_ENCODING,
)

CHIPS = {c.name: c for c in (LOIHI1, LOIHI2)}

_WIDTHS = ("vth", "decay", "bias_mantissa", "bias_exponent", "constant", "weight_bits", "exponent_low", "exponent_high")
_COUNTS = ("chips", "axons_in", "axons_out", "synapse_bits", "core_bits", "thresholds", "neuron_profiles")
_FREE = (*_WIDTHS, *_COUNTS, "synapse_formats", "message_bits", "delay")
# no chip: loihi2 without limits, to simulate what no chip holds
UNLIMITED = replace(LOIHI2, name="unlimited", **{n: Limit(None, "no chip") for n in _FREE})  # type: ignore[arg-type]


def chip_of(chip: str | Chip) -> Chip:
    """A chip by name; raises TargetError for an unknown one."""
    if isinstance(chip, Chip):
        return chip
    if chip not in CHIPS:
        raise TargetError(f"unknown chip {chip!r}; valid: {', '.join(CHIPS)}")
    return CHIPS[chip]


def refuse(chip: Chip, node: str, rule: str, value: Any, limit: Any, suggestion: str) -> Unsupported:
    """The error of a broken rule."""
    return Unsupported(f"node {node!r}: rule {rule} on {chip.name}: {value}, limit {limit}; {suggestion}")


# --- rules of a neuron's parameters


def vth_fits(chip: Chip, node: str, vth: np.ndarray) -> None:
    """Thresholds are unsigned numbers of 17 bits, in units of the input (64 in the registers)."""
    worst = float(vth.min() if vth.min() < 0 else vth.max())
    if chip.vth.value is not None and (worst < 0 or not chip.vth.holds(worst)):
        help_ = "raise the threshold above 0" if worst < 0 else "quantise with a smaller exponent of the population"
        raise refuse(chip, node, "vth_fits", f"vth = {worst:g}", f"0 to {chip.vth}", help_)


def du_fits(chip: Chip, node: str, du: np.ndarray) -> None:
    """12 bits; -1 keeps all of the current, which only a programmed neuron can."""
    _decay(chip, node, "du_fits", "du", du, -1 if chip.microcode else 0, 0)


def dv_fits(chip: Chip, node: str, dv: np.ndarray) -> None:
    """12 bits; 4096 keeps nothing of the membrane, which only a programmed neuron can."""
    _decay(chip, node, "dv_fits", "dv", dv, 0, int(chip.microcode))


def _decay(chip: Chip, node: str, rule: str, field: str, d: np.ndarray, lo: int, more: int) -> None:
    if chip.decay.value is None:
        return
    hi, worst = chip.decay.value + more, float(d.min() if d.min() < lo else d.max())
    if not lo <= worst <= hi:
        help_ = "use a decay of 12 bits" + ("" if chip.microcode else ", or --chip loihi2 (assumed microcode)")
        raise refuse(chip, node, rule, f"{field} = {worst:g}", f"{lo:g} to {hi:g}", help_)


def bias_fits(chip: Chip, node: str, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mantissa, exponent) with mantissa << exponent = bias, 12 bits and a sign, exponent 0..7; the least exponent.

    A node's own mantissa and exponent may be any that give the same number, a negative exponent too.
    """
    rest, exponent = bias.astype(np.int64), np.zeros(bias.shape, np.int64)
    if chip.bias_mantissa.value is None:
        return rest, exponent
    top_m, top_e = int(chip.bias_mantissa.value), int(chip.bias_exponent.value or 0)
    for _ in range(top_e):
        wide = (np.abs(rest) > top_m) & (rest % 2 == 0)
        rest, exponent = np.where(wide, rest >> 1, rest), exponent + wide
    bad = np.abs(rest) > top_m
    if bad.any():
        value = int(bias[bad].reshape(-1)[0])
        text = f"|mantissa| <= {top_m} << 0..{top_e}"
        raise refuse(
            chip, node, "bias_fits", f"bias = {value}", text, "round the bias, or shrink the population's scale"
        )
    return rest, exponent


def compare(chip: Chip, node: str, kind: str) -> None:
    """The fixed neuron fires above its threshold; "ge" needs a programmed one."""
    if kind != "gt" and not chip.microcode:
        help_ = "where v stays a multiple of 64 (du 4095, dv 0, bias_exp >= 6), gt with vth - 1 is the same"
        raise refuse(chip, node, "compare", f"compare = {kind!r}", "'gt'", f"{help_}; or --chip loihi2")


def reset(chip: Chip, node: str, kind: str) -> None:
    """The fixed neuron resets to zero."""
    if kind != "zero" and not chip.microcode:
        raise refuse(chip, node, "reset", f"reset = {kind!r}", "'zero'", "train with reset 'zero', or --chip loihi2")


def double_threshold(chip: Chip, node: str, lower: np.ndarray | None) -> None:
    """A second threshold needs a programmed neuron and signed messages; its magnitude has the width of vth."""
    if lower is None:
        return
    if not chip.microcode:
        raise refuse(chip, node, "double_threshold", "lower is set", "one threshold", "leave it out, or --chip loihi2")
    worst = float(np.abs(lower).max())
    if not chip.vth.holds(worst):
        help_ = "quantise with a smaller exponent of the population"
        raise refuse(chip, node, "double_threshold", f"|lower| = {worst:g}", chip.vth, help_)


def gated_nodes(chip: Chip, node: str) -> None:
    """Gates need a programmed neuron: assumed microcode on loihi2."""
    if not chip.microcode:
        raise refuse(
            chip, node, "gated_nodes", "a gated neuron", "the fixed LIF", "use --chip loihi2 (assumed microcode)"
        )


def circuit_nodes(chip: Chip, node: str) -> None:
    """A circuit divides, and needs graded messages: assumed microcode on loihi2."""
    if not chip.microcode:
        raise refuse(chip, node, "circuit_nodes", "a circuit", "the fixed LIF", "use --chip loihi2 (assumed microcode)")


def circuits_end_in_neurons(chip: Chip, node: str, found: str) -> Unsupported:
    """A circuit lives inside the neurons that it drives, or at the end of a network; the error where it does not."""
    help_ = "put its own IntCubaLIF behind it, and pools, delays and sums behind that"
    return refuse(chip, node, "circuits_end_in_neurons", found, "one IntCubaLIF or Output of its own", help_)


# --- rules of connections and messages


def weight_fits(chip: Chip, node: str, words: np.ndarray, lo: int, hi: int, step: int) -> None:
    """Synapse words lie on the grid that bits and sign mode leave of 8 bits (9 with the sign)."""
    if chip.weight_bits.value is None:
        return
    outside = (words < lo) | (words > hi)
    off = words % step != 0
    if outside.any() or off.any():
        value = int(words[outside if outside.any() else off].reshape(-1)[0])
        text = f"{lo} to {hi} in steps of {step}"
        raise refuse(chip, node, "weight_fits", f"weight {value}", text, "quantise the weights to the bits of the node")


def weight_bits_fit(chip: Chip, node: str, bits: int) -> None:
    """Bits of a synapse word."""
    if not chip.weight_bits.holds(bits):
        raise refuse(chip, node, "weight_bits_fit", f"bits = {bits}", chip.weight_bits, "quantise to fewer bits")


def exponent_fits(chip: Chip, node: str, exponent: np.ndarray) -> None:
    """Weight exponents, 4 bits with sign."""
    if chip.exponent_low.value is None or chip.exponent_high.value is None:
        return
    lo, hi = int(chip.exponent_low.value), int(chip.exponent_high.value)
    worst = int(exponent.min() if exponent.min() < lo else exponent.max())
    if not lo <= worst <= hi:
        help_ = "choose another exponent of the population at quantisation"
        raise refuse(chip, node, "exponent_fits", f"weight_exp = {worst}", f"{lo} to {hi}", help_)


def constant_fits(chip: Chip, node: str, bias: np.ndarray) -> None:
    """A connection's bias comes from a constant axon, which starts with the population."""
    worst = int(np.abs(bias).max(initial=0))
    if not chip.constant.holds(worst):
        help_ = "quantise with a smaller exponent of the population"
        raise refuse(chip, node, "constant_fits", f"bias of magnitude {worst}", chip.constant, help_)


def message_bits_fit(chip: Chip, node: str, bits: int, alphabet: Any) -> None:
    """Payload of a message; 0 is one spike. A pool in between sends the spikes, not their sum."""
    if not chip.message_bits.holds(bits):
        help_ = "quantise the input to fewer bits" if chip.microcode else "use binary spikes, or --chip loihi2"
        raise refuse(chip, node, "message_bits_fit", f"sends {alphabet}, {bits} bits", chip.message_bits, help_)


def delay_fits(chip: Chip, node: str, delay: int, source: str) -> None:
    """Steps that a message waits beyond its hop: modelled delays, and paths of different length that meet."""
    if not chip.delay.holds(delay):
        help_ = "shorten the Delay, or chain it through a population"
        raise refuse(chip, node, "delay_fits", f"messages of {source!r} wait {delay} steps", chip.delay, help_)


def connections_end_in_neurons(chip: Chip, node: str, found: str) -> Unsupported:
    """Between two populations stands one connection, pools before it; the error where that is not so."""
    help_ = "put a neuron between, or a pool before its connection"
    return refuse(chip, node, "connections_end_in_neurons", found, "one connection between two populations", help_)


def readout_fits(chip: Chip, node: str) -> None:
    """A connection that is read by the host needs a graded message."""
    if chip.message_bits.value == 0:
        help_ = "end the network in spiking neurons, or --chip loihi2"
        raise refuse(chip, node, "readout_fits", "sums are read by the host", "spikes", help_)


# --- rules of a core


def neurons_per_core_fit(chip: Chip, node: str, neurons: int) -> None:
    """Neurons on one core."""
    if not chip.neurons.holds(neurons):
        raise refuse(chip, node, "neurons_per_core_fit", f"{neurons} neurons on a core", chip.neurons, "use more cores")


def fan_in_fits(chip: Chip, node: str, axons: int) -> None:
    """Input axons of one core; raised where a core of one neuron needs more."""
    if not chip.axons_in.holds(axons):
        help_ = "use smaller kernels, groups, or fewer inputs"
        raise refuse(chip, node, "fan_in_fits", f"one core takes {axons} input axons", chip.axons_in, help_)


def fan_out_fits(chip: Chip, node: str, axons: int) -> None:
    """Output axons of one core: pairs of neuron and target axon."""
    if not chip.axons_out.holds(axons):
        help_ = "use smaller kernels or fewer outputs"
        raise refuse(chip, node, "fan_out_fits", f"one core has {axons} output axons", chip.axons_out, help_)


def core_memory_fits(chip: Chip, node: str, bits: int, synapses: int) -> None:
    """State, synapses, axon tables and program of one core, within the share that may be used."""
    share = chip.utilisation.value or 1.0
    for used, limit, what in ((bits, chip.core_bits, "memory"), (synapses, chip.synapse_bits, "synapse memory")):
        if limit.value is not None and used > share * limit.value:
            text = f"{share:g} of {limit} bits"
            help_ = "use fewer inputs a neuron or fewer weight bits"
            raise refuse(chip, node, "core_memory_fits", f"one core needs {used} bits of {what}", text, help_)


def thresholds_per_core_fit(chip: Chip, node: str, count: int) -> None:
    """Different thresholds on one core."""
    if not chip.thresholds.holds(count):
        help_ = "share thresholds within channels"
        raise refuse(chip, node, "thresholds_per_core_fit", f"{count} thresholds on a core", chip.thresholds, help_)


def neuron_profiles_fit(chip: Chip, node: str, count: int) -> None:
    """Different pairs of du and dv on one core."""
    if not chip.neuron_profiles.holds(count):
        help_ = "share decays within channels"
        raise refuse(chip, node, "neuron_profiles_fit", f"{count} pairs of decays", chip.neuron_profiles, help_)


def synapse_formats_fit(chip: Chip, node: str, count: int) -> None:
    """Different synapse formats on one core."""
    if not chip.synapse_formats.holds(count):
        help_ = "use fewer weight exponents"
        raise refuse(chip, node, "synapse_formats_fit", f"{count} synapse formats", chip.synapse_formats, help_)


def one_hop_a_connection(chip: Chip, told: str) -> Unsupported:
    """A message takes one step, so a loop needs as many steps of delay as it has populations; the error where not."""
    return Unsupported(f"rule one_hop_a_connection on {chip.name}: {told}")


def synapses_fit(chip: Chip, node: str, words: int, limit: int) -> None:
    """Words that this compiler lays out one by one, where a chip is not known to share them."""
    if words > limit:
        help_ = "use a smaller network, or --chip loihi2"
        raise refuse(chip, node, "synapses_fit", f"{words} synapse words", limit, help_)


def cores_fit(chip: Chip, node: str, trials: int) -> Unsupported:
    """Boxes of neurons whose inputs and routes all fit; the error where none were found."""
    help_ = "use a smaller network, or more room a core"
    return refuse(chip, node, "cores_fit", "no partition found", f"{trials} trials", help_)


def chips_fit(chip: Chip, node: str, count: int) -> None:
    """Chips of the largest system that was built."""
    if not chip.chips.holds(count):
        raise refuse(chip, node, "chips_fit", f"{count} chips", chip.chips, "use a smaller network")
