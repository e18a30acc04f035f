"""A member of a shard group whose kubeconfig is replaced by a broken one, while its token is valid."""

import json
from datetime import datetime
from typing import Any

import pytest
import yaml

from milo_discovery.v1 import discovery_pb2 as pb
from milo_sandbox.resources import LEASES
from tests.end_to_end.matrix.cell import HUB, create_hub, pod, sharding
from tests.end_to_end.process.conftest import Workspace
from tests.support.eventually import eventually
from tests.support.renamed_file import replace

LEASE = "default/milo-discovery-matrix-member-0"
LOST_AFTER_S = 20.0
"""Longer than a member owns its clusters without renewing its Lease."""


@pytest.mark.parametrize("broken", ["content", "server"])
async def test_broken_replacement_of_the_groups_kubeconfig_costs_a_member_nothing(
    workspace: Workspace, broken: str
) -> None:
    hub = workspace.directory / "hub"
    create_hub(workspace.sandbox, hub)
    names = {*workspace.sandbox.populate(3), HUB}
    daemon = workspace.daemon(sharding=sharding(hub), environ=pod(0))

    def renewed_at() -> float:
        lease: Any = workspace.sandbox.control_plane(HUB).find(LEASES, LEASE)
        return datetime.fromisoformat(lease.document()["spec"]["renewTime"]).timestamp()

    async with daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            engaged: set[str] = set()
            while engaged != names:
                engaged |= {event.cluster.name for event in (await stream.batch()).events}

            config = yaml.safe_load(hub.read_text())
            config["clusters"][0]["cluster"]["server"] = "https://elsewhere.test"
            replace(hub, "nonsense: yes" if broken == "content" else json.dumps(config))
            await eventually(lambda: daemon.events("credential of the daemon not renewed"))
            (line,) = daemon.events("credential of the daemon not renewed")
            expected = "its new content is invalid" if broken == "content" else "now names a different server"
            assert expected in str(line["problem"])
            replaced_at = renewed_at()
            await eventually(lambda: renewed_at() > replaced_at + LOST_AFTER_S, within_s=3 * LOST_AFTER_S)
            workspace.sandbox.projects.create("later", ready=True)
            events: list[pb.ClusterEvent] = []
            while not any(event.cluster.name == "later" for event in events):
                events += (await stream.batch()).events
            assert all(event.type != pb.ClusterEvent.TYPE_DISENGAGED for event in events)
        assert not daemon.events("shard ownership lost")
        assert not daemon.events("shard group unhealthy")
