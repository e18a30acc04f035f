"""Project lifecycles in a sandbox with controllers match the recordings of Milo with its own controllers."""

from pathlib import Path

import pytest

from milo_sandbox import Sandbox
from tests.integration.sandbox_conformance import transcripts
from tests.integration.sandbox_conformance.lives import LIVES, Places, record


@pytest.mark.parametrize("name", LIVES)
async def test_project_lifecycle_matches_the_recording(name: str, tmp_path: Path) -> None:
    async with Sandbox(controllers=True) as sandbox:
        kubeconfig = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
        assert await record(name, Places(kubeconfig, kubeconfig, kubeconfig)) == transcripts.read("lives")[name]
