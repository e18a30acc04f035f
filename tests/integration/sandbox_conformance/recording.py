"""Recording of conversations with the servers of a mode."""

from pathlib import Path

from tests.end_to_end.scenarios.servers import Servers
from tests.end_to_end.scenarios.steps import Mode
from tests.integration.sandbox_conformance.conversations import CONVERSATIONS
from tests.integration.sandbox_conformance.speaker import Speaker
from tests.integration.sandbox_conformance.transcripts import Transcript


async def record(name: str, mode: Mode, servers: Servers, directory: Path) -> Transcript:
    """Run one conversation; return its transcript."""
    async with servers.acquire(mode, directory) as server, Speaker(server, mode) as speaker:
        await CONVERSATIONS[name](speaker)
    return speaker.transcript
