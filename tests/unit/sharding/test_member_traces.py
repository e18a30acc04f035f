"""The decisions of the members of a group match recorded traces: see traces.py and testdata."""

from pathlib import Path

import pytest

from tests.unit.sharding.traces import TRACES, play


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_shard_group_decisions_match_the_recorded_trace(path: Path) -> None:
    assert play(path.read_text()) == path.read_text(), (
        "python -m tests.unit.sharding.traces records the current decisions"
    )
