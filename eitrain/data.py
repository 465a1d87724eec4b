"""Data sets for training: digits, MNIST, Fashion-MNIST, CIFAR-10 and N-MNIST, from their original files.

Every file is treated as untrusted: formats are parsed here and checked, known content is verified by
checksum, and nothing that could run code is unpickled. A user's mistake raises `TrainError` with one line.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eitrain.download import (
    CIFAR_PY_MD5,
    IDX_SHA256,
    check_digest,
    data_folder,
    file_sha256,
    find,
    not_found,
    read_array_pickle,
    read_member,
    read_plain_or_gzip,
    sha256,
    zip_members,
)
from eitrain.errors import TrainError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

DATASETS = ("digits", "mnist", "fashion", "cifar10", "nmnist")
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR_BIN = tuple(f"{batch}.bin" for batch in CIFAR_PY_MD5)
_CIFAR_JPEG = ("cifar10_jpeg_60k.npz",)
_PIXELS = 3 * 32 * 32


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

        Images: float32 (n, C, H, W) in [0, 1]. Events: float32 (n, T, C, H, W) in {0, 1}.
        Raises IndexError for an index out of range, TrainError for a file that cannot be read or decoded.
        """
        return self.read(np.atleast_1d(np.arange(len(self))[indices]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: `shape` is (C, H, W); `steps` is T for event data, None for images.

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


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    steps: int | None = None,
    bin_us: int = 3000,
    verify: bool = True,
) -> Dataset:
    """Load data set `name`, one of DATASETS.

    data_dir: folder with the original files, in torchvision's layout or directly; without it, the folder in
        the environment variable EITRAIN_DATA; without that, a download into the cache (not for nmnist).
        A given folder is never written to and never replaced by a download. digits needs no folder.
    steps, bin_us: number (default 100) and length (microseconds) of the frames of event data; images
        ignore both, their time axis is the encoder's.
    verify: refuse files that differ from the published originals (MNIST, Fashion-MNIST, CIFAR-10). The JPEG
        copy of CIFAR-10 and N-MNIST have no published checksum: only their format is checked.
    Raises TrainError for an unknown name, a missing folder or file, and a damaged or unexpected file.
    """
    if name not in DATASETS:
        raise TrainError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if bin_us < 1 or (steps is not None and steps < 1):
        raise TrainError(f"steps {steps}, bin_us {bin_us}: give whole numbers of 1 or more")
    if name == "digits":
        return _load_digits()
    root = data_folder(name, data_dir)
    try:
        if name == "cifar10":
            return _load_cifar10(root, verify)
        if name == "nmnist":
            return _load_nmnist(root, 100 if steps is None else steps, bin_us)
        return _load_idx(name, root, verify)
    except OSError as err:
        raise TrainError(
            f"{name}: cannot read {err.filename or root} ({err.strerror or err}); check the file and its "
            f"permissions, or give another --data-dir"
        ) from err


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


def augment_cifar(x: Floats, rng: np.random.Generator) -> Floats:
    """Pad (n, C, H, W) images by 4 zeros a side, crop each back to (H, W) at random, flip half of them.

    Augment before `normalise`, so that the padding is black. Returns a new array; `rng` decides it all.
    """
    n, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (4, 4), (4, 4)))
    crops = sliding_window_view(padded, (height, width), axis=(2, 3))  # (n, C, 9, 9, H, W), no copy
    down, right = rng.integers(0, 9, size=(2, n))
    out = crops[np.arange(n), :, down, right]
    flip = rng.random(n) < 0.5
    out[flip] = out[flip, ..., ::-1]
    return out


def normalise(x: Floats, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """(x - mean) / std per channel of (..., C, H, W); TrainError unless both have C values and std > 0."""
    if not len(mean) == len(std) == x.shape[-3] or min(std) <= 0:
        raise TrainError(
            f"normalise: mean {mean} and std {std} do not fit {x.shape[-3]} channels; "
            f"give one mean and one positive std per channel"
        )
    m, s = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (mean, std))
    return (x - m) / s


def _checked_labels(labels: NDArray[Any], count: int, where: object) -> Ints:
    """Labels as int64 after the checks every format needs: as many as `count` samples, some, all in 0..9."""
    if len(labels) != count:
        raise TrainError(f"{where}: {len(labels)} labels for {count} samples; download the pair of files again")
    if count == 0:
        raise TrainError(f"{where}: no samples; give a --data-dir with complete files")
    if labels.min() < 0 or labels.max() > 9:
        raise TrainError(f"{where}: labels {labels.min()}..{labels.max()}, expected 0..9; download it again")
    return labels.astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Reads stored images: uint8 (N, C, H, W) in 0..full."""

    values: Bytes
    full: int

    def __call__(self, indices: Ints) -> Floats:
        return self.values[indices].astype(np.float32) / np.float32(self.full)


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)  # whole numbers 0..16
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    splits = [Split(labels[part].astype(np.int64), _Pixels(images[part], 16)) for part in (train, test)]
    checksum = {
        "images and labels": sha256(images.tobytes() + labels.astype("<i8").tobytes()),
        "held-out indices": sha256(test.astype("<i8").tobytes()),
    }
    source = "scikit-learn digits (held-out fifth)"
    return Dataset("digits", splits[0], splits[1], _DIGITS, (1, 8, 8), None, source, checksum)


def _load_idx(name: str, root: Path, verify: bool) -> Dataset:
    title = {"mnist": "MNIST", "fashion": "FashionMNIST"}[name]
    folders = [root / title / "raw", root / "raw", root]
    known = IDX_SHA256[name]
    paths = find(folders, list(known), ("", ".gz"))
    checksum, splits = {}, []
    for part in ("train", "t10k"):
        images_file, labels_file = (file for file in known if file.startswith(part))
        arrays = []
        for file, sample_shape in ((images_file, (28, 28)), (labels_file, ())):
            if file not in paths:
                raise not_found(name, f"{file} or {file}.gz", folders)
            content = read_plain_or_gzip(paths[file])
            arrays.append(_parse_idx(content, sample_shape, paths[file]))
            if verify:
                check_digest(paths[file], "sha256", known[file], content)
            checksum[file] = sha256(content)
        images, classes = arrays
        labels = _checked_labels(classes, len(images), paths[labels_file])
        splits.append(Split(labels, _Pixels(images[:, np.newaxis], 255)))
    names, spelling = (_DIGITS, "MNIST") if name == "mnist" else (_FASHION, "Fashion-MNIST")
    source = f"{spelling} (original IDX files)"
    return Dataset(name, splits[0], splits[1], names, (1, 28, 28), None, source, checksum)


def _parse_idx(content: bytes, sample_shape: tuple[int, ...], path: Path) -> Bytes:
    """IDX of bytes: 0, 0, 8, number of axes, the length of each (uint32, big endian), the values."""
    axes = 1 + len(sample_shape)
    magic, start = bytes([0, 0, 8, axes]), 4 + 4 * axes
    if content[:4] != magic:
        raise TrainError(
            f"{path}: starts with {content[:4].hex()}, an IDX file of {axes}-d bytes with {magic.hex()}; "
            f"download it again"
        )
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + int(np.prod(shape, dtype=object))  # Python integers: a false length cannot overflow
    if shape[1:] != sample_shape or len(content) != expected:
        raise TrainError(
            f"{path}: {len(content)} bytes with shape {shape}, expected {expected} bytes and samples of "
            f"{sample_shape}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _load_cifar10(root: Path, verify: bool) -> Dataset:
    folders = [root / "cifar-10-batches-bin", root / "cifar-10-batches-py", root / "cifar10", root]
    forms = (_CIFAR_BIN, tuple(CIFAR_PY_MD5), _CIFAR_JPEG)
    for files in forms:
        paths = find(folders, files)
        if len(paths) < len(files):
            continue
        if files == _CIFAR_JPEG:
            return _load_cifar10_jpeg(paths[files[0]])
        return _load_cifar10_batches([paths[file] for file in files], verify)
    for files in forms:
        if paths := find(folders, files):
            raise not_found("cifar10", next(file for file in files if file not in paths), folders)
    raise not_found("cifar10", " or ".join(files[0] for files in forms), folders)


def _load_cifar10_batches(paths: list[Path], verify: bool) -> Dataset:
    """Five training files and a test file, all binary (.bin) or all Python batches."""
    binary = paths[0].suffix == ".bin"
    checksum, images, labels = {}, [], []
    for path in paths:
        content = path.read_bytes()
        if verify and not binary:
            check_digest(path, "md5", CIFAR_PY_MD5[path.name], content)
        pixels, classes = (_parse_cifar_binary if binary else _parse_cifar_python)(content, path)
        labels.append(_checked_labels(classes, len(pixels), path))
        images.append(pixels.reshape(-1, 3, 32, 32))
        checksum[path.name] = sha256(content)
    splits = []
    for part, per_class in ((slice(5), 5000), (slice(5, 6), 1000)):
        split = Split(np.concatenate(labels[part]), _Pixels(np.concatenate(images[part]), 255))
        # The binary files have no published checksum of their own; the class counts are known.
        if verify and np.any(np.bincount(split.labels, minlength=10) != per_class):
            raise TrainError(
                f"{paths[part][0].parent}: not the original CIFAR-10 files, which hold {per_class} images of "
                f"each class in {', '.join(path.name for path in paths[part])}; download them again"
            )
        splits.append(split)
    source = f"CIFAR-10 (original {'binary files' if binary else 'Python batches'})"
    return Dataset("cifar10", splits[0], splits[1], _CIFAR10, (3, 32, 32), None, source, checksum)


def _parse_cifar_binary(content: bytes, path: Path) -> tuple[Bytes, NDArray[Any]]:
    """Records of one label byte and 3072 pixel bytes (channel, row, column)."""
    if len(content) % (1 + _PIXELS):
        raise TrainError(f"{path}: {len(content)} bytes, not a multiple of {1 + _PIXELS}; download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0]


def _parse_cifar_python(content: bytes, path: Path) -> tuple[Bytes, NDArray[Any]]:
    batch = read_array_pickle(content, path)
    pixels, labels = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", b"labels"))
    if not isinstance(pixels, np.ndarray) or (pixels.dtype, pixels.shape[1:]) != (np.uint8, (_PIXELS,)):
        raise TrainError(f"{path}: no bytes of shape (n, {_PIXELS}) under b'data'; download it again")
    if not isinstance(labels, list) or not all(type(v) is int and 0 <= v <= 9 for v in labels):
        raise TrainError(f"{path}: no list of numbers 0..9 under b'labels'; download it again")
    return pixels, np.array(labels, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Jpegs:
    """Decodes image i from stream[offset[i] : offset[i + 1]] on demand (tens of microseconds each)."""

    stream: Bytes
    offset: Ints
    where: str

    def __call__(self, indices: Ints) -> Floats:
        from PIL import Image

        out = np.empty((len(indices), 3, 32, 32), dtype=np.float32)
        for slot, i in enumerate(indices):
            data = io.BytesIO(self.stream[self.offset[i] : self.offset[i + 1]].tobytes())
            try:
                with Image.open(data, formats=("JPEG",)) as image:
                    if image.size != (32, 32):
                        raise ValueError(f"size {image.size}, expected (32, 32)")
                    out[slot] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
                raise TrainError(f"{self.where}: image {i} cannot be decoded ({err}); copy it again") from err
        return out / np.float32(255)


def _load_cifar10_jpeg(path: Path) -> Dataset:
    splits = []
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if tuple(arrays["class_names"].tolist()) != _CIFAR10:
                raise ValueError(f"class_names are not {', '.join(_CIFAR10)}")
            for part in ("train", "test"):
                stream, offset, labels = (arrays[f"{part}_{key}"] for key in ("jpeg", "offset", "label"))
                if stream.dtype != np.uint8 or offset.dtype.kind not in "iu" or labels.dtype.kind not in "iu":
                    raise ValueError(f"{part} arrays are not whole numbers")
                offset = offset.astype(np.int64)
                ends = [*offset[:1], *offset[-1:]]
                if ends != [0, len(stream)] or np.any(np.diff(offset) <= 0):
                    raise ValueError(f"{part}_offset does not cut {part}_jpeg into images")
                where = f"{path} ({part})"
                labels = _checked_labels(labels, len(offset) - 1, where)
                splits.append(Split(labels, _Jpegs(stream, offset, where)))
    except (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, TypeError, ValueError, zlib.error) as err:
        raise TrainError(f"{path}: not the JPEG copy of CIFAR-10 ({err}); copy it again") from err
    checksum = {path.name: file_sha256(path)}
    source = "CIFAR-10 (JPEG copy, lossy)"
    return Dataset("cifar10", splits[0], splits[1], _CIFAR10, (3, 32, 32), None, source, checksum)


_RECORDING = re.compile(r"(?:.*/)?(Train|Test)/([0-9])/([^/.][^/]*\.bin)")
_SIDE = 34  # the sensor window, in pixels
_MAX_EVENTS = 2**23  # one in every microsecond of the 23-bit clock: beyond it, a file is no recording


class _Recording(NamedTuple):
    """One sample: the file `path`, or that member of a zip archive. Sorts by part, label and file name."""

    part: str
    label: int
    file: str
    size: int
    path: str
    archive: str | None

    @property
    def where(self) -> str:
        return self.path if self.archive is None else f"{self.archive}: {self.path}"

    def events(self) -> tuple[Ints, Ints, Ints, Ints]:
        """x, y (0..33), polarity (1 = ON) and time (microseconds), each (n,), of the 40-bit events."""
        try:
            if self.archive is None:
                raw = Path(self.path).read_bytes()
            else:
                raw = read_member(self.archive, self.path)
        except OSError as err:
            raise TrainError(f"{self.where}: cannot read ({err.strerror or err}); restore the file") from err
        _check_size(len(raw), self.where)
        x, y, high, middle, low = np.frombuffer(raw, np.uint8).reshape(-1, 5).T.astype(np.int64)
        if max(x.max(), y.max()) >= _SIDE:
            raise TrainError(f"{self.where}: events outside {_SIDE}x{_SIDE} pixels; download N-MNIST again")
        return x, y, high >> 7, (high & 0x7F) << 16 | middle << 8 | low


def _check_size(size: int, where: str) -> None:
    if size % 5 or not 0 < size <= 5 * _MAX_EVENTS:
        raise TrainError(f"{where}: {size} bytes, expected 5 an event, at least one; download it again")


@dataclass(frozen=True, eq=False)
class _Events:
    """Reads recordings as binary frames: [t, p, y, x] is 1 where an event of polarity p fell in frame t.

    Frame t covers t * bin_us to (t + 1) * bin_us, its end excluded; later events than the last are dropped.
    """

    recordings: tuple[_Recording, ...]
    steps: int
    bin_us: int

    def __call__(self, indices: Ints) -> Floats:
        out = np.zeros((len(indices), self.steps, 2, _SIDE, _SIDE), dtype=np.float32)
        for slot, i in enumerate(indices):
            x, y, polarity, time = self.recordings[i].events()
            frame = time // self.bin_us
            kept = frame < self.steps
            out[slot, frame[kept], polarity[kept], y[kept], x[kept]] = 1
        return out


def _load_nmnist(root: Path, steps: int, bin_us: int) -> Dataset:
    base = root / "NMNIST" if (root / "NMNIST").is_dir() else root
    recordings, archives = _index_folders(base), []
    if not recordings:
        archives = sorted(base.glob("*.zip"))
        recordings = [recording for archive in archives for recording in _index_zip(archive)]
    recordings.sort()
    if len({recording[:3] for recording in recordings}) < len(recordings):
        raise TrainError(f"{base}: its zip files hold the same recordings twice; leave one copy there")
    splits = []
    for part in ("Train", "Test"):
        chosen = tuple(recording for recording in recordings if recording.part == part)
        if not chosen:
            raise not_found("nmnist", f"{part}/<0..9>/*.bin, as files or in a zip,", [base])
        for recording in chosen:
            _check_size(recording.size, recording.where)
        labels = np.array([recording.label for recording in chosen], dtype=np.int64)
        splits.append(Split(labels, _Events(chosen, steps, bin_us)))
    if archives:
        checksum = {archive.name: file_sha256(archive) for archive in archives}
    else:  # hashing 70000 files would take minutes
        listing = "".join(f"{r.part}/{r.label}/{r.file} {r.size}\n" for r in recordings)
        checksum = {"names and sizes": sha256(listing.encode())}
    source = f"N-MNIST ({', '.join(archive.name for archive in archives) or 'original files'})"
    return Dataset("nmnist", splits[0], splits[1], _DIGITS, (2, _SIDE, _SIDE), steps, source, checksum)


def _index_folders(base: Path) -> list[_Recording]:
    found = []
    for folder in (base / part / label for part in ("Train", "Test") for label in _DIGITS):
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := _RECORDING.fullmatch(Path(entry.path).as_posix()):
                    part, label, file = match.groups()
                    found.append(_Recording(part, int(label), file, entry.stat().st_size, entry.path, None))
    return found


def _index_zip(archive: Path) -> list[_Recording]:
    found = []
    for info in zip_members(archive):
        if match := _RECORDING.fullmatch(info.filename):
            part, label, file = match.groups()
            found.append(_Recording(part, int(label), file, info.file_size, info.filename, str(archive)))
    return found
