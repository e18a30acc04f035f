"""The publisher, with a scripted watch and an API server in memory."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest

from clients.python.tests.eventually import eventually
from clients.python.tests.kubeconfigs import text, value
from clients.python.tests.test_kubeconfig_access import changed, exec_kubeconfig
from milo_discovery import Cluster, ClusterNotFound, DisengageReason, EventType, SourceState, removals
from milo_discovery.errors import PermissionDenied, TimedOut, Unavailable
from milo_discovery.events import Connected, Event, Synced
from milo_discovery.model import (
    ClusterReport,
    Draining,
    Engagement,
    EngagementReason,
    Kubeconfig,
    ServerInfo,
    Sharding,
    SourceStatus,
)
from milo_discovery.options import WatchOptions
from milo_discovery.removals import Removals, filter_text
from milo_kube.act_as import ActAs
from milo_publishing import publication, publisher, records
from milo_publishing.errors import PublishedByAnother, TargetUnavailable
from milo_publishing.objects import Identity
from milo_publishing.publication import Lane, Publication, Task
from milo_publishing.publisher import Publisher, Slots
from milo_publishing.records import Create, DeleteObject
from milo_publishing.rendering import ArgoCdClusters, FluxConfigMaps, FluxKubeconfigs, Renderer
from tests.simulation.publishing.api_server import ApiServer

FLUX = FluxKubeconfigs()
ARGOCD = ArgoCdClusters(plugin_command="milo-discovery")


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
        self.unknown_elsewhere = False
        """Whether other members of the group own the clusters without a report."""
        self.asked: list[str] = []
        self.answers_lookups = True
        self.failures: dict[str, list[Exception]] = {}
        """What the next requests about a cluster raise."""
        self.issued: dict[str, asyncio.Future[bytes]] = {}
        """The answers to requests for the access of clusters, which wait for them."""

    async def server_info(self) -> ServerInfo:
        self.infos += 1
        return ServerInfo(sharding=Sharding(group=self.group) if self.group else None)

    async def get(self, name: str) -> ClusterReport:
        self.asked.append(name)
        if not self.answers_lookups:
            await asyncio.Event().wait()
        if self.failures.get(name):
            raise self.failures[name].pop()
        if name not in self.reports:
            reason = "ASSIGNED_ELSEWHERE" if self.unknown_elsewhere else "NEVER_SEEN"
            raise ClusterNotFound(name, code="NOT_FOUND", reason=reason)
        return self.reports[name]

    @asynccontextmanager
    async def watch(self, **_: object):
        yield self

    async def feed(self):
        while True:
            yield await self.sent.get()

    async def issue_kubeconfig(self, name: str, **_: object) -> Kubeconfig:
        if self.failures.get(name):
            raise self.failures[name].pop()
        content = await self.issued[name] if name in self.issued else of_plugin(name)
        return Kubeconfig(cluster=name, kubeconfig=content, issued_at=datetime.now(UTC))

    def engage(
        self,
        name: str,
        *,
        server: str = "https://milo.test",
        endpoint: str = "",
        age: timedelta = timedelta(),
        organization: str = "",
    ) -> None:
        issued = value(text(server, token="t"), now=datetime.now(UTC), age=age, life=timedelta(minutes=10))
        cluster = Cluster(
            name=name, uid=f"uid-{name}", engaged_at=datetime.now(UTC), endpoint=endpoint, organization=organization
        )
        self.sent.put_nowait(Event(type=EventType.ENGAGED, cluster=cluster, kubeconfig=replace(issued, cluster=name)))

    def engage_without_credential(self, name: str) -> None:
        self.sent.put_nowait(Event(type=EventType.ENGAGED, cluster=Cluster(name=name, uid=f"uid-{name}")))

    def snapshot(self, *names: str) -> None:
        """Send a new snapshot, as after a reconnect, with only these clusters."""
        self.sent.put_nowait(Connected(resumed=False))
        for name in names:
            self.engage(name)
        self.sent.put_nowait(Synced(clusters=len(names)))

    def disengage(self, name: str, reason: DisengageReason = DisengageReason.DELETED) -> None:
        cluster = Cluster(name=name, uid=f"uid-{name}")
        self.sent.put_nowait(Event(type=EventType.DISENGAGED, cluster=cluster, reason=reason))


class Server:
    """The API server, with the methods of `PublishedObjects`."""

    def __init__(self) -> None:
        self.api = ApiServer(lambda _: None, lambda *_: None, pytest.fail)
        self.failures: dict[str, Exception] = {}
        """What each creation of an object raises."""
        self.hanging: set[str] = set()
        """The objects whose creation is not answered."""
        self.is_hanging = False
        self.connected = asyncio.Event()
        """What each deletion waits for before it is sent."""
        self.connected.set()
        self.is_deleting = asyncio.Event()

    async def list(self, identity, is_wanted, observed):
        return self.api.list()

    async def perform(self, request, sending=lambda: None):
        if isinstance(request, DeleteObject):
            self.is_deleting.set()
            await self.connected.wait()
            sending()
        if isinstance(request, Create):
            name = request.body["metadata"]["name"]
            if name in self.hanging:
                self.is_hanging = True
                await asyncio.Event().wait()
            if name in self.failures:
                raise self.failures[name]
        return self.api.apply(request)

    @property
    def objects(self):
        return self.api.objects

    @property
    def clusters(self) -> dict[str, str]:
        return {
            name: obj["metadata"]["annotations"]["discovery.miloapis.com/cluster-uid"]
            for name, obj in self.objects.items()
        }


class Publishing:
    """A publisher, of Flux's Secrets by default. Several can write to one server."""

    def __init__(
        self,
        server: Server | None = None,
        *,
        group: str = "",
        only: str = "",
        label_selector: str = "",
        accepts: bool = False,
        renderer: Renderer = FLUX,
    ) -> None:
        self.daemon, self.server = Daemon(), server or Server()
        self.daemon.group = group
        self.only: WatchOptions = {"label_selector": label_selector}
        self.reports: list[str] = []
        self.publication = Publication(
            renderer,
            Identity(publication=renderer.publication, publisher="milo", filter=only or filter_text(self.only)),
            Removals(accepts=accepts),
            resync_s=0.05,
            report=self.reports.append,
        )
        self.publisher = Publisher(
            self.daemon, self.server, self.publication, report=self.reports.append, notice=lambda _: None
        )

    @asynccontextmanager
    async def running(self, *engaged: str) -> AsyncIterator[Self]:
        done = asyncio.Event()
        self.task = asyncio.create_task(self.publisher.run(self.only, done, once=False))
        for name in engaged:
            self.daemon.engage(name)
        self.daemon.sent.put_nowait(Synced(clusters=len(engaged)))
        yield self
        done.set()
        await self.task

    async def two_looks(self) -> None:
        """Wait for more time than a removal needs."""
        await asyncio.sleep(0.5)

    async def until_published(self, *names: str) -> None:
        await eventually(lambda: set(self.server.objects) == {f"{name}-kubeconfig" for name in names})


@pytest.fixture
async def publishing() -> AsyncIterator[Publishing]:
    async with Publishing().running() as made:
        yield made


@pytest.fixture(autouse=True)
def second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(records, "EVIDENCE_S", 0.1)
    monkeypatch.setattr(records, "CHECK_S", 0.02)
    monkeypatch.setattr(publication, "_UNISSUED_S", 0.05)


async def test_cluster_for_which_the_daemon_cannot_issue_a_credential_is_named(publishing):
    unavailable = Unavailable("the issuer does not answer", code="UNAVAILABLE", retry_after=timedelta(hours=1))
    publishing.daemon.failures["alpha"] = [unavailable]
    publishing.daemon.engage_without_credential("alpha")
    await eventually(lambda: publishing.publication.problems)
    assert publishing.publication.problems == ("cannot get its credential: the issuer does not answer",)
    publishing.daemon.engage("alpha")
    await publishing.until_published("alpha")
    assert publishing.publication.problems == ()


async def test_cluster_whose_credential_expired_is_named_and_keeps_it_until_there_is_another(publishing):
    unavailable = Unavailable("the issuer does not answer", code="UNAVAILABLE", retry_after=timedelta(hours=1))
    publishing.daemon.failures["alpha"] = [unavailable]
    publishing.daemon.engage("alpha", age=timedelta(minutes=9, seconds=59.5))
    await publishing.until_published("alpha")
    await eventually(lambda: publishing.publication.problems)
    assert publishing.publication.problems == ("cannot get its credential: the issuer does not answer",)
    publishing.daemon.engage("alpha", server="https://renewed.test")
    await eventually(lambda: _server(publishing.server) == "https://renewed.test")
    assert publishing.publication.problems == ()


async def test_credential_that_has_expired_by_a_wrong_clock_alone_is_not_asked_for_again(publishing):
    publishing.daemon.engage("alpha", age=timedelta(hours=1))
    await publishing.until_published("alpha")
    [record] = publishing.publication.records.values()
    assert record.access.due_at >= asyncio.get_running_loop().time() + 500


async def test_credential_that_the_stream_does_not_deliver_is_asked_for(publishing):
    issued = asyncio.get_running_loop().create_future()
    issued.set_result(text("https://asked.test", token="t"))
    publishing.daemon.issued["alpha"] = issued
    publishing.daemon.engage_without_credential("alpha")
    await eventually(lambda: _server(publishing.server) == "https://asked.test")


async def test_credential_that_is_late_is_no_problem_and_delays_no_other(publishing):
    publishing.daemon.failures["late"] = [TimedOut("deadline exceeded", code="DEADLINE_EXCEEDED")] * 3
    publishing.daemon.engage_without_credential("late")
    publishing.daemon.engage("alpha")
    await eventually(lambda: len(publishing.daemon.failures["late"]) < 3)
    await publishing.until_published("alpha")
    assert publishing.publication.problems == ()


async def test_single_run_ends_with_the_clusters_for_which_there_is_no_credential():
    made, done = Publishing(), asyncio.Event()
    made.daemon.failures["alpha"] = [PermissionDenied("no rule permits it", code="PERMISSION_DENIED")]
    made.daemon.engage_without_credential("alpha")
    made.daemon.engage("beta")
    made.daemon.sent.put_nowait(Synced(clusters=2))
    await made.publisher.run({}, done, once=True)
    assert made.publication.problems == ("cannot get its credential: no rule permits it",)
    assert [*made.server.objects] == ["beta-kubeconfig"]


async def test_problem_of_an_unusable_kubeconfig_is_cleared_by_a_usable_kubeconfig(publishing):
    publishing.daemon.engage("alpha", server="not a URL")
    await eventually(lambda: publishing.publication.problems)
    publishing.daemon.engage("alpha")
    await eventually(lambda: publishing.server.clusters == {"alpha-kubeconfig": "uid-alpha"})
    assert publishing.publication.problems == ()


async def test_problem_of_an_unusable_renewed_kubeconfig_stays_while_the_cluster_is_updated(publishing):
    publishing.daemon.engage("alpha")
    await eventually(lambda: publishing.server.clusters == {"alpha-kubeconfig": "uid-alpha"})
    publishing.daemon.engage("alpha", server="not a URL")
    await eventually(lambda: publishing.publication.problems)
    problems = publishing.publication.problems
    relabeled = Cluster(name="alpha", uid="uid-alpha", labels={"tier": "gold"})
    publishing.daemon.sent.put_nowait(Event(type=EventType.UPDATED, cluster=relabeled))
    [record] = publishing.publication.records.values()
    await eventually(lambda: publishing.publication.records[record.name].wanted.cluster == relabeled)
    assert publishing.publication.problems == problems


async def test_disengagement_clears_the_problems_of_a_cluster(publishing):
    publishing.daemon.engage("alpha", server="not a URL")
    publishing.daemon.engage("Not.An.Object")
    await eventually(lambda: len(publishing.publication.problems) == 2)
    publishing.daemon.disengage("alpha")
    publishing.daemon.disengage("Not.An.Object")
    await eventually(lambda: publishing.publication.problems == ())


async def test_cluster_is_published_once_another_cluster_with_the_same_object_name_is_disengaged(publishing):
    publishing.daemon.engage("eu#alpha")
    publishing.daemon.engage("eu.alpha")
    await eventually(lambda: publishing.server.clusters == {"eu.alpha-kubeconfig": "uid-eu#alpha"})
    assert publishing.publication.problems == ("the object eu.alpha-kubeconfig belongs to cluster 'eu#alpha'",)
    publishing.daemon.disengage("eu#alpha")
    await eventually(lambda: publishing.server.clusters == {"eu.alpha-kubeconfig": "uid-eu.alpha"})
    assert publishing.publication.problems == ()


async def left_by_another(*clusters: str) -> Server:
    """Return an API server with the objects of a publisher that was stopped: two would undo each other's writes."""
    async with Publishing().running(*clusters) as another:
        await another.until_published(*clusters)
    return another.server


async def test_publisher_deletes_object_that_a_former_publisher_left_for_a_missing_cluster():
    async with Publishing(await left_by_another("alpha", "beta")).running("alpha") as publishing:
        await publishing.until_published("alpha")


@pytest.mark.parametrize(("tier", "is_kept"), [("gold", True), ("bronze", False)])
async def test_object_of_an_engaged_cluster_is_deleted_only_if_the_cluster_does_not_match_the_filter(
    tier: str, *, is_kept: bool
):
    """Found by a reader: the daemon's answer comes before the event that the cluster is engaged again."""
    publishing = Publishing(label_selector="tier=gold")
    async with publishing.running("alpha"):
        await publishing.until_published("alpha")
        publishing.server.connected.clear()
        publishing.daemon.disengage("alpha", DisengageReason.NOT_READY)
        await publishing.server.is_deleting.wait()
        again = Cluster(name="alpha", uid="uid-alpha", labels={"tier": tier})
        engaged = Engagement(engaged=True, reason=EngagementReason.ENGAGED)
        publishing.daemon.reports["alpha"] = ClusterReport(cluster=again, engagement=engaged)
        await asyncio.sleep(2 * records.EVIDENCE_S)  # the event permits no deletion anymore
        publishing.server.connected.set()
        await eventually(lambda: len(publishing.daemon.asked) >= 2 or not publishing.server.objects)
        assert bool(publishing.server.objects) is is_kept


@pytest.mark.parametrize(
    ("reason", "elsewhere", "left"),
    [
        (DisengageReason.NOT_READY, False, {"beta", "gamma"}),
        (DisengageReason.MOVED, True, {"alpha", "beta", "gamma"}),  # its next owner engages it
        (DisengageReason.MOVED, False, {"alpha", "beta", "gamma"}),  # it is engaged again
    ],
)
async def test_cluster_that_drains_counts_as_ended_also_for_a_publisher_that_has_started_meanwhile(
    reason: DisengageReason, left: set[str], *, elsewhere: bool
):
    """Found by a reader: it counted as engaged, and a publisher receives no event when the drain ends."""
    made = Publishing(await left_by_another("alpha", "beta", "gamma"))
    draining = Cluster(name="alpha", uid="uid-alpha", draining=Draining(reason=reason))
    engagement = Engagement(engaged=True, reason=EngagementReason.DRAINING, assigned_elsewhere=elsewhere)
    made.daemon.reports["alpha"] = ClusterReport(cluster=draining, engagement=engagement)
    async with made.running("beta", "gamma"):
        await eventually(lambda: len(made.daemon.asked) >= 2)
        await made.two_looks()
        await made.until_published(*left)


async def test_late_deletion_of_a_cluster_that_drains_is_made_before_the_drain_ends(publishing: Publishing):
    for name in ("alpha", "beta", "gamma"):
        publishing.daemon.engage(name)
    await publishing.until_published("alpha", "beta", "gamma")
    publishing.daemon.source = SourceStatus(state=SourceState.STALE)
    publishing.daemon.disengage("alpha", DisengageReason.NOT_READY)
    draining = Cluster(name="alpha", uid="uid-alpha", draining=Draining(reason=DisengageReason.NOT_READY))
    engagement = Engagement(engaged=True, reason=EngagementReason.DRAINING)
    publishing.daemon.reports["alpha"] = ClusterReport(cluster=draining, engagement=engagement)
    await asyncio.sleep(2 * records.EVIDENCE_S)  # the event permits no deletion anymore
    publishing.daemon.source = SourceStatus(state=SourceState.STREAMING)
    await publishing.until_published("beta", "gamma")
    assert publishing.daemon.asked


async def test_publisher_of_another_fleet_writes_nothing():
    server = await left_by_another("alpha", "beta")
    async with Publishing(server).running("gamma", "delta") as other:
        await eventually(lambda: other.publication.problems)
        await other.two_looks()
        assert "nothing is written" in other.publication.problems[0]
        await other.until_published("alpha", "beta")
    async with Publishing(server, accepts=True).running("gamma") as accepting:
        await accepting.until_published("gamma")


async def test_publisher_keeps_objects_of_clusters_missing_from_a_much_smaller_view_and_publishes_new_clusters():
    names = [f"p-{number}" for number in range(6)]
    async with Publishing(await left_by_another(*names)).running(*names[:2]) as other:
        await eventually(lambda: "nothing is removed" in "".join(other.publication.problems))
        other.daemon.engage("new")
        await other.until_published(*names, "new")
        await other.two_looks()
        for name in names:
            other.daemon.engage(name)
        await eventually(lambda: other.publication.problems == ())
        await other.until_published(*names, "new")


async def test_object_contested_by_two_publishers_with_the_same_name_is_deleted_once():
    one = Publishing()
    two = Publishing(one.server)
    async with one.running("alpha", "beta", "gamma"), two.running("beta", "gamma", "delta"):
        for publishing in (one, two):
            await eventually(lambda made=publishing: "written again" in "".join(made.publication.problems))
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
    await eventually(lambda: publishing.publication.problems)
    await publishing.two_looks()
    await publishing.until_published("alpha", "beta")


async def test_publisher_continues_when_its_stream_is_resumed_after_a_snapshot_that_broke_off(publishing):
    """It wrote and deleted nothing any more, without a problem."""
    publishing.daemon.engage("alpha")
    await publishing.until_published("alpha")
    publishing.daemon.sent.put_nowait(Connected(resumed=False))  # such as another daemon, which is starting
    publishing.daemon.sent.put_nowait(Connected(resumed=True))
    publishing.daemon.engage("beta")
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
    elsewhere = ClusterReport(engagement=Engagement(reason=EngagementReason.UNASSIGNED, assigned_elsewhere=True))
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


async def test_replica_keeps_objects_of_clusters_that_only_their_owner_can_judge():
    one = Publishing(group="dns")
    two = Publishing(one.server, group="dns")
    async with one.running("not-ready", "unknown"):
        await one.until_published("not-ready", "unknown")
    not_ready = Engagement(reason=EngagementReason.NOT_READY, assigned_elsewhere=True)
    two.daemon.reports["not-ready"] = ClusterReport(engagement=not_ready)
    two.daemon.unknown_elsewhere = True
    async with two.running("d", "e", "f"):
        await two.two_looks()
        await one.until_published("not-ready", "unknown", "d", "e", "f")


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
    await eventually(lambda: publishing.publication.problems and publishing.server.clusters)
    publishing.daemon.disengage("eu#alpha", DisengageReason.MOVED)
    publishing.daemon.engage("beta")
    await eventually(lambda: "beta-kubeconfig" in publishing.server.clusters)
    assert publishing.server.clusters["eu.alpha-kubeconfig"] == "uid-eu#alpha"


def _group(server: Server, cluster: str) -> str:
    return server.objects[f"{cluster}-kubeconfig"]["metadata"]["annotations"]["discovery.miloapis.com/group"]


async def test_server_is_not_published_if_its_credential_requires_impersonation():
    publishing = Publishing(renderer=ARGOCD)
    issued = asyncio.get_running_loop().create_future()
    issued.set_result(changed(exec_kubeconfig(), "user", **ActAs(user="shop").fields()))
    publishing.daemon.issued["alpha"] = issued
    async with publishing.running("alpha"):
        await eventually(lambda: publishing.publication.problems)
    assert publishing.reports[0].startswith("no server and CA to publish: the rule for this publisher sets `as`")
    assert publishing.server.objects == {}


async def test_configmap_that_cannot_name_the_tls_server_is_reported():
    publishing = Publishing(renderer=FluxConfigMaps())
    issued = asyncio.get_running_loop().create_future()
    issued.set_result(changed(exec_kubeconfig(), "cluster", **{"tls-server-name": "milo.internal"}))
    publishing.daemon.issued["alpha"] = issued
    async with publishing.running("alpha"):
        await eventually(lambda: publishing.server.objects)
    assert "ConfigMaps for Flux cannot name the TLS server, such as milo.internal" in publishing.reports[0]


async def test_answer_about_a_former_address_is_not_published():
    publishing, loop = Publishing(renderer=ARGOCD), asyncio.get_running_loop()
    former, latest = loop.create_future(), loop.create_future()
    publishing.daemon.issued["alpha"] = former
    async with publishing.running():
        publishing.daemon.engage("alpha", endpoint="former")
        await eventually(lambda: former._asyncio_future_blocking or former._callbacks)
        publishing.daemon.issued["alpha"] = latest
        publishing.daemon.engage("alpha", endpoint="latest")
        latest.set_result(of_plugin("alpha", "https://latest.test"))
        await eventually(lambda: _address(publishing.server) == "https://latest.test")
        publishing.daemon.issued.clear()
        publishing.publication._resync_s = 3600.0
        former.set_result(of_plugin("alpha", "https://former.test"))
        publishing.daemon.engage("beta")
        await eventually(lambda: "beta-argocd-cluster" in publishing.server.objects)
        assert _address(publishing.server) == "https://latest.test"


async def test_clusters_whose_access_is_not_answered_do_not_delay_the_first_write():
    """Found by a reader: the daemon was asked for its shard group after all of them."""
    publishing = Publishing(renderer=ARGOCD)
    hanging = [f"hanging-{number}" for number in range(100)]
    for name in hanging:
        publishing.daemon.issued[name] = asyncio.get_running_loop().create_future()
    async with publishing.running("good", *hanging):
        await eventually(lambda: publishing.server.objects)
        assert [*publishing.server.objects] == ["good-argocd-cluster"]


async def test_clusters_without_a_credential_delay_no_others():
    publishing = Publishing(renderer=ARGOCD)
    failing, hanging = ([f"{kind}-{number}" for number in range(20)] for kind in ("failing", "hanging"))
    for name in failing:
        unavailable = Unavailable("no credential", code="UNAVAILABLE", retry_after=timedelta(hours=1))
        publishing.daemon.failures[name] = [unavailable] * 10
    for name in hanging:
        publishing.daemon.issued[name] = asyncio.get_running_loop().create_future()
    async with publishing.running(*failing, *hanging):
        publishing.daemon.engage("good")
        await eventually(lambda: publishing.server.objects)
        assert [*publishing.server.objects] == ["good-argocd-cluster"]
        assert "cluster failing-0: cannot get its server and CA: no credential" in publishing.reports


@pytest.mark.parametrize(
    "error",
    [TargetUnavailable("POST alpha: 429", timedelta(hours=1)), RuntimeError("a defect")],
    ids=["unavailable", "unexpected"],
)
async def test_object_that_fails_delays_no_others_and_is_named(publishing: Publishing, error: Exception):
    publishing.server.failures["alpha-kubeconfig"] = error
    publishing.daemon.engage("alpha")
    await eventually(lambda: publishing.publication.problems)
    publishing.daemon.engage("beta")
    await publishing.until_published("beta")
    assert publishing.reports[0].startswith("alpha-kubeconfig: ")


async def test_writes_that_are_not_answered_delay_no_others(publishing: Publishing):
    names = [f"p-{number}" for number in range(40)]
    publishing.server.hanging = {f"{name}-kubeconfig" for name in names}
    for name in names:
        publishing.daemon.engage(name)
    await eventually(lambda: publishing.server.is_hanging)
    publishing.daemon.engage("good")
    await publishing.until_published("good")


@pytest.mark.parametrize("renderer", [FLUX, ARGOCD])
async def test_lookups_that_are_not_answered_delay_no_writes(renderer: Renderer):
    """Found by a reader: they occupied the slots of requests to the API server."""
    others = [f"p-{number}" for number in range(100)]
    two = Publishing(group="dns", renderer=renderer)
    async with two.running(*others):
        await eventually(lambda: len(two.server.objects) == 100)
    one = Publishing(two.server, group="dns", renderer=renderer)
    one.daemon.unknown_elsewhere = True
    async with one.running("alpha"):
        await eventually(lambda: len(one.server.objects) == 101)
        one.daemon.answers_lookups = False
        one.daemon.asked.clear()
        await eventually(lambda: len(one.daemon.asked) >= 16)
        one.daemon.engage("good")
        await eventually(lambda: len(one.server.objects) == 102)


async def test_deletion_of_an_object_with_a_finalizer_is_reported_when_it_is_gone(publishing: Publishing):
    for name in ("alpha", "beta"):
        publishing.daemon.engage(name)
    await publishing.until_published("alpha", "beta")
    publishing.server.api.add_finalizer("alpha-kubeconfig")
    publishing.daemon.disengage("alpha")
    waits = "its deletion was requested, and waits for its finalizers: example.com/slow"
    await eventually(lambda: publishing.publication.problems == (waits,))
    assert "deleted Secret alpha-kubeconfig" not in publishing.reports
    publishing.server.api.remove_finalizers()
    await eventually(lambda: "deleted Secret alpha-kubeconfig" in publishing.reports)
    assert publishing.publication.problems == ()


async def test_cluster_that_lives_again_is_published_once_the_finalizers_of_its_object_are_done(publishing: Publishing):
    for name in ("alpha", "beta"):
        publishing.daemon.engage(name)
    await publishing.until_published("alpha", "beta")
    publishing.server.api.add_finalizer("alpha-kubeconfig")
    before = publishing.server.objects["alpha-kubeconfig"]["metadata"]["uid"]
    publishing.daemon.disengage("alpha")
    publishing.daemon.engage("alpha")
    publishing.daemon.disengage("alpha")
    await eventually(lambda: "deletionTimestamp" in publishing.server.objects["alpha-kubeconfig"]["metadata"])
    publishing.daemon.engage("alpha")
    publishing.server.api.remove_finalizers()
    await publishing.until_published("alpha", "beta")
    assert publishing.server.objects["alpha-kubeconfig"]["metadata"]["uid"] != before
    await eventually(lambda: publishing.publication.problems == ())


async def test_problem_of_a_failed_lookup_ends_with_the_next_answer():
    made = Publishing(await left_by_another("alpha", "beta", "gamma"))
    made.daemon.failures["alpha"] = [Unavailable("no answer", code="UNAVAILABLE")]
    done = asyncio.Event()
    made.daemon.snapshot("beta", "gamma")
    await made.publisher.run({}, done, once=True)
    assert any("no answer" in report for report in made.reports)
    assert made.publication.problems == ()
    await made.until_published("beta", "gamma")


async def test_deletion_is_not_sent_once_the_cluster_is_engaged_again(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
):
    """Also if it waits for a credential or a connection since before that."""
    monkeypatch.setattr(records, "EVIDENCE_S", 10.0)
    publishing.daemon.engage("alpha")
    await publishing.until_published("alpha")
    published = publishing.server.objects["alpha-kubeconfig"]["metadata"]["uid"]
    publishing.server.connected.clear()
    publishing.daemon.disengage("alpha", DisengageReason.NOT_READY)
    await publishing.server.is_deleting.wait()
    publishing.daemon.engage("alpha")
    await eventually(lambda: publishing.publication.records["alpha-kubeconfig"].engaged)
    publishing.server.connected.set()
    await publishing.two_looks()
    assert publishing.server.objects["alpha-kubeconfig"]["metadata"]["uid"] == published
    assert publishing.publication.problems == ()
    publishing.daemon.disengage("alpha")
    await publishing.until_published()


async def test_late_deletion_does_not_remove_the_object_of_a_cluster_that_lives_again_at_another_replica():
    one = Publishing(group="dns")
    two = Publishing(one.server, group="dns")
    elsewhere = ClusterReport(engagement=Engagement(reason=EngagementReason.UNASSIGNED, assigned_elsewhere=True))
    two.daemon.reports = dict.fromkeys(("alpha", "beta"), elsewhere)
    async with one.running("alpha", "beta"):
        await one.until_published("alpha", "beta")
        before = one.server.objects["alpha-kubeconfig"]["metadata"]["uid"]
        one.daemon.source = SourceStatus(state=SourceState.STALE)
        one.daemon.disengage("alpha", DisengageReason.NOT_READY)
        async with two.running("alpha"):
            one.daemon.reports["alpha"] = elsewhere
            await asyncio.sleep(0.2)
            one.daemon.source = SourceStatus(state=SourceState.STREAMING)
            await eventually(lambda: one.daemon.asked or "deleted Secret alpha-kubeconfig" in one.reports)
            await one.two_looks()
            assert one.server.objects["alpha-kubeconfig"]["metadata"]["uid"] == before


def of_plugin(name: str, server: str = "https://milo.test") -> bytes:
    call = {"apiVersion": "client.authentication.k8s.io/v1", "command": "milo-discovery"}
    return text(server, exec={**call, "args": ["credential", "--cluster", name]})


def _server(server: Server) -> str:
    secret = server.objects.get("alpha-kubeconfig", {})
    kubeconfig = json.loads(b64decode(secret.get("data", {}).get("value", "")) or b"{}")
    return kubeconfig["clusters"][0]["cluster"]["server"] if kubeconfig else ""


def _address(server: Server) -> str:
    secret = server.objects.get("alpha-argocd-cluster", {})
    return b64decode(secret.get("data", {}).get("server", "")).decode()


def moved(name: str) -> Event:
    """Return the event that a cluster has another endpoint."""
    cluster = Cluster(name=name, uid=f"uid-{name}", endpoint="https://moved.test")
    return Event(type=EventType.UPDATED, cluster=cluster)


async def test_server_of_a_former_endpoint_stays_published_with_the_reason():
    """Found by a reader: nothing was reported, and consumers went on with the former server."""
    async with Publishing(renderer=ARGOCD).running("alpha") as publishing:
        await eventually(lambda: _address(publishing.server))
        before = _address(publishing.server)
        refused = PermissionDenied("no rule permits it", code="PERMISSION_DENIED")
        publishing.daemon.failures["alpha"] = [refused] * 100
        publishing.daemon.sent.put_nowait(moved("alpha"))
        await eventually(lambda: publishing.publication.problems)
        assert publishing.publication.problems == ("cannot get its server and CA: no rule permits it",)
        assert _address(publishing.server) == before
        publishing.daemon.failures.clear()
        await eventually(lambda: publishing.publication.problems == ())


async def test_credential_of_a_former_endpoint_is_asked_for_again(publishing: Publishing):
    publishing.daemon.engage("alpha")
    await publishing.until_published("alpha")
    publishing.daemon.issued["alpha"] = asyncio.get_running_loop().create_future()
    publishing.daemon.issued["alpha"].set_result(text("https://moved.test", token="t"))
    publishing.daemon.sent.put_nowait(moved("alpha"))
    await eventually(lambda: _server(publishing.server) == "https://moved.test")


async def test_requests_that_wait_for_others_that_hang_take_no_tasks_of_their_own(publishing: Publishing):
    """Found by a reader: 10,000 listed objects took 50 MiB, most of it for tasks that waited for their turn."""
    names = [f"hangs-{at}" for at in range(500)]
    publishing.server.hanging = {f"{name}-kubeconfig" for name in names}
    for name in names:
        publishing.daemon.engage(name)
    await eventually(lambda: len(publishing.publication.records) == 500 and publishing.server.is_hanging)
    publishing.daemon.issued["alpha"] = asyncio.get_running_loop().create_future()
    publishing.daemon.issued["alpha"].set_result(text("https://asked.test", token="t"))
    publishing.daemon.engage_without_credential("alpha")  # its request is for the daemon
    await eventually(lambda: "alpha-kubeconfig" in publishing.publication.records)
    await eventually(lambda: publishing.publication.records["alpha-kubeconfig"].wanted.received is not None)
    assert len(asyncio.all_tasks()) < 100


async def test_objects_of_one_tenant_in_any_number_delay_none_of_another(publishing: Publishing):
    for at in range(500):
        publishing.daemon.engage(f"evil-{at}", organization="evil")
    publishing.daemon.engage("alpha", organization="acme")
    await eventually(lambda: len(publishing.server.objects) == 501)
    assert [*publishing.server.objects].index("alpha-kubeconfig") < 200


async def test_request_that_hangs_passes_on_its_turn_and_returns_its_slot_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publisher, "_HANGING_S", 0.01)
    slots, freed = Slots(quick=1, total=2, tenant=lambda _: ()), asyncio.Event()
    for name in "abcde":
        slots.waiting.add(Task(name, Lane.OBJECT, 1, is_retry=False))

    def taken() -> str:
        task = slots.take()
        return "" if task is None else task.name

    assert [taken(), taken()] == ["a", ""]
    with slots.slot(freed.set):
        await freed.wait()
        assert [taken(), taken()] == ["b", ""]
        freed.clear()
        with slots.slot(freed.set):
            await freed.wait()
            assert taken() == ""  # two hang
    assert [taken(), taken()] == ["c", ""]
    with slots.slot(freed.set):
        pass
    assert [taken(), taken()] == ["d", ""]


async def test_run_until_all_is_published_fails_if_it_is_terminated_before(tmp_path: Path):
    """Found by a reader: it exited with 0, so that a Job whose pod was evicted counted as succeeded."""
    kubeconfig = tmp_path / "kubeconfig"
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "fleet"}}
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    user = {"name": "u", "user": {"token": "t"}}
    config = {"current-context": "c", "contexts": [context], "clusters": [cluster], "users": [user]}
    kubeconfig.write_text(json.dumps(config))
    arguments = ["publish", "cluster-profiles", "--once", "--kubeconfig", str(kubeconfig)]
    arguments += ["--address", f"unix://{tmp_path}/none.sock"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "milo_discovery_cli", *arguments, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"cannot connect" in await process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert b"ended by SIGTERM" in await process.stderr.read()
    assert await process.wait() == 1
