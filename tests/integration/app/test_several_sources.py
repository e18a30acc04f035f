"""A daemon with several sources, which are sandboxes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from milo_discovery import ClusterNotFound, DiscoveryClient, Event, EventType, InvalidRequest, SourceState
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_discoveryd.server.calls.handlers import NAME
from milo_sandbox import Sandbox
from tests.integration.app.test_daemon import serving
from tests.support.eventually import LIMIT_S, eventually


class Workspace:
    def __init__(self, directory: Path, eu: Sandbox, us: Sandbox) -> None:
        self.eu, self.us = eu, us
        self.address = f"unix://{directory}/d.sock"
        self._directory = directory

    def daemon(self, **settings: Any) -> Daemon:
        sources = [
            {"name": name, "kind": "project", "discovery_kubeconfig": str(self._directory / name)}
            for name in ("eu", "us")
        ]
        file = self._directory / "settings.json"
        file.write_text(json.dumps({"sources": sources, "http_listen": "127.0.0.1:0", **settings}))
        return Daemon(load({} if "listen" in settings else {"listen": (self.address,)}, {}, file))

    def client(self) -> DiscoveryClient:
        return DiscoveryClient(self.address)


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    async with AsyncExitStack() as stack:
        eu, us = [await stack.enter_async_context(Sandbox()) for _ in range(2)]
        for name, sandbox in (("eu", eu), ("us", us)):
            sandbox.write_kubeconfig(tmp_path / name)
            sandbox.projects.create("shop", ready=True)
        yield Workspace(tmp_path, eu, us)


async def engaged(events: AsyncIterator[Event]) -> str:
    """Return the next cluster that is engaged; only results of probes may come before."""
    while (event := await anext(events)).type is EventType.UPDATED:
        pass
    assert event.type is EventType.ENGAGED
    return event.cluster.name


async def test_same_name_in_two_sources_identifies_two_clusters(workspace: Workspace) -> None:
    daemon = workspace.daemon()
    async with serving(daemon), workspace.client() as client:
        await eventually(lambda: daemon._fleet.synced)
        listing = await client.list()
        assert {cluster.name: cluster.source for cluster in listing} == {"eu#shop": "eu", "us#shop": "us"}
        by_name = {cluster.name: cluster.endpoint for cluster in listing}
        assert by_name["eu#shop"] == workspace.eu.control_plane_url("shop")
        assert by_name["us#shop"] == workspace.us.control_plane_url("shop")
        assert [cluster.name for cluster in await client.list(sources=["us"])] == ["us#shop"]
        assert (await client.get("eu#shop")).engagement.engaged
        with pytest.raises(ClusterNotFound):
            await client.get("shop")
        with pytest.raises(InvalidRequest, match="configured: eu, us"):
            await client.list(sources=["asia"])


async def test_single_named_source_is_labeled_in_metrics(workspace: Workspace, tmp_path: Path) -> None:
    daemon = workspace.daemon(sources=[{"name": "eu", "kind": "project", "discovery_kubeconfig": str(tmp_path / "eu")}])
    async with serving(daemon) as get:
        await eventually(lambda: daemon._fleet.synced)
        _, metrics = await get("/metrics")
    assert '\nmilo_discoveryd_engaged_clusters{source="eu"} 1.0' in metrics
    assert '\nmilo_discoveryd_transitions_total{reason="",source="eu",type="ENGAGED"} 1.0' in metrics


async def test_lost_source_makes_only_its_own_clusters_stale(workspace: Workspace) -> None:
    daemon = workspace.daemon()
    async with serving(daemon) as get, workspace.client() as client:
        await eventually(lambda: daemon._fleet.synced)
        async with asyncio.timeout(LIMIT_S):
            events = client.watch()
            assert {await engaged(events) for _ in range(2)} == {"eu#shop", "us#shop"}
            await workspace.us.stop()
            await eventually(lambda: daemon._fleet.sources[1].status.state.name == "STALE")
            workspace.eu.projects.create("bank", ready=True)
            assert await engaged(events) == "eu#bank"
        info = await client.server_info()
        states = {source.name: (source.kind, source.status.state, source.counts.engaged) for source in info.sources}
        assert states == {"eu": ("project", SourceState.STREAMING, 2), "us": ("project", SourceState.STALE, 1)}
        assert (info.mode, info.source.state) == ("sources", SourceState.STALE)
        _, metrics = await get("/metrics")
        assert '\nmilo_discoveryd_source_up{source="eu"} 1.0' in metrics
        assert '\nmilo_discoveryd_source_up{source="us"} 0.0' in metrics
        assert '\nmilo_discoveryd_engaged_clusters{source="eu"} 2.0' in metrics
        assert '\nmilo_discoveryd_transitions_total{reason="",source="eu",type="ENGAGED"} 2.0' in metrics
        assert '\nmilo_discoveryd_transitions_total{reason="",source="us",type="ENGAGED"} 1.0' in metrics
        assert '\nmilo_discoveryd_project_ready_duration_seconds_count{source="eu"} 1.0' in metrics
        assert '\nmilo_discoveryd_source_restarts_total{reason="Expired",source="us"} 0.0' in metrics
        assert '\nmilo_discoveryd_source_events_ignored_total{source="us"} 0.0' in metrics
        _, status = await get("/?json")
        rows = {source["name"]: source["summary"]["state"] for source in json.loads(status)["sources"]}
        assert rows == {"eu": "STREAMING", "us": "STALE"}


async def test_daemon_is_ready_while_one_of_two_sources_has_not_answered(workspace: Workspace) -> None:
    await workspace.us.stop()
    await workspace.eu.stop()
    daemon = workspace.daemon()
    async with serving(daemon) as get, grpc.aio.insecure_channel(f"unix:{workspace.address[7:]}") as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def is_serving(source: str = "") -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=f"{NAME}{source and '/'}{source}"))
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        missing = "no complete list has been received from the source yet"
        assert await get("/readyz") == (503, f"[-]synced eu {missing}\n[-]synced us {missing}\nfailed\n")
        assert not await is_serving()

        await workspace.eu.start()
        await eventually(lambda: daemon._fleet.sources[0].synced)
        assert await get("/readyz") == (200, f"[+]synced eu ok\n[-]synced us {missing}\nok\n")
        while not await is_serving("eu"):
            pass
        assert [await is_serving(name) for name in ("", "eu", "us")] == [True, True, False]

        await workspace.us.start()
        await eventually(lambda: daemon._fleet.synced)
        assert await get("/readyz") == (200, "ok\n")
        while not await is_serving("us"):
            pass


async def test_each_source_has_a_state_file(workspace: Workspace, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    daemon = workspace.daemon(state_directory=str(state))
    async with serving(daemon):
        await eventually(lambda: daemon._fleet.synced)
    assert {path.name for path in state.iterdir()} >= {"fleet-eu.state", "fleet-us.state"}
    await workspace.us.stop()
    workspace.eu.projects.create("bank", ready=True)
    again = workspace.daemon(state_directory=str(state))
    async with serving(again), workspace.client() as client:
        await eventually(lambda: again._fleet.sources[0].status.state.name == "STREAMING")
        listing = await client.list()
        assert {cluster.name for cluster in listing} == {"eu#shop", "eu#bank", "us#shop"}
        assert {source.name: source.state for source in listing.sources}["us"] is SourceState.STALE


async def test_subscriber_of_an_earlier_run_keeps_clusters_of_a_source_that_does_not_answer(
    workspace: Workspace,
) -> None:
    first = workspace.daemon()
    async with workspace.client() as client:
        events = client.watch()
        async with asyncio.timeout(LIMIT_S):
            async with serving(first):
                assert {await engaged(events) for _ in range(2)} == {"eu#shop", "us#shop"}
            await workspace.us.stop()
            workspace.eu.projects.create("bank", ready=True)
            async with serving(workspace.daemon()):
                assert await engaged(events) == "eu#bank"
                listing = await client.list()
                assert listing.pending_sources == ("us",)
                await workspace.us.start()
                workspace.us.projects.create("farm", ready=True)
                assert await engaged(events) == "us#farm"


async def test_second_restart_without_a_source_reports_no_cluster_of_the_outdated_state_file(
    workspace: Workspace, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()

    def daemon() -> Daemon:
        return workspace.daemon(state_directory=str(state))

    async with workspace.client() as client:
        events = client.watch()
        async with asyncio.timeout(LIMIT_S):
            async with serving(daemon()):
                assert {await engaged(events) for _ in range(2)} == {"eu#shop", "us#shop"}
            outdated = (state / "fleet-us.state").read_bytes()
            async with serving(daemon()):
                workspace.us.projects.delete("shop")
                while (event := await anext(events)).type is not EventType.DISENGAGED:
                    pass
                assert event.cluster.name == "us#shop"
            (state / "fleet-us.state").write_bytes(outdated)  # as if the daemon had been killed
            await workspace.us.stop()
            workspace.eu.projects.create("bank", ready=True)
            async with serving(daemon()):
                assert await engaged(events) == "eu#bank"
            workspace.eu.projects.create("mill", ready=True)
            async with serving(daemon()):
                assert await engaged(events) == "eu#mill"
                workspace.us.projects.create("farm", ready=True)
                await workspace.us.start()
                assert await engaged(events) == "us#farm"


PAGES = {"streaming_lists": "off"}
"""Use paged lists: the sandbox's fault `empty_lists` does not affect streaming lists."""


async def run_before(workspace: Workspace, events: AsyncIterator[Event]) -> None:
    """Run a daemon until the subscriber has received a cluster of each source."""
    async with serving(workspace.daemon(watch=PAGES)):
        assert {await engaged(events) for _ in range(2)} == {"eu#shop", "us#shop"}


async def test_short_first_list_of_a_source_disengages_nothing_while_another_source_does_not_answer(
    workspace: Workspace,
) -> None:
    held = workspace.daemon(watch=PAGES, removals={"verify_after": "3s"})
    async with workspace.client() as client:
        events = client.watch()
        async with asyncio.timeout(LIMIT_S):
            await run_before(workspace, events)
            workspace.eu.faults.empty_lists()
            await workspace.us.stop()
            async with serving(held):
                await eventually(lambda: held._fleet.waiting.is_any_for("eu"))
                await workspace.us.start()
                workspace.us.projects.create("farm", ready=True)
                assert await engaged(events) == "us#farm", "the other source was delayed"
                workspace.eu.faults.empty_lists(on=False)
                workspace.eu.projects.create("bank", ready=True)
                assert await engaged(events) == "eu#bank"


async def test_empty_first_list_of_a_source_that_was_unavailable_in_the_last_run_disengages_nothing(
    workspace: Workspace,
) -> None:
    held = workspace.daemon(watch=PAGES, removals={"verify_after": "3s"})
    async with workspace.client() as client:
        events = client.watch()
        async with asyncio.timeout(LIMIT_S):
            await run_before(workspace, events)
            await workspace.us.stop()
            workspace.eu.projects.create("bank", ready=True)
            async with serving(workspace.daemon(watch=PAGES)):
                assert await engaged(events) == "eu#bank"
            workspace.us.faults.empty_lists()
            await workspace.us.start()
            async with serving(held):
                await eventually(lambda: held._fleet.waiting.is_any_for("us"))
                workspace.us.faults.empty_lists(on=False)
                workspace.us.projects.create("farm", ready=True)
                assert await engaged(events) == "us#farm"


async def test_paged_listing_continues_when_a_pending_source_becomes_complete(workspace: Workspace) -> None:
    await workspace.us.stop()
    workspace.eu.projects.create("bank", ready=True)
    daemon = workspace.daemon()
    async with serving(daemon) as get, grpc.aio.insecure_channel(workspace.address) as channel:
        stub: Any = DiscoveryServiceStub(channel)
        await eventually(lambda: len([*daemon._fleet.clusters()]) == 2)
        first = await stub.ListClusters(pb.ListClustersRequest(page_size=1))
        await workspace.us.start()
        await eventually(lambda: daemon._fleet.synced)
        second = await stub.ListClusters(pb.ListClustersRequest(page_size=1, page_token=first.next_page_token))
        assert [page.clusters[0].name for page in (first, second)] == ["eu#bank", "eu#shop"]
        assert [[*page.pending_sources] for page in (first, second)] == [["us"], ["us"]]
        assert first.revision == second.revision
        async with asyncio.timeout(LIMIT_S):
            started_over = await stub.WatchClusters(pb.WatchClustersRequest(resume_revision=first.revision)).read()
        assert started_over.reset, "want a snapshot, since the listing lacks a source"
        _, metrics = await get("/metrics")
        assert '\nmilo_discoveryd_requests_denied_total{reason="revision_of_another"} 0.0' in metrics


@pytest.mark.parametrize("scope", [{"sources": ["eu"]}, {"names": ["eu#*"]}], ids=["sources", "names"])
async def test_caller_that_is_limited_to_one_source_sees_no_names_of_another_source(
    workspace: Workspace, scope: dict[str, Any]
) -> None:
    await workspace.us.stop()
    listener = {"name": "operator", "address": workspace.address}
    rule = {"name": "eu", "who": {"listener": "operator"}, "clusters": scope, "kubeconfigs": True}
    daemon = workspace.daemon(listen=[listener], rights=[rule])
    async with serving(daemon), grpc.aio.insecure_channel(workspace.address) as channel:
        stub: Any = DiscoveryServiceStub(channel)
        await eventually(lambda: daemon._fleet.sources[0].synced)
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert ([source.name for source in info.sources], info.synced) == (["eu"], True)
        listing = await stub.ListClusters(pb.ListClustersRequest())
        watch = stub.WatchClusters(pb.WatchClustersRequest())
        batch = await watch.read()
        while not batch.synced:
            batch = await watch.read()
        watch.cancel()
        for answer in (listing, batch):
            assert ([source.name for source in answer.sources], [*answer.pending_sources]) == (["eu"], [])
            assert answer.source.state != pb.SourceStatus.STATE_STALE
        said = []
        for call, code in (
            (stub.ListClusters(pb.ListClustersRequest(filter=pb.ClusterFilter(sources=["us"]))), "INVALID_ARGUMENT"),
            (stub.GetCluster(pb.GetClusterRequest(name="us#shop")), "NOT_FOUND"),
            (stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="us#shop")), "NOT_FOUND"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code().name == code
            said.append(error.value.details())
        assert "configured: eu" in said[0]
        assert "configured: eu, us" not in said[0]
