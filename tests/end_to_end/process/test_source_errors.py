"""Errors of the discovery source: the daemon reports them to subscribers, retries and keeps running."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from milo_discovery import EngagementReason
from milo_discovery.v1 import discovery_pb2 as pb
from milo_sandbox.rights import EVERYTHING, Rule
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.streams import Stream

STALE = pb.SourceStatus.STATE_STALE


async def first_status(stream: Stream, state: "pb.SourceStatus.State.ValueType") -> pb.SourceStatus:
    """Return the first source status with that state; no event may come before it."""
    while True:
        batch = await stream.batch()
        assert not batch.events
        if batch.HasField("source") and batch.source.state == state:
            return batch.source


def written(workspace: Workspace, document: dict[str, Any]) -> str:
    path: Path = workspace.directory / "other-kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return str(path)


async def test_missing_permissions_are_reported_as_forbidden_until_granted(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    token = workspace.sandbox.token("poor", rules=[])
    path = written(workspace, workspace.sandbox.kubeconfig(token=token))
    async with workspace.daemon(discovery_kubeconfig=path) as daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            status = await first_status(stream, STALE)
            assert status.reason == "Forbidden"
            assert "poor" in status.message
            workspace.sandbox.rights.grant("poor", [EVERYTHING])
            batches = await stream.until_synced()
        assert [event.cluster.name for batch in batches for event in batch.events] == ["alpha"]


async def test_unconfirmable_deletion_disengages_nothing(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    rules = [Rule(verbs=frozenset({"list", "watch"}))]
    path = written(workspace, workspace.sandbox.kubeconfig(token=workspace.sandbox.token("poor", rules=rules)))
    async with workspace.daemon(discovery_kubeconfig=path) as daemon, workspace.client() as client:
        await daemon.start()
        async with workspace.stream() as stream:
            await stream.until_synced()
            workspace.sandbox.projects.delete("alpha")
            report = await client.get("alpha")
            while report.engagement.reason is not EngagementReason.CONFIRMING_DELETION:
                report = await client.get("alpha")
            assert report.engagement.engaged
            # An event of alpha would have come before beta's.
            workspace.sandbox.projects.create("beta", ready=True)
            assert [event.cluster.name for event in (await stream.batch()).events] == ["beta"]

            workspace.sandbox.rights.grant("poor", [EVERYTHING])
            [gone] = (await stream.batch()).events
            assert gone.cluster.name == "alpha"
            assert gone.type == pb.ClusterEvent.TYPE_DISENGAGED


async def test_starting_daemon_waits_until_the_api_is_available(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    await workspace.sandbox.stop()
    async with workspace.daemon() as daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            assert (await first_status(stream, STALE)).reason == "ConnectFailed"
            await workspace.sandbox.start()
            batches = await stream.until_synced()
        assert [event.cluster.name for batch in batches for event in batch.events] == ["alpha"]


async def test_first_failure_logs_the_problem_that_check_prints(workspace: Workspace) -> None:
    path = written(workspace, workspace.sandbox.kubeconfig(token="unknown"))
    async with workspace.daemon(discovery_kubeconfig=path) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"check failed"')
        await daemon.terminate()
    lines = [json.loads(line) for line in daemon.output.splitlines()]
    assert not [line for line in lines if line["message"] == "source lost"]
    [started] = [line["timestamp"] for line in lines if line["message"] == "started"]
    failed = next(line for line in lines if line["message"] == "check failed")
    assert failed["check"] == "discovery identity"
    assert failed["problem"] == "the server rejects the credential (401)"
    assert path in failed["fix"]
    assert datetime.fromisoformat(failed["timestamp"]) - datetime.fromisoformat(started) < timedelta(seconds=2)
