"""Each client passes the profiles of the conformance kit that it claims."""

import subprocess
import sys

import pytest

from tests.end_to_end.conformance.clients import CLIENTS, ROOT, ToolMissing

pytestmark = pytest.mark.timeout(900)  # the first build downloads and compiles libraries


@pytest.mark.parametrize("language", CLIENTS)
def test_client_passes_the_profiles_that_it_claims(language: str) -> None:
    client = CLIENTS[language]
    try:
        command = client.build()
    except ToolMissing as missing:
        pytest.skip(f"{missing}: the client for it is neither built nor run")
    kit = [sys.executable, "-m", "milo_conformance", "run", *client.arguments(), "--", *command]
    ran = subprocess.run(kit, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
