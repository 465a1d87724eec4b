"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eiexport.errors import ExportError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place only when the block succeeds.

    Writers tell a full disk in their own ways (h5py a RuntimeError, safetensors its own class): here it is an OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as e:
        found = re.search(r"(?:errno = |os error )(\d+)", str(e))
        code = e.errno if isinstance(e, OSError) else int(found[1]) if found else None
        if code is None or isinstance(e, ExportError) or getattr(e, "filename", None):
            raise
        raise OSError(code, os.strerror(code), str(path)) from e
    finally:
        temporary.unlink(missing_ok=True)


class Sink(io.RawIOBase):
    """A file for HDF5 that remembers its first failure instead of raising it.

    A full disk in the middle of a write leaves the HDF5 library in a state in which closing crashes the process; so it
    is told that all went well, and `writing` tells the truth once the library has closed.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw
        self.error: OSError | None = None

    def _try(self, act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except OSError as e:
            self.error = self.error or e
            return None

    def write(self, data: Any) -> int:
        """All of it, or a remembered failure: a raw file may take less than it was given."""
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            done += self._try(self.raw.write, view[done:]) or 0
        return len(view)

    def readinto(self, buffer: Any) -> int:
        return self._try(self.raw.readinto, buffer) or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.raw.seek(offset, whence)

    def tell(self) -> int:
        return self.raw.tell()

    def truncate(self, size: int | None = None) -> int:
        return self._try(self.raw.truncate, size) or 0

    def flush(self) -> None:
        if not self.raw.closed:
            self._try(self.raw.flush)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def writing(path: Path) -> Iterator[Sink]:
    """A sink for one HDF5 file, which takes its place when the block succeeds; raises OSError on a full disk."""
    with replacing(path) as temporary, open(temporary, "w+b", buffering=0) as raw:
        sink = Sink(raw)
        try:
            yield sink
        finally:
            if sink.error is not None:  # whatever else went wrong then is its consequence
                raise OSError(sink.error.errno, os.strerror(sink.error.errno or 0), str(path))
