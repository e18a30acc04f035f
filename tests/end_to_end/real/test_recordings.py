"""Recorded conversations match the responses of real servers."""

from pathlib import Path

import pytest

from tests.end_to_end.real.builds import KUBE_APISERVERS
from tests.end_to_end.real.programs import Programs, kubernetes_asked_for
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import MODES, Mode
from tests.integration.sandbox_conformance import transcripts
from tests.integration.sandbox_conformance.conversations import CONVERSATIONS
from tests.integration.sandbox_conformance.recording import record

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_recorded_conversation_matches_real_server(
    name: str, mode: Mode, servers: RealServers, built: Programs, tmp_path: Path
) -> None:
    newest = next(iter(KUBE_APISERVERS.values()))
    is_milo = mode == "project" and built.has_milo
    if not is_milo and kubernetes_asked_for() is not newest:
        pytest.skip(f"recorded from {newest.title}: error messages of other versions differ")
    assert await record(name, mode, servers, tmp_path) == transcripts.read(mode)[name]
