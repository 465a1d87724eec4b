"""Augmentation and normalisation of images: one frozen value per published set-up, all of them in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eitrain.errors import TrainError
from eitrain.samples import Floats

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Augmentation:
    """What training images go through: crop, flip, rotation and cutout at random, in this order, then `normalise`.

    crop_padding: black pixels added on each side before a crop of the original size; 0 = no crop.
    flip: mirror half of the images left to right. rotation: each by a uniform angle in [-rotation, rotation], degrees.
    cutout: side in pixels of a square about a random pixel (DeVries, Taylor 2017, arXiv 1708.04552), cut off at the
    edges and filled with `mean`, so that it normalises to 0; 0 = none. mean, std: per channel; () = not normalised.
    Raises TrainError for values outside these ranges.
    """

    crop_padding: int = 0
    flip: bool = False
    rotation: float = 0.0
    cutout: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # not "> 180": nothing compares with NaN
        if self.crop_padding < 0 or self.cutout < 0 or not 0 <= self.rotation <= 180:
            raise TrainError(f"{self}: crop_padding and cutout are 0 or more pixels, rotation is 0 to 180 degrees")
        if len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
            raise TrainError(f"{self}: give one mean and one positive std per channel, or neither")

    def __call__(self, x: Floats, rng: np.random.Generator) -> Floats:
        """Augment images (n, C, H, W) in [0, 1], before `normalise`; returns a new array, `rng` decides it all."""
        x = random_crop(x, self.crop_padding, rng) if self.crop_padding else x.copy()
        if self.flip:
            chosen = rng.random(len(x)) < 0.5
            x[chosen] = x[chosen, ..., ::-1]
        if self.rotation and len(x):  # torch turns no empty batch
            x = rotate(x, rng.uniform(-self.rotation, self.rotation, len(x)))
        if self.cutout:
            hole = random_squares(x.shape, self.cutout, rng)
            x = np.where(hole, np.reshape(np.array(self.mean or 0, np.float32), (-1, 1, 1)), x)
        return x

    def normalise(self, x: Floats) -> Floats:
        """(x - mean) / std per channel, or x itself without mean and std; for training and test images alike."""
        return normalise(x, self.mean, self.std) if self.std else x


def normalise(x: Floats, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """(x - mean) / std per channel of (..., C, H, W); TrainError unless both have C values and std > 0."""
    if not len(mean) == len(std) == x.shape[-3] or min(std) <= 0:
        raise TrainError(
            f"normalise: mean {mean} and std {std} do not fit {x.shape[-3]} channels; "
            f"give one mean and one positive std per channel"
        )
    m, s = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (mean, std))
    return (x - m) / s


def random_crop(x: Floats, padding: int, rng: np.random.Generator) -> Floats:
    """Pad (n, C, H, W) images with `padding` zeros a side and crop each back to (H, W) at a random place."""
    n, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    crops = sliding_window_view(padded, (height, width), axis=(2, 3))  # (n, C, rows, columns, H, W), no copy
    down, right = rng.integers(0, 2 * padding + 1, size=(2, n))
    return crops[np.arange(n), :, down, right]


def random_squares(shape: tuple[int, ...], side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask (n, 1, H, W) with one square of `side` pixels about a random pixel of each image of `shape`."""
    n, _, height, width = shape

    def band(length: int) -> NDArray[np.bool_]:
        first = rng.integers(0, length, n)[:, None] - side // 2
        place = np.arange(length)
        return (first <= place) & (place < first + side)

    rows, columns = band(height), band(width)
    return rows[:, None, :, None] & columns[:, None, None, :]


def rotate(x: Floats, degrees: NDArray[Any]) -> Floats:
    """Turn image i of (n, C, H, W) counter-clockwise by degrees[i] about its centre; what comes from outside is 0.

    Bilinear: a weighted mean of four pixels, in float64, so that the result stays between those of `x` and 0.
    """
    import torch
    from torch.nn import functional

    n, channels, height, width = x.shape
    turn = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float64))
    cos, sin, none = torch.cos(turn), torch.sin(turn), torch.zeros(n, dtype=torch.float64)
    # where each pixel comes from; torch counts both axes from -1 to 1, whatever their lengths
    column = torch.stack([cos, -sin * height / width, none], dim=1)
    row = torch.stack([sin * width / height, cos, none], dim=1)
    grid = functional.affine_grid(torch.stack([column, row], dim=1), [n, channels, height, width], align_corners=False)
    turned = functional.grid_sample(torch.from_numpy(np.array(x, np.float64, order="C")), grid, align_corners=False)
    return turned.float().numpy()


_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MNIST = ((0.1307,), (0.3081,))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

STYLES = ("backei", "biril", "biril-published")
# (style, data set). "biril-published" is what BIRIL's code runs on MNIST: it mirrors digits as well. A mirrored 2 is no
# digit, so "biril" leaves that out.
AUGMENTATIONS: dict[tuple[str, str], Augmentation] = {
    ("backei", "cifar10"): Augmentation(4, True, mean=CIFAR10_MEAN, std=CIFAR10_STD),
    ("biril", "cifar10"): Augmentation(4, True, 0.0, 0, *_HALF),
    ("biril", "cifar100"): Augmentation(4, True, 15.0, 0, *_CIFAR100),
    ("biril", "mnist"): Augmentation(2, False, 0.0, 0, *_MNIST),
    ("biril-published", "mnist"): Augmentation(2, True, 0.0, 0, *_MNIST),
    ("biril", "tinyimagenet"): Augmentation(8, True, 0.0, 0, *_IMAGENET),
}


def augmentation(style: str, data: str) -> Augmentation:
    """The row of AUGMENTATIONS for a style of STYLES; without one, images are used as they are.

    "biril-published" differs from "biril" in its own rows only. Raises TrainError for an unknown style.
    """
    if style not in STYLES:
        raise TrainError(f"unknown augmentation style {style!r}: choose one of {', '.join(STYLES)}")
    styles = (style, style.removesuffix("-published"))
    return next((AUGMENTATIONS[s, data] for s in styles if (s, data) in AUGMENTATIONS), Augmentation())
