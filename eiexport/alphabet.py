"""Edge alphabets: which values an edge can carry, with their interval."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Alphabet:
    """The values on an edge: `binary` {0,1}, `ternary` {-1,0,1}, `int` in [lo, hi], or `real` in [lo, hi].

    Decides what may be max-pooled by threshold, where signs must be carried, message bits and accumulator widths.
    """

    kind: str
    lo: float
    hi: float

    def __str__(self) -> str:
        if self.kind in ("binary", "ternary"):
            return self.kind
        return f"{self.kind}[{self.lo:g},{self.hi:g}]"

    @property
    def discrete(self) -> bool:
        """True where values are integers."""
        return self.kind != "real"

    def __add__(self, other: Alphabet) -> Alphabet:
        """The alphabet of two edges summed into one node."""
        return interval(self.lo + other.lo, self.hi + other.hi, self.discrete and other.discrete)


BINARY = Alphabet("binary", 0, 1)
TERNARY = Alphabet("ternary", -1, 1)
REAL = Alphabet("real", -math.inf, math.inf)


def interval(lo: float, hi: float, discrete: bool) -> Alphabet:
    """The narrowest alphabet over [lo, hi]."""
    if discrete and (lo, hi) == (0, 1):
        return BINARY
    if discrete and (lo, hi) == (-1, 1):
        return TERNARY
    return Alphabet("int" if discrete and math.isfinite(hi - lo) else "real", float(lo), float(hi))
