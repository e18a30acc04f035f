"""Atomic replacement of files that may hold secrets: mode 0600, never half-written."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX, _SUFFIX = ".milo-discovery-", ".new"


def replace(path: Path, content: bytes, *, is_lasting: bool = True) -> None:
    """Replace the file by a rename, so that readers see either the old content or the new.

    `is_lasting`: also after a loss of power, which otherwise can leave an empty file.
    """
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if is_lasting:
                file.flush()
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files of processes that were killed in `replace`."""
    for path in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)
