import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.milo import sandbox_milo
from bench.scale import TINY
from bench.setting import Setting


@pytest.fixture
def setting() -> Iterator[Setting]:
    """Just enough of everything to see that all of it works."""
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:
        yield Setting(TINY, Path(directory), sandbox_milo)
