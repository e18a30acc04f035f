"""Attacks on the event loop of a daemon, as processes: input from a tenant or a caller delays no other caller."""

import asyncio
import json
import time
import urllib.request
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import pytest

from milo_discovery import DiscoveryError, SourceState
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_sandbox.rights import EVERYTHING
from tests.end_to_end.process.api_calls import user_of
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.project_server import Consumers, Projects, ProjectServer, ProviderServer
from tests.end_to_end.process.streams import channel
from tests.end_to_end.process.test_platforms import following_definition
from tests.end_to_end.process.test_secrets_of_objects import NAMESPACE, Fleet, explanation
from tests.end_to_end.process.watching import following, until
from tests.support.eventually import eventually
from tests.support.platforms import SHOOT_ADMIN, Garden

OTHERS_WAIT_S = 1.0
"""Maximum time for which the daemon may work during a call of another caller."""
PROBE_S = 5.0
"""Maximum duration of such a call, as of a kubelet's probe. On a busy machine, it includes waiting for a CPU."""
CLAIMS = 14


class Calls:
    """Calls of other callers during an attack on a daemon."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon = daemon
        self._took: list[float] = []
        self._worked: list[float] = []

    async def add(self, call: Awaitable[object]) -> None:
        worked, began = cpu_s(self._daemon), time.monotonic()
        await call
        self._took.append(time.monotonic() - began)
        self._worked.append(cpu_s(self._daemon) - worked)

    def check(self) -> None:
        """Fail if a call took too long."""
        took, worked = max(self._took), max(map(min, self._took, self._worked))
        assert took < PROBE_S, f"a call took {took:.1f} s, want less than {PROBE_S:g} s"
        assert worked < OTHERS_WAIT_S, f"a call waited for {worked:.1f} s of work, want less than {OTHERS_WAIT_S:g} s"


@asynccontextmanager
async def others_are_served(workspace: Workspace) -> AsyncIterator[None]:
    """Fail if a call by another caller takes too long within the block."""
    assert workspace.latest is not None
    calls = Calls(workspace.latest)

    async def call() -> None:
        async with workspace.client() as other:
            while True:
                await calls.add(other.server_info())
                await asyncio.sleep(0.02)

    calling = asyncio.create_task(call())
    try:
        yield
    finally:
        calling.cancel()
    calls.check()


def yaml_of(size: int) -> str:
    """Return YAML of this size with many nodes that are expensive to parse, without brackets."""
    return "- ? a\n  : 'b'\n" * (size // 14)


@pytest.mark.parametrize("size", [600_000, 65_000])
async def test_long_kubeconfig_in_a_secret_delays_no_other_caller(workspace: Workspace, size: int) -> None:
    fleet = Fleet(workspace)
    for name in ("alpha", "beta"):
        fleet.put(name)
        fleet.put_secret(name)
    async with following(fleet.daemon()) as (client, watch), others_are_served(workspace):
        for number in range(8):
            fleet.put_secret("alpha", content=f"# {number}\n{yaml_of(size)}")
            with suppress(DiscoveryError):
                await client.issue_kubeconfig("alpha")
            await asyncio.sleep(0.1)
        await explanation(client, "alpha", "the cluster stays as last known")
        fleet.put_secret("beta", "moved")
        await until(watch, lambda seen: seen.clusters["beta"].endpoint == fleet.url("moved"))


@pytest.mark.parametrize("size", [700_000, 300_000, 65_000])
async def test_long_kubeconfigs_from_gardener_delay_no_other_caller(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Gardener's API server issues long kubeconfigs for some of the Shoots."""
    sandbox, garden, hostile = (
        workspace.sandbox,
        Garden(workspace.sandbox),
        [f"hostile-{number}" for number in range(8)],
    )
    for name in (*hostile, "alpha", "beta"):
        sandbox.projects.create(name, ready=True)
        garden.create(NAMESPACE, name)
    issue = garden._kubeconfig

    def issue_long(request: dict[str, Any], namespace: str, name: str) -> dict[str, Any]:
        response = issue(request, namespace, name)
        if name in hostile:
            content = f"# {name}\n{yaml_of(size)}"
            response["status"]["kubeconfig"] = b64encode(content.encode()).decode()
        return response

    monkeypatch.setattr(garden, "_kubeconfig", issue_long)
    async with (
        following_definition(workspace, "gardener", garden.kubeconfig()) as (client, _),
        others_are_served(workspace),
    ):
        calls = [client.issue_kubeconfig(f"{NAMESPACE}.{name}") for name in hostile]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all("does not contain a kubeconfig" in str(outcome) for outcome in outcomes), outcomes
        for name in ("alpha", "beta"):
            issued = await client.issue_kubeconfig(f"{NAMESPACE}.{name}")
            assert await user_of(issued.kubeconfig) == SHOOT_ADMIN


@pytest.mark.parametrize(
    ("changes", "content_bytes", "limit"),
    [
        pytest.param(92, 10_000, "1MiB", id="few"),
        pytest.param(190_000, 60, "128MiB", id="many", marks=pytest.mark.nightly),
    ],
)
async def test_ordinary_changes_in_two_collections_do_not_exhaust_their_shared_budget(
    workspace: Workspace, changes: int, content_bytes: int, limit: str
) -> None:
    """Changes of one collection that together take nearly the whole budget, then changes of the other one."""
    names = [f"p-{number:02}" for number in range(20)]
    server = ProviderServer(Projects(names), Consumers(names))
    async with server.listening():
        watch_settings = {"streaming_lists": "off", "objects_limit": limit}
        settings = {"discovery_kubeconfig": None, "plain_loopback": True, "watch": watch_settings}
        daemon = workspace.daemon(sources=[server.source("a", workspace.directory)], **settings)
        async with following(daemon) as (client, watch):
            collections = server.projects, server.consumers.projects
            for changed, count in zip(collections, (changes, changes // 5), strict=True):
                for number in range(count):
                    label = "x" * (content_bytes // 2 - number // len(names) % 2 * 20)
                    changed.put(names[number % len(names)], a=label, b=label)
                marker = f"marker-{count}"
                for projects in collections:
                    projects.put(marker)
                await until(watch, lambda seen, marker=marker: f"a#{marker}" in seen.clusters)  # type: ignore[misc]
            assert (await client.server_info()).source.state is SourceState.STREAMING
        assert "OverBudget" not in daemon.output


@pytest.mark.parametrize(
    ("changes", "size", "limit"),
    [(60, 60_000, "1MiB"), pytest.param(860, 400_000, "128MiB", marks=pytest.mark.nightly)],
)
async def test_repeated_changes_of_a_large_secret_do_not_exceed_the_objects_limit(
    workspace: Workspace, changes: int, size: int, limit: str
) -> None:
    """Two collections share the budget: objects and Secrets."""
    fleet = Fleet(workspace)
    fleet.put("alpha")
    fleet.put_secret("alpha")
    config = json.dumps(
        workspace.sandbox.kubeconfig(project="alpha", token=workspace.sandbox.token("o", rules=[EVERYTHING]))
    )
    async with following(fleet.daemon(watch={"objects_limit": limit})) as (client, watch):
        for number in range(changes):
            fleet.put_secret("alpha", content=f"{config}\n# {number} {'x' * size}")
            await asyncio.sleep(0)  # the sandbox responds in this event loop
        fleet.put_secret("alpha", "moved")
        await until(watch, lambda seen: seen.clusters["alpha"].endpoint == fleet.url("moved"))
        assert (await client.server_info()).source.state is SourceState.STREAMING


def livez(http: str) -> None:
    with urllib.request.urlopen(f"{http}/livez", timeout=10) as response:
        assert response.status == 200


def cpu_s(daemon: DaemonProcess) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def test_resume_revisions_with_false_cluster_counts_do_not_block_the_restarted_daemon(
    workspace: Workspace,
) -> None:
    """Each stream claims to know 999,999,999 clusters of each source, and has a filter of its own."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                ProjectServer(Projects(f"p-{number}" for number in range(size))).listening()
            )
            for size in (30_000, 20)
        ]
        sources = [
            {"name": name, "kind": "project", "discovery_kubeconfig": server.kubeconfig(workspace.directory / name)}
            for name, server in zip("ab", servers, strict=True)
        ]
        settings: dict[str, Any] = {
            "sources": sources,
            "discovery_kubeconfig": None,
            "plain_loopback": True,
            "watch": {"streaming_lists": "off"},
            "http_listen": "127.0.0.1:0",
        }
        daemon = await stack.enter_async_context(workspace.daemon(**settings))
        await daemon.start()
        async with workspace.stream() as stream:
            known = (await stream.until_synced())[-1].revision
        await daemon.kill()
        await daemon.start()
        epoch, revision, counts, *rest = known.split(".")
        claimed = "_".join(f"{count.split('-')[0]}-999999999" for count in counts.removeprefix("known").split("_"))
        resumed = ".".join((epoch, revision, f"known{claimed}", *rest))
        for number in range(CLAIMS):
            wanted = pb.ClusterFilter(label_selector=f"team!=t{number},in=no")
            request = pb.WatchClustersRequest(resume_revision=resumed, filter=wanted)
            await stack.enter_async_context(workspace.stream(request))
        await daemon.during(eventually(lambda: len(daemon.events("started")) == 2))
        http = daemon.events("started")[-1]["http"]
        assert isinstance(http, str)
        async with others_are_served(workspace):
            spent, began = cpu_s(daemon), time.monotonic()
            probes = Calls(daemon)
            while time.monotonic() < began + 8:
                await probes.add(asyncio.to_thread(livez, http))
                await asyncio.sleep(0.1)
            probes.check()
            assert (cpu_s(daemon) - spent) / (time.monotonic() - began) < 0.3, "the daemon used 30 % of a core or more"
        async with workspace.stream() as another:
            assert sum(len(batch.events) for batch in await another.until_synced()) == 30_020
            with suppress(grpc.aio.AioRpcError):
                await another.close()


async def test_filters_of_many_streams_do_not_delay_other_callers_when_many_clusters_change(
    workspace: Workspace,
) -> None:
    """Each stream of one caller has a filter of its own, which is compared with each change and matches none."""
    names = [f"p-{number}" for number in range(2000)]
    server = ProjectServer(Projects(names))
    async with (
        server.listening(),
        workspace.daemon(**server.settings(workspace.directory / "plain")) as daemon,
        AsyncExitStack() as stack,
    ):
        await daemon.start()
        connections = [await stack.enter_async_context(channel(workspace.address)) for _ in range(6)]
        requirements = ",".join(f"team!=t{number}" for number in range(5))
        for number in range(480):
            wanted = pb.ClusterFilter(label_selector=f"round!=r{number},round in (none),{requirements}")
            stub = DiscoveryServiceStub(connections[number % len(connections)])
            stream: Any = stub.WatchClusters(pb.WatchClustersRequest(filter=wanted))
            stack.callback(stream.cancel)
            while not (await stream.read()).synced:
                pass
        async with workspace.stream() as last, others_are_served(workspace):
            await last.until_synced()
            for name in names:
                server.projects.put(name, round="one", team="one")
            seen = 0
            while seen < len(names):
                seen += len((await last.batch()).events)


async def test_metrics_scrapes_do_not_delay_subscribers(workspace: Workspace) -> None:
    server = ProjectServer(Projects(f"p-{number}" for number in range(10_000)))
    async with server.listening():
        settings = {**server.settings(workspace.directory / "plain"), "metrics": {"cluster_info_cap": 10_000}}
        async with workspace.daemon(http_listen="127.0.0.1:0", **settings) as daemon:
            await daemon.start()
            async with workspace.stream() as stream:
                await stream.until_synced()
                http, ends = daemon.events("started")[-1]["http"], asyncio.Event()

                async def scrape() -> None:
                    await asyncio.to_thread(lambda: urllib.request.urlopen(f"{http}/metrics").read())

                async def read() -> None:
                    while not ends.is_set():
                        await scrape()

                began = time.monotonic()
                await scrape()
                alone = time.monotonic() - began
                readers = [asyncio.create_task(read()) for _ in range(8)]
                took = []
                for number in range(30):
                    began = time.monotonic()
                    server.projects.put(f"p-{number}", change="yes")
                    while not (await stream.batch()).events:
                        pass
                    took.append(time.monotonic() - began)
                    await asyncio.sleep(0.05)
                ends.set()
                await asyncio.wait(readers)
    # One build of the page serves all scrapes that wait, and builds take at most a tenth of the time.
    assert median(took) < alone, f"a change took {median(took):.3f} s (median), a scrape alone {alone:.3f} s"
