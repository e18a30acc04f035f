"""The sandbox answers as the real servers did, conversation by conversation."""

from pathlib import Path

import pytest

from tests.contract import transcripts
from tests.contract.conversations import CONVERSATIONS
from tests.contract.recording import hold
from tests.scenarios.servers import Sandboxes
from tests.scenarios.steps import MODES, Mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_conversation_goes_as_with_a_real_server(name: str, mode: Mode, tmp_path: Path) -> None:
    assert await hold(name, mode, Sandboxes(), tmp_path) == transcripts.read(mode)[name]
