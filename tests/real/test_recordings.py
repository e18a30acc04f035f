"""What was recorded of real servers is what they answer."""

from pathlib import Path

import pytest

from tests.contract import transcripts
from tests.contract.conversations import CONVERSATIONS
from tests.contract.recording import hold
from tests.scenarios.servers import RealServers
from tests.scenarios.steps import MODES, Mode

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_recorded_conversation_still_goes_like_that(
    name: str, mode: Mode, servers: RealServers, tmp_path: Path
) -> None:
    assert await hold(name, mode, servers, tmp_path) == transcripts.read(mode)[name]
