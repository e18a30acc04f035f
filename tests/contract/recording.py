"""A mode's conversations with a server, one after another."""

from pathlib import Path

from tests.contract.conversations import CONVERSATIONS
from tests.contract.speaker import Speaker
from tests.contract.transcripts import Transcript
from tests.scenarios.servers import Servers
from tests.scenarios.steps import Mode


async def hold(name: str, mode: Mode, servers: Servers, folder: Path) -> Transcript:
    """One conversation, and what came of it."""
    async with servers.lend(mode, folder) as server, Speaker(server, mode) as speaker:
        await CONVERSATIONS[name](speaker)
    return speaker.transcript
