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
from milo_discoveryd.sharding.lease_client import PAGE_BYTES, LeaseClient
from milo_discoveryd.sharding.lease_objects import GROUP_LABEL
from milo_discoveryd.sharding.leases import PENDING_SIZE, MemberLease, WriteLease
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


def client_of(sandbox: Sandbox, directory: Path, closing: AsyncExitStack) -> LeaseClient:
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(json.dumps(sandbox.kubeconfig(project="operators")))
    settings = Settings(sharding=ShardingSettings(group="ops", kubeconfig=kubeconfig, namespace="default"))
    return lease_client(settings, "ops", {}, closing)


class Daemon:
    def __init__(self, name: str, leases: LeaseClient) -> None:
        self.operator = Operator()
        member = Member(name, f"{name}#1", timing=TIMING)
        self.group = ShardGroup("ops", member, leases, self.operator, metrics=Requests())
        self.running = asyncio.create_task(self.group.run())


async def test_clusters_of_a_killed_member_get_an_owner_beside_large_leases_of_others(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    foreign = [f"junk-{number}" for number in range(PAGE_BYTES // JUNK)]
    await plant(sandbox, *foreign, "milo-discovery-ops-forged")
    async with AsyncExitStack() as closing:
        first, second = (Daemon(name, client_of(sandbox, tmp_path, closing)) for name in ("a", "b"))
        await eventually(lambda: first.operator.engaged | second.operator.engaged == set(KEYS))
        await eventually(lambda: first.operator.engaged and second.operator.engaged)
        first.running.cancel()
        await eventually(lambda: second.operator.engaged == set(KEYS))
        assert f"{len(foreign)} Leases in namespace default" in second.group.status().problem
        second.running.cancel()
        await asyncio.wait([first.running, second.running])


async def test_leases_of_many_members_that_wait_for_as_many_releases_as_they_may_name_are_read(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    pending = frozenset(f"project-{number:012}" for number in range(PENDING_SIZE // 20))
    async with AsyncExitStack() as closing:
        leases = client_of(sandbox, tmp_path, closing)
        for name in map(str, range(32)):
            lease = MemberLease(member=name, holder=f"{name}#1", term=f"{name}#1.1", pending=pending)
            await leases.write(WriteLease(lease))
        members = (await leases.read()).members
    assert {name: lease.pending for name, lease in members.items()} == dict.fromkeys(map(str, range(32)), pending)
