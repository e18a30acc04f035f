"""A group beside Leases with its label that others wrote, on the sandbox: each list of them needs several pages."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from kubernetes.aio.client import ApiClient, Configuration, CoordinationV1Api

from milo_discoveryd.config import Settings
from milo_discoveryd.config.settings import ShardingSettings
from milo_discoveryd.sharding.group import ShardGroup
from milo_discoveryd.sharding.lease_client import PAGE_BYTES
from milo_discoveryd.sharding.lease_objects import GROUP_LABEL
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.wiring.sharding import lease_client
from milo_sandbox import Sandbox
from tests.integration.sharding.test_group import KEYS, TIMING, Operator, Requests
from tests.support.eventually import eventually

JUNK = 200 * 1024
"""The size of a Lease that others wrote: annotations may have 256 KiB."""


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as running:
        running.projects.create("operators", ready=True)
        yield running


async def plant(sandbox: Sandbox, *names: str) -> None:
    """Create large Leases with the group's label."""
    configuration = Configuration(
        host=sandbox.control_plane_url("operators"),
        ca_cert_data=sandbox.ca_pem.decode(),
        api_key={"BearerToken": f"Bearer {sandbox.token()}"},
    )
    async with ApiClient(configuration) as client:
        for name in names:
            metadata = {"name": name, "labels": {GROUP_LABEL: "ops"}, "annotations": {"junk": "x" * JUNK}}
            await CoordinationV1Api(client).create_namespaced_lease("default", {"metadata": metadata})


class Daemon:
    def __init__(self, name: str, kubeconfig: Path, closing: AsyncExitStack) -> None:
        self.operator = Operator()
        settings = Settings(sharding=ShardingSettings(group="ops", kubeconfig=kubeconfig, namespace="default"))
        leases = lease_client(settings, "ops", {}, closing)
        member = Member(name, f"{name}#1", timing=TIMING)
        self.group = ShardGroup("ops", member, leases, self.operator, metrics=Requests())
        self.running = asyncio.create_task(self.group.run())


async def test_clusters_of_a_killed_member_get_an_owner_beside_large_leases_of_others(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(sandbox.kubeconfig(project="operators")))
    foreign = [f"junk-{number}" for number in range(PAGE_BYTES // JUNK)]
    await plant(sandbox, *foreign, "milo-discovery-ops-forged")
    async with AsyncExitStack() as closing:
        first, second = (Daemon(name, kubeconfig, closing) for name in ("a", "b"))
        await eventually(lambda: first.operator.engaged | second.operator.engaged == set(KEYS))
        await eventually(lambda: first.operator.engaged and second.operator.engaged)
        first.running.cancel()
        await eventually(lambda: second.operator.engaged == set(KEYS))
        assert f"{len(foreign)} Leases in namespace default" in second.group.status().problem
        second.running.cancel()
        await asyncio.wait([first.running, second.running])
