"""Augmentation, resizing and normalisation of samples: one frozen value per published set-up, all in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eitrain.errors import TrainError
from eitrain.samples import Floats, Ints

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Augmentation:
    """What training samples go through, in this order, and how all samples are resized and normalised.

    Samples are images (n, C, H, W) in [0, 1] or event frames (n, T, C, H, W) of counts >= 0; what the position of a
    pixel decides happens to all frames and channels of a sample alike. All but `normalise` keeps to these ranges.

    crop_padding: black pixels added on each side before a crop of the original size; 0 = no crop.
    scale: (least, greatest) share of the area that `random_resized_crop` keeps, in (0, 1]; () = none. Needs `size`.
    size: side in pixels that all samples have after `resize`, which is not random; 0 = their own.
    flip: mirror half of the samples left to right. rotation: each by a uniform angle in [-rotation, rotation], degrees.
    jitter, hue: strengths of `colour_jitter`, 0 = none (images of three channels only).
    one_of: (pixels, degrees, side) of `roll_turn_or_cut`; () = none.
    cutout: side in pixels of a square about a random pixel (DeVries, Taylor 2017, arXiv 1708.04552), cut off at the
    edges and filled with `mean`, so that it normalises to 0; 0 = none. erase: `erase_rectangles` as well.
    mean, std: per channel; () = not normalised.
    Raises TrainError for values outside these ranges.
    """

    crop_padding: int = 0
    flip: bool = False
    rotation: float = 0.0
    cutout: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    size: int = 0
    jitter: float = 0.0
    hue: float = 0.0
    erase: bool = False
    one_of: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # not "> 180": nothing compares with NaN
        if self.crop_padding < 0 or self.cutout < 0 or not 0 <= self.rotation <= 180:
            raise TrainError(f"{self}: crop_padding and cutout are 0 or more pixels, rotation is 0 to 180 degrees")
        if len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
            raise TrainError(f"{self}: give one mean and one positive std per channel, or neither")
        if self.size < 0 or not 0 <= self.jitter <= 1 or not 0 <= self.hue <= 0.5:
            raise TrainError(f"{self}: size is 0 or more, jitter is 0 to 1, hue is 0 to 0.5 turns")
        if self.scale and not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1 and self.size):
            raise TrainError(f"{self}: scale is (least, greatest) share of the area, in (0, 1], and needs a size")
        if self.one_of and not (
            len(self.one_of) == 3 and min(self.one_of) >= 0 and self.one_of[1] <= 180 and not self.one_of[0] % 1
        ):
            raise TrainError(f"{self}: one_of is (pixels, degrees, side): 0 or more, whole pixels, up to 180 degrees")

    def __call__(self, x: Floats, rng: np.random.Generator) -> Floats:
        """Augment and resize samples, before `normalise`; returns a new array, `rng` decides it all."""
        lead = x.shape[:-2]
        x = x.reshape(len(x), math.prod(lead[1:]), *x.shape[-2:])
        x = random_crop(x, self.crop_padding, rng) if self.crop_padding else x
        x = random_resized_crop(x, self.scale, self.size, rng) if self.scale else self.resize(x).copy()
        if self.flip:
            chosen = rng.random(len(x)) < 0.5
            x[chosen] = x[chosen, ..., ::-1]
        if self.rotation and len(x):  # torch turns no empty batch
            x = rotate(x, rng.uniform(-self.rotation, self.rotation, len(x)))
        if self.jitter or self.hue:
            x = colour_jitter(x, self.jitter, self.hue, rng)
        if self.one_of:
            x = roll_turn_or_cut(x, self.one_of, rng)
        if self.cutout:
            hole = random_squares(x.shape, self.cutout, rng)
            fill = np.resize(np.array(self.mean or 0, np.float32), x.shape[1])  # for each frame and channel
            x = np.where(hole, fill[:, None, None], x)
        if self.erase:
            x = erase_rectangles(x, rng)
        return x.reshape(*lead, *x.shape[-2:])

    def resize(self, x: Floats) -> Floats:
        """Samples (..., H, W) as (..., size, size) by `resample`, or x itself without `size` or when it fits.

        For training (`__call__` does it) and test samples alike.
        """
        *lead, height, width = x.shape
        if not self.size or height == width == self.size:
            return x
        first, all_rows, all_columns = (np.full(len(x), length) for length in (0, height, width))
        flat = x.reshape(len(x), math.prod(lead[1:]), height, width)
        return resample(flat, first, all_rows, first, all_columns, self.size).reshape(*lead, self.size, self.size)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) after `resize` of samples of `shape` (C, H, W)."""
        return (*shape[:-2], self.size, self.size) if self.size else shape

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


def random_resized_crop(x: Floats, scale: Sequence[float], size: int, rng: np.random.Generator) -> Floats:
    """`resample` a random window of each image of (n, C, H, W) to size x size.

    The window has a share of the area uniform in `scale` and a ratio of width to height from 3/4 to 4/3, uniform in
    its logarithm; both are drawn up to ten times until it fits into the image, and then it is the whole image.
    """
    n, _, height, width = x.shape
    area = height * width * rng.uniform(scale[0], scale[1], (10, n))
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), (10, n)))
    rows, columns = (np.rint(np.sqrt(v)).astype(np.int64) for v in (area / ratio, area * ratio))
    fits = (0 < rows) & (rows <= height) & (0 < columns) & (columns <= width)
    first = fits.argmax(axis=0), np.arange(n)
    rows, columns = (np.where(fits[first], v[first], full) for v, full in ((rows, height), (columns, width)))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    return resample(x, top, rows, left, columns, size)


def resample(x: Floats, top: Ints, rows: Ints, left: Ints, columns: Ints, size: int) -> Floats:
    """Of image i of (n, C, H, W) the window of rows[i] x columns[i] pixels from (top[i], left[i]), as size x size.

    Each pixel is a mean of the window's, weighted by 1 - distance / max(1, pixels of the window for each of the
    result) along each axis: bilinear, and anti-aliased where the window is larger than the result, as PIL and
    torchvision resize. In float64, so that the result stays between the values of `x`.
    """
    out = np.empty((*x.shape[:2], size, size), np.float32)
    down, right = _weights(top, rows, x.shape[2], size), _weights(left, columns, x.shape[3], size)
    for i, image in enumerate(x):
        out[i] = down[i] @ image.astype(np.float64) @ right[i].T
    return out


def _weights(first: Ints, length: Ints, full: int, size: int) -> NDArray[np.float64]:
    """Weights (n, size, full) of the pixels of an axis of `full`, of which the window has `length` from `first`."""
    first, length = first[:, None, None], length[:, None, None]
    centre = first + (np.arange(size)[:, None] + 0.5) * length / size
    place = np.arange(full) + 0.5
    weights = np.maximum(0, 1 - np.abs(place - centre) / np.maximum(1, length / size))
    weights *= (first < place) & (place < first + length)
    return np.asarray(weights / weights.sum(axis=2, keepdims=True))


_GREY = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]  # of red, green and blue (ITU-R BT.601)


def colour_jitter(x: Floats, strength: float, hue: float, rng: np.random.Generator) -> Floats:
    """Change brightness, contrast, saturation and hue of images (n, 3, H, W) in [0, 1], in an order of each its own.

    With a factor f uniform in 1 - strength to 1 + strength for each: f x; f x + (1 - f) m, m the mean grey of the
    image; f x + (1 - f) g, g the grey of the pixel; each clipped to [0, 1]. The hue turns by a uniform share in -hue
    to hue of the circle. Raises TrainError for other than three channels.
    """
    n = len(x)
    if x.shape[1] != 3:
        raise TrainError(f"jitter and hue change colours: images have 3 channels, found {x.shape[1]}")
    factors = rng.uniform(1 - strength, 1 + strength, (3, n, 1, 1, 1)).astype(np.float32)
    turns = rng.uniform(-hue, hue, n)

    def towards(x: Floats, other: Floats | float, f: Floats) -> Floats:
        return np.clip(f * x + (1 - f) * other, 0, 1)

    def change(kind: int, x: Floats, i: NDArray[np.bool_]) -> Floats:
        grey = (x * _GREY).sum(axis=1, keepdims=True)
        match kind:
            case 0:
                return towards(x, 0.0, factors[0, i])
            case 1:
                return towards(x, grey.mean(axis=(2, 3), keepdims=True), factors[1, i])
            case 2:
                return towards(x, grey, factors[2, i])
            case _:
                return turn_hue(x, turns[i])

    kinds = range(4 if hue else 3)
    out = x.copy()
    for step in rng.permuted(np.tile(kinds, (n, 1)), axis=1).T:
        for kind in kinds:
            chosen = step == kind
            out[chosen] = change(kind, out[chosen], chosen)
    return out


def turn_hue(x: Floats, turns: NDArray[Any]) -> Floats:
    """Images (n, 3, H, W) with the hue of image i, as HSV has it, moved by turns[i] of the circle."""
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    top, low = x.max(axis=1), x.min(axis=1)
    spread = np.where(top > low, top - low, 1)
    hue = np.where(top == green, 2 + (blue - red) / spread, 4 + (red - green) / spread)
    hue = np.where(top == red, (green - blue) / spread, hue) + 6 * turns[:, None, None]  # in sixths of the circle
    sixths = (np.array([5, 3, 1])[:, None, None] + hue[:, None]) % 6  # of red, green and blue
    share = np.clip(np.minimum(sixths, 4 - sixths), 0, 1)
    return (top[:, None] - (top - low)[:, None] * share).astype(np.float32)


def roll_turn_or_cut(x: Floats, sizes: Sequence[float], rng: np.random.Generator) -> Floats:
    """One of three for each sample of (n, C, H, W), all equally likely; sizes: (pixels, degrees, side).

    Move it by up to so many whole pixels along each axis, around the edges; or turn it by up to so many degrees, to
    the nearest pixels; or set a square of that side about a random pixel to 0 (Li et al. 2022, arXiv 2203.06145).
    """
    n, (pixels, degrees, side) = len(x), sizes
    which = rng.integers(0, 3, n)
    shifts = rng.integers(-int(pixels), int(pixels) + 1, (n, 2))
    angles = rng.uniform(-degrees, degrees, n)
    holes = random_squares(x.shape, int(side), rng)
    out, turned, cut = x.copy(), which == 1, which == 2
    for i in np.flatnonzero(which == 0):
        out[i] = np.roll(x[i], shifts[i], axis=(1, 2))
    if turned.any():  # torch turns no empty batch
        out[turned] = rotate(x[turned], angles[turned], "nearest")
    out[cut] = np.where(holes[cut], 0, x[cut])
    return out


def _bands(first: Ints, length: Ints | int, full: int) -> NDArray[np.bool_]:
    """A mask (n, full) of `length` pixels from `first` each."""
    place = np.arange(full) - first[:, None]
    return (0 <= place) & (place < np.reshape(length, (-1, 1)))


def random_squares(shape: tuple[int, ...], side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask (n, 1, H, W) with one square of `side` pixels about a random pixel of each image of `shape`."""
    n, _, height, width = shape
    rows, columns = (_bands(rng.integers(0, length, n) - side // 2, side, length) for length in (height, width))
    return rows[:, None, :, None] & columns[:, None, None, :]


def erase_rectangles(x: Floats, rng: np.random.Generator) -> Floats:
    """Fill a rectangle of each other image of (n, C, H, W), at random, with one of the 256 greys from 0 to 1.

    What torchtoolbox calls Cutout: 2 to 40 % of the area, height to width 0.4 to 2.5, all uniform; inside the image.
    """
    n, _, height, width = x.shape
    erased, grey = np.asarray(rng.random(n) < 0.5), rng.integers(0, 256, (n, 1, 1, 1)) / 255
    area, ratio = height * width * rng.uniform(0.02, 0.4, n), rng.uniform(0.4, 2.5, n)
    rows = np.minimum(np.sqrt(area * ratio).astype(np.int64), height)
    columns = np.minimum(np.sqrt(area / ratio).astype(np.int64), width)
    down = _bands(rng.integers(0, height - rows + 1), rows, height)
    right = _bands(rng.integers(0, width - columns + 1), columns, width)
    hole = (erased[:, None] & down)[:, None, :, None] & right[:, None, None, :]
    return np.where(hole, grey.astype(np.float32), x)


def rotate(x: Floats, degrees: NDArray[Any], mode: str = "bilinear") -> Floats:
    """Turn image i of (n, C, H, W) counter-clockwise by degrees[i] about its centre; what comes from outside is 0.

    mode: "bilinear", a weighted mean of four pixels, in float64, so that the result stays between those of `x` and 0;
    or "nearest", the pixel itself.
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
    pixels = torch.from_numpy(np.array(x, np.float64, order="C"))
    turned = functional.grid_sample(pixels, grid, mode, align_corners=False)
    return turned.float().numpy()


_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MNIST = ((0.1307,), (0.3081,))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

STYLES = ("backei", "biril", "biril-published", "deepei")
# (style, data set). "biril-published" is what BIRIL's code runs on MNIST: it mirrors digits as well. A mirrored 2 is no
# digit, so "biril" leaves that out.
# DeepEISNN normalises nothing: its input must stay >= 0. As in its code, the Cutout on images is torchtoolbox's, which
# erases rectangles. The temporal delete of its code on DVS128 Gesture keeps T of T frames, so nothing is deleted here.
AUGMENTATIONS: dict[tuple[str, str], Augmentation] = {
    ("backei", "cifar10"): Augmentation(4, True, mean=CIFAR10_MEAN, std=CIFAR10_STD),
    ("biril", "cifar10"): Augmentation(4, True, 0.0, 0, *_HALF),
    ("biril", "cifar100"): Augmentation(4, True, 15.0, 0, *_CIFAR100),
    ("biril", "mnist"): Augmentation(2, False, 0.0, 0, *_MNIST),
    ("biril-published", "mnist"): Augmentation(2, True, 0.0, 0, *_MNIST),
    ("biril", "tinyimagenet"): Augmentation(8, True, 0.0, 0, *_IMAGENET),
    ("deepei", "dvsgesture"): Augmentation(flip=True, scale=(0.5, 1.0), size=48),
    ("deepei", "cifar10dvs"): Augmentation(flip=True, scale=(0.7, 1.0), size=48, one_of=(5, 30.0, 16)),
    ("deepei", "cifar10"): Augmentation(4, True, erase=True),
    ("deepei", "cifar100"): Augmentation(4, True, erase=True),
    ("deepei", "tinyimagenet"): Augmentation(flip=True, scale=(0.08, 1.0), size=32, jitter=0.4, hue=0.1, erase=True),
}


def augmentation(style: str, data: str) -> Augmentation:
    """The row of AUGMENTATIONS for a style of STYLES; without one, images are used as they are.

    "biril-published" differs from "biril" in its own rows only, and so on. Raises TrainError for an unknown style.
    """
    if style not in STYLES:
        raise TrainError(f"unknown augmentation style {style!r}: choose one of {', '.join(STYLES)}")
    styles = (style, style.removesuffix("-published"))
    return next((AUGMENTATIONS[s, data] for s in styles if (s, data) in AUGMENTATIONS), Augmentation())
