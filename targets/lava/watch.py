"""Registers written to files while Lava runs; its own monitor is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

WATCH = "watch"  # a process parameter: a Watched, where registers are asked for


class Watched(NamedTuple):
    """Which registers go to which .npy files (steps, *shape): row n at engine step n + latency, from zero.

    turned: the process has its axes the other way round, as maps have in Lava's own layers.
    """

    files: dict[str, str]
    latency: int
    turned: bool = False


class Watch:
    """The writer inside of a process model; without a Watched it does nothing."""

    def __init__(self, proc_params: Any) -> None:
        asked = proc_params.get(WATCH) or Watched({}, 0)
        self.latency, self.turned = asked.latency, asked.turned
        # shared mappings: every reader of a file sees a row as soon as it is written
        self.rows = {name: np.load(file, mmap_mode="r+") for name, file in asked.files.items()}

    def note(self, step: int, registers: Mapping[str, np.ndarray]) -> None:
        """Write what is asked for of the registers after this engine step."""
        for name, rows in self.rows.items():
            if 0 <= step - self.latency < len(rows):
                rows[step - self.latency] = registers[name].T if self.turned else registers[name]
