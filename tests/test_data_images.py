"""CIFAR-100 and Tiny-ImageNet from tiny files in the original formats, and every way such a file can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import jpeg, python2_batch, refused, short, unit, write, write_cifar_jpeg, write_zip

from eitrain import download, images
from eitrain.data import load
from eitrain.errors import TrainError

RNG = np.random.default_rng(1)


def cifar100(samples: list[int]) -> tuple[np.ndarray, list[int]]:
    return RNG.integers(0, 256, (len(samples), 3072), dtype=np.uint8), samples


TRAIN, TEST = cifar100([99, 0, 57, 10]), cifar100([98, 3])


def binary(pixels: np.ndarray, fine: list[int]) -> bytes:
    """Superclass (here class // 5), class, pixels."""
    return b"".join(bytes([label // 5, label]) + row.tobytes() for row, label in zip(pixels, fine, strict=True))


def meta(names: list[bytes], key: bytes = b"fine_label_names") -> bytes:
    return b"\x80\x02}" + short(key) + b"](" + b"".join(map(short, names)) + b"es."


def write_binary(folder: Path) -> None:
    write(folder, {"train.bin": binary(*TRAIN), "test.bin": binary(*TEST)})


def write_python(folder: Path, **more: bytes) -> None:
    write(
        folder, {"train": python2_batch(*TRAIN, b"fine_labels"), "test": python2_batch(*TEST, b"fine_labels"), **more}
    )


@pytest.mark.parametrize("layout", ["cifar-100-{}", "cifar100", "."])
@pytest.mark.parametrize("form", ["binary", "python"])
def test_cifar100_values(tmp_path: Path, form: str, layout: str) -> None:
    folder = tmp_path / layout.format(form)
    (write_binary if form == "binary" else write_python)(folder)
    dataset = load("cifar100", tmp_path, verify=False)
    assert dataset.source == f"CIFAR-100 (original {'binary files' if form == 'binary' else 'Python batches'})"
    assert (dataset.shape, dataset.steps, len(dataset.classes)) == ((3, 32, 32), None, 100)
    assert [dataset.classes[i] for i in (0, 1, 50, 98, 99)] == ["apple", "aquarium_fish", "mouse", "woman", "worm"]
    assert list(dataset.classes) == sorted(set(dataset.classes))
    assert dataset.train.labels.tolist() == TRAIN[1] and dataset.test.labels.tolist() == TEST[1]
    assert dataset.train.labels.dtype == np.int64
    x = dataset.train.batch(np.array([3, 0]))
    assert x.dtype == np.float32 and np.array_equal(x, unit(TRAIN[0][[3, 0]].reshape(2, 3, 32, 32)))
    assert x.min() >= 0 and x.max() <= 1
    name = "test.bin" if form == "binary" else "test"
    assert dataset.checksum[name] == f"sha256:{hashlib.sha256((folder / name).read_bytes()).hexdigest()}"
    refused([folder, "500 images of each class" if form == "binary" else "md5"], load, "cifar100", tmp_path)
    (folder / name).unlink()
    refused([f"no {name} in", folder], load, "cifar100", tmp_path, verify=False)


def test_cifar100_prefers_binary_files_and_names_what_is_missing(tmp_path: Path) -> None:
    refused(["no train.bin or train in", tmp_path, "--data-dir"], load, "cifar100", tmp_path)
    write_python(tmp_path / "cifar-100-python")
    assert "Python" in load("cifar100", tmp_path, verify=False).source
    write_binary(tmp_path / "cifar-100-binary")
    assert "binary" in load("cifar100", tmp_path, verify=False).source


def test_cifar100_class_names_come_from_meta_where_it_is(tmp_path: Path) -> None:
    names = [b"class_%d" % i for i in range(100)]
    write_python(tmp_path, meta=meta(names))
    dataset = load("cifar100", tmp_path, verify=False)
    assert dataset.classes == tuple(f"class_{i}" for i in range(100)) and "meta" in dataset.checksum
    hostile = b"\x80\x02cos\nmkdir\n" + short(os.fsencode(tmp_path / "trace")) + b"\x85R."
    wrong = [(hostile, "asks for os.mkdir"), (meta(names)[:-9], "refused to unpickle"), (b"", "refused to unpickle")]
    lists = [names[:-1], [b"a"] * 100, [b"two words", *names[1:]], [b"\xc3\xa9", *names[1:]]]
    wrong += [(meta(some), "100 different class names") for some in lists]
    wrong += [(meta(names, b"other"), "b'fine_label_names'"), (b"\x80\x02](es.", "refused"), (b"\x80\x02].", "100")]
    for content, says in wrong:
        write(tmp_path, {"meta": content})
        refused([tmp_path / "meta", says], load, "cifar100", tmp_path, verify=False)
    assert not (tmp_path / "trace").exists()


ROWS = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
DAMAGED: list[tuple[str, bytes, str]] = [
    ("train.bin", binary(*TRAIN)[:-1], "not a multiple of 3074"),
    ("train.bin", bytes(3073 * 2), "6146 bytes, not a multiple of 3074"),  # CIFAR-10's records
    ("train.bin", b"", "no samples"),
    ("test.bin", b"\x00\x64" + bytes(3072), "labels 100..100, expected 0..99"),
    ("test.bin", b"\x14\x00" + bytes(3072), "(superclasses): labels 20..20, expected 0..19"),
    ("train", python2_batch(ROWS, [0, 100], b"fine_labels"), "numbers 0..99 under b'fine_labels'"),
    ("train", python2_batch(ROWS, [0, 1]), "numbers 0..99 under b'fine_labels'"),  # CIFAR-10's name for them
    ("train", python2_batch(ROWS, [0], b"fine_labels"), "1 labels for 2 samples"),
    ("train", python2_batch(ROWS[:, 1:], [0, 1], b"fine_labels"), "shape (n, 3072) under b'data'"),
    ("train", python2_batch(ROWS[:0], [], b"fine_labels"), "no samples"),
    ("test", python2_batch(ROWS, [0, 1], b"fine_labels")[:-40], "refused to unpickle"),
    ("test", b"\x80\x02cbuiltins\neval\n.", "asks for builtins.eval"),
    ("test", b"\x1f\x8b", "refused to unpickle"),
]


@pytest.mark.parametrize("file, content, says", DAMAGED, ids=[f"{i}-{d[0]}" for i, d in enumerate(DAMAGED)])
def test_damaged_cifar100(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    (write_binary if file.endswith(".bin") else write_python)(tmp_path)
    write(tmp_path, {file: content})
    refused([tmp_path / file, says], load, "cifar100", tmp_path, verify=False)


def test_cifar100_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is unpacked beside itself, after its checksum was found right."""
    assert download.MIRRORS["cifar100"][2] == {"cifar-100-python.tar.gz": "md5:eb9058c3a382ffc7106e4002c42a8d85"}
    folder, cache = tmp_path / "mirror", tmp_path / "cache"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("EITRAIN_DATA", raising=False)
    monkeypatch.setattr(download.pooch, "os_cache", lambda project: cache)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    write_python(tmp_path / "cifar-100-python")
    folder.mkdir()
    with tarfile.open(folder / "c.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-100-python", "cifar-100-python")
    known = "md5:" + hashlib.md5((folder / "c.tar.gz").read_bytes()).hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(download.MIRRORS, "cifar100", ("cifar100", address, {"c.tar.gz": "md5:" + "0" * 32}))
        refused(["download of", "hash", "--data-dir"], load, "cifar100", verify=False)
        assert not list(cache.rglob("train"))
        monkeypatch.setitem(download.MIRRORS, "cifar100", ("cifar100", address, {"c.tar.gz": known}))
        assert load("cifar100", verify=False).train.labels.tolist() == TRAIN[1]
        server.shutdown()
    assert load("cifar100", verify=False).test.labels.tolist() == TEST[1]  # from the cache


def test_what_no_program_may_download_is_told_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EITRAIN_DATA", raising=False)
    for name, address in (
        ("tinyimagenet", "cs231n.stanford.edu"),
        ("dvsgesture", "DvsGesture.tar.gz"),
        ("cifar10dvs", "airplane.zip to truck.zip"),
    ):
        refused([name, "no direct download", address, "--data-dir"], load, name)


def test_files_are_not_read_beyond_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, zeros = tmp_path / "bomb.gz", bytes(2**24)
    path.write_bytes(gzip.compress(zeros))
    write_zip(tmp_path / "bomb.zip", {"zeros": zeros})
    write(tmp_path, {"plain": zeros})
    assert download.read_plain_or_gzip(path, 2**24) == zeros
    assert download.read_member(str(tmp_path / "bomb.zip"), "zeros", 2**24) == zeros
    assert download.read_file(tmp_path / "plain", 2**24) == zeros
    refused([path, "more than 16777215 bytes"], download.read_plain_or_gzip, path, 2**24 - 1)
    tracemalloc.start()
    try:
        refused(["plain: more than 65536 bytes"], download.read_file, tmp_path / "plain", 2**16)
        refused(["plain: more than 65536 bytes"], download.read_plain_or_gzip, tmp_path / "plain", 2**16)
        refused([path, "more than 65536 bytes"], download.read_plain_or_gzip, path, 2**16)
        refused(["bomb.zip: zeros: more than"], download.read_member, str(tmp_path / "bomb.zip"), "zeros", 2**16)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    arrays = write_cifar_jpeg(tmp_path, [jpeg((0, 0, 0))])
    monkeypatch.setattr(images, "LARGEST", 1000)
    refused([arrays, "more than 1000 bytes"], load, "cifar10", tmp_path)
    huge = io.BytesIO()  # an array that claims 8 TB
    np.lib.format.write_array_header_1_0(huge, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)})
    monkeypatch.undo()
    write_zip(arrays, {"class_names.npy": huge.getvalue()})
    refused([arrays, "not the JPEG copy"], load, "cifar10", tmp_path)


IDS = ["n03444034", "n01443537", "n02124075"]  # not sorted, as in the original
COLOURS = [(255, 0, 0), (0, 128, 255), (20, 200, 20)]


def tiny_jpeg(colour: tuple[int, int, int], shade: int | None = None) -> bytes:
    """A 64x64 image with a black upper quarter on `colour`, or in grey values on `shade`."""
    if shade is None:
        return jpeg(colour, (64, 64))  # black left of column 32, above row 16
    buffer, image = io.BytesIO(), Image.new("L", (64, 64), shade)
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def tiny_files() -> dict[str, bytes]:
    """Three classes with two training images each, the second of them grey, and a validation image each."""
    files: dict[str, bytes] = {"wnids.txt": "\n".join(IDS).encode() + b"\n"}
    words = ["n01443537\tgoldfish, Carassius auratus", "n00001740\tentity", "n02124075\tEgyptian cat"]
    files["words.txt"] = "\n".join([*words, "n03444034\tgo-kart"]).encode()
    for i, (wnid, colour) in enumerate(zip(IDS, COLOURS, strict=True)):
        files[f"train/{wnid}/images/{wnid}_0.JPEG"] = tiny_jpeg(colour)
        files[f"train/{wnid}/images/{wnid}_10.JPEG"] = tiny_jpeg(colour, shade=40 * i)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"ignored"
        files[f"val/images/val_{i}.JPEG"] = tiny_jpeg(COLOURS[2 - i])
    rows = [f"val_{i}.JPEG\t{IDS[2 - i]}\t0\t0\t62\t62\r\n" for i in (1, 0, 2)]
    files["val/val_annotations.txt"] = "".join(rows).encode()
    files["test/images/test_0.JPEG"] = b"no labels, never read"
    return files


def write_tiny(folder: Path, zipped: bool, files: dict[str, bytes]) -> Path:
    """The data set in `folder`, and where messages say it is."""
    if not zipped:
        write(folder / "tiny-imagenet-200", files)
        return folder / "tiny-imagenet-200"
    path = folder / "tiny-imagenet-200.zip"
    write_zip(path, {f"tiny-imagenet-200/{name}": content for name, content in files.items()})
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["folder", "inner folder", "here", "zip", "flat zip in a folder"])
def test_tinyimagenet_values(tmp_path: Path, layout: str) -> None:
    files, root = tiny_files(), tmp_path / "one/two"
    if layout == "flat zip in a folder":
        write_zip(root / "tinyimagenet/tiny-imagenet-200.zip", files | {"../../escaped.txt": b"x"})
    elif layout == "here":
        write(root, files)
    else:
        write_tiny(root / ("tinyimagenet" if layout == "inner folder" else ""), layout == "zip", files)
    before = snapshot(tmp_path)
    dataset = load("tinyimagenet", root, verify=False)
    assert (dataset.shape, dataset.steps) == ((3, 64, 64), None)
    assert dataset.classes == ("go-kart", "goldfish", "Egyptian cat")  # by the order of wnids.txt
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and dataset.train.labels.dtype == np.int64
    assert dataset.test.labels.tolist() == [0, 1, 2] and "validation as test" in dataset.source
    x = pickle.loads(pickle.dumps(dataset.train)).batch(np.array([4, 0, 3]))
    assert x.shape == (3, 3, 64, 64) and x.dtype == np.float32
    for image, colour in zip(x, (COLOURS[2], COLOURS[0], (40, 40, 40)), strict=True):
        assert np.allclose(image[:, 16:], np.reshape(colour, (3, 1, 1)) / 255, atol=3 / 255)
    assert np.allclose(x[0, :, :15, :31], 0, atol=3 / 255)  # rows and columns are not exchanged
    assert np.allclose(x[0, :, :16, 33:], np.reshape(COLOURS[2], (3, 1, 1)) / 255, atol=3 / 255)
    test = dataset.test.batch(np.arange(3))
    assert np.allclose(test[:, :, 40, 40] * 255, COLOURS, atol=3)  # each annotated with its own class
    everything = np.concatenate([test, dataset.train.batch(np.arange(6))])
    assert everything.min() >= 0 and everything.max() <= 1
    assert snapshot(tmp_path) == before
    refused(["not the original 200 classes of 500 images"], load, "tinyimagenet", root)


def test_tinyimagenet_checksum_knows_labels_and_names(tmp_path: Path) -> None:
    files = tiny_files()
    write_tiny(tmp_path, False, files)
    one = load("tinyimagenet", tmp_path, verify=False).checksum
    assert load("tinyimagenet", tmp_path, verify=False).checksum == one
    swapped = files["val/val_annotations.txt"].replace(IDS[0].encode(), b"?").replace(IDS[1].encode(), IDS[0].encode())
    write_tiny(tmp_path, False, files | {"val/val_annotations.txt": swapped.replace(b"?", IDS[1].encode())})
    assert load("tinyimagenet", tmp_path, verify=False).checksum != one


Change = Callable[[dict[str, bytes]], object]
ONE, NOTES = f"train/{IDS[1]}/images/{IDS[1]}_0.JPEG", "val/val_annotations.txt"
WRONG: list[tuple[Change, list[str]]] = [
    (lambda f: f.update({"wnids.txt": b""}), ["wnids.txt", "up to 200 different ids"]),
    (lambda f: f.update({"wnids.txt": b"n03444034\nn03444034\n"}), ["wnids.txt", "different ids"]),
    (lambda f: f.update({"wnids.txt": b"../escape\n"}), ["wnids.txt", "n01443537"]),
    (lambda f: f.update({"wnids.txt": b"\n".join(b"n%08d" % i for i in range(201))}), ["up to 200"]),
    (lambda f: f.update({"wnids.txt": b"\xff\xfe\x00"}), ["wnids.txt", "not a text file"]),
    (lambda f: f.update({"words.txt": b"n01443537 goldfish\n"}), ["words.txt", "no name for n03444034"]),
    (lambda f: f.pop("words.txt"), ["words.txt"]),
    (lambda f: f.pop(NOTES), ["val_annotations.txt"]),
    (lambda f: f.update({NOTES: f[NOTES].replace(b"n02124075", b"n99999999")}), ["n99999999", "no id of wnids.txt"]),
    (lambda f: f.update({NOTES: b"val_0.JPEG"}), ["val_annotations.txt", "no id"]),
    (lambda f: f.update({NOTES: f[NOTES].replace(b"val_1", b"val_7")}), ["val_7.JPEG", "missing or annotated twice"]),
    (lambda f: f.update({NOTES: f[NOTES].replace(b"val_1", b"val_0")}), ["val_0.JPEG", "annotated twice"]),
    (lambda f: f.update({NOTES: f[NOTES].replace(b"val_1", b"../../val_1")}), ["val_1.JPEG", "missing"]),
    (lambda f: f.update({"val/images/val_3.JPEG": f[ONE]}), ["no line for val/images/val_3.JPEG"]),
    (lambda f: f.update({NOTES: b""}), ["no line for val/images/val_0.JPEG"]),
    (lambda f: [f.pop(name) for name in list(f) if name.startswith("train")], ["train", "no samples"]),
    (lambda f: [f.pop(n) for n in list(f) if n.startswith(f"train/{IDS[1]}")], ["no images of class n01443537"]),
    (lambda f: f.update({ONE: b""}), [ONE, "0 bytes, expected 1..1048576"]),
    (lambda f: f.update({ONE: bytes(2**20 + 1)}), [ONE, "1048577 bytes, expected 1..1048576"]),
]


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("case", range(len(WRONG)))
def test_damaged_tinyimagenet(tmp_path: Path, case: int, zipped: bool) -> None:
    change, says = WRONG[case]
    files = tiny_files()
    change(files)
    refused([write_tiny(tmp_path, zipped, files), *says], load, "tinyimagenet", tmp_path, verify=False)


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_damaged_tiny_image(tmp_path: Path, zipped: bool) -> None:
    png = io.BytesIO()
    Image.new("RGB", (64, 64)).save(png, "PNG")
    wrong = {
        "size (64, 32)": jpeg((0, 0, 0), (64, 32)),
        "exceeds limit": jpeg((0, 0, 0), (64, 64)).replace(b"\x08\x00\x40\x00\x40", b"\x08\xfd\xe8\xfd\xe8"),
        "truncated": tiny_jpeg((9, 9, 9))[:-12],
        "cannot identify": png.getvalue(),
    }
    for says, content in wrong.items():
        place = write_tiny(tmp_path, zipped, tiny_files() | {ONE: content})
        train = load("tinyimagenet", tmp_path, verify=False).train
        assert train.batch(np.array([0, 3])).shape == (2, 3, 64, 64)
        refused([place, ONE, says, "cannot be decoded"], train.batch, np.array([0, 2]))
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    refused([place, ONE, "cannot read", "No such file"], train.batch, np.array([2]))


def test_damaged_tiny_zip(tmp_path: Path) -> None:
    refused(["no wnids.txt (of tiny-imagenet-200) or tiny-imagenet-200.zip"], load, "tinyimagenet", tmp_path)
    path = write_tiny(tmp_path, True, tiny_files())
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-30]):
        path.write_bytes(content)
        refused([path, "not a zip file"], load, "tinyimagenet", tmp_path)
    write_zip(path, {"a/wnids.txt": b"", "b/wnids.txt": b""})
    refused([path, "2 wnids.txt in it"], load, "tinyimagenet", tmp_path)
    # a member that unpacks to more than the directory says is cut off there, and its checksum is wrong
    lying = tiny_files() | {ONE: bytes(10**6)}
    write_tiny(tmp_path, True, lying)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"tiny-imagenet-200/{ONE}")
        packed = info.compress_size.to_bytes(4, "little")
    content = path.read_bytes().replace(packed + (10**6).to_bytes(4, "little"), packed + (100).to_bytes(4, "little"))
    path.write_bytes(content)
    train = load("tinyimagenet", tmp_path, verify=False).train
    with pytest.raises(TrainError, match=r"cannot unpack .*_0\.JPEG"):
        train.batch(np.array([2]))


def test_texts_of_tinyimagenet_are_not_read_beyond_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MAX_TEXT", 100)
    for zipped in (False, True):
        files = tiny_files() | {"wnids.txt": b"\n" * 10**6}
        place = write_tiny(tmp_path / str(zipped), zipped, files)
        refused([place, "wnids.txt: more than 100 bytes"], load, "tinyimagenet", tmp_path / str(zipped))
