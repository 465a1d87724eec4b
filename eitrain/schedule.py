"""Which rule trains which epoch: schedules as frozen values, and `phase_at`, a pure function of the epoch.

EICIL (NeurIPS 2023) alternates gradient epochs with STDP epochs (GSI) or with epochs of both (GSGI); BIRIL cycles
through all three in a ratio S:G:M. Neither says in which order or on which layers; the tables of their descendant code
and the decisions taken here stand at each function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from eitrain.errors import TrainError

LAYERS = ("conv", "last", "both")
FORMS = (
    "letters of G, S, M, P (as GGSGGM), GSI:K or GSGI:K with K = 2, 3, ... or -2, -3, ... (phase offset: GSI:5@0), "
    "or a ratio S:G:M (as 1:8:3)"
)


@dataclass(frozen=True)
class Rule:
    """What one iteration does. gradient: back-propagation through time; local: STDP on the phase's layers.

    shared: the gradient also trains the layers that STDP trains; without it, their gradients are dropped.
    """

    letter: str
    name: str
    gradient: bool
    local: bool
    shared: bool


RULES = {
    r.letter: r
    for r in (
        Rule("G", "gradient (BPTT) on all layers; EICIL's GS", True, False, True),
        Rule("S", "STDP on its layers, gradient on the rest; EICIL's STDP-BW", True, True, False),
        Rule(
            "M",
            "gradient on all layers, then STDP on its layers; EICIL's STDP-BW-GS, BIRIL's STDP-STBP",
            True,
            True,
            True,
        ),
        Rule("P", "STDP on its layers alone (S-pure); no labels are used", False, True, False),
    )
}


@dataclass(frozen=True)
class Phase:
    """Some epochs in a row under one rule. layers: what STDP trains, "conv", "last" (linear layer) or "both"."""

    rule: Rule
    epochs: int = 1
    layers: str = "conv"


@dataclass(frozen=True)
class Schedule:
    """Phases that repeat for ever. remark: what a user should be told of how they were made."""

    phases: tuple[Phase, ...]
    remark: str = ""

    @property
    def length(self) -> int:
        """Epochs of a cycle."""
        return sum(p.epochs for p in self.phases)

    def phase_at(self, epoch: int) -> Phase:
        """The phase of an epoch (from 0), whatever came before: a resumed run continues the same sequence."""
        left = epoch % self.length
        for phase in self.phases:
            if left < phase.epochs:
                return phase
            left -= phase.epochs
        raise AssertionError("phases cover the cycle")

    def starts(self, epoch: int) -> bool:
        """True where an epoch follows one of another phase."""
        now, before = self.phase_at(epoch), self.phase_at(max(0, epoch - 1))
        return (now.rule, now.layers) != (before.rule, before.layers)

    def letters(self, epochs: int) -> str:
        return "".join(self.phase_at(e).rule.letter for e in range(epochs))

    @property
    def local(self) -> bool:
        """True where any phase applies STDP."""
        return any(p.rule.local for p in self.phases)


def sequence(letters: str, layers: str = "conv", remark: str = "") -> Schedule:
    """A cycle given epoch by epoch."""
    return Schedule(tuple(Phase(RULES[k], len(list(run)), layers) for k, run in groupby(letters)), remark)


def alternating(other: str, k: int, offset: int | None = None) -> str:
    """EICIL's cycle of |K| epochs: for K > 0 one epoch of `other` in K, for K < 0 one G in |K|, the rest `other`.

    The paper's K is a share; its descendant code places `other` at epoch mod K = 1, and G at epoch mod |K| = 0. (For
    K = 5 it places S, but not M, at 0: `offset` 0 reproduces that.) There, |K| that are not listed train nothing.
    """
    if abs(k) < 2:
        raise TrainError(
            f"K = {k}: a cycle of {abs(k)} epochs has no room for two rules; K is 2, 3, ... or -2, -3, ..."
        )
    place = offset if offset is not None else (1 if k > 0 else 0)
    if not 0 <= place < abs(k):
        raise TrainError(f"phase offset {place}: must lie in the cycle, 0 to {abs(k) - 1}")
    rest, single = ("G", other) if k > 0 else (other, "G")
    return "".join(single if e == place else rest for e in range(abs(k)))


def ratio(s: int, g: int, m: int) -> tuple[str, str]:
    """(cycle, remark) of BIRIL's S:G:M. G = 2 (S + M), as in all five published ratios: GGS s times, then GGM m times.

    Other ratios interleave by largest remainder: each epoch takes the rule that is furthest behind its share (G before
    S before M where equal).
    """
    if min(s, g, m) < 0 or s + g + m == 0:
        raise TrainError(f"ratio {s}:{g}:{m}: S:G:M are numbers of epochs, 0 or more, not all 0")
    if g == 2 * (s + m):
        return "GGS" * s + "GGM" * m, ""
    shares, total, found = {"G": g, "S": s, "M": m}, s + g + m, ""
    for i in range(total):
        behind = {k: n * (i + 1) - found.count(k) * total for k, n in shares.items() if n}
        found += max(behind, key=lambda k: behind[k])
    return found, f"{s}:{g}:{m} is not of the form G = 2 (S + M): interleaved by largest remainder"


@lru_cache
def parse(text: str, layers: str = "conv") -> Schedule:
    """A schedule from its short form (FORMS); raises TrainError for anything else."""
    if layers not in LAYERS:
        raise TrainError(f"stdp_layers = {layers!r}; valid: {', '.join(LAYERS)}")
    if text and set(text) <= RULES.keys():
        return sequence(text, layers)
    if match := re.fullmatch(r"(GSI|GSGI):(-?\d{1,4})(?:@(\d{1,4}))?", text):
        kind, k, offset = match.groups()
        other = "S" if kind == "GSI" else "M"
        return sequence(alternating(other, int(k), None if offset is None else int(offset)), layers)
    if match := re.fullmatch(r"(\d{1,3}):(\d{1,3}):(\d{1,3})", text):
        s, g, m = map(int, match.groups())
        letters, remark = ratio(s, g, m)
        return sequence(letters, layers, remark)
    raise TrainError(f"schedule {text!r}; valid: {FORMS}")


def runs(letters: str) -> Iterator[tuple[str, int, int]]:
    """(letter, first epoch, epochs) of each stretch of equal letters."""
    start = 0
    for letter, same in groupby(letters):
        count = len(list(same))
        yield letter, start, count
        start += count
