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


@pytest.mark.parametrize("label", ["*", "example.com/*/x", "env/", "/*", "-a", "!a", "a in (b)"])
async def test_label_that_no_cluster_can_have_is_refused(destination: tuple[str, ...], label: str):
    """Found by a reader: `--copy-label '*'` copied nothing."""
    arguments = "publish", "flux-configmaps", *destination, "--copy-label", label
    async with running(*arguments, address="unix:///nowhere") as process:
        _, err = await process.communicate()
    assert process.returncode == 2
    assert f"{label!r} is not a label key, or PREFIX/*" in " ".join(err.decode().split())
