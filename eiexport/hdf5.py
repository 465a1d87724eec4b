"""HDF5 files of unknown origin, opened so that reading them stays inside the file and inside the memory.

A file may link to other files or keep its numbers there, hold groups that contain themselves, and declare a million
times more than it stores. All of that is refused here, before a reader follows a name or asks for a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from eiexport.errors import ExportError

DEPTH = 64  # groups inside groups
OBJECTS = 100_000  # groups and datasets of one file
UNWRITTEN = 64 << 20  # bytes that a dataset may always declare: parts that nobody wrote are zeros
DEFLATE = 1100  # beyond them it may not declare more than this of what it holds: deflate ends at 1032
PRESSED = 100  # nor what is large, in a file that is read as a whole: zeros by the gigabyte are no weights
LARGE = 1 << 28  # bytes
WHOLE = 1 << 30  # bytes that a file may declare which is read as a whole
# h5py tells damage in all of these ways; RuntimeError includes RecursionError and NotImplementedError
DAMAGE = (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, MemoryError, ArithmeticError)


def opened(path: Path, error: type[ExportError], most: int | None = None) -> h5py.File:
    """The file, open for reading and verified by `verify`; raises `error` in one line."""
    try:
        file = h5py.File(path, "r")
    except DAMAGE as e:
        raise error(f"{path}: {damage(e)}") from None
    try:
        verify(file, error, most)
    except BaseException:
        file.close()
        raise
    return file


def damage(e: BaseException) -> str:
    """What h5py says of a damaged file, in one line."""
    line = (str(e).splitlines() or [type(e).__name__])[0]
    return f"not readable as HDF5, truncated or corrupt ({line})"


def verify(file: h5py.File, error: type[ExportError], most: int | None = None) -> None:
    """Raise `error` for a file that leads elsewhere, contains itself, or declares more than it holds.

    most: bytes that all its datasets together may declare, for files that are read as a whole.
    """
    name = Path(str(file.filename))
    try:
        _walk(file, most)
    except _RefusedError as e:
        raise error(f"{name}: {e}; write it again") from None
    except DAMAGE as e:
        raise error(f"{name}: {damage(e)}") from None


class _RefusedError(Exception):
    """What is wrong, without the file's name."""


def _walk(file: h5py.File, most: int | None) -> None:
    seen, declared, objects = {_address(file)}, 0, 1
    waiting: list[tuple[Any, int]] = [(file, 0)]
    while waiting:
        group, depth = waiting.pop()
        for key in group:
            link = group.get(key, getlink=True)
            where = f"{group.name.rstrip('/')}/{key}"
            if isinstance(link, h5py.ExternalLink):
                raise _RefusedError(f"{where!r} links to another file, {link.filename!r}; a model is one file")
            if isinstance(link, h5py.SoftLink):  # its path may lead through anything
                raise _RefusedError(f"{where!r} is a soft link to {link.path!r}; a model holds its parts themselves")
            objects += 1
            if objects > OBJECTS:
                raise _RefusedError(f"holds more than {OBJECTS} groups and datasets")
            item = group[key]
            if isinstance(item, h5py.Dataset):
                declared += _declared(item, where, most is not None)
                if most is not None and declared > most:
                    raise _RefusedError(f"{where!r} takes it beyond {most:,} bytes of numbers, too many to read")
            elif isinstance(item, h5py.Group):
                if _address(item) in seen:
                    raise _RefusedError(f"group {where!r} stands under two names, so it may contain itself")
                if depth == DEPTH:
                    raise _RefusedError(f"{where!r} lies more than {DEPTH} groups deep")
                seen.add(_address(item))
                waiting.append((item, depth + 1))


def _address(group: h5py.Group) -> tuple[int, int]:
    about = h5py.h5o.get_info(group.id)
    return about.fileno, about.addr


def _declared(item: h5py.Dataset, where: str, whole: bool) -> int:
    """Bytes that a dataset declares; refused where its numbers are elsewhere or were never written."""
    if item.is_virtual or item.external:
        raise _RefusedError(f"{where!r} keeps its numbers in other files; a model is one file")
    size = int(item.size or 0) * item.dtype.itemsize
    stored = item.id.get_storage_size()
    if size > UNWRITTEN + (PRESSED if whole and size > LARGE else DEFLATE) * stored:
        raise _RefusedError(f"{where!r} declares {size:,} bytes and holds {stored:,} (if that is meant, uncompressed)")
    return size
