"""Data sets: every original format from tiny files written here, every error line, and the real files."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from eitrain import augment, data, download
from eitrain.data import load, split_validation
from eitrain.errors import TrainError

REAL = Path(os.environ.get("EITRAIN_DATA", ""))
needs_real = pytest.mark.skipif(REAL == Path(), reason="EITRAIN_DATA, the folder of the real data, is unset")
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
RNG = np.random.default_rng(0)


def refused(says: Sequence[object], call: Callable[..., object], *args: Any, **options: Any) -> None:
    """The call raises TrainError with one line that contains each of `says`."""
    with pytest.raises(TrainError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in map(str, says) if part not in message] == [], message


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(255)


def idx(array: np.ndarray, magic: bytes = b"\0\0\x08") -> bytes:
    return magic + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 3, test: int = 2, gz: bool = True) -> dict[str, np.ndarray]:
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(n, dtype=np.uint8)
    pack = gzip.compress if gz else bytes
    write(folder, {name + ".gz" * gz: pack(idx(array)) for name, array in arrays.items()})
    return arrays


def cifar_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (6, 2, 3072) and labels (6, 2) of the batches: 0..9 in training, 8 and 9 in test."""
    labels = np.concatenate([np.arange(10), [8, 9]]).reshape(6, 2)
    return RNG.integers(0, 256, (6, 2, 3072), dtype=np.uint8), labels


def write_cifar_binary(folder: Path) -> np.ndarray:
    pixels, labels = cifar_arrays()
    records = np.concatenate([labels[..., None].astype(np.uint8), pixels], axis=2)
    write(folder, {f"{n}.bin": x.tobytes() for n, x in zip(download.CIFAR_PY_MD5, records, strict=True)})
    return pixels


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_batch(pixels: np.ndarray, labels: list[int], key: bytes = b"labels") -> bytes:
    """The opcodes of the original batches: protocol 2, Python 2 strings, numpy under its old name."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R(K\x01"
    array += b"".join(b"M" + struct.pack("<H", n) for n in pixels.shape) + b"\x86"
    array += b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|")
    array += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    array += b"T" + struct.pack("<I", pixels.size) + pixels.tobytes() + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([v]) for v in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(key) + listed + b"u."


def write_cifar_python(folder: Path) -> np.ndarray:
    pixels, labels = cifar_arrays()
    batches = zip(download.CIFAR_PY_MD5, pixels, labels.tolist(), strict=True)
    write(folder, {name: python2_batch(x, y) for name, x, y in batches})
    return pixels


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    """An image with a black upper half (16 rows) on `colour`."""
    buffer, image = io.BytesIO(), Image.new("RGB", size, colour)
    image.paste((0, 0, 0), (0, 0, 32, 16))
    image.save(buffer, "JPEG", quality=95, subsampling=0)  # colours do not bleed
    return buffer.getvalue()


def write_cifar_jpeg(folder: Path, images: list[bytes], **changes: Any) -> Path:
    """The JPEG copy with `images` in both parts, labelled 0, 1, ...; `changes` replace arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"class_names": np.array(CLASSES)}
    for part in ("train", "test"):
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(images), np.uint8)
        arrays[f"{part}_offset"] = np.cumsum([0, *map(len, images)])
        arrays[f"{part}_label"] = np.arange(len(images), dtype=np.uint8)
    path = folder / "cifar10_jpeg_60k.npz"
    np.savez(path, **(arrays | changes))
    return path


def event(x: int, y: int, polarity: int, time: int) -> bytes:
    return bytes([x, y, polarity << 7 | time >> 16, time >> 8 & 0xFF, time & 0xFF])


# Two ON events on one pixel, the first and last microsecond of the next frame, the third frame, past the end.
EVENTS = event(5, 9, 1, 0) + event(5, 9, 1, 999) + event(33, 0, 0, 1000) + event(0, 33, 1, 1999)
EVENTS += event(1, 2, 0, 2500) + event(7, 7, 1, 3000) + event(8, 8, 1, 0x7FFFFF)
ONES = {(0, 1, 9, 5), (1, 0, 0, 33), (1, 1, 33, 0), (2, 0, 2, 1)}  # (frame, polarity, y, x)
TRAIN = {"Train/3/00001.bin": EVENTS, "Train/1/00002.bin": event(0, 0, 1, 70000)}
TEST = {"Test/9/00001.bin": EVENTS}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_digits_are_split_once_and_indexed_like_numpy() -> None:
    digits = load("digits")
    assert (len(digits.train), len(digits.test), digits.shape, digits.steps) == (1437, 360, (1, 8, 8), None)
    x = np.concatenate([digits.train.batch(np.arange(1437)), digits.test.batch(np.arange(360))])
    assert x.dtype == np.float32 and x.shape == (1797, 1, 8, 8) and (x.min(), x.max()) == (0, 1)
    original = load_digits().data / 16
    assert sorted(map(tuple, x.reshape(1797, 64))) == sorted(map(tuple, original))  # each sample exactly once
    assert set(np.bincount(digits.test.labels)) <= {35, 36, 37} and digits.test.labels.dtype == np.int64
    assert load("digits").checksum == digits.checksum
    test, images = digits.test, x[1437:]
    assert np.array_equal(test.batch(np.array([-1, 4])), images[[-1, 4]])
    assert np.array_equal(test.batch(test.labels == 3), images[test.labels == 3])
    assert test.batch(np.array([], dtype=int)).shape == (0, 1, 8, 8)
    with pytest.raises(IndexError):
        test.batch(np.array([360]))


def test_wrong_arguments_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(["'minst'", ", ".join(data.DATASETS)], load, "minst")
    refused(["steps 0", "1 or more"], load, "nmnist", steps=0)
    refused(["bin_us 0"], load, "nmnist", bin_us=0)
    refused([tmp_path / "none", "No such file", "--data-dir"], load, "mnist", tmp_path / "none")
    (tmp_path / "file").touch()
    refused([tmp_path / "file", "Not a directory", "--data-dir"], load, "cifar10", tmp_path / "file")
    monkeypatch.setattr(download, "fetch", lambda name: pytest.fail("downloaded"))
    for name, file in (("mnist", "train-images"), ("cifar10", "data_batch_1.bin or"), ("nmnist", "*.bin")):
        refused([name, file, tmp_path, "--data-dir"], load, name, tmp_path)
    monkeypatch.setenv("EITRAIN_DATA", f"{tmp_path}/gone")
    refused([tmp_path / "gone", "EITRAIN_DATA"], load, "mnist")
    write_mnist(tmp_path / "MNIST/raw")
    monkeypatch.setenv("EITRAIN_DATA", str(tmp_path))
    assert len(load("mnist", verify=False).train) == 3


@pytest.mark.parametrize("hidden", [".", "MNIST/raw", "MNIST/raw/t10k-images-idx3-ubyte.gz"])
def test_unreadable(hidden: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: another user must be able to reach it
        folder, user = Path(name), os.geteuid()
        write_mnist(folder / "MNIST/raw")
        folder.chmod(0o755)
        (folder / hidden).chmod(0)
        os.seteuid(user or 65534)  # root may read everything, nobody may not
        try:
            refused([folder, "Permission denied", "--data-dir"], load, "mnist", folder, verify=False)
        finally:
            os.seteuid(user)
            (folder / hidden).chmod(0o755)


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("layout", ["{}/raw", "raw", "."])
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_idx_values_and_checksums(tmp_path: Path, name: str, layout: str, gz: bool) -> None:
    title, first = {"mnist": ("MNIST", "0"), "fashion": ("FashionMNIST", "T-shirt/top")}[name]
    arrays = write_mnist(tmp_path / layout.format(title), gz=gz)
    dataset = load(name, tmp_path, verify=False)
    x = dataset.train.batch(np.array([2, 0]))
    assert x.dtype == np.float32 and x.shape == (2, 1, 28, 28)
    assert np.array_equal(x, unit(arrays["train-images-idx3-ubyte"][[2, 0], None]))
    assert dataset.test.labels.tolist() == [0, 1] and dataset.train.labels.dtype == np.int64
    assert (dataset.shape, dataset.steps, dataset.classes[0]) == ((1, 28, 28), None, first)
    digest = hashlib.sha256(idx(arrays["t10k-labels-idx1-ubyte"])).hexdigest()
    assert dataset.checksum["t10k-labels-idx1-ubyte"] == f"sha256:{digest}"
    known = download.IDX_SHA256[name]["train-images-idx3-ubyte"]
    refused(["train-images-idx3-ubyte", "sha256", f"expected {known}"], load, name, tmp_path)


IMAGES, LABELS, BATCH = np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8), np.zeros((2, 3072), np.uint8)
DAMAGED = [
    ("train-images-idx3-ubyte", idx(IMAGES)[:-1], "2367 bytes with shape (3, 28, 28), expected 2368"),
    ("train-images-idx3-ubyte", idx(IMAGES) + b"\0", "expected 2368"),
    ("train-images-idx3-ubyte", b"", "starts with ,"),
    ("train-images-idx3-ubyte", idx(IMAGES)[:9], "9 bytes"),
    ("train-images-idx3-ubyte", idx(LABELS), "starts with 00000801"),
    ("train-images-idx3-ubyte", idx(IMAGES, b"\0\0\x0d"), "starts with 00000d03"),
    ("train-images-idx3-ubyte", idx(IMAGES[:, :27]), "samples of (28, 28)"),
    ("train-images-idx3-ubyte", gzip.compress(idx(IMAGES))[:-9], "truncated or damaged gzip"),
    ("train-images-idx3-ubyte", gzip.compress(idx(IMAGES))[:-8] + bytes(8), "truncated or damaged gzip"),
    ("train-labels-idx1-ubyte", idx(LABELS[:2]), "2 labels for 3 samples"),
    ("train-labels-idx1-ubyte", idx(LABELS + 10), "labels 10..10, expected 0..9"),
    ("data_batch_4.bin", bytes(3072), "3072 bytes, not a multiple of 3073"),
    ("data_batch_4.bin", b"\x0a" + bytes(3072), "labels 10..10"),
    ("data_batch_4.bin", b"", "no samples"),
    ("data_batch_3", b"", "refused to unpickle"),
    ("data_batch_3", python2_batch(BATCH, [0, 1])[:-40], "refused to unpickle"),
    ("data_batch_3", b"\x80\x02cbuiltins\neval\n.", "asks for builtins.eval"),
    ("data_batch_3", pickle.dumps([1], protocol=2), "b'data'"),
    ("data_batch_3", python2_batch(BATCH[:, 1:], [0, 1]), "shape (n, 3072) under b'data'"),
    ("data_batch_3", python2_batch(BATCH, [0, 11]), "numbers 0..9 under b'labels'"),
    ("data_batch_3", python2_batch(BATCH, [0]), "1 labels for 2 samples"),
    ("cifar10_jpeg_60k.npz", b"", "not the JPEG copy"),
    ("cifar10_jpeg_60k.npz", b"PK\x03\x04text", "not the JPEG copy"),
]


# names of their own: a gzip file holds the time it was made, and two test processes must agree on names
@pytest.mark.parametrize("file, content, says", DAMAGED, ids=[f"{i}-{d[0]}" for i, d in enumerate(DAMAGED)])
def test_damaged_file(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    if file.startswith("data"):
        (write_cifar_binary if file.endswith(".bin") else write_cifar_python)(tmp_path)
    else:
        write_mnist(tmp_path, gz=False)
    (tmp_path / file).write_bytes(content)
    refused([tmp_path / file, says], load, "mnist" if "idx" in file else "cifar10", tmp_path, verify=False)


def test_idx_empty_missing_and_not_a_file(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=0)
    refused(["train-labels-idx1-ubyte.gz", "no samples"], load, "mnist", tmp_path, verify=False)
    write_mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.unlink()
    refused([f"no {path.stem} or {path.name}", tmp_path], load, "mnist", tmp_path, verify=False)
    path.mkdir()
    refused(["cannot read", path, "Is a directory"], load, "mnist", tmp_path, verify=False)


@pytest.mark.parametrize("layout", ["cifar-10-batches-{}", "cifar10", "."])
@pytest.mark.parametrize("form", ["bin", "py"])
def test_cifar_values(tmp_path: Path, form: str, layout: str) -> None:
    folder = tmp_path / layout.format(form)
    pixels = (write_cifar_binary if form == "bin" else write_cifar_python)(folder)
    cifar = load("cifar10", tmp_path, verify=False)
    assert cifar.source == f"CIFAR-10 (original {'binary files' if form == 'bin' else 'Python batches'})"
    assert cifar.classes == tuple(CLASSES) and cifar.shape == (3, 32, 32)
    assert cifar.train.labels.tolist() == list(range(10)) and cifar.test.labels.tolist() == [8, 9]
    assert np.array_equal(cifar.train.batch(np.array([3])), unit(pixels[1, 1].reshape(1, 3, 32, 32)))
    assert np.array_equal(cifar.test.batch(np.array([0])), unit(pixels[5, 0].reshape(1, 3, 32, 32)))
    refused([folder, "5000 images of each class" if form == "bin" else "md5"], load, "cifar10", tmp_path)
    next(folder.glob("data_batch_4*")).unlink()
    refused(["no data_batch_4", folder], load, "cifar10", tmp_path, verify=False)


def test_malicious_pickle_is_refused_by_checksum_and_by_the_unpickler(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hostile = b"\x80\x02cos\nmkdir\n" + short(os.fsencode(trace)) + b"\x85R."
    pickle.loads(hostile)
    trace.rmdir()  # so a plain unpickler does run it
    write_cifar_python(tmp_path)
    write(tmp_path, {"data_batch_1": hostile})
    refused(["data_batch_1", "md5", "expected c99cafc152244af753f735de768cd75f"], load, "cifar10", tmp_path)
    refused(["data_batch_1", "asks for os.mkdir"], load, "cifar10", tmp_path, verify=False)
    assert not trace.exists()


def test_cifar_jpeg_values_and_preference(tmp_path: Path) -> None:
    path = write_cifar_jpeg(tmp_path / "cifar10", [jpeg((255, 0, 0)), jpeg((0, 64, 255))])
    cifar = load("cifar10", tmp_path)
    x = cifar.test.batch(np.array([1, 0, 1]))
    assert x.dtype == np.float32 and x.shape == (3, 3, 32, 32)
    for image, colour in zip(x, ([0, 64, 255], [255, 0, 0], [0, 64, 255]), strict=True):
        assert np.allclose(image[:, 16:], np.reshape(colour, (3, 1, 1)) / 255, atol=3 / 255)
        assert np.allclose(image[:, :16], 0, atol=3 / 255)
    assert cifar.train.labels.tolist() == [0, 1] and cifar.train.labels.dtype == np.int64
    assert cifar.checksum == {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"}
    assert cifar.source == "CIFAR-10 (JPEG copy, lossy)"
    write_cifar_python(tmp_path / "cifar-10-batches-py")
    assert "Python" in load("cifar10", tmp_path, verify=False).source
    write_cifar_binary(tmp_path / "cifar-10-batches-bin")
    assert "binary" in load("cifar10", tmp_path, verify=False).source


def test_damaged_jpeg_copy(tmp_path: Path) -> None:
    changes: list[tuple[str, np.ndarray, str]] = [
        ("train_offset", np.array([0, 5]), "does not cut"),
        ("train_offset", np.array([], dtype=int), "does not cut"),
        ("train_offset", np.array([0, 9999, len(jpeg((0, 0, 0)))]), "does not cut"),
        ("train_offset", np.array([0.0, 1.0]), "whole numbers"),
        ("train_label", np.array([0, 1]), "2 labels for 1 samples"),
        ("test_label", np.array([10]), "labels 10..10"),
        ("class_names", np.array(CLASSES[::-1]), "class_names"),
        ("train_label", np.array([{}], dtype=object), "allow_pickle=False"),
    ]
    for key, value, says in changes:
        path = write_cifar_jpeg(tmp_path, [jpeg((0, 0, 0))], **{key: value})
        refused([path, says], load, "cifar10", tmp_path)
    images = [jpeg((0, 0, 0)), jpeg((0, 0, 0), (16, 32)), jpeg((9, 9, 9))[:-12], b"no"]
    write_cifar_jpeg(tmp_path, images)
    train = load("cifar10", tmp_path).train
    assert train.batch(np.array([0])).shape == (1, 3, 32, 32)
    for i, says in ((1, "size (16, 32)"), (2, "truncated"), (3, "cannot identify")):
        refused([path, f"image {i}", says], train.batch, np.array([0, i]))


@pytest.mark.parametrize("layout", ["folder", "subfolder", "two zips", "nested zip"])
def test_nmnist_frames(tmp_path: Path, layout: str) -> None:
    if layout == "two zips":
        write_zip(tmp_path / "Train.zip", TRAIN)
        write_zip(tmp_path / "Test.zip", TEST)
    elif layout == "nested zip":
        junk = {"__MACOSX/Train/1/._00002.bin": b"x", "readme.txt": b"x"}
        write_zip(tmp_path / "NMNIST/all.zip", {f"N-MNIST/{k}": v for k, v in (TRAIN | TEST).items()} | junk)
    else:
        write(tmp_path / ("NMNIST" if layout == "subfolder" else ""), TRAIN | TEST)
    dataset = load("nmnist", tmp_path, steps=3, bin_us=1000)
    assert (dataset.steps, dataset.shape) == (3, (2, 34, 34))
    assert dataset.train.labels.tolist() == [1, 3] and dataset.test.labels.tolist() == [9]
    x = dataset.train.batch(np.array([1, 0]))
    assert x.dtype == np.float32 and x.shape == (2, 3, 2, 34, 34)
    assert set(map(tuple, np.argwhere(x[0]).tolist())) == ONES and set(np.unique(x)) == {0, 1}
    assert np.array_equal(dataset.train.batch(np.array([False, True])), x[:1])  # a mask
    assert not x[1].any()  # its one event lies beyond the last frame
    late = load("nmnist", tmp_path).train.batch(np.array([0]))  # 70000 us with the default 100 x 3000 us
    assert late.shape[1] == 100 and np.argwhere(late).tolist() == [[0, 23, 1, 0, 0]]


@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_recording(tmp_path: Path, zipped: bool) -> None:
    cases = [(EVENTS[:-1], "34 bytes"), (b"", "0 bytes"), (event(34, 0, 0, 0), ""), (event(0, 34, 0, 0), "")]
    for raw, says in cases:
        files = TRAIN | TEST | {"Train/7/00005.bin": raw}
        write_zip(tmp_path / "n.zip", files) if zipped else write(tmp_path, files)
        if says:
            refused(["Train/7/00005.bin", says, "5 an event"], load, "nmnist", tmp_path)
            continue
        train = load("nmnist", tmp_path).train
        assert train.batch(np.array([0, 1])).any()
        refused(["Train/7/00005.bin", "outside 34x34"], train.batch, np.array([2]))
    (tmp_path / ("n.zip" if zipped else "Train/1/00002.bin")).unlink()
    refused(["Train/1/00002.bin", "cannot read", "No such file"], train.batch, np.array([0]))


def test_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "n.zip"
    write_zip(path, TRAIN | TEST)
    whole = path.read_bytes()
    train = load("nmnist", tmp_path).train
    assert train.batch(np.array([0])).any()
    for content in (whole[:-30], b"", b"text"):
        path.write_bytes(content)
        refused([path, "not a zip file"], load, "nmnist", tmp_path)
    broken = bytearray(whole)
    start = broken.index(b"Train/3/00001.bin") + len("Train/3/00001.bin")
    broken[start + 2 : start + 8] = bytes(6)
    path.write_bytes(broken)
    refused([path, "Train/3/00001.bin", "cannot unpack"], load("nmnist", tmp_path).train.batch, np.array([1]))
    write_zip(path, TEST)
    refused([path, "cannot unpack Train/1/00002.bin"], train.batch, np.array([0]))  # no longer in it
    refused(["no Train/<0..9>/*.bin", tmp_path], load, "nmnist", tmp_path)
    write_zip(tmp_path / "a.zip", TRAIN)
    write_zip(tmp_path / "b.zip", TRAIN)
    refused([tmp_path, "twice"], load, "nmnist", tmp_path)


def test_zip_serves_threads_forks_and_pickled_copies(tmp_path: Path) -> None:
    files = {f"Train/{i % 10}/{i:05d}.bin": event(i % 34, i // 34, 1, 0) * 50 for i in range(200)}
    write_zip(tmp_path / "n.zip", files | TEST)
    train = load("nmnist", tmp_path, steps=1).train
    order = np.arange(200)
    expected = train.batch(order)
    assert expected.sum() == 200
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(expected, x) for x in pool.map(train.batch, [order] * 8))
    assert np.array_equal(pickle.loads(pickle.dumps(train)).batch(order[:5]), expected[:5])
    with get_context("fork").Pool(2) as forks:  # a handle shared with the parent would mix their positions
        forked = forks.map_async(train.batch, [order] * 8)
        assert all(np.array_equal(expected, train.batch(order)) for _ in range(5))
        assert all(np.array_equal(expected, x) for x in forked.get(timeout=60))


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "mirror", tmp_path / "cache"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("EITRAIN_DATA", raising=False)
    monkeypatch.setattr(download.pooch, "os_cache", lambda project: cache)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    write_mnist(folder)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    write_cifar_binary(tmp_path / "cifar-10-batches-bin")
    with tarfile.open(folder / "c.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    known = {"c.tar.gz": "md5:" + hashlib.md5((folder / "c.tar.gz").read_bytes()).hexdigest()}
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(download.MIRRORS, "mnist", ("MNIST/raw", address, hashes))
        monkeypatch.setitem(download.MIRRORS, "cifar10", ("cifar10", address, known))
        assert len(load("mnist", verify=False).train) == 3 and len(load("cifar10", verify=False).train) == 10
        shutil.rmtree(folder)  # now from the cache
        assert len(load("mnist", verify=False).train) == 3 and len(load("cifar10", verify=False).train) == 10
        shutil.rmtree(cache)
        refused(["download of", address, "404", "--data-dir"], load, "mnist")
        write_mnist(folder)  # other random images: no longer the known hashes
        refused(["download of", "hash", "--data-dir"], load, "mnist")
        assert not list(cache.rglob("*images*"))
        server.shutdown()
    refused([f"download of {address}", "refused", "--data-dir"], load, "mnist")
    refused(["garrickorchard.com", "--data-dir"], load, "nmnist")


def test_split_validation() -> None:
    labels = np.repeat(np.arange(3), [100, 10, 2])
    train, val = split_validation(labels, 0.1, seed=1)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(112))
    assert np.bincount(labels[val]).tolist() == [10, 1, 1]
    assert np.array_equal(val, split_validation(labels, 0.1, seed=1)[1])
    assert not np.array_equal(val, split_validation(labels, 0.1, seed=2)[1])
    assert np.bincount(labels[split_validation(labels, 0.99, seed=0)[0]]).tolist() == [1, 1, 1]
    refused(["class 1 has only 1 sample"], split_validation, np.array([0, 0, 1]), 0.5, 0)
    refused(["empty"], split_validation, np.array([], dtype=np.int64), 0.5, 0)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        refused([f"fraction {fraction}", "between 0 and 1"], split_validation, np.array([0, 0]), fraction, 0)


@needs_real
def test_real_idx_and_nmnist() -> None:
    for name, means in (("mnist", (33.318, 33.791)), ("fashion", (72.940, 73.147))):
        dataset = load(name, REAL)
        for split, count, mean in zip((dataset.train, dataset.test), (60000, 10000), means, strict=True):
            assert len(split) == count
            assert split.batch(np.arange(count)).mean(dtype=np.float64) * 255 == pytest.approx(mean, abs=5e-4)
    dataset = load("nmnist", REAL)
    assert (len(dataset.train), len(dataset.test)) == (1000, 100)
    x = dataset.test.batch(np.arange(100))
    assert x.shape == (100, 100, 2, 34, 34) and set(np.unique(x)) == {0, 1}
    assert (x.sum(axis=(1, 2, 3, 4)) > 500).all() and x.sum(axis=(0, 2, 3, 4))[:95].all()  # 300 ms long


@needs_real
def test_real_cifar_jpeg() -> None:
    dataset = load("cifar10", REAL)
    assert (len(dataset.train), len(dataset.test)) == (50000, 10000)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    x = dataset.train.batch(np.arange(0, 50000, 50))
    assert np.allclose(x.mean(axis=(0, 2, 3)), augment.CIFAR10_MEAN, atol=0.02)
