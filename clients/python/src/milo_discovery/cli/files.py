"""Files that may hold secrets: readable by their owner only, and replaced in one step."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX, _SUFFIX = ".milo-discovery-", ".new"


def replace(path: Path, content: bytes) -> None:
    """Whoever reads the file finds the old content or the new, whatever happens to this process."""
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def sweep(directory: Path) -> None:
    """Remove what a process that was killed in the middle of `replace` has left."""
    for path in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)
