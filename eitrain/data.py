"""Data sets for training, from their original files: nine of them, images and events, behind one `load`.

Every file is treated as untrusted: formats are parsed here and checked, known content is verified by
checksum, and nothing that could run code is unpickled. A user's mistake raises `TrainError` with one line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eitrain import events, images
from eitrain.download import data_folder
from eitrain.errors import TrainError
from eitrain.samples import Dataset, Ints, Split

__all__ = ["DATASETS", "Dataset", "Split", "load", "split_validation"]

DATASETS = ("digits", "mnist", "fashion", "cifar10", "cifar100", "tinyimagenet", "nmnist", "dvsgesture", "cifar10dvs")
SPLITS = ("number", "time")
# Event data: number of frames, and the length of one in microseconds; None = as many events in each frame.
_FRAMES: dict[str, tuple[int, int | None]] = {
    "nmnist": (100, 3000),
    "dvsgesture": (16, None),
    "cifar10dvs": (10, None),
}


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    steps: int | None = None,
    split: str | None = None,
    bin_us: int | None = None,
    verify: bool = True,
) -> Dataset:
    """Load data set `name`, one of DATASETS.

    data_dir: folder with the original files, in torchvision's layout or directly; without it, the folder in
        the environment variable EITRAIN_DATA; without that, a download into the cache (not for tinyimagenet,
        nmnist, dvsgesture and cifar10dvs). A given folder is never written to and never replaced by a download.
        digits needs no folder.
    steps, split, bin_us: how event data becomes frames; images ignore them, their time axis is the encoder's.
        steps: number of frames (N-MNIST 100, DVS128 Gesture 16, CIFAR10-DVS 10). split: "time", frames of bin_us
        microseconds each (N-MNIST, 3000), or "number", as many events in each (the other two), as
        `events.frame_of` says.
    verify: refuse files that differ from the published originals (all images but the JPEG copy of CIFAR-10, and
        CIFAR10-DVS, by checksum or number of samples). Of the others only the format is checked.
    Raises TrainError for an unknown name, a missing folder or file, and a damaged or unexpected file.
    """
    if name not in DATASETS:
        raise TrainError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if (bin_us is not None and bin_us < 1) or (steps is not None and steps < 1):
        raise TrainError(f"steps {steps}, bin_us {bin_us}: give whole numbers of 1 or more")
    if split is not None and split not in SPLITS:
        raise TrainError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if name == "digits":
        return images.load_digits()
    frames = _framing(name, steps, split, bin_us) if name in _FRAMES else (0, None)
    root = data_folder(name, data_dir)
    try:
        match name:
            case "cifar10" | "cifar100":
                return images.load_cifar(name, root, verify)
            case "tinyimagenet":
                return images.load_tinyimagenet(root, verify)
            case "nmnist":
                return events.load_nmnist(root, *frames)
            case "dvsgesture":
                return events.load_dvsgesture(root, *frames)
            case "cifar10dvs":
                return events.load_cifar10dvs(root, *frames, verify)
            case _:
                return images.load_idx(name, root, verify)
    except OSError as err:
        raise TrainError(
            f"{name}: cannot read {err.filename or root} ({err.strerror or err}); check the file and its "
            f"permissions, or give another --data-dir"
        ) from err


def _framing(name: str, steps: int | None, split: str | None, bin_us: int | None) -> tuple[int, int | None]:
    """Number of frames and the length of one, None for frames by number of events, from what `load` was asked for."""
    usual_steps, usual_us = _FRAMES[name]
    steps = usual_steps if steps is None else steps
    if split is None:
        split = "number" if usual_us is None else "time"
    if split == "number":
        if bin_us is not None:
            raise TrainError(f'{name}: bin_us {bin_us} is for split="time", not for frames by number of events')
        return steps, None
    bin_us = usual_us if bin_us is None else bin_us
    if bin_us is None:
        raise TrainError(f'{name}: split="time" needs bin_us, the length of a frame in microseconds')
    return steps, bin_us


def split_validation(labels: Ints, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Split samples into (train, validation) indices, both sorted and with every class in each.

    labels: class indices (N,). fraction: share of each class to validate on, in (0, 1), rounded per class.
    The same labels, fraction and seed give the same split. Raises TrainError when no such split exists.
    """
    if not 0 < fraction < 1:
        raise TrainError(f"validation fraction {fraction}: give a number between 0 and 1, such as 0.1")
    if len(labels) == 0:
        raise TrainError("validation split: the data set is empty; give one with at least 2 samples a class")
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise TrainError(f"validation split: class {label} has only 1 sample; give 2 or more a class")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out[rng.permutation(members)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
