"""Many deletions that were requested earlier: each cluster is disengaged once its object is removed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from milo_discovery import EngagementReason, EventType, Watch
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.project_server import Projects, ProjectServer
from tests.support.eventually import eventually

NAMES = [f"p-{number}" for number in range(40)]
FINALIZER = "example.com/held"
AT_ONCE_S = 20.0
"""Limit for the disengagements, which take about two seconds on an idle machine: one until the daemon retries."""


class Fleet:
    """Most projects of source `a` wait for their finalizers; a subscriber has seen that they are being deleted."""

    def __init__(self, workspace: Workspace, daemon: DaemonProcess, b: ProjectServer, watch: Watch) -> None:
        self.sandbox, self.daemon, self.b, self.watch = workspace.sandbox, daemon, b, watch
        self.ended: list[str] = []

    async def follow(self) -> None:
        async for event in self.watch:
            self.ended.extend([event.cluster.name] if event.type is EventType.DISENGAGED else [])

    async def only_these_ended(self, names: list[str]) -> None:
        await self.daemon.during(eventually(lambda: len(self.ended) >= len(names)))
        assert sorted(self.ended) == sorted(f"a#{name}" for name in names)


@asynccontextmanager
async def announced(workspace: Workspace) -> AsyncIterator[Fleet]:
    projects = workspace.sandbox.projects
    for name in NAMES:
        projects.create(name, ready=True, finalizers=[FINALIZER])
    projects.create("stays", ready=True)
    async with ProjectServer(Projects(["other"])).listening() as b:
        kubeconfigs = {"a": str(workspace.kubeconfig), "b": b.kubeconfig(workspace.directory / "b.kubeconfig")}
        sources = [
            {"name": name, "kind": "project", "discovery_kubeconfig": file} for name, file in kubeconfigs.items()
        ]
        given = {"sources": sources, "discovery_kubeconfig": None, "plain_loopback": True}
        async with (
            workspace.daemon(removals={"verify_after": "1h"}, watch={"streaming_lists": "off"}, **given) as daemon,
            workspace.client() as client,
            client.watch() as watch,
        ):
            await daemon.start()
            fleet = Fleet(workspace, daemon, b, watch)
            following = asyncio.create_task(fleet.follow())
            await eventually(lambda: len(watch.clusters) == len(NAMES) + 2)
            for name in NAMES:
                projects.delete(name)
            await eventually(
                lambda: (
                    sum(cluster.deletion_requested_at is not None for cluster in watch.clusters.values()) == len(NAMES)
                )
            )
            yield fleet
            assert set(watch.clusters) == {"a#stays", "b#other"}
            following.cancel()


async def test_deletions_of_most_of_a_terminating_fleet_are_not_held(workspace: Workspace) -> None:
    async with announced(workspace) as fleet:
        for name in NAMES:
            workspace.sandbox.projects.unfinalize(name)
        await fleet.only_these_ended(NAMES)


async def test_deletions_of_a_terminating_fleet_are_not_held_after_an_outage_of_milo(workspace: Workspace) -> None:
    """Milo stops answering while some deletions are being confirmed; others follow before it answers again."""
    async with announced(workspace) as fleet:
        sandbox, half = workspace.sandbox, len(NAMES) // 2
        sandbox.faults.hanging(*NAMES[:half])
        for name in NAMES[:half]:
            sandbox.projects.unfinalize(name)
        async with workspace.client() as client:
            while (await client.get(f"a#{NAMES[0]}")).engagement.reason is not EngagementReason.CONFIRMING_DELETION:
                pass
        await sandbox.stop()
        for name in NAMES[half:]:
            sandbox.projects.unfinalize(name)
        await fleet.daemon.wait_for_output('"source lost"')
        fleet.b.projects.put("later")
        await fleet.daemon.during(eventually(lambda: "b#later" in fleet.watch.clusters))
        assert fleet.ended == [], "an unconfirmed deletion was reported"
        fleet.b.projects.delete("later")
        await fleet.daemon.during(eventually(lambda: fleet.ended == ["b#later"]))
        fleet.ended.clear()
        sandbox.faults.clear()
        sandbox.compact()  # so that only a list shows the deletions
        began = monotonic()
        await sandbox.start()
        await fleet.only_these_ended(NAMES)
        assert monotonic() - began < AT_ONCE_S
