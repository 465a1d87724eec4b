"""Augmentation and normalisation: against naive loops and SciPy, and what the table promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from test_data import refused

from eitrain import data
from eitrain.augment import AUGMENTATIONS, STYLES, Augmentation, augmentation, normalise, rotate

RNG = np.random.default_rng(0)
IMAGES = RNG.random((64, 3, 32, 32), dtype=np.float32)


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("padding", [1, 4])
def test_a_shifted_crop_maybe_flipped(padding: int) -> None:
    out = Augmentation(padding, True)(IMAGES, rng())
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    places = range(2 * padding + 1)
    drawn = [
        (down, right, flip)
        for n, down, right, flip in itertools.product(range(64), places, places, (1, -1))
        if np.array_equal(out[n, :, :, ::flip], padded[n, :, down : down + 32, right : right + 32])
    ]
    assert len(drawn) == 64  # each image is one of the crops
    assert {down for down, _, _ in drawn} == set(places) == {right for _, right, _ in drawn}
    assert len(set(drawn)) > min(30, 2 * padding) and 16 < sum(flip == -1 for _, _, flip in drawn) < 48


def test_backei_draws_what_it_always_drew() -> None:
    """The order of the random numbers is part of a run's seed."""
    draw, expected = rng(), np.zeros_like(IMAGES)
    down, right = draw.integers(0, 9, size=(2, 64))
    flips = draw.random(64) < 0.5
    for n, c, i, j in np.ndindex(IMAGES.shape):
        y, x = i + down[n] - 4, (31 - j if flips[n] else j) + right[n] - 4
        if 0 <= y < 32 and 0 <= x < 32:
            expected[n, c, i, j] = IMAGES[n, c, y, x]
    assert np.array_equal(augmentation("backei", "cifar10")(IMAGES, rng()), expected)


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (3, 1, 5, 5), (2, 3, 28, 28), (1, 1, 1, 1)])
def test_quarter_turns(shape: tuple[int, ...]) -> None:
    x = RNG.random(shape, dtype=np.float32)
    assert np.array_equal(rotate(x, np.zeros(len(x))), x)
    for turns in (-1, 1, 2, 3):
        out = rotate(x, np.full(len(x), 90.0 * turns))
        assert out.dtype == np.float32 and out.shape == x.shape
        assert np.abs(out - np.rot90(x, turns, axes=(2, 3))).max() <= 1e-6
    mixed = rotate(x, 90.0 * np.arange(len(x)))
    assert all(np.allclose(mixed[i], np.rot90(x[i], i, axes=(1, 2)), atol=1e-6) for i in range(len(x)))


@pytest.mark.parametrize("size", [(9, 9), (12, 7), (6, 16)])
def test_other_angles_as_scipy_turns_them(size: tuple[int, int]) -> None:
    x, angles = RNG.random((5, 2, *size), dtype=np.float32), np.array([-15.0, 3.7, 15.0, 45.0, 170.0])
    out = rotate(x, angles)
    for i, angle in enumerate(angles):
        for c in range(2):
            turned = ndimage.rotate(x[i, c].astype(np.float64), angle, reshape=False, order=1, mode="grid-constant")
            assert np.allclose(out[i, c], turned, atol=1e-6)
    corner = rotate(np.ones((1, 1, 32, 32), np.float32), np.array([45.0]))[0, 0]
    assert not corner[[0, 0, -1, -1], [0, -1, 0, -1]].any() and corner[16, 16] == 1  # black from outside


def test_rotation_is_uniform_and_bounded() -> None:
    # a pixel lit to the right of the middle moves up for positive angles
    x = np.zeros((1000, 1, 41, 41), np.float32)
    x[:, 0, 20, 39] = 1
    lit = Augmentation(rotation=15.0)(x, rng())[:, 0]
    place = np.arange(41) - 20
    up, right = -(lit.sum(axis=2) * place).sum(axis=1), (lit.sum(axis=1) * place).sum(axis=1)
    angles = np.degrees(np.arctan2(up, right))
    assert -15.5 < angles.min() < -14 and 14 < angles.max() < 15.5
    assert abs(np.median(angles)) < 1.5 and np.mean(np.abs(angles) < 7.5) == pytest.approx(0.5, abs=0.05)


def test_cutout() -> None:
    mean = (0.25, 0.5, 0.75)
    cut = Augmentation(cutout=5, mean=mean, std=(0.5, 0.5, 0.5))
    out, draw, expected = cut(IMAGES, rng()), rng(), IMAGES.copy()
    rows, columns = draw.integers(0, 32, 64), draw.integers(0, 32, 64)
    for n, c, i, j in np.ndindex(IMAGES.shape):
        if rows[n] - 2 <= i <= rows[n] + 2 and columns[n] - 2 <= j <= columns[n] + 2:
            expected[n, c, i, j] = mean[c]
    assert np.array_equal(out, expected) and out.dtype == np.float32
    holes = (cut.normalise(out) == 0).all(axis=1).sum(axis=(1, 2))
    assert holes.max() == 25 and holes.min() < 25  # some are cut off by the edge
    even = Augmentation(cutout=4)(np.ones_like(IMAGES), rng())
    assert (even == 0).sum(axis=(2, 3)).max() == 16  # without a mean, black


ROWS = [*AUGMENTATIONS.values(), Augmentation(4, True, 180.0, 8, (0.5,) * 3, (0.5,) * 3)]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_is_drawn_from_the_rng_alone_and_stays_in_range(row: Augmentation) -> None:
    channels = len(row.mean)
    x = (RNG.random((40, channels, 28, 28)) < 0.5).astype(np.float32)  # only the ends of [0, 1]
    before = x.copy()
    out = row(x, rng())
    assert out.shape == x.shape and out.dtype == np.float32 and np.array_equal(x, before)
    assert out.min() >= 0 and out.max() <= 1
    assert np.array_equal(out, row(x, rng())) and not np.array_equal(out, row(x, rng(6)))
    assert not np.shares_memory(out, x)
    assert row(x[:0], rng()).shape == (0, channels, 28, 28)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_labels_stay_with_their_images(row: Augmentation) -> None:
    if row.cutout:
        row = Augmentation(row.crop_padding, row.flip, row.rotation)
    value = np.arange(1, 51, dtype=np.float32) / 64
    x = np.broadcast_to(value[:, None, None, None], (50, max(1, len(row.mean)), 32, 32)).copy()
    assert np.allclose(row(x, rng())[:, :, 14:18, 14:18], value[:, None, None, None], atol=1e-6)


def test_the_table() -> None:
    """Seed systems, sections 3.6 and 5.6."""
    cifar100 = augmentation("biril", "cifar100")
    assert (cifar100.crop_padding, cifar100.flip, cifar100.rotation) == (4, True, 15.0)
    assert (cifar100.mean, cifar100.std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert augmentation("biril", "cifar10") == Augmentation(4, True, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert augmentation("biril", "tinyimagenet").crop_padding == 8
    mine, published = augmentation("biril", "mnist"), augmentation("biril-published", "mnist")
    assert not mine.flip and published == Augmentation(2, True, mean=(0.1307,), std=(0.3081,))
    assert augmentation("biril-published", "cifar100") == cifar100  # that style differs on MNIST only
    assert augmentation("backei", "mnist") == Augmentation() == augmentation("biril", "dvsgesture")
    assert {style for style, _ in AUGMENTATIONS} == set(STYLES)
    assert {name for _, name in AUGMENTATIONS} <= set(data.DATASETS)
    refused(["'birl'", "backei, biril"], augmentation, "birl", "mnist")
    digit = np.zeros((30, 1, 28, 28), np.float32)
    digit[:, :, 10, 5] = 1  # flipped, it would lie beyond column 19
    assert mine(digit, rng()).nonzero()[3].max() <= 7 and published(digit, rng()).nonzero()[3].max() >= 20


def test_nothing_asked_for_changes_nothing() -> None:
    nothing = Augmentation()
    assert np.array_equal(nothing(IMAGES, rng()), IMAGES) and nothing.normalise(IMAGES) is IMAGES
    used = rng()
    nothing(IMAGES, used)
    assert used.random() == rng().random()


def test_normalise() -> None:
    x = np.broadcast_to(np.array([0.5, 0.6, 0.7], np.float32).reshape(3, 1, 1), (1, 3, 2, 2))
    out = normalise(x, (0.5, 0.5, 0.5), (1, 0.1, 0.2))
    assert out.dtype == np.float32 and np.allclose(out[0, :, 0, 0], [0, 1, 1])
    assert np.array_equal(Augmentation(mean=(0.5,) * 3, std=(1, 0.1, 0.2)).normalise(x), out)
    for mean, std in (((0.5,), (1.0,)), ((0.5,) * 3, (1.0, 0.0, 1.0)), ((0.5,) * 3, (1.0,))):
        refused(["normalise", "3 channels"], normalise, x, mean, std)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"crop_padding": -1}, "0 or more pixels"),
        ({"cutout": -1}, "0 or more pixels"),
        ({"rotation": -1.0}, "0 to 180 degrees"),
        ({"rotation": 181.0}, "0 to 180 degrees"),
        ({"rotation": float("nan")}, "0 to 180 degrees"),
        ({"mean": (0.5,)}, "one positive std per channel"),
        ({"mean": (0.5,), "std": (0.0,)}, "one positive std per channel"),
    ],
)
def test_impossible_values(values: dict[str, object], says: str) -> None:
    refused([says, *values], Augmentation, **values)
