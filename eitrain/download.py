"""The original files of the data sets: found in a folder or downloaded, checked, and opened with care.

Helpers of `eitrain.data`. All let OSError pass for a file that cannot be read, and read no more than a limit.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import lzma
import os
import pickle
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pooch

from eitrain.errors import TrainError

# Per data set: folder inside the cache (the layout eitrain.data looks for), mirror, and {file: known hash}.
# A .tar.gz is unpacked beside itself once its hash has matched.
MIRRORS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mnist": (
        "MNIST/raw",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion": (
        "FashionMNIST/raw",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # no https; the hash guards it
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": (
        "cifar10",
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "cifar100": (
        "cifar100",
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-python.tar.gz": "md5:eb9058c3a382ffc7106e4002c42a8d85"},
    ),
}
# What to fetch by hand, for data sets without a link that a program may use.
BY_HAND = {
    "nmnist": "get Train.zip and Test.zip from https://www.garrickorchard.com/datasets/n-mnist",
    "tinyimagenet": "get tiny-imagenet-200.zip from http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "dvsgesture": "get DvsGesture.tar.gz from https://research.ibm.com/interactive/dvsgesture, unpack it",
    "cifar10dvs": "get airplane.zip to truck.zip from https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
}
# SHA-256 of the IDX content, not of the .gz around it: gzip headers differ between mirrors.
IDX_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
# The published MD5s of the original Python batches (no stronger hash was published).
CIFAR_PY_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR100_PY_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
LARGEST = 2**28  # bytes; the largest file that is read at once, CIFAR-100's training batch, has 155 million


def data_folder(name: str, data_dir: Path | None) -> Path:
    """The folder to read data set `name` from: `data_dir`, else EITRAIN_DATA, else a download.

    Raises TrainError when the folder is missing, not a folder or not readable, and as `fetch` does.
    """
    given = data_dir or os.environ.get("EITRAIN_DATA")
    if not given:
        return fetch(name)
    folder = Path(given).expanduser()
    origin = "--data-dir" if data_dir else "EITRAIN_DATA"
    try:
        os.scandir(folder).close()  # missing, not a folder and not readable all show here
    except OSError as err:
        raise TrainError(f"data folder {folder} ({err.strerror}); set {origin} to a folder you can read") from err
    return folder


def fetch(name: str, cache: Path | None = None) -> Path:
    """Return the folder that holds data set `name`, downloading into `cache` what is not yet there.

    `cache` defaults to the user's cache folder (`pooch.os_cache("eitrain")`). Raises TrainError when the
    data set has no direct link, or when a download fails or does not have the known hash.
    """
    if name not in MIRRORS:
        raise TrainError(
            f"{name}: no direct download exists; {BY_HAND[name]} and give the folder it is in with --data-dir"
        )
    subfolder, mirror, files = MIRRORS[name]
    root = Path(pooch.os_cache("eitrain")) if cache is None else cache
    folder = root / subfolder
    for file, known_hash in files.items():
        processor = pooch.Untar(extract_dir="unpacked") if file.endswith(".tar.gz") else None
        try:
            pooch.retrieve(mirror + file, known_hash, fname=file, path=folder, processor=processor)
        except (OSError, ValueError) as err:  # network and disk errors; ValueError is a wrong hash
            reason = " ".join(str(err).split())
            raise TrainError(
                f"{name}: download of {mirror}{file} failed ({reason}); "
                f"give a folder that already holds the data with --data-dir"
            ) from err
    return folder / "unpacked" if any(file.endswith(".tar.gz") for file in files) else root


def find(folders: Sequence[Path], files: Sequence[str], suffixes: Sequence[str] = ("",)) -> dict[str, Path]:
    """The path of each of `files`, with one of `suffixes`, in the folder that holds the most of them."""
    copies = []
    for folder in folders:
        paths = [(file, folder / (file + suffix)) for file in files for suffix in suffixes]
        copies.append({file: path for file, path in paths if path.exists()})
    return max(copies, key=len)


def not_found(name: str, file: str, folders: Sequence[Path]) -> TrainError:
    """The error to raise when `file` is in none of `folders`."""
    places = ", ".join(map(str, folders))
    return TrainError(f"{name}: no {file} in {places}; put the original files there or give another --data-dir")


def check_digest(path: Path, algorithm: str, known: str, content: bytes) -> None:
    """Raise TrainError unless `content`, of the file at `path`, has the hex digest `known`."""
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != known:
        raise TrainError(
            f"{path}: not the original file, {algorithm} of the content is {found}, expected {known}; download it again"
        )


def sha256(content: bytes) -> str:
    """The checksum of `content` as provenance records it: "sha256:" and hex digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def file_sha256(path: Path) -> str:
    """`sha256` of a file of any size."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def bounded(content: bytes, limit: int, where: object) -> bytes:
    """`content`, of which `limit` + 1 bytes were asked for; raises TrainError when there were as many."""
    if len(content) > limit:
        raise TrainError(f"{where}: more than {limit} bytes, which no original file has; download it again")
    return content


def read_file(path: Path, limit: int = LARGEST) -> bytes:
    """The content of a file; raises TrainError for one of more than `limit` bytes."""
    with path.open("rb") as file:
        return bounded(file.read(limit + 1), limit, path)


def read_plain_or_gzip(path: Path, limit: int = LARGEST) -> bytes:
    """The content of a file that may or may not be gzipped; raises TrainError when damaged or too large."""
    content = read_file(path, limit)
    if not content.startswith(b"\x1f\x8b"):  # an IDX file starts with two zero bytes
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            return bounded(file.read(limit + 1), limit, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise TrainError(f"{path}: truncated or damaged gzip file ({err}); download it again") from err


def text_lines(content: bytes, where: object) -> list[str]:
    """The lines of a text file, stripped and without empty ones; raises TrainError when it is no text."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise TrainError(f"{where}: not a text file ({err}); download it again") from err
    return [line.strip() for line in lines if line.strip()]


class _ArrayUnpickler(pickle.Unpickler):
    """Builds containers, bytes, numbers and numpy arrays; refuses every other name a pickle asks for."""

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # wherever numpy has it now
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.allowed[module, name]


def read_array_pickle(content: bytes, path: Path) -> Any:
    """Unpickle what Python 2 and numpy wrote, its strings as bytes; runs no code that the file names.

    Raises TrainError, which names `path`, for anything but plain containers and arrays.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as err:  # a damaged or hostile pickle can raise anything
        raise TrainError(f"{path}: refused to unpickle it ({err}); download it again") from err


@lru_cache(maxsize=32)  # CIFAR10-DVS has ten
def _open_zip(archive: str, _modified_ns: int, _size: int, _process: int, _thread: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _opened(archive: str) -> zipfile.ZipFile:
    """An archive that stays open between calls: to read the directory of 120000 members takes seconds.

    One handle for each process (a fork would share the position in the file with its parent) and thread (ZipFile
    counts its readers without a lock).
    """
    about = os.stat(archive)
    return _open_zip(archive, about.st_mtime_ns, about.st_size, os.getpid(), threading.get_ident())


def zip_members(archive: Path) -> list[zipfile.ZipInfo]:
    """What a zip archive holds; raises TrainError when it is damaged."""
    try:
        return _opened(str(archive)).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as err:
        raise TrainError(f"{archive}: truncated or not a zip file ({err}); download it again") from err


# What a damaged member raises; KeyError when it is gone, RuntimeError when it is encrypted.
_DAMAGED = (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, zlib.error, lzma.LZMAError)


def read_member(archive: str, member: str, limit: int = LARGEST) -> bytes:
    """The content of one member of a zip archive.

    Raises TrainError when it is damaged or unpacks to more than `limit` bytes, OSError when the archive is gone.
    """
    try:
        with _opened(archive).open(member) as file:
            return bounded(file.read(limit + 1), limit, f"{archive}: {member}")
    except _DAMAGED as err:
        raise TrainError(f"{archive}: cannot unpack {member} ({err}); download it again") from err


@dataclass(frozen=True)
class Tree:
    """Files below a folder, or members of a zip archive whose names start with `prefix`; nothing is unpacked."""

    base: str
    prefix: str | None = None

    def where(self, name: str) -> str:
        """File `name` (with forward slashes) as messages tell it."""
        return f"{self.base}/{name}" if self.prefix is None else f"{self.base}: {self.prefix}{name}"

    def read(self, name: str, limit: int = LARGEST) -> bytes:
        """The content of file `name`, as `read_file` and `read_member` give it."""
        if self.prefix is None:
            return read_file(Path(self.base, name), limit)
        return read_member(self.base, self.prefix + name, limit)

    def sizes(self, folders: Sequence[str]) -> dict[str, int]:
        """{name: bytes} of the files directly in `folders`, those there are; in a zip, as its directory says."""
        if self.prefix is not None:
            wanted = {f"{self.prefix}{folder}" for folder in folders}
            members = ((m.filename, m.file_size) for m in zip_members(Path(self.base)) if not m.is_dir())
            return {n.removeprefix(self.prefix): size for n, size in members if n.rpartition("/")[0] in wanted}
        found: dict[str, int] = {}
        for folder in folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(Path(self.base, folder)) as entries:
                found |= {f"{folder}/{e.name}": e.stat().st_size for e in entries if e.is_file()}
        return found
