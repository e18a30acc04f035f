"""Project lifecycles under Milo's own controllers; skipped unless MILO_CONTROLLER_MANAGER is set to their program."""

import pytest

from tests.end_to_end.real.whole_milo import WholeMilo
from tests.integration.sandbox_conformance import transcripts
from tests.integration.sandbox_conformance.lives import LIVES, record

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("name", LIVES)
async def test_recorded_project_lifecycle_matches_milo(name: str, whole_milo: WholeMilo) -> None:
    assert await record(name, whole_milo.places) == transcripts.read("lives")[name]
