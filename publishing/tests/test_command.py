"""The publishing commands as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.cli.tests.command_process import running
from clients.python.tests.conftest import daemon as daemon  # noqa: PLC0414  (a fixture)
from clients.python.tests.eventually import eventually
from clients.python.tests.messages import snapshot
from clients.python.tests.scripted_daemon import ScriptedDaemon


@pytest.fixture
def destination(tmp_path: Path) -> tuple[str, ...]:
    """Options that name an API server, which is not reachable."""
    named = {"cluster": {"server": "http://127.0.0.1:1"}, "user": {}, "context": {"cluster": "a", "user": "a"}}
    entries = {f"{key}s": [{"name": "a", key: value}] for key, value in named.items()}
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "a", **entries}))
    return "--kubeconfig", str(path), "--namespace", "fleet"


@pytest.mark.parametrize("arguments", [(), ("--timeout", "1h")])
async def test_publisher_limits_each_call_of_the_daemon(
    daemon: ScriptedDaemon, destination: tuple[str, ...], arguments: tuple[str, ...]
):
    """Found by a reader: one answer that was lost kept it from publishing anything further."""
    async with running("publish", "flux-configmaps", *destination, *arguments, address=daemon.address):
        (await daemon.stream()).send(snapshot("1"))
        await eventually(lambda: daemon.deadlines_s)
    [left_s] = daemon.deadlines_s
    assert left_s is not None
    assert left_s <= 10
