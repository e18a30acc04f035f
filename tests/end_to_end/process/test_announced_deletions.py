"""Many deletions that were requested earlier: each cluster is disengaged once its object is removed."""

import asyncio

from milo_discovery import EventType
from tests.end_to_end.process.conftest import Workspace
from tests.support.eventually import eventually

COUNT = 40
FINALIZER = "example.com/held"


async def test_announced_deletions_of_most_of_the_fleet_disengage_at_once(workspace: Workspace) -> None:
    names = {f"p-{number}" for number in range(COUNT)}
    for name in names:
        workspace.sandbox.projects.create(name, ready=True, finalizers=[FINALIZER])
    workspace.sandbox.projects.create("stays", ready=True)
    async with workspace.daemon(removals={"verify_after": "1h"}) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch() as watch:
            ended: set[str] = set()

            async def follow() -> None:
                async for event in watch:
                    ended.update([event.cluster.name] if event.type is EventType.DISENGAGED else [])

            following = asyncio.create_task(follow())
            await eventually(lambda: len(watch.clusters) == COUNT + 1)
            for name in names:
                workspace.sandbox.projects.delete(name)
            await eventually(
                lambda: sum(each.deletion_requested_at is not None for each in watch.clusters.values()) == COUNT
            )
            for name in names:
                workspace.sandbox.projects.unfinalize(name)
            await daemon.during(eventually(lambda: ended == names))
            assert set(watch.clusters) == {"stays"}
            following.cancel()
