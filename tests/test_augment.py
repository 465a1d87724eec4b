"""Augmentation and normalisation: against naive loops, SciPy and PIL, and what the table promises."""

from __future__ import annotations

import colorsys
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from test_data import refused

from eitrain import augment, data
from eitrain.augment import (
    AUGMENTATIONS,
    STYLES,
    Augmentation,
    augmentation,
    normalise,
    random_resized_crop,
    resample,
    rotate,
    turn_hue,
)

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


ROWS = [*dict.fromkeys(AUGMENTATIONS.values()), Augmentation(4, True, 180.0, 8, (0.5,) * 3, (0.5,) * 3)]
EVENTS = {augmentation("deepei", "dvsgesture"), augmentation("deepei", "cifar10dvs")}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_is_drawn_from_the_rng_alone_and_stays_in_range(row: Augmentation) -> None:
    channels = len(row.mean) or 3
    x = (RNG.random((40, channels, 28, 28)) < 0.5).astype(np.float32)  # only the ends of [0, 1]
    before = x.copy()
    out = row(x, rng())
    side = row.size or 28
    assert out.shape == (40, channels, side, side) and out.dtype == np.float32 and np.array_equal(x, before)
    assert out.min() >= 0 and out.max() <= 1
    assert np.array_equal(out, row(x, rng())) and not np.array_equal(out, row(x, rng(6)))
    assert not np.shares_memory(out, x)
    assert row(x[:0], rng()).shape == (0, channels, side, side)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_labels_stay_with_their_samples(row: Augmentation) -> None:
    value = np.arange(1, 51, dtype=np.float32) / 64
    x = np.broadcast_to(value[:, None, None, None], (50, len(row.mean) or 3, 32, 32)).copy()
    if row.jitter:  # the grey of an image is its label, up to the factors
        out = row(x, rng()).mean(axis=(1, 2, 3))
        assert np.corrcoef(out, value)[0, 1] > 0.7
        return
    out = row(x, rng())
    whole = np.isclose(out, value[:, None, None, None], atol=1e-6).mean(axis=(1, 2, 3))
    assert whole.min() > 0.35 and whole.mean() > 0.6  # the rest is filled


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
    erased, tiny = augmentation("deepei", "cifar10"), augmentation("deepei", "tinyimagenet")
    assert erased == Augmentation(4, True, erase=True) == augmentation("deepei", "cifar100")
    assert tiny == Augmentation(flip=True, scale=(0.08, 1.0), size=32, jitter=0.4, hue=0.1, erase=True)
    assert augmentation("deepei", "dvsgesture") == Augmentation(flip=True, scale=(0.5, 1.0), size=48)
    neuromorphic = Augmentation(flip=True, scale=(0.7, 1.0), size=48, one_of=(5, 30.0, 16))
    assert augmentation("deepei", "cifar10dvs") == neuromorphic
    assert augmentation("deepei", "digits") == Augmentation() == augmentation("deepei", "fashion")
    assert not any(row.std for (style, _), row in AUGMENTATIONS.items() if style == "deepei")
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
        ({"size": -1}, "size is 0 or more"),
        ({"jitter": 1.1}, "jitter is 0 to 1"),
        ({"jitter": float("nan")}, "jitter is 0 to 1"),
        ({"hue": 0.6}, "hue is 0 to 0.5 turns"),
        ({"scale": (0.5, 1.0)}, "needs a size"),
        ({"scale": (0.0, 1.0), "size": 8}, "share of the area"),
        ({"scale": (0.5, 1.1), "size": 8}, "share of the area"),
        ({"scale": (0.9, 0.5), "size": 8}, "share of the area"),
        ({"scale": (0.9,), "size": 8}, "share of the area"),
        ({"one_of": (5, 30.0)}, "(pixels, degrees, side)"),
        ({"one_of": (5, 181.0, 4)}, "(pixels, degrees, side)"),
        ({"one_of": (-1, 30.0, 4)}, "(pixels, degrees, side)"),
        ({"one_of": (1.5, 30.0, 4)}, "(pixels, degrees, side)"),
    ],
)
def test_impossible_values(values: dict[str, object], says: str) -> None:
    refused([says, *values], Augmentation, **values)


COUNTS = RNG.poisson(0.7, (5, 6, 2, 20, 20)).astype(np.float32)


@pytest.mark.parametrize("full, size", [((9, 12), 5), ((64, 64), 32), ((128, 128), 48), ((7, 7), 7), ((3, 5), 8)])
def test_resample_as_pil_resizes_a_crop(full: tuple[int, int], size: int) -> None:
    x = RNG.random((6, 2, *full), dtype=np.float32)
    windows = [(0, full[0], 0, full[1]), (full[0] - 1, 1, full[1] - 1, 1), (0, 1, 0, full[1]), (1, 2, 2, 3)]
    for _ in range(2):
        rows, columns = RNG.integers(1, full[0] + 1), RNG.integers(1, full[1] + 1)
        windows.append((RNG.integers(full[0] - rows + 1), rows, RNG.integers(full[1] - columns + 1), columns))
    out = resample(x, *np.array(windows).T, size)
    assert out.shape == (6, 2, size, size) and out.dtype == np.float32
    for i, (top, rows, left, columns) in enumerate(windows):
        for c in range(2):
            crop = Image.fromarray(x[i, c, top : top + rows, left : left + columns])
            assert np.allclose(out[i, c], crop.resize((size, size), Image.Resampling.BILINEAR), atol=1e-6)
        inside = x[i, :, top : top + rows, left : left + columns]
        assert inside.min() <= out[i].min() and out[i].max() <= inside.max()


def test_resample_by_hand() -> None:
    """4 pixels to 2: each the mean of 4 about its centre, weights 1 3 3 1, less what is outside."""
    x = np.array([7, 0, 0, 14], np.float32).reshape(1, 1, 4, 1) * np.ones(4, np.float32)
    whole = np.array([0]), np.array([4])
    assert np.array_equal(resample(x, *whole, *whole, 2)[0, 0, :, 0], [3, 6])


def test_resize_is_not_random_and_looks_at_each_sample_alone() -> None:
    row = augmentation("deepei", "cifar10dvs")
    x = RNG.poisson(0.5, (3, 4, 2, 128, 128)).astype(np.float32)
    out = row.resize(x)
    assert out.shape == (3, 4, 2, 48, 48) and out.dtype == np.float32 and np.array_equal(out, row.resize(x))
    for i, t, p in np.ndindex(3, 4, 2):
        frame = Image.fromarray(x[i, t, p]).resize((48, 48), Image.Resampling.BILINEAR)
        assert np.allclose(out[i, t, p], frame, atol=1e-5)
    assert np.array_equal(row.resize(x[1:2]), out[1:2]) and np.array_equal(row.resize(x[:, 2]), out[:, 2])
    assert row.resize(out) is out and Augmentation().resize(x) is x
    assert row.resize(x[:0]).shape == (0, 4, 2, 48, 48) and row.resize(x[..., :48, :]).shape[-2:] == (48, 48)
    last = np.zeros((1, 1, 2, 128, 128), np.float32)
    last[..., 127, 127] = 9  # an event at the last pixel stays in the last one
    assert np.argwhere(row.resize(last)[0, 0, 0]).tolist() == [[47, 47]]
    assert row.shape((2, 128, 128)) == (2, 48, 48) and Augmentation(4).shape((3, 32, 32)) == (3, 32, 32)
    assert np.array_equal(Augmentation(size=48)(x, rng()), out)


def test_random_resized_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def watched(x: np.ndarray, *window: np.ndarray) -> np.ndarray:
        seen.extend(window[:4])
        return x

    monkeypatch.setattr(augment, "resample", watched)
    random_resized_crop(np.zeros((5000, 1, 64, 64), np.float32), (0.08, 1.0), 32, rng())
    top, rows, left, columns = seen
    for first, length in ((top, rows), (left, columns)):
        assert first.min() == 0 and (first + length).max() == 64 and length.min() >= 1
        free = length < 56
        assert np.mean(first[free] / (64 - length[free])) == pytest.approx(0.5, abs=0.01)
    share, ratio = rows * columns / 64**2, columns / rows
    assert 0.07 < share.min() < 0.09 and share.max() > 0.97
    draw = rng()  # replayed: the first of ten windows that fits
    areas = draw.uniform(0.08, 1, (10, 5000)) * 64**2
    ratios = draw.uniform(math.log(3 / 4), math.log(4 / 3), (10, 5000))
    for i in range(5000):
        wide = [round(math.sqrt(a * math.exp(r))) for a, r in zip(areas[:, i], ratios[:, i], strict=True)]
        high = [round(math.sqrt(a / math.exp(r))) for a, r in zip(areas[:, i], ratios[:, i], strict=True)]
        fitting = [(h, w) for h, w in zip(high, wide, strict=True) if max(h, w) <= 64]
        assert (rows[i], columns[i]) == (fitting or [(64, 64)])[0]
    small = share < 0.5  # up to there all ratios fit
    assert 0.7 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.43
    assert np.mean(np.log(ratio[small])) == pytest.approx(0, abs=0.01)
    assert np.std(np.log(ratio[small])) == pytest.approx(np.log(16 / 9) / np.sqrt(12), abs=0.01)
    monkeypatch.undo()
    # no window of the whole area fits but the image itself
    x = RNG.random((9, 3, 16, 16), dtype=np.float32)
    assert np.array_equal(random_resized_crop(x, (1.0, 1.0), 8, rng()), Augmentation(size=8).resize(x))


@pytest.mark.parametrize("row", sorted(EVENTS, key=str), ids=str)
def test_all_frames_of_a_sample_go_the_same_way(row: Augmentation) -> None:
    frame = RNG.poisson(1, (30, 1, 1, 24, 24)).astype(np.float32)
    x = np.concatenate([frame, 2 * frame, 0 * frame], axis=1) * np.array([1, 4], np.float32)[:, None, None]
    out = row(x, rng())
    assert out.shape == (30, 3, 2, 48, 48) and out.dtype == np.float32
    assert np.array_equal(out[:, 1], 2 * out[:, 0]) and not out[:, 2].any()
    assert np.array_equal(out[:, :, 1], 4 * out[:, :, 0])
    assert np.array_equal(out, row(x, rng())) and not np.array_equal(out, row(x, rng(6)))
    single = row(x[:1, :1], rng())  # batch 1, T = 1
    assert single.shape == (1, 1, 2, 48, 48) and single.any()
    assert row(x[:0], rng()).shape == (0, 3, 2, 48, 48)


def test_roll_turn_or_cut() -> None:
    """Replayed draw by draw, pixel by pixel; a turned pixel is its source's neighbour at the least distance."""
    x = RNG.integers(1, 9, (60, 2, 2, 9, 9)).astype(np.float32)
    out, draw = Augmentation(one_of=(2, 40.0, 4))(x, rng()), rng()
    which, shifts = draw.integers(0, 3, 60), draw.integers(-2, 3, (60, 2))
    angles, rows, columns = np.radians(draw.uniform(-40, 40, 60)), draw.integers(0, 9, 60), draw.integers(0, 9, 60)
    assert set(which.tolist()) == {0, 1, 2} and {-2, 2} <= set(shifts[which == 0].ravel().tolist())
    for n, i, j in np.ndindex(60, 9, 9):
        y, z = (i - shifts[n, 0]) % 9, (j - shifts[n, 1]) % 9
        if which[n] == 1:
            down, right = i - 4, j - 4
            a, b = np.cos(angles[n]), np.sin(angles[n])
            at = 4 + a * down + b * right, 4 - b * down + a * right
            if min(abs(v % 1 - 0.5) for v in at) < 1e-3:
                continue  # as near to the next pixel
            y, z = round(at[0]), round(at[1])
        elif which[n] == 2:
            y, z = (-1, 0) if rows[n] - 2 <= i < rows[n] + 2 and columns[n] - 2 <= j < columns[n] + 2 else (i, j)
        expected = x[n, :, :, y, z] if 0 <= min(y, z) and max(y, z) < 9 else np.zeros((2, 2))
        assert np.array_equal(out[n, :, :, i, j], expected), (n, i, j)


@pytest.mark.parametrize("side, length", [(16, 32), (16, 20), (3, 1), (1, 4)])
def test_cutout_at_edges_and_corners(side: int, length: int) -> None:
    """Every place about which a square can lie, corners included, is cut off at the edges; the centre is uniform."""
    x = np.ones((4000, 1, length, length), np.float32)
    out, draw = Augmentation(cutout=side)(x, rng()), rng()
    rows, columns = draw.integers(0, length, 4000), draw.integers(0, length, 4000)
    assert {0, length - 1} <= set(rows.tolist()) & set(columns.tolist())
    for n in range(4000):
        hole = np.argwhere(out[n, 0] == 0)
        low = [max(0, c - side // 2) for c in (rows[n], columns[n])]
        high = [min(length, c - side // 2 + side) for c in (rows[n], columns[n])]
        assert hole.min(axis=0).tolist() == low and (hole.max(axis=0) + 1).tolist() == high
        assert len(hole) == (high[0] - low[0]) * (high[1] - low[1])


def test_erased_rectangles() -> None:
    x = np.full((3000, 3, 32, 32), 0.5, np.float32)  # no grey of 0 to 255
    out = Augmentation(erase=True)(x, rng())
    shares, ratios, greys = [], [], set()
    for image in out:
        hole = np.argwhere(image[0] != 0.5)
        if not len(hole):
            continue
        (top, left), (bottom, right) = hole.min(axis=0), hole.max(axis=0) + 1
        inside = image[:, top:bottom, left:right]
        assert inside.min() == inside.max() and len(hole) == inside[0].size  # one grey for all of the rectangle
        assert (image != 0.5).sum() == inside.size
        greys.add(float(inside[0, 0, 0]) * 255)
        shares.append(len(hole) / 32**2)
        ratios.append((bottom - top) / (right - left))
    assert len(shares) == pytest.approx(1500, abs=100)
    assert 0.01 < min(shares) < 0.03 and 0.36 < max(shares) <= 0.4
    assert np.median(shares) == pytest.approx(0.2, abs=0.02)  # sides are rounded down
    assert min(ratios) < 0.45 and max(ratios) > 2.2 and np.median(ratios) == pytest.approx(1.45, abs=0.1)
    assert min(greys) < 3 and max(greys) > 252 and all(abs(g - round(g)) < 1e-4 for g in greys) and len(greys) > 200


def test_hue_as_colorsys_turns_it() -> None:
    ends = np.array(list(itertools.product((0, 0.5, 1), repeat=3)), np.float32)  # black, white, greys and ties
    colours = np.concatenate([ends, RNG.random((37, 3), dtype=np.float32)]).T.reshape(3, 8, 8)
    turns = np.array([0, 1 / 3, -0.1, 0.5, -1 / 3])
    out = turn_hue(np.stack([colours] * 5), turns)
    assert out.dtype == np.float32 and np.allclose(out[1], colours[[2, 0, 1]], atol=1e-6)  # red to green to blue
    for n, i, j in np.ndindex(5, 8, 8):
        h, s, v = colorsys.rgb_to_hsv(*colours[:, i, j].tolist())
        assert np.allclose(out[n, :, i, j], colorsys.hsv_to_rgb((h + turns[n]) % 1, s, v), atol=1e-6)


@pytest.mark.parametrize("hue", [0.0, 0.1])
def test_colour_jitter(hue: float) -> None:
    """Replayed draw by draw, pixel by pixel, in the order of each image."""
    x = RNG.random((12, 3, 4, 5), dtype=np.float32)
    x[0], x[1], x[2] = 0, 1, 0.25
    out, draw = Augmentation(jitter=0.4, hue=hue)(x, rng()), rng()
    factors, turns = draw.uniform(0.6, 1.4, (3, 12, 1, 1, 1))[..., 0, 0, 0], draw.uniform(-hue, hue, 12)
    orders = draw.permuted(np.tile(np.arange(4 if hue else 3), (12, 1)), axis=1)
    assert len(set(map(tuple, orders.tolist()))) > 4
    for n in range(12):
        pixels = [tuple(map(float, x[n, :, i, j])) for i in range(4) for j in range(5)]
        for kind in orders[n]:
            greys = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in pixels]
            if kind == 3:
                hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
                pixels = [colorsys.hsv_to_rgb((h + turns[n]) % 1, s, v) for h, s, v in hsv]
                continue
            other = ([0.0] * 20, [sum(greys) / 20] * 20, greys)[kind]
            f = factors[kind, n]
            pixels = [
                tuple(min(1.0, max(0.0, f * v + (1 - f) * o)) for v in pixel)
                for pixel, o in zip(pixels, other, strict=True)
            ]
        assert np.allclose(out[n].reshape(3, 20).T, pixels, atol=2e-6)
    for grey in (IMAGES[:, :1], COUNTS):
        refused(["3 channels"], Augmentation(jitter=0.4), grey, rng())


DEEPEI = sorted({row for (style, _), row in AUGMENTATIONS.items() if style == "deepei"}, key=str)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DEEPEI), st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3), st.integers(1, 40))
def test_deepei_input_stays_non_negative(row: Augmentation, seed: int, n: int, steps: int, side: int) -> None:
    """Dale's law needs input >= 0: of any seed and size; counts stay up to their greatest, images in [0, 1]."""
    draw = np.random.default_rng(seed)
    x = draw.choice(np.array([0, 1, 3, 255], np.float32), (n, steps, 2, side, side))
    if row not in EVENTS:
        x = np.repeat(x[:, :1, 0], 3, axis=1) * draw.choice(np.array([0, 0.5, 1], np.float32), (n, 3, side, side)) / 255
    out = row(x, draw)
    assert out.shape == (*x.shape[:-2], row.size or side, row.size or side) and out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= (x.max() if row in EVENTS else 1)
    assert row.resize(x).min() >= 0 and row.resize(x).max() <= x.max()
    assert row.normalise(x) is x
