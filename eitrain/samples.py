"""What a loaded data set is: its two splits, and the checks that every format shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eitrain.errors import TrainError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test part of a data set.

    labels: class indices, int64 (N,).
    read: turns checked, non-negative sample indices (n,) into what `batch` returns; picklable.
    """

    labels: Ints
    read: Callable[[Ints], Floats]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[Any]) -> Floats:
        """The samples at `indices`: integers (n,) or a mask (N,), as numpy would index with.

        Images: float32 (n, C, H, W) in [0, 1]. Events: float32 (n, T, 2, H, W), in {0, 1} for N-MNIST, numbers of
        events for DVS128 Gesture.
        Raises IndexError for an index out of range, TrainError for a file that cannot be read or decoded.
        """
        return self.read(np.atleast_1d(np.arange(len(self))[indices]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: `shape` is (C, H, W); `steps` is T for event data, None for images.

    classes: the name of each class index.
    source: which files the samples come from. checksum: {file: "algorithm:hex digest"}, for provenance.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    steps: int | None
    source: str
    checksum: dict[str, str]


def checked_labels(labels: NDArray[Any], count: int, where: object, classes: int = 10) -> Ints:
    """Labels as int64 after the checks every format needs: as many as `count` samples, some, all in 0..classes - 1."""
    if len(labels) != count:
        raise TrainError(f"{where}: {len(labels)} labels for {count} samples; download the pair of files again")
    if count == 0:
        raise TrainError(f"{where}: no samples; give a --data-dir with complete files")
    if labels.min() < 0 or labels.max() >= classes:
        found = f"labels {labels.min()}..{labels.max()}"
        raise TrainError(f"{where}: {found}, expected 0..{classes - 1}; download it again")
    return labels.astype(np.int64)
