"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
