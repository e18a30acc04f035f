"""Restart of the daemon while Milo's lists are empty: subscribers keep clusters until a second list lacks them too."""

import asyncio
import json
import urllib.request
from typing import Any

import pytest

from milo_discovery import ClusterNotFound, EventType, SourceState, Unavailable
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.test_subscribers import until_metric
from tests.support.eventually import eventually

REMOVALS = {"verify_after": "5s"}


def status_of(http: str) -> Any:
    with urllib.request.urlopen(f"{http}/?json") as response:
        return json.load(response)


async def restart(workspace: Workspace, *, is_complete_again: bool) -> list[str]:
    """Restart the daemon while lists are empty; return the disengagements that a subscriber was sent."""
    disengaged: list[str] = []
    for number in range(20):
        workspace.sandbox.projects.create(f"p-{number}", ready=True)
    # The sandbox's fault `empty_lists` does not affect streaming lists.
    settings = {"removals": REMOVALS, "watch": {"streaming_lists": "off"}, "http_listen": "127.0.0.1:0"}
    async with workspace.daemon(**settings) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch() as watch:

            async def follow() -> None:
                async for event in watch:
                    disengaged.extend([event.cluster.name] if event.type is EventType.DISENGAGED else [])

            def is_held() -> bool:
                source = watch.source
                held = (SourceState.CATCHING_UP, "RemovalsHeld")
                return watch.connected and source is not None and (source.state, source.reason) == held

            following = asyncio.create_task(follow())
            await eventually(lambda: len(watch.clusters) == 20)
            await daemon.kill()
            workspace.sandbox.faults.empty_lists()
            await daemon.start()
            await daemon.during(eventually(is_held))
            assert watch.source is not None
            assert "has 0 clusters for the subscriber, which knows 20:" in watch.source.message
            with pytest.raises(ClusterNotFound, match="may lack clusters that subscribers know"):
                await client.get("p-1")
            with pytest.raises(Unavailable, match="may lack clusters that subscribers know"):
                await client.issue_kubeconfig("p-1")
            http = daemon.events("started")[-1]["http"]
            await until_metric(f"{http}/metrics", "milo_discoveryd_removals_held 0.0")
            assert (await asyncio.to_thread(status_of, http))["subscribersWaiting"] == 1
            async with workspace.client() as other:
                assert (await other.server_info()).source.state is SourceState.STREAMING
            workspace.sandbox.faults.empty_lists(on=not is_complete_again)
            async with workspace.client() as other:
                workspace.sandbox.projects.create("later", ready=True)
                await daemon.during(eventually(lambda: "later" in watch.clusters))
                assert (await other.server_info()).source.state is SourceState.STREAMING
            following.cancel()
    return disengaged


async def test_first_list_that_lacks_clusters_known_to_a_subscriber_disengages_nothing(workspace: Workspace) -> None:
    assert await restart(workspace, is_complete_again=True) == []


@pytest.mark.timeout(120)
async def test_clusters_that_are_also_missing_from_a_second_list_are_disengaged(workspace: Workspace) -> None:
    assert len(await restart(workspace, is_complete_again=False)) == 20
