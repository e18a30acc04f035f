"""The published test vectors of rendezvous hashing, computed in another language from the definition in the docs."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.examples.building import ROOT, tool

VECTORS = ROOT / "tests" / "unit" / "sharding" / "rendezvous_vectors.json"


def test_rendezvous_vectors_match_the_javascript_implementation() -> None:
    program = Path(__file__).with_name("rendezvous.mjs")
    done = subprocess.run([tool("node"), program, VECTORS], capture_output=True, check=True, timeout=60)
    found, published = json.loads(done.stdout), json.loads(VECTORS.read_text())
    assert [score["uniform"] for score in found["scores"]] == [score["uniform"] for score in published["scores"]]
    assert [score["score"] for score in found["scores"]] == pytest.approx(
        [score["score"] for score in published["scores"]]
    )
    assert found["owners"] == [entry["owner"] for entry in published["owners"]]
    assert len(set(found["owners"])) == len(published["members"])
