import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.milo import sandbox_milo
from bench.scale import TINY
from bench.setting import Setting


@pytest.fixture
def setting() -> Iterator[Setting]:
    """A small scale for tests of the benchmark."""
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:
        yield Setting(TINY, Path(directory), sandbox_milo)
