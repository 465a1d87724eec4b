"""Image data sets from their original files: digits, MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, Tiny-ImageNet."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eitrain.download import (
    CIFAR100_PY_MD5,
    CIFAR_PY_MD5,
    IDX_SHA256,
    LARGEST,
    Tree,
    check_digest,
    file_sha256,
    find,
    not_found,
    read_array_pickle,
    read_file,
    read_plain_or_gzip,
    sha256,
    text_lines,
    zip_members,
)
from eitrain.errors import TrainError
from eitrain.samples import Bytes, Dataset, Floats, Ints, Split, checked_labels

DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Reads stored images: uint8 (N, C, H, W) in 0..full."""

    values: Bytes
    full: int

    def __call__(self, indices: Ints) -> Floats:
        return self.values[indices].astype(np.float32) / np.float32(self.full)


def load_digits() -> Dataset:
    """scikit-learn's digits, a stratified fifth of them held out as test images."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)  # whole numbers 0..16
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    splits = [Split(labels[part].astype(np.int64), _Pixels(images[part], 16)) for part in (train, test)]
    checksum = {
        "images and labels": sha256(images.tobytes() + labels.astype("<i8").tobytes()),
        "held-out indices": sha256(test.astype("<i8").tobytes()),
    }
    source = "scikit-learn digits (held-out fifth)"
    return Dataset("digits", splits[0], splits[1], DIGITS, (1, 8, 8), None, source, checksum)


def load_idx(name: str, root: Path, verify: bool) -> Dataset:
    """MNIST ("mnist") or Fashion-MNIST ("fashion") from four IDX files, gzipped or not."""
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
        labels = checked_labels(classes, len(images), paths[labels_file])
        splits.append(Split(labels, _Pixels(images[:, np.newaxis], 255)))
    names, spelling = (DIGITS, "MNIST") if name == "mnist" else (_FASHION, "Fashion-MNIST")
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


class _Cifar(NamedTuple):
    """How one of the two CIFAR sets is stored. `coarse`: superclasses, whose label comes before the class's own."""

    title: str
    classes: tuple[str, ...]
    coarse: int
    train: tuple[str, ...]
    test: str
    key: bytes
    known: dict[str, str]
    folders: tuple[str, ...]


_CIFARS = {
    "cifar10": _Cifar(
        "CIFAR-10",
        CIFAR10,
        0,
        tuple(CIFAR_PY_MD5)[:5],
        "test_batch",
        b"labels",
        CIFAR_PY_MD5,
        ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar10"),
    ),
    "cifar100": _Cifar(
        "CIFAR-100",
        _CIFAR100,
        20,
        ("train",),
        "test",
        b"fine_labels",
        CIFAR100_PY_MD5,
        ("cifar-100-binary", "cifar-100-python", "cifar100"),
    ),
}
_CIFAR_JPEG = ("cifar10_jpeg_60k.npz",)
_PIXELS = 3 * 32 * 32


def load_cifar(name: str, root: Path, verify: bool) -> Dataset:
    """CIFAR-10 or CIFAR-100 from the binary files, else the Python batches, else (CIFAR-10) the JPEG copy."""
    about = _CIFARS[name]
    batches = (*about.train, about.test)
    folders = [*(root / folder for folder in about.folders), root]
    forms = [tuple(f"{file}.bin" for file in batches), batches]
    if name == "cifar10":
        forms.append(_CIFAR_JPEG)
    for files in forms:
        paths = find(folders, files)
        if len(paths) < len(files):
            continue
        if files == _CIFAR_JPEG:
            return _load_cifar10_jpeg(paths[files[0]])
        return _load_cifar_batches(name, [paths[file] for file in files], verify)
    for files in forms:
        if paths := find(folders, files):
            raise not_found(name, next(file for file in files if file not in paths), folders)
    raise not_found(name, " or ".join(files[0] for files in forms), folders)


def _load_cifar_batches(name: str, paths: list[Path], verify: bool) -> Dataset:
    """The training files and, last, the test file, all binary (.bin) or all Python batches."""
    about, binary = _CIFARS[name], paths[0].suffix == ".bin"
    checksum, images, labels = {}, [], []
    for path in paths:
        content = read_file(path)
        if verify and not binary:
            check_digest(path, "md5", about.known[path.name], content)
        pixels, classes = (_parse_cifar_binary if binary else _parse_cifar_python)(content, path, about)
        labels.append(checked_labels(classes, len(pixels), path, len(about.classes)))
        images.append(pixels.reshape(-1, 3, 32, 32))
        checksum[path.name] = sha256(content)
    splits = []
    for part, samples in ((slice(-1), 50000), (slice(-1, None), 10000)):
        split = Split(np.concatenate(labels[part]), _Pixels(np.concatenate(images[part]), 255))
        per_class = samples // len(about.classes)
        # The binary files have no published checksum of their own; the class counts are known.
        if verify and np.any(np.bincount(split.labels, minlength=len(about.classes)) != per_class):
            raise TrainError(
                f"{paths[part][0].parent}: not the original {about.title} files, which hold {per_class} images of "
                f"each class in {', '.join(path.name for path in paths[part])}; download them again"
            )
        splits.append(split)
    names, meta = about.classes, paths[0].with_name("meta")
    if "meta" in about.known and not binary and meta.exists():
        content = read_file(meta)
        if verify:
            check_digest(meta, "md5", about.known["meta"], content)
        names = _parse_cifar_meta(content, meta, len(names))
        checksum["meta"] = sha256(content)
    source = f"{about.title} (original {'binary files' if binary else 'Python batches'})"
    return Dataset(name, splits[0], splits[1], names, (3, 32, 32), None, source, checksum)


def _parse_cifar_binary(content: bytes, path: Path, about: _Cifar) -> tuple[Bytes, NDArray[Any]]:
    """Records of bytes: the superclass (CIFAR-100 only), the class and 3072 pixels (channel, row, column)."""
    start = 2 if about.coarse else 1
    if len(content) % (start + _PIXELS):
        raise TrainError(f"{path}: {len(content)} bytes, not a multiple of {start + _PIXELS}; download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, start + _PIXELS)
    if about.coarse and len(records):
        checked_labels(records[:, 0], len(records), f"{path} (superclasses)", about.coarse)
    return records[:, start:], records[:, start - 1]


def _parse_cifar_python(content: bytes, path: Path, about: _Cifar) -> tuple[Bytes, NDArray[Any]]:
    batch, last = read_array_pickle(content, path), len(about.classes) - 1
    pixels, labels = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", about.key))
    if not isinstance(pixels, np.ndarray) or (pixels.dtype, pixels.shape[1:]) != (np.uint8, (_PIXELS,)):
        raise TrainError(f"{path}: no bytes of shape (n, {_PIXELS}) under b'data'; download it again")
    if not isinstance(labels, list) or not all(type(v) is int and 0 <= v <= last for v in labels):
        raise TrainError(f"{path}: no list of numbers 0..{last} under {about.key!r}; download it again")
    return pixels, np.array(labels, dtype=np.int64)


def _parse_cifar_meta(content: bytes, path: Path, count: int) -> tuple[str, ...]:
    """The class names in CIFAR-100's `meta`."""
    meta = read_array_pickle(content, path)
    names = meta.get(b"fine_label_names") if isinstance(meta, dict) else None
    if isinstance(names, list) and all(type(n) is bytes and re.fullmatch(rb"\w{1,40}", n) for n in names):
        found = tuple(n.decode("ascii") for n in names)
        if len(found) == len(set(found)) == count:
            return found
    raise TrainError(f"{path}: no list of {count} different class names under b'fine_label_names'; download it again")


def _decode_jpeg(content: bytes, side: int, where: str) -> Bytes:
    """The pixels (3, side, side) of a JPEG image, grey ones in three equal channels; TrainError for another size."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.size != (side, side):  # known before anything is decoded
                raise ValueError(f"size {image.size}, expected {(side, side)}")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise TrainError(f"{where} cannot be decoded ({err}); copy it again") from err


@dataclass(frozen=True, eq=False)
class _Jpegs:
    """Decodes image i from stream[offset[i] : offset[i + 1]] on demand (tens of microseconds each)."""

    stream: Bytes
    offset: Ints
    where: str

    def __call__(self, indices: Ints) -> Floats:
        out = np.empty((len(indices), 3, 32, 32), dtype=np.float32)
        for slot, i in enumerate(indices):
            data = self.stream[self.offset[i] : self.offset[i + 1]].tobytes()
            out[slot] = _decode_jpeg(data, 32, f"{self.where}: image {i}")
        return out / np.float32(255)


# what numpy raises for a damaged or hostile .npz
_NO_ARRAYS = (zipfile.BadZipFile, EOFError, KeyError, MemoryError, RuntimeError, TypeError, ValueError, zlib.error)


def _load_cifar10_jpeg(path: Path) -> Dataset:
    splits = []
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if sum(member.file_size for member in arrays.zip.infolist()) > LARGEST:
                raise ValueError(f"its arrays take more than {LARGEST} bytes")
            if tuple(arrays["class_names"].tolist()) != CIFAR10:
                raise ValueError(f"class_names are not {', '.join(CIFAR10)}")
            for part in ("train", "test"):
                stream, offset, labels = (arrays[f"{part}_{key}"] for key in ("jpeg", "offset", "label"))
                if stream.dtype != np.uint8 or offset.dtype.kind not in "iu" or labels.dtype.kind not in "iu":
                    raise ValueError(f"{part} arrays are not whole numbers")
                offset = offset.astype(np.int64)
                ends = [*offset[:1], *offset[-1:]]
                if ends != [0, len(stream)] or np.any(np.diff(offset) <= 0):
                    raise ValueError(f"{part}_offset does not cut {part}_jpeg into images")
                where = f"{path} ({part})"
                labels = checked_labels(labels, len(offset) - 1, where)
                splits.append(Split(labels, _Jpegs(stream, offset, where)))
    except _NO_ARRAYS as err:
        raise TrainError(f"{path}: not the JPEG copy of CIFAR-10 ({err}); copy it again") from err
    checksum = {path.name: file_sha256(path)}
    source = "CIFAR-10 (JPEG copy, lossy)"
    return Dataset("cifar10", splits[0], splits[1], CIFAR10, (3, 32, 32), None, source, checksum)


_TINY = "tiny-imagenet-200"
_TINY_SIDE = 64
_MAX_JPEG = 2**20  # bytes of one image: 64x64 pixels take 12288 even when stored as they are
_MAX_TEXT = 2**25  # words.txt, the longest text, has 2.6 million bytes


@dataclass(frozen=True, eq=False)
class _Files:
    """Reads and decodes one JPEG file per sample, on demand."""

    tree: Tree
    names: tuple[str, ...]

    def __call__(self, indices: Ints) -> Floats:
        out = np.empty((len(indices), 3, _TINY_SIDE, _TINY_SIDE), dtype=np.float32)
        for slot, i in enumerate(indices):
            where = self.tree.where(self.names[i])
            try:
                content = self.tree.read(self.names[i], _MAX_JPEG)
            except OSError as err:
                raise TrainError(f"{where}: cannot read ({err.strerror or err}); restore the file") from err
            out[slot] = _decode_jpeg(content, _TINY_SIDE, where)
        return out / np.float32(255)


def load_tinyimagenet(root: Path, verify: bool) -> Dataset:
    """Tiny-ImageNet from its folder or zip. Its labelled validation images are the test split, as they are in all
    published figures: the labels of the original test images were never released."""
    tree = _tiny_tree(root)
    ids = _tiny_lines(tree, "wnids.txt")
    if not 0 < len(ids) <= 200 or len(set(ids)) < len(ids) or not all(re.fullmatch(r"n\d{8}", w) for w in ids):
        raise TrainError(f"{tree.where('wnids.txt')}: not up to 200 different ids such as n01443537; download it again")
    index = {wnid: label for label, wnid in enumerate(ids)}
    sizes = tree.sizes([*(f"train/{wnid}/images" for wnid in ids), "val/images"])
    sizes = {name: size for name, size in sizes.items() if name.endswith(".JPEG")}
    for name, size in sizes.items():
        if not 0 < size <= _MAX_JPEG:
            raise TrainError(f"{tree.where(name)}: {size} bytes, expected 1..{_MAX_JPEG}; download it again")
    train = sorted((index[name.split("/")[1]], name) for name in sizes if name.startswith("train/"))
    test = _tiny_annotations(tree, index, {name for name in sizes if name.startswith("val/")})
    splits = []
    for part, samples, per_class in (("train", train, 500), ("val", test, 50)):
        where = tree.where(part)
        labels = np.array([label for label, _ in samples], dtype=np.int64)
        labels = checked_labels(labels, len(samples), where, len(ids))
        counts = np.bincount(labels, minlength=len(ids))
        if missing := [wnid for wnid, count in zip(ids, counts, strict=True) if not count]:
            raise TrainError(f"{where}: no images of class {missing[0]}; download them again")
        if verify and (len(ids) != 200 or np.any(counts != per_class)):
            raise TrainError(f"{where}: not the original 200 classes of {per_class} images; download them again")
        splits.append(Split(labels, _Files(tree, tuple(name for _, name in samples))))
    if tree.prefix is None:  # hashing 110000 files would take minutes
        listing = "".join(f"{name} {sizes[name]}\n" for _, name in (*train, *test))
        checksum = {"labels, names and sizes": sha256((" ".join(ids) + "\n" + listing).encode())}
    else:
        checksum = {Path(tree.base).name: file_sha256(Path(tree.base))}
    source = f"Tiny-ImageNet ({'original files' if tree.prefix is None else Path(tree.base).name}, validation as test)"
    shape = (3, _TINY_SIDE, _TINY_SIDE)
    return Dataset("tinyimagenet", splits[0], splits[1], _tiny_names(tree, ids), shape, None, source, checksum)


def _tiny_tree(root: Path) -> Tree:
    folders = [root / _TINY, root / "tinyimagenet" / _TINY, root / "tinyimagenet", root]
    for folder in folders:
        if (folder / "wnids.txt").exists():
            return Tree(str(folder))
    for folder in folders:
        if (archive := folder / f"{_TINY}.zip").exists():
            members = (member.filename for member in zip_members(archive))
            prefixes = [m.removesuffix("wnids.txt") for m in members if re.fullmatch(r"([\w-]+/)?wnids\.txt", m)]
            if len(prefixes) != 1:
                raise TrainError(f"{archive}: {len(prefixes)} wnids.txt in it, expected 1; download it again")
            return Tree(str(archive), prefixes[0])
    raise not_found("tinyimagenet", f"wnids.txt (of {_TINY}) or {_TINY}.zip", folders)


def _tiny_lines(tree: Tree, name: str) -> list[str]:
    return text_lines(tree.read(name, _MAX_TEXT), tree.where(name))


def _tiny_annotations(tree: Tree, index: dict[str, int], images: set[str]) -> list[tuple[int, str]]:
    """(label, file) of the validation images, of which each must be annotated once: file, id and a box, by tabs."""
    file = "val/val_annotations.txt"
    found: dict[str, int] = {}
    for line in _tiny_lines(tree, file):
        name, wnid = (*line.split("\t"), "", "")[:2]
        image = f"val/images/{name}"
        if wnid not in index or image not in images or image in found:
            why = "no id of wnids.txt" if wnid not in index else "its image is missing or annotated twice"
            raise TrainError(f"{tree.where(file)}: line {line[:80]!r}: {why}; download it again")
        found[image] = index[wnid]
    if missing := images - set(found):
        raise TrainError(f"{tree.where(file)}: no line for {min(missing)}; download it again")
    return sorted((label, image) for image, label in found.items())


def _tiny_names(tree: Tree, ids: Sequence[str]) -> tuple[str, ...]:
    """The first of the names that words.txt has for each id: lines of id, tab, names separated by commas."""
    words = dict(line.split("\t", 1) for line in _tiny_lines(tree, "words.txt") if "\t" in line)
    if missing := [wnid for wnid in ids if wnid not in words]:
        raise TrainError(f"{tree.where('words.txt')}: no name for {missing[0]}; download it again")
    return tuple(words[wnid].split(",")[0].strip() for wnid in ids)
