"""Responses of a daemon with invalid durations, in the Node example."""

import json
import subprocess
from pathlib import Path

from tests.end_to_end.examples.building import tool

INVALID = [
    None,
    {"seconds": "-10", "nanos": 0},
    {"seconds": str(2**63 - 1), "nanos": 0},
    {"seconds": str(-(2**63)), "nanos": 0},
    {"seconds": "10", "nanos": 2_000_000_000},
    {"seconds": "10", "nanos": -1},
]
VALID = [{"seconds": "60", "nanos": 0}, {"seconds": "0", "nanos": 999_999_999}]


def test_only_valid_durations_grant_ownership_in_node(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    path.write_text(json.dumps(INVALID + VALID))
    program = Path(__file__).with_name("grants.mjs")
    done = subprocess.run([tool("node"), program, path], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [False] * len(INVALID) + [True] * len(VALID)
