"""The directory of a cell."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def directory() -> Iterator[Path]:
    """A temporary directory with a short path, since a socket's path has 107 characters at most."""
    with TemporaryDirectory(prefix="milo-") as name:
        yield Path(name)
