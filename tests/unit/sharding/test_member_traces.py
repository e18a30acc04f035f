"""What the members of a group decide, as text: see traces.py, and testdata beside it."""

from pathlib import Path

import pytest

from tests.unit.sharding.traces import TRACES, play


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_shard_group_decides_as_its_trace_says(path: Path) -> None:
    assert play(path.read_text()) == path.read_text(), "python -m tests.unit.sharding.traces writes what is decided now"
