from __future__ import annotations

import os

import pytest

from clients.python.tests.conftest import daemon as daemon  # noqa: PLC0414  (a fixture)
from clients.python.tests.scripted_daemon import ScriptedDaemon
from tests.support.forked_command import forked

from .command_process import Outcome


@pytest.fixture
def command(daemon: ScriptedDaemon):
    async def run(*arguments: str, **environment: str) -> Outcome:
        variables = {**os.environ, "MILO_DISCOVERY_ADDRESS": daemon.address, **environment}
        return Outcome(*await forked("milo-discovery", arguments, variables))

    return run
