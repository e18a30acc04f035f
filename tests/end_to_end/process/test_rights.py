"""Authorization rules of a running daemon: caller identification, reload and the audit log."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.streams import Stream
from tests.support.eventually import eventually


async def events(stream: Stream) -> list[str]:
    """Return the events of the next batch that has any."""
    while not (batch := await stream.batch()).events:
        pass
    return [f"{pb.ClusterEvent.Type.Name(event.type)[5:]} {event.cluster.name}" for event in batch.events]


@pytest.mark.parametrize("mode", ["project", "project-control-plane"])
async def test_rules_identify_process_users_and_are_reloaded_during_streams(workspace: Workspace, mode: str) -> None:
    first, second, third = workspace.sandbox.populate(3)
    audit = workspace.directory / "audit.jsonl"
    ours: dict[str, Any] = {"name": "ours", "who": {"uid": os.getuid()}, "clusters": {"names": [first, second]}}
    settings = {
        "mode": mode,
        "listen": [{"address": workspace.address, "name": "api", "peer_credentials": True}],
        "audit": {"file": str(audit)},
    }
    daemon = workspace.daemon(**settings, rights=[{"name": "other", "who": {"uid": 4242}, "clusters": "all"}, ours])
    daemon.address = workspace.address
    config = workspace.directory / "config.yaml"

    def says(*rules: object) -> None:
        written = yaml.safe_load(config.read_text()) | {"rights": list(rules)}
        config.with_suffix(".new").write_text(yaml.safe_dump(written))
        config.with_suffix(".new").rename(config)

    async with daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            seen = {event.cluster.name for batch in await stream.until_synced() for event in batch.events}
            assert seen == {first, second}

            says({**ours, "clusters": {"names": [second, third]}})
            assert sorted(await events(stream)) == [f"DISENGAGED {first}", f"ENGAGED {third}"]

            says({**ours, "clusters": "som"})
            await daemon.wait_for_output("configuration rejected")
            moved = audit.rename(workspace.directory / "audit.1")
            says({**ours, "clusters": {"names": [first]}})
            daemon.signal(signal.SIGHUP)
            assert sorted(await events(stream)) == sorted(
                [f"ENGAGED {first}", f"DISENGAGED {second}", f"DISENGAGED {third}"]
            )
        await eventually(audit.exists)
        assert daemon.is_running
    before, after = written(moved), written(audit)
    assert [line["event"] for line in before] == ["rights changed", "rights kept"]
    assert (before[0]["rules"], before[0]["removed"], before[0]["changed"]) == (["ours"], ["other"], ["ours"])
    assert '[0].clusters: "som" must be' in str(before[1]["problems"])
    assert [line["event"] for line in [*before, *after]].count("rights changed") == 2
    assert audit.stat().st_mode & 0o777 == 0o600


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
