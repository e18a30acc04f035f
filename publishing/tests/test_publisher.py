"""The publisher, with a scripted watch and an API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Self

import pytest

from clients.python.tests.eventually import eventually
from clients.python.tests.kubeconfigs import text, value
from clients.python.tests.test_kubeconfig_access import changed, exec_kubeconfig
from milo_discovery import Cluster, ClusterNotFound, DisengageReason, EventType, SourceState
from milo_discovery import _removal_guard as removals
from milo_discovery._removal_guard import Removals
from milo_discovery.events import Connected, Event, Synced
from milo_discovery.model import (
    ClusterReport,
    Engagement,
    EngagementReason,
    Kubeconfig,
    ServerInfo,
    Sharding,
    SourceStatus,
)
from milo_kube.act_as import ActAs
from milo_publishing import publisher
from milo_publishing.accesses import Accesses
from milo_publishing.decisions import Publication
from milo_publishing.errors import PublishedByAnother
from milo_publishing.objects import Identity, ObservedObject
from milo_publishing.publisher import Publisher
from milo_publishing.rendering import FluxKubeconfigs

from .test_decisions import ModelServer

FLUX = FluxKubeconfigs()


class Daemon:
    """A fake discovery client, whose only watch yields the events that the test sends."""

    connected = True
    source = SourceStatus(state=SourceState.STREAMING)

    def __init__(self) -> None:
        self.sent = asyncio.Queue()
        self.sources: dict[str, SourceStatus] = {}
        self.group = ""
        self.infos = 0
        self.reports: dict[str, ClusterReport] = {}

    async def server_info(self) -> ServerInfo:
        self.infos += 1
        return ServerInfo(sharding=Sharding(group=self.group) if self.group else None)

    async def get(self, name: str) -> ClusterReport:
        if name not in self.reports:
            raise ClusterNotFound(name, code="NOT_FOUND")
        return self.reports[name]

    @asynccontextmanager
    async def watch(self):
        yield self

    async def feed(self):
        while True:
            yield await self.sent.get()

    def engage(self, name: str, *, server: str = "https://milo.test") -> None:
        issued = value(text(server, token="t"), now=datetime.now(UTC), age=timedelta(), life=timedelta(minutes=10))
        cluster = Cluster(name=name, uid=f"uid-{name}", engaged_at=datetime.now(UTC))
        self.sent.put_nowait(Event(type=EventType.ENGAGED, cluster=cluster, kubeconfig=replace(issued, cluster=name)))

    def snapshot(self, *names: str) -> None:
        """Send a new snapshot, as after a reconnect, with only these clusters."""
        self.sent.put_nowait(Connected(resumed=False))
        for name in names:
            self.engage(name)
        self.sent.put_nowait(Synced(clusters=len(names)))

    def disengage(self, name: str, reason: DisengageReason = DisengageReason.DELETED) -> None:
        cluster = Cluster(name=name, uid=f"uid-{name}")
        self.sent.put_nowait(Event(type=EventType.DISENGAGED, cluster=cluster, reason=reason))


class Server(ModelServer):
    """The API server, with the methods of `PublishedObjects`."""

    async def list(self, identity):
        return [ObservedObject.of(obj) for obj in self.objects.values()]

    async def get(self, name):
        return self.observed(name)

    async def create(self, body):
        self.put(body)
        return self.observed(body["metadata"]["name"])

    async def apply(self, body, uid, *, subresource=""):
        self.put({**body, "metadata": {**body["metadata"], "uid": uid}})
        return self.observed(body["metadata"]["name"])

    async def delete(self, name, uid, resource_version):
        del self.objects[name]

    @property
    def clusters(self) -> dict[str, str]:
        return {name: ObservedObject.of(obj).cluster_uid for name, obj in self.objects.items()}


class Publishing:
    """A publisher of Flux's Secrets. Several can write to one server."""

    def __init__(self, server: Server | None = None, *, group: str = "", only: str = "", accepts: bool = False) -> None:
        self.daemon, self.server = Daemon(), server or Server()
        self.daemon.group = group
        self.reports: list[str] = []
        identity = Identity(publication=FLUX.publication, publisher="milo", filter=only)
        publication = Publication(FLUX.resource, identity)
        self.publisher = Publisher(
            self.daemon,
            self.server,
            publication,
            FLUX,
            resync=timedelta(milliseconds=50),
            report=self.reports.append,
            notice=lambda _: None,
            removals=Removals(accepts=accepts),
        )

    @asynccontextmanager
    async def running(self, *engaged: str) -> AsyncIterator[Self]:
        done = asyncio.Event()
        self.task = asyncio.create_task(self.publisher.run({}, done, once=False))
        for name in engaged:
            self.daemon.engage(name)
        self.daemon.sent.put_nowait(Synced(clusters=len(engaged)))
        yield self
        done.set()
        await self.task

    async def two_looks(self) -> None:
        """Wait for far more reviews than a removal needs."""
        seen = self.daemon.infos
        await eventually(lambda: self.daemon.infos > seen + 10)

    async def until_published(self, *names: str) -> None:
        await eventually(lambda: set(self.server.objects) == {f"{name}-kubeconfig" for name in names})


@pytest.fixture
async def publishing() -> AsyncIterator[Publishing]:
    async with Publishing().running() as made:
        yield made


@pytest.fixture(autouse=True)
def second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(publisher, "_CHECK_INTERVAL_S", 0.02)


async def test_problem_of_an_unusable_kubeconfig_is_cleared_by_a_usable_kubeconfig(publishing):
    publishing.daemon.engage("alpha", server="not a URL")
    await eventually(lambda: publishing.publisher.problems)
    publishing.daemon.engage("alpha")
    await eventually(lambda: publishing.server.clusters == {"alpha-kubeconfig": "uid-alpha"})
    assert publishing.publisher.problems == ()


async def test_disengagement_clears_the_problems_of_a_cluster(publishing):
    publishing.daemon.engage("alpha", server="not a URL")
    publishing.daemon.engage("Not.An.Object")
    await eventually(lambda: len(publishing.publisher.problems) == 2)
    publishing.daemon.disengage("alpha")
    publishing.daemon.disengage("Not.An.Object")
    await eventually(lambda: publishing.publisher.problems == ())


async def test_cluster_is_published_once_another_cluster_with_the_same_object_name_is_disengaged(publishing):
    publishing.daemon.engage("eu#alpha")
    publishing.daemon.engage("eu.alpha")
    await eventually(lambda: publishing.server.clusters == {"eu.alpha-kubeconfig": "uid-eu#alpha"})
    assert publishing.publisher.problems == ("the object eu.alpha-kubeconfig belongs to cluster 'eu#alpha'",)
    publishing.daemon.disengage("eu#alpha")
    await eventually(lambda: publishing.server.clusters == {"eu.alpha-kubeconfig": "uid-eu.alpha"})
    assert publishing.publisher.problems == ()


async def left_by_another(*clusters: str) -> Server:
    """Return an API server with the objects of a publisher that was stopped: two would undo each other's writes."""
    async with Publishing().running(*clusters) as another:
        await another.until_published(*clusters)
    return another.server


async def test_publisher_deletes_object_that_a_former_publisher_left_for_a_missing_cluster():
    async with Publishing(await left_by_another("alpha", "beta")).running("alpha") as publishing:
        await publishing.until_published("alpha")


async def test_publisher_of_another_fleet_writes_nothing():
    server = await left_by_another("alpha", "beta")
    async with Publishing(server).running("gamma", "delta") as other:
        await eventually(lambda: other.publisher.problems)
        await other.two_looks()
        assert "nothing is written" in other.publisher.problems[0]
        await other.until_published("alpha", "beta")
    async with Publishing(server, accepts=True).running("gamma") as accepting:
        await accepting.until_published("gamma")


async def test_publisher_keeps_objects_of_clusters_missing_from_a_much_smaller_view_and_publishes_new_clusters():
    names = [f"p-{number}" for number in range(6)]
    async with Publishing(await left_by_another(*names)).running(*names[:2]) as other:
        await eventually(lambda: "nothing is removed" in "".join(other.publisher.problems))
        other.daemon.engage("new")
        await other.until_published(*names, "new")
        await other.two_looks()
        for name in names:
            other.daemon.engage(name)
        await eventually(lambda: other.publisher.problems == ())
        await other.until_published(*names, "new")


async def test_object_contested_by_two_publishers_with_the_same_name_is_deleted_once():
    one = Publishing()
    two = Publishing(one.server)
    async with one.running("alpha", "beta", "gamma"), two.running("beta", "gamma", "delta"):
        for publishing in (one, two):
            await eventually(lambda made=publishing: "written again" in "".join(made.publisher.problems))
        await one.until_published("alpha", "beta", "gamma", "delta")
        deleted = [*one.reports, *two.reports].count("deleted Secret alpha-kubeconfig")
        for publishing in (one, two):
            await publishing.two_looks()
        assert [*one.reports, *two.reports].count("deleted Secret alpha-kubeconfig") == deleted == 1


async def test_publisher_keeps_all_objects_when_it_reconnects_to_another_daemon(publishing):
    for name in ("alpha", "beta"):
        publishing.daemon.engage(name)
    await publishing.until_published("alpha", "beta")
    publishing.daemon.sent.put_nowait(Connected(resumed=False))
    for name in ("alpha", "beta"):
        publishing.daemon.disengage(name, DisengageReason.UNSPECIFIED)
    publishing.daemon.engage("gamma")
    publishing.daemon.sent.put_nowait(Synced(clusters=1))
    await eventually(lambda: publishing.publisher.problems)
    await publishing.two_looks()
    await publishing.until_published("alpha", "beta")


async def test_publisher_stops_if_it_finds_objects_of_another_filter_or_group():
    server = await left_by_another("alpha")
    for other in (Publishing(server, only="-l env=prod"), Publishing(server, group="dns")):
        with pytest.raises(PublishedByAnother, match="alpha-kubeconfig"):
            async with other.running():
                await other.task
        await other.until_published("alpha")
    async with Publishing(server, group="dns", accepts=True).running("alpha"):
        await eventually(lambda: _group(server, "alpha") == "dns")


async def test_publisher_stops_when_the_shard_group_of_the_daemon_changes():
    made = Publishing(group="dns")
    running = asyncio.create_task(made.publisher.run({}, asyncio.Event(), once=False))
    made.daemon.snapshot("alpha")
    await made.until_published("alpha")
    made.daemon.group = "other"
    made.daemon.snapshot("alpha")
    with pytest.raises(PublishedByAnother, match="shard group changed"):
        await running


async def test_shard_group_replicas_keep_each_others_objects_and_delete_orphans():
    one = Publishing(group="dns")
    two = Publishing(one.server, group="dns")
    elsewhere = ClusterReport(engagement=Engagement(reason=EngagementReason.UNASSIGNED))
    async with one.running("a", "b", "c"):
        await one.until_published("a", "b", "c")
    two.daemon.reports = dict.fromkeys(("a", "b", "c"), elsewhere)
    async with two.running("d"):
        await one.until_published("a", "b", "c", "d")
        await two.two_looks()
        await one.until_published("a", "b", "c", "d")
    three = Publishing(one.server, group="dns")
    three.daemon.reports = dict.fromkeys(("a", "b"), elsewhere)
    async with three.running("d"):
        await one.until_published("a", "b", "d")


async def test_stale_source_holds_only_deletions_of_its_own_clusters(publishing):
    stale, streaming = SourceStatus(state=SourceState.STALE), SourceStatus(state=SourceState.STREAMING)
    publishing.daemon.source, publishing.daemon.sources = stale, {"eu": stale, "us": streaming}
    for name in ("eu#alpha", "us#alpha"):
        publishing.daemon.engage(name)
    await publishing.until_published("eu.alpha", "us.alpha")
    for name in ("eu#alpha", "us#alpha"):
        publishing.daemon.disengage(name)
    await publishing.until_published("eu.alpha")
    publishing.daemon.sources = {"eu": streaming, "us": streaming}
    await publishing.until_published()


async def test_object_of_moved_cluster_is_left_to_the_other_replicas(publishing):
    publishing.daemon.engage("eu#alpha")
    publishing.daemon.engage("eu.alpha")
    await eventually(lambda: publishing.publisher.problems and publishing.server.clusters)
    publishing.daemon.disengage("eu#alpha", DisengageReason.MOVED)
    publishing.daemon.engage("beta")
    await eventually(lambda: "beta-kubeconfig" in publishing.server.clusters)
    assert publishing.server.clusters["eu.alpha-kubeconfig"] == "uid-eu#alpha"


def _group(server: Server, cluster: str) -> str:
    return server.objects[f"{cluster}-kubeconfig"]["metadata"]["annotations"]["discovery.miloapis.com/group"]


async def test_server_is_not_published_if_its_credential_requires_impersonation():
    class Client:
        async def issue_kubeconfig(self, name: str, **_: object) -> Kubeconfig:
            return value(changed(exec_kubeconfig(), "user", **ActAs(user="shop").fields()), now=datetime.now(UTC))

    known, reports = [], []
    accesses = Accesses(Client(), known.append, reports.append)
    accesses.request("alpha")
    running = asyncio.create_task(accesses.run())
    await eventually(lambda: known == ["alpha"])
    running.cancel()
    assert accesses.get("alpha") is None
    [report] = reports
    assert report.startswith("no server and CA to publish: the rule for this publisher sets `as`")


async def test_access_that_was_requested_before_the_end_of_its_cluster_is_not_published():
    """A response that arrives after the end is of the former cluster: another one may have its name by then."""
    asked, answered = asyncio.Queue(), {}

    class Slow:
        async def issue_kubeconfig(self, name, **_):
            answered[name] = asyncio.get_running_loop().create_future()
            asked.put_nowait(name)
            return await answered[name]

    rendered = []
    accesses = Accesses(Slow(), rendered.append, lambda _: None)
    running = asyncio.create_task(accesses.run())
    accesses.request("alpha")
    await asked.get()
    former = answered["alpha"]
    accesses.forget("alpha")
    accesses.request("alpha")
    await asked.get()
    former.set_result(Kubeconfig(cluster="alpha", kubeconfig=exec_kubeconfig(), issued_at=datetime.now(UTC)))
    await asyncio.sleep(0.01)
    assert not accesses.is_known("alpha")
    assert rendered == []
    answered["alpha"].set_result(Kubeconfig(cluster="alpha", kubeconfig=exec_kubeconfig(), issued_at=datetime.now(UTC)))
    await eventually(lambda: accesses.is_known("alpha"))
    running.cancel()
