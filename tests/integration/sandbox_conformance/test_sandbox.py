"""The sandbox responds as the recorded real servers, in each conversation."""

from pathlib import Path

import pytest

from tests.end_to_end.scenarios.servers import Sandboxes
from tests.end_to_end.scenarios.steps import MODES, Mode
from tests.integration.sandbox_conformance import transcripts
from tests.integration.sandbox_conformance.conversations import CONVERSATIONS
from tests.integration.sandbox_conformance.recording import record


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_sandbox_matches_recorded_conversation(name: str, mode: Mode, tmp_path: Path) -> None:
    assert await record(name, mode, Sandboxes(), tmp_path) == transcripts.read(mode)[name]
