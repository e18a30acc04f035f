"""The requests of a publication about each object: single cases, and random histories."""

from __future__ import annotations

import copy
import dataclasses
import math
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import cycle, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from milo_discovery import Cluster, Connectivity, ConnectivityState, DisengageReason, EventType, SourceState
from milo_discovery.errors import CallFailed, PermissionDenied, StatusError, Unavailable
from milo_discovery.events import Event
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.model import SourceStatus
from milo_discovery.removals import Removals
from milo_publishing.errors import PublishedByAnother, TargetRefused, TargetUnavailable
from milo_publishing.objects import CLUSTER, CLUSTER_UID, FIELDS, FILTER, GROUP, INCARNATION, MANAGED_BY, Identity
from milo_publishing.publication import Lane, Publication
from milo_publishing.records import Apply, Ask, Create, DeleteObject, Engaged, ReadObject, Received, Request
from milo_publishing.rendering import ClusterProfiles, FluxKubeconfigs
from tests.simulation.publishing.api_server import ApiServer, is_own

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ACCESS = KubeconfigAccess(server="https://milo.test/alpha", authorities="PEM")
PROFILES = ClusterProfiles(cluster_manager="milo", access_provider="milo", copy_labels=("env",))
STREAMING, STALE = (SourceStatus(state=state) for state in (SourceState.STREAMING, SourceState.STALE))


def identity(publisher: str = "milo", only: str = "") -> Identity:
    return Identity(publication="cluster-profiles", publisher=publisher, filter=only)


def cluster(name: str = "alpha", *, uid: str = "1", state: str = "REACHABLE", **fields: Any) -> Cluster:
    connectivity = Connectivity(state=ConnectivityState[state], since=NOW)
    return Cluster(name=name, uid=uid, engaged_at=NOW, connectivity=connectivity, **fields)


def model_server() -> ApiServer:
    return ApiServer(lambda _: None, lambda *_: None, pytest.fail)


class Publishing:
    """A publication whose requests are answered at once. The daemon lacks all clusters but those in `elsewhere`."""

    def __init__(
        self,
        server: ApiServer | None = None,
        of: Identity | None = None,
        *,
        group: str = "",
        resync_s: float = math.inf,
        began_at: float = -math.inf,
    ) -> None:
        self.server = server or model_server()
        self.removals = Removals(began_at=began_at)
        self.reports: list[str] = []
        self.publication = Publication(
            PROFILES, of or identity(), self.removals, resync_s=resync_s, report=self.reports.append, draw=lambda: 0.5
        )
        self.connected, self.source, self.sources = True, STREAMING, {}
        self.elsewhere: set[str] = set()
        self.lacked: set[str] = set()
        """Those of `elsewhere` of which the daemon knows nothing."""
        self.sent: list[Request] = []
        self.before: Callable[[Request], None] = lambda _: None
        """Called before a request takes effect; it may raise."""
        self.before_ask = self.before
        self.unanswered: set[str] = set()
        """The clusters about which the daemon does not answer."""
        self.before_access: Callable[[], None] = lambda: None
        self.before_list = self.before_access
        self.has_access = True
        self.now = max(0.0, began_at)
        self._group = group

    def synced(self, *clusters: Cluster) -> Publishing:
        """Receive a snapshot, and settle."""
        self.publication.snapshot_begins()
        self.engage(*clusters)
        self.publication.snapshot_ends(self.now)
        return self.settle()

    def engage(self, *clusters: Cluster) -> Publishing:
        for one in clusters:
            self.publication.engage(one, None, self.now)
        return self

    def end(self, one: Cluster, reason: DisengageReason = DisengageReason.DELETED) -> Publishing:
        self.publication.withdraw(Event(type=EventType.DISENGAGED, cluster=one, reason=reason), self.now)
        return self

    def settle(self, for_s: float = 0.5) -> Publishing:
        """Perform what is due within a time; the clock stops at its end."""
        until = self.now + for_s
        while (at := self.publication.next_at) <= until:
            self.now = max(self.now, at)
            for task in self.publication.due(self.now, self):  # type: ignore[arg-type]  # of the watch it has what is used
                request = self.publication.request(task, self.now, self)  # type: ignore[arg-type]
                try:
                    self._perform(task, request)
                except (TargetRefused, TargetUnavailable, StatusError) as error:
                    self.publication.failed(task, error, self.now)
        self.now = until
        return self

    def _perform(self, task: Any, request: Request | Engaged | Lane | None) -> None:
        match request:
            case None:
                pass
            case Lane.LIST:
                self.before_list()
                self.publication.listed(self.now, self.server.list(self.publication.identity), self.now)
            case Lane.IDENTIFY:
                self.publication.identified(self._group, self.now)
            case Engaged():
                self.before_access()
                if self.has_access:
                    self.publication.received(task, Received(ACCESS), self.now)
            case Ask(name):
                self.sent.append(request)
                self.before_ask(request)
                if name in self.unanswered:
                    return
                is_elsewhere = name in self.elsewhere
                is_missing = not is_elsewhere or name in self.lacked
                self.publication.asked(task, is_missing=is_missing, is_elsewhere=is_elsewhere, now=self.now)
            case Create() | Apply() | DeleteObject() | ReadObject():
                self.publication.require_permit(task, request, self.now, self)  # type: ignore[arg-type]
                self.sent.append(request)
                self.before(request)
                self.publication.read(task, request, self.server.apply(request), self.now)
            case _:
                raise AssertionError(request)

    @property
    def object(self) -> Any:
        return self.server.objects["alpha"]

    @property
    def uids(self) -> dict[str, str]:
        """The UIDs of the objects, by name."""
        return {name: obj["metadata"]["uid"] for name, obj in self.server.objects.items()}

    def writes(self) -> list[type[Request]]:
        return [type(request) for request in self.sent if not isinstance(request, Ask | ReadObject)]


@pytest.fixture
def publishing() -> Publishing:
    return Publishing()


def test_object_stays_that_of_its_cluster_while_another_one_has_its_name() -> None:
    first, other = cluster("eu#alpha"), cluster("eu.alpha", uid="2")
    publishing = Publishing(resync_s=30.0, group="group").synced(first, other)
    publishing.end(first, DisengageReason.MOVED)  # and perhaps another replica has written the object
    publishing.elsewhere.add("eu#alpha")
    publishing.settle()
    publishing.elsewhere.clear()
    publishing.engage(cluster("eu#alpha", labels={"env": "new"})).settle(100.0)
    found = publishing.server.objects["eu.alpha"]
    assert found["metadata"]["annotations"][CLUSTER] == "eu#alpha"
    assert found["metadata"]["labels"]["env"] == "new"
    assert publishing.publication.problems == ("the object eu.alpha belongs to cluster 'eu#alpha'",)


def test_listed_object_is_that_of_the_engaged_cluster_that_it_names() -> None:
    first, other = cluster("eu#alpha"), cluster("eu.alpha", uid="2")
    server = Publishing().synced(first).server
    publishing = Publishing(server).synced(other, first).settle(100.0)
    found = server.objects["eu.alpha"]
    assert found["metadata"]["annotations"][CLUSTER] == "eu#alpha"
    assert publishing.publication.problems == ("the object eu.alpha belongs to cluster 'eu#alpha'",)
    publishing.end(first).settle(100.0)
    assert server.objects["eu.alpha"]["metadata"]["annotations"][CLUSTER] == "eu.alpha"
    assert publishing.publication.problems == ()


def test_object_is_created_once_and_not_written_while_unchanged(publishing: Publishing):
    publishing.synced(cluster(labels={"env": "prod", "tier": "gold"}))
    assert publishing.object["metadata"]["labels"]["env"] == "prod"
    assert "tier" not in publishing.object["metadata"]["labels"]
    assert publishing.object["status"]["conditions"][0]["status"] == "True"
    assert publishing.writes() == [Create, Apply]
    again = Publishing(publishing.server).synced(cluster(labels={"env": "prod"}))
    assert again.writes() == []
    assert (again.publication.is_done, again.publication.problems) == (True, ())


def test_object_is_not_created_before_access_is_known(publishing: Publishing):
    publishing.has_access = False
    publishing.synced(cluster())
    assert not publishing.server.objects
    assert not publishing.publication.is_done


def test_only_status_is_written_when_health_changes(publishing: Publishing):
    publishing.synced(cluster()).engage(cluster(state="UNREACHABLE")).settle()
    request = publishing.sent[-1]
    assert isinstance(request, Apply)
    assert request.body is None
    assert publishing.object["status"]["conditions"][0]["status"] == "False"


def test_published_condition_keeps_transition_time_while_status_is_unchanged(publishing: Publishing):
    publishing.synced(cluster())
    later = Connectivity(state=ConnectivityState.REACHABLE, since=datetime(2026, 11, 22, tzinfo=UTC))
    publishing.engage(Cluster(name="alpha", uid="1", engaged_at=NOW, connectivity=later)).settle()
    assert publishing.writes() == [Create, Apply]


def test_label_removed_from_cluster_is_removed_from_published_object(publishing: Publishing):
    publishing.synced(cluster(labels={"env": "prod"})).engage(cluster()).settle()
    assert "env" not in publishing.object["metadata"]["labels"]


def test_calls_that_failed_with_another_status_are_repeated(publishing: Publishing):
    """Found by a reader: after one internal error, a new cluster had no object before the next list, and that of an
    ended one stayed."""
    publishing.synced(cluster(), cluster("beta"), cluster("gamma"))
    failing = {"look-up", "access"}

    def fail(call: str) -> None:
        if call in failing:
            failing.remove(call)
            raise CallFailed("internal error; see incident 1", code="INTERNAL")

    publishing.before_ask, publishing.before_access = lambda _: fail("look-up"), lambda: fail("access")
    publishing.engage(cluster("delta")).end(cluster(), DisengageReason.UNSPECIFIED)
    publishing.publication.snapshot_begins()
    publishing.publication.snapshot_ends(publishing.now)
    publishing.settle(60.0)
    assert publishing.uids.keys() == {"beta", "gamma", "delta"}
    assert publishing.publication.problems == ()


def test_object_of_an_ended_cluster_is_deleted_at_once_if_its_source_is_streaming(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta")).end(cluster()).settle()
    assert publishing.writes()[-1] is DeleteObject
    assert [*publishing.server.objects] == ["beta"]
    assert publishing.reports[-1] == "deleted ClusterProfile alpha"


def test_late_evidence_is_asked_for_again_before_the_object_is_deleted(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta"))
    publishing.source = STALE
    publishing.end(cluster()).settle(30.0)
    assert "alpha" in publishing.server.objects
    assert publishing.publication.is_done, "a held deletion does not delay --once"
    waits = "the object alpha waits until the daemon is connected and follows the source of the cluster"
    assert publishing.publication.unfinished == f"not finished: {waits}"
    publishing.source = STREAMING
    publishing.settle(3.0)
    assert [type(request) for request in publishing.sent[-2:]] == [Ask, DeleteObject]
    assert [*publishing.server.objects] == ["beta"]
    assert publishing.publication.unfinished == ""


def test_objects_that_wait_for_their_source_are_not_finished():
    """Found by a reader: --once exited with 0, and left them without a word."""
    made = Publishing().synced(*map(cluster, ("alpha", "beta", "gamma", "delta")))
    made.source = STALE
    made.end(cluster()).end(cluster("beta")).settle(30.0)
    unfinished = "2 objects wait, such as alpha, until the daemon is connected and follows the source of the cluster"
    assert (made.publication.is_done, made.publication.problems) == (True, ())
    assert made.publication.unfinished == f"not finished: {unfinished}"


def test_publisher_says_why_it_writes_nothing_while_no_source_of_its_objects_is_streaming():
    """Found by a reader: without a word, it wrote nothing, and `--once` did not end."""
    publishing = Publishing(Publishing().synced(cluster(), cluster("beta")).server)
    publishing.source = STALE
    publishing.synced(cluster("gamma")).settle(30.0)
    problem = (
        "the daemon's view lacks all 2 clusters that have an object or file, and the sources of 2 are not streaming: "
        "nothing is written until they are"
    )
    assert publishing.reports == [f"removals: {problem}"]
    assert (publishing.publication.is_done, publishing.publication.problems) == (True, (problem,))
    assert publishing.publication.unfinished == "unresolved problems: 1; see the messages above"
    assert publishing.uids.keys() == {"alpha", "beta"}
    publishing.source = STREAMING
    publishing.engage(cluster(), cluster("beta")).settle(30.0)
    assert publishing.reports[1:] == ["removals: resolved", "created ClusterProfile gamma"]
    assert (publishing.publication.is_done, publishing.publication.unfinished) == (True, "")


def test_expired_credential_is_not_written_over_that_of_another_replica():
    """Found by a reader: a replica whose daemon was away wrote its last credential at each list, also hours later."""
    server = model_server()

    def engage(publishing: Publishing, token: str) -> Publishing:
        received = Received(dataclasses.replace(ACCESS, token=token), publishing.now + 60.0)
        publishing.publication.engage(cluster(), received, publishing.now)
        return publishing

    def publisher() -> Publishing:
        publishing = Publishing(server, resync_s=30.0)
        publishing.publication.renderer = FluxKubeconfigs()
        return publishing

    one, other = engage(publisher(), "first").synced(), engage(publisher(), "second").synced()
    other.connected = False
    for publishing in (one, other):
        publishing.has_access = False
        publishing.settle(70.0)
    engage(one, "third").settle()
    other.settle(60.0)
    assert b"third" in b64decode(server.objects["alpha-kubeconfig"]["data"]["value"])


def test_late_evidence_is_dropped_if_another_replica_has_engaged_the_cluster(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta"))
    publishing.source = STALE
    publishing.end(cluster()).settle(30.0)
    publishing.source, publishing.elsewhere = STREAMING, {"alpha"}
    publishing.settle(60.0)
    assert "alpha" in publishing.server.objects


def test_deletion_fails_once_another_replica_has_engaged_the_cluster_and_is_not_repeated():
    one = Publishing(group="dns").synced(cluster(incarnation="a"), cluster("beta"))
    two = Publishing(one.server, group="dns").synced(cluster("gamma"))

    def lives_again(request: Request) -> None:
        if isinstance(request, DeleteObject):
            two.engage(cluster(incarnation="b")).settle()
            one.elsewhere.add("alpha")

    one.before = lives_again
    before = one.uids["alpha"]
    one.end(cluster(), DisengageReason.NOT_READY).settle(60.0)
    assert one.writes().count(DeleteObject) == 1
    assert one.uids["alpha"] == before
    assert one.object["metadata"]["annotations"]["discovery.miloapis.com/incarnation"] == "b"


@pytest.mark.parametrize("group", ["", "dns"])
def test_late_deletion_does_not_remove_the_object_of_a_cluster_that_is_engaged_again(group: str):
    """Found by a reader: without a group, the object was deleted, and missing until the next list."""
    publishing = Publishing(group=group).synced(cluster(incarnation="a"))
    unanswered: list[Request] = []

    def lose_deletion(request: Request) -> None:
        if isinstance(request, DeleteObject):
            unanswered.append(request)
            raise TargetUnavailable("no answer within 10 s")

    publishing.before = lose_deletion
    publishing.end(cluster(incarnation="a"), DisengageReason.NOT_READY).settle(0.0)
    publishing.engage(cluster(incarnation="b")).settle(1.0)
    [late] = unanswered
    with pytest.raises(TargetRefused, match="it has changed"):
        publishing.server.apply(late)
    written = copy.deepcopy(publishing.object)
    publishing.sent.clear()
    assert publishing.settle(60.0).sent == []
    assert publishing.object == written
    assert written["metadata"]["annotations"][FIELDS]


@pytest.mark.parametrize(
    "error",
    [TargetUnavailable("no answer within 20 s"), TargetUnavailable("504 request did not complete", is_answer=True)],
)
def test_late_creation_for_a_cluster_that_has_ended_is_deleted_before_the_next_list_is_due(
    publishing: Publishing, error: TargetUnavailable
):
    publishing.synced(cluster("beta"), cluster("gamma"), cluster("delta"))
    unanswered: list[Request] = []

    def lose_creation(request: Request) -> None:
        if isinstance(request, Create):
            unanswered.append(request)
            raise error

    publishing.before = lose_creation
    publishing.engage(cluster()).settle(0.1)
    publishing.end(cluster()).settle(20.0)
    [late] = unanswered
    publishing.server.apply(late)
    publishing.settle(70.0)
    assert "alpha" not in publishing.server.objects


def test_answer_of_a_former_daemon_about_its_group_is_not_that_of_the_present_one():
    """Found by a reader: the present daemon was never asked, and objects were written for the former one's group."""
    publishing = Publishing().synced(cluster())
    publication = publishing.publication
    tasks = []
    for _ in range(2):  # the stream begins again, and once more before the answer
        publication.snapshot_begins()
        publishing.engage(cluster())
        publication.snapshot_ends(publishing.now)
        tasks += publication.due(publishing.now, publishing)  # type: ignore[arg-type]
    assert [task.lane for task in tasks if task.lane is Lane.IDENTIFY] == [Lane.IDENTIFY]
    publication.identified("", publishing.now)
    publishing._group = "dns"
    with pytest.raises(PublishedByAnother, match="changed from none to dns"):
        publishing.settle()


def test_list_that_became_due_during_a_list_is_not_lost():
    publishing = Publishing(resync_s=300.0).synced()
    publishing.settle(299.0).now = 300.0
    [task] = publishing.publication.due(publishing.now, publishing)  # type: ignore[arg-type]
    assert task.lane is Lane.LIST

    def fail(request: Request) -> None:
        raise TargetUnavailable("the answer did not arrive")

    publishing.before = fail
    publishing.engage(cluster()).settle(0.0)
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    assert [type(request) for request in publishing.sent] == [Create]
    publishing.before = lambda _: None
    listed: list[float] = []
    take = publishing.server.list
    publishing.server.list = lambda *of: listed.append(publishing.now) or take(*of)  # type: ignore[method-assign,func-returns-value]
    publishing.settle(100.0)
    assert listed == [pytest.approx(360.0, abs=1.0)]


def test_times_of_former_credentials_are_not_kept():
    """Found by a reader: each change of a cluster's labels brings its credential again, with a time of its own."""
    publication = Publishing().publication
    publication.renderer = FluxKubeconfigs()
    for number in range(20_000):
        publication.engage(cluster(), Received(ACCESS, 3600.0 + number), float(number))
    assert len(publication._due) < 2_000
    assert {at for at, *_ in publication._due} >= {0.0, 3600.0 + 19_999}, "the object is written, and its credential"


def test_object_without_a_shard_group_names_no_incarnation(publishing: Publishing):
    publishing.synced(cluster(incarnation="a"))
    assert "discovery.miloapis.com/incarnation" not in publishing.object["metadata"]["annotations"]


def test_object_of_a_former_shard_group_names_no_incarnation_so_that_the_end_of_its_cluster_counts(
    publishing: Publishing,
):
    """Found by a reader: all removals were held, because no event was about the incarnation that the object named."""
    publishing.synced(cluster())
    left = copy.deepcopy(publishing.object)
    left["metadata"]["annotations"][INCARNATION] = "a"
    publishing.server.put("alpha", left)
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    publishing.settle()
    assert publishing.object["metadata"]["annotations"][INCARNATION] == ""
    publishing.end(cluster()).settle()
    assert publishing.server.objects == {}


def test_object_of_a_moved_cluster_is_kept_by_the_other_replica():
    one = Publishing(group="dns").synced(cluster(), cluster("beta"))
    two = Publishing(one.server, group="dns")
    one.elsewhere = two.elsewhere = {"alpha", "beta"}
    before = one.uids
    one.end(cluster(), DisengageReason.MOVED).settle(60.0)
    two.synced(cluster(state="UNREACHABLE")).settle(60.0)
    assert one.uids == before


def test_end_of_a_cluster_before_its_reengagement_does_not_allow_deletion_of_its_object(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta")).end(cluster()).engage(cluster())
    publishing.end(cluster(), DisengageReason.MOVED).settle(60.0)
    assert "alpha" in publishing.server.objects


def test_object_that_this_publisher_has_deleted_and_written_again_is_deleted_again(publishing: Publishing):
    """It was kept as an object that another run had written again."""
    others = [cluster(name) for name in ("beta", "gamma")]
    publishing.synced(cluster(), *others)
    for _ in range(2):
        publishing.publication.snapshot_begins()
        publishing.end(cluster(), DisengageReason.UNSPECIFIED)
        publishing.publication.snapshot_ends(publishing.now)
        publishing.settle(60.0)
        assert "alpha" not in publishing.server.objects
        publishing.engage(cluster()).settle()
        assert "alpha" in publishing.server.objects


@pytest.mark.parametrize(
    ("group", "of", "difference"),
    [
        ("dns", identity(), "belongs to the shard group 'dns', but this daemon belongs to no shard group"),
        ("", identity(only="-l a=b"), "was written with the filter `-l a=b`, but this run has no filter"),
    ],
)
def test_object_of_another_group_or_filter_stops_the_publisher(group: str, of: Identity, difference: str):
    other = Publishing(of=of, group=group).synced(cluster())
    with pytest.raises(PublishedByAnother, match=f"alpha: the object of publisher 'milo' {difference}"):
        Publishing(other.server).synced(cluster())


def test_object_of_another_filter_is_kept_as_it_is_and_ends_no_publisher_while_most_are_its_own():
    publishing = Publishing().synced(cluster(), cluster("beta"), cluster("gamma"))
    annotations = publishing.server.objects["beta"]["metadata"]["annotations"]
    annotations["discovery.miloapis.com/filter"] = "-l a=b"
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    before = copy.deepcopy(publishing.server.objects["beta"])
    publishing.engage(cluster("beta", endpoint="https://other.example.com")).engage(cluster("delta")).settle()
    publishing.end(cluster("beta"), DisengageReason.DELETED).end(cluster("gamma"), DisengageReason.DELETED).settle(60.0)
    assert publishing.server.objects["beta"] == before
    assert set(publishing.server.objects) == {"alpha", "beta", "delta"}
    [problem] = publishing.publication.problems
    assert "was written with the filter `-l a=b`, but this run has no filter" in problem
    del annotations["discovery.miloapis.com/filter"]
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    publishing.settle(60.0)
    assert set(publishing.server.objects) == {"alpha", "delta"}
    assert publishing.publication.problems == ()


def test_objects_are_taken_over_until_each_of_them_is_written_again():
    others = Publishing(of=identity(only="-l a=b")).synced(cluster(), cluster("beta"))
    publishing = Publishing(others.server)
    publishing.removals.accepts = True

    def refuse(request: Request) -> None:
        if isinstance(request, Apply):
            raise TargetUnavailable("500: the webhook fails")

    publishing.before = refuse
    publishing.synced(cluster(), cluster("beta")).settle(60.0)
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    publishing.before = lambda _: None
    publishing.settle(60.0)
    assert publishing.object["metadata"]["annotations"]["discovery.miloapis.com/filter"] == ""
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    publishing.synced(cluster(), cluster("beta"))
    assert not publishing.removals.accepts


@pytest.mark.parametrize("delayed_by", ["stale source", "failed look-up", "failed look-ups"])
def test_view_of_another_fleet_writes_and_deletes_nothing_also_before_the_daemon_can_answer(delayed_by: str):
    """Found by a reader: its clusters were published before its source was streaming. They then outnumbered the others,
    whose objects were deleted."""
    fleet, other = ([cluster(f"{name}-{number}", uid=f"{name}{number}") for number in range(4)] for name in "ab")
    publishing = Publishing(Publishing().synced(*fleet).server)
    before = publishing.uids

    def cannot_look_up(request: Request) -> None:
        if delayed_by == "failed look-ups" or request == Ask("a-0", "a0"):
            raise Unavailable("busy", code="UNAVAILABLE")

    if delayed_by == "stale source":
        publishing.source = STALE
    else:
        publishing.before_ask = cannot_look_up
    publishing.synced(*other).settle(60.0)
    assert publishing.uids == before
    publishing.source, publishing.before_ask = STREAMING, lambda _: None
    publishing.settle(120.0)
    assert publishing.uids == before
    assert "lacks all 4 clusters" in publishing.publication.problems[0]


@pytest.mark.parametrize("delayed_by", ["stale source", "failed look-up"])
def test_accepted_removals_are_made_once_the_daemon_can_answer(delayed_by: str):
    clusters = [cluster(f"alpha-{number}", uid=f"{number}") for number in range(5)]
    publishing = Publishing(Publishing().synced(*clusters).server)
    publishing.removals.accepts = True

    def cannot_look_up(_: Request) -> None:
        raise Unavailable("busy", code="UNAVAILABLE")

    if delayed_by == "stale source":
        publishing.source = STALE
    else:
        publishing.before_ask = cannot_look_up
    publishing.synced(clusters[0]).settle(5.0)
    publishing.source, publishing.before_ask = STREAMING, lambda _: None
    publishing.settle(60.0)
    assert [*publishing.server.objects] == ["alpha-0"]


@pytest.mark.parametrize("annotation", ["cluster", "cluster-uid", "incarnation", "group", "filter", "fields"])
def test_annotation_that_another_client_removed_is_written_again(annotation: str):
    """Found by a reader: without its UID, the object of a live cluster was deleted."""
    publishing = Publishing(group="dns").synced(cluster(incarnation="a"), cluster("beta"), cluster("gamma"))
    before, changed = copy.deepcopy(publishing.object), copy.deepcopy(publishing.object)
    del changed["metadata"]["annotations"][f"discovery.miloapis.com/{annotation}"]
    publishing.server.put("alpha", changed)
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    publishing.settle(60.0)
    assert publishing.writes()[-1] is Apply
    assert publishing.object["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert publishing.object["metadata"]["uid"] == before["metadata"]["uid"]


@pytest.mark.parametrize("group", ["", "dns"])
@pytest.mark.parametrize("annotation", ["cluster", "cluster-uid", "incarnation", "fields"])
def test_annotation_that_another_client_changed_is_written_again(annotation: str, group: str):
    """Found by a reader: with another UID, the object of a live cluster was deleted."""
    publishing = Publishing(group=group).synced(cluster(incarnation="a"), cluster("beta"), cluster("gamma"))
    before, changed = copy.deepcopy(publishing.object), copy.deepcopy(publishing.object)
    for other in ("other", "third"):
        changed["metadata"]["annotations"][f"discovery.miloapis.com/{annotation}"] = other
        publishing.server.put("alpha", copy.deepcopy(changed))
        publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    publishing.settle(60.0)
    assert publishing.writes()[-1] is Apply
    assert {**publishing.object["metadata"]["annotations"], INCARNATION: group and "a"} == {
        **before["metadata"]["annotations"],
        INCARNATION: group and "a",
    }
    assert publishing.object["metadata"]["uid"] == before["metadata"]["uid"]


def test_object_whose_uid_another_client_changed_is_not_that_of_the_next_cluster(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta"), cluster("gamma"))
    before, changed = publishing.uids["alpha"], copy.deepcopy(publishing.object)
    changed["metadata"]["annotations"]["discovery.miloapis.com/cluster-uid"] = "other"
    publishing.server.put("alpha", changed)
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    publishing.end(cluster(), DisengageReason.REPLACED).engage(cluster(uid="2")).settle(60.0)
    assert DeleteObject in publishing.writes()
    assert publishing.uids["alpha"] != before
    assert publishing.object["metadata"]["annotations"]["discovery.miloapis.com/cluster-uid"] == "2"


@pytest.mark.parametrize("removed", [True, False])
def test_object_is_not_deleted_because_another_client_changed_the_name_of_its_cluster(*, removed: bool):
    """Found by a reader: a replica asked for the cluster that the object named, with the UID of its own."""
    first = Publishing(group="dns").synced(cluster(incarnation="a"))
    second = Publishing(first.server, group="dns", resync_s=30.0).synced(cluster("beta", uid="2", incarnation="b"))
    second.elsewhere.add("alpha")
    second.settle(60.0)
    first.server.change("alpha", "annotations", CLUSTER, None if removed else "beta")
    third = Publishing(first.server, group="dns", resync_s=30.0).synced(cluster("gamma", uid="3", incarnation="c"))
    third.elsewhere |= {"alpha", "beta"}
    second.settle(120.0)
    third.settle(120.0)
    assert DeleteObject not in (*second.writes(), *third.writes())
    assert second.publication.problems == ()
    assert ["has changed its annotation" in problem for problem in third.publication.problems] == [True]
    first.publication.listed(first.now, first.server.list(), first.now)
    first.settle()
    assert first.object["metadata"]["annotations"][CLUSTER] == "alpha"
    third.settle(60.0)
    assert third.publication.problems == ()


def test_object_that_names_no_cluster_of_its_name_is_that_of_the_engaged_cluster(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta"), cluster("gamma"))
    publishing.server.change("alpha", "annotations", CLUSTER, "beta")
    same = Publishing(publishing.server).synced(cluster(), cluster("beta"), cluster("gamma"))
    assert same.object["metadata"]["annotations"][CLUSTER] == "alpha"
    publishing.server.change("alpha", "annotations", CLUSTER, "beta")
    before = same.uids["alpha"]
    other = Publishing(publishing.server).synced(cluster(uid="2"), cluster("beta"), cluster("gamma")).settle(60.0)
    assert other.sent == []
    assert other.uids["alpha"] == before
    assert ["has changed its annotation" in problem for problem in other.publication.problems] == [True]


@pytest.mark.parametrize("value", [None, "Helm"])
@pytest.mark.parametrize("key", [*identity().labels()])
def test_label_that_another_client_changed_is_written_again(key: str, value: str | None):
    """Found by a reader: the object was reported as that of another program, and stayed when its cluster had ended."""
    publishing = Publishing(resync_s=300.0).synced(cluster(), cluster("beta"))
    before = publishing.uids["alpha"]
    publishing.server.change("alpha", "labels", key, value)
    publishing.settle(301.0)
    assert publishing.uids["alpha"] == before
    assert identity().labels().items() <= publishing.object["metadata"]["labels"].items()
    assert publishing.publication.problems == ()
    publishing.server.change("alpha", "labels", key, value)
    publishing.end(cluster()).settle(60.0)
    assert "alpha" not in publishing.server.objects


def test_object_without_its_label_is_deleted_although_lists_lack_it_before():
    publishing = Publishing(resync_s=5.0).synced(cluster(), cluster("beta"))
    publishing.server.change("alpha", "labels", MANAGED_BY, None)
    publishing.end(cluster()).settle(60.0)
    assert [*publishing.server.objects] == ["beta"]
    assert publishing.writes()[-1] is DeleteObject


def test_object_that_lost_its_label_before_this_run_is_reported_until_it_is_deleted():
    server = Publishing().synced(cluster(), cluster("beta")).server
    server.change("alpha", "labels", MANAGED_BY, "Helm")
    publishing = Publishing(server, resync_s=300.0).synced(cluster(), cluster("beta"))
    before = copy.deepcopy(server.objects["alpha"])
    for _ in range(2):
        assert ["was not created by this command" in text for text in publishing.publication.problems] == [True]
        publishing.settle(301.0)
        publishing.end(cluster())
        publishing.settle(301.0)
    assert server.objects["alpha"] == before
    server.delete("alpha")
    publishing.settle(301.0)
    assert publishing.publication.problems == ()
    assert publishing.reports[-1] == "alpha: resolved"


def test_object_without_its_label_is_not_deleted_while_it_waits_for_its_finalizers():
    publishing = Publishing(resync_s=30.0).synced(cluster(), cluster("beta"))
    publishing.server.add_finalizer("alpha")
    publishing.end(cluster()).settle()
    publishing.server.change("alpha", "labels", MANAGED_BY, None)
    publishing.settle(60.0)
    assert "deleted ClusterProfile alpha" not in publishing.reports
    publishing.server.remove_finalizers()
    publishing.settle(60.0)
    assert "deleted ClusterProfile alpha" in publishing.reports


def test_object_whose_uid_another_client_changed_stays_when_its_cluster_moves():
    """Found by a reader: the next owner deleted the object, and created it again."""
    first = Publishing(group="dns").synced(cluster(incarnation="a"))
    second = Publishing(first.server, group="dns", resync_s=30.0).synced(cluster("beta", uid="2", incarnation="b"))
    second.elsewhere.add("alpha")
    before = first.uids["alpha"]
    first.server.change("alpha", "annotations", CLUSTER_UID, "other")
    second.settle(60.0)
    first.end(cluster(incarnation="a"), DisengageReason.MOVED)
    second.engage(cluster(incarnation="c")).settle(60.0)
    assert second.uids["alpha"] == before
    assert second.object["metadata"]["annotations"][CLUSTER_UID] == "1"


@pytest.mark.parametrize("annotations", [{}, {CLUSTER: ""}, {CLUSTER: "gamma", INCARNATION: "1"}])
@pytest.mark.parametrize("count", [1, 50])
def test_objects_that_name_no_cluster_of_theirs_stop_nothing(
    publishing: Publishing, annotations: dict[str, str], count: int
):
    """Found by an attacker: one object with the labels of the publisher kept it from writing its first object."""
    for at in range(count):
        metadata = {"name": f"junk-{at}", "labels": identity().labels(), "annotations": annotations}
        publishing.server.put(f"junk-{at}", {"metadata": metadata})
    publishing.synced(cluster(), cluster("beta")).settle(60.0)
    assert [type(request) for request in publishing.sent] == [Create, Create, Apply, Apply]
    problems = publishing.publication.problems
    assert ["has changed its annotation" in problem for problem in problems] == [True] * count
    publishing.end(cluster()).settle(60.0)
    assert "alpha" not in publishing.server.objects
    assert len(publishing.server.objects) == count + 1


def test_objects_that_name_no_cluster_of_theirs_stand_for_no_other_fleet(publishing: Publishing):
    """Found by an attacker: a few such objects ended the publisher, again after each restart."""
    for at in range(50):
        annotations = {CLUSTER: "gamma", GROUP: f"group-{at}", FILTER: "-l a=b"}
        metadata = {"name": f"junk-{at}", "labels": identity().labels(), "annotations": annotations}
        publishing.server.put(f"junk-{at}", {"metadata": metadata})
    junk = copy.deepcopy(publishing.server.objects)
    publishing.synced(cluster(), cluster("beta")).settle(60.0)
    assert [type(request) for request in publishing.sent] == [Create, Create, Apply, Apply]
    publishing.end(cluster()).engage(cluster("junk-1")).settle(60.0)
    assert publishing.server.objects.keys() == {*junk, "beta"}
    assert junk.items() <= publishing.server.objects.items()


@pytest.mark.parametrize("only", ["-l a=b", f"-l a={'b' * 200}", "-l a in (\N{GREEK SMALL LETTER BETA})"])
def test_filters_that_begin_the_same_are_not_the_same(only: str):
    others = Publishing(of=identity(only=only)).synced(cluster())
    Publishing(others.server, of=identity(only=only)).synced(cluster())
    for changed in (f"{only}c", f"{only}c" * 10_000):
        with pytest.raises(PublishedByAnother, match="was written with the filter"):
            Publishing(others.server, of=identity(only=changed)).synced(cluster())


@pytest.mark.parametrize("tail", ["x" * 200, "\N{GRINNING FACE}" * 100], ids=["ascii", "wide"])
def test_annotation_that_begins_as_one_of_the_publisher_and_is_longer_is_none(publishing: Publishing, tail: str):
    long = cluster("a" * 250, uid="1" * 128)
    publishing.synced(long)
    before = copy.deepcopy(publishing.server.objects)
    for key in (CLUSTER, CLUSTER_UID):
        publishing.server.change(
            long.name, "annotations", key, before[long.name]["metadata"]["annotations"][key] + tail
        )
    [found] = publishing.server.list()
    assert (found.cluster != long.name, found.cluster_uid != long.uid) == (True, True)
    assert found.memory < 1_000
    publishing.publication.listed(publishing.now, [found], publishing.now)
    publishing.settle()
    assert (
        publishing.server.objects[long.name]["metadata"]["annotations"] == before[long.name]["metadata"]["annotations"]
    )


def test_object_whose_content_was_not_kept_is_read_before_it_is_compared():
    publishing = Publishing(resync_s=300.0).synced(cluster(), cluster("beta"))
    take = publishing.server.list
    publishing.server.list = lambda *of: [one.without_content() for one in take(*of)]  # type: ignore[method-assign]
    publishing.sent.clear()
    publishing.settle(301.0)
    assert publishing.sent == []
    publishing.server.touch("alpha", {"env": "changed"})
    publishing.settle(301.0)
    assert publishing.sent == [ReadObject("alpha")]
    late = Publishing(publishing.server).synced(cluster("beta"))
    late.engage(cluster(labels={"env": "prod"})).settle(60.0)
    assert [type(request) for request in late.sent if getattr(request, "name", "alpha") == "alpha"][-2:] == [
        ReadObject,
        Apply,
    ]
    assert late.object["metadata"]["labels"]["env"] == "prod"


STUFFED = {"value": "a" * 100_000}


def stuff(publishing: Publishing, name: str, **changed: Any) -> None:
    """Change an object as another client: add to it, and to the time of its condition."""
    found = publishing.server.objects[name]
    conditions = [{**one, "lastTransitionTime": "2026" * 20_000} for one in found["status"]["conditions"]]
    status = {**found["status"], "conditions": conditions, **STUFFED}
    publishing.server.put(name, {**found, "spec": {**found["spec"], **STUFFED, **changed}, "status": status})


def held(publishing: Publishing) -> int:
    """Return the most bytes that are kept of an object's content."""
    all_observed = (record.observed for record in publishing.publication.records.values())
    return max(len(observed.content or b"") for observed in all_observed if observed)


@pytest.mark.parametrize("has_access", [True, False])
@pytest.mark.parametrize("error", [None, TargetRefused("no", 422), TargetUnavailable("no", is_answer=True)])
def test_what_another_client_adds_to_an_object_is_not_held(has_access: bool, error: Exception | None):
    """Found by an attacker: 200 objects of 900 KiB took more than the memory of the manifest."""
    clusters = [cluster(name) for name in ("alpha", "beta", "gamma")]
    publishing = Publishing(resync_s=300.0).synced(*clusters)
    right, failing = copy.deepcopy(publishing.server.objects), {"beta"} if error else set()
    stuff(publishing, "alpha")
    stuff(publishing, "beta", displayName="a" * 100_000)
    publishing = Publishing(publishing.server, resync_s=300.0)

    def fail(request: Request) -> None:
        if isinstance(request, Apply) and error and (request.status or request.body)["metadata"]["name"] in failing:  # type: ignore[index]
            raise error

    def fail_access() -> None:
        if not has_access:
            raise Unavailable("busy", code="UNAVAILABLE")

    publishing.before, publishing.before_access = fail, fail_access
    publishing.synced(*clusters)
    assert held(publishing) < 10_000
    publishing.before_access = lambda: None
    publishing.settle(301.0)
    assert held(publishing) < 10_000
    assert publishing.server.objects["alpha"]["status"]["conditions"] == right["alpha"]["status"]["conditions"]
    failing.clear()
    stuff(publishing, "gamma")
    publishing.settle(601.0)
    assert held(publishing) < 10_000
    for name, found in publishing.server.objects.items():
        assert found["spec"].items() >= right[name]["spec"].items()
        assert found["status"].items() >= right[name]["status"].items()
    publishing.sent.clear()
    publishing.settle(601.0)
    assert publishing.sent == []  # what others have added stays, and is not written again
    publishing.engage(cluster(labels={"env": "prod"})).settle()
    assert publishing.server.objects["alpha"]["metadata"]["labels"]["env"] == "prod"
    assert held(publishing) < 10_000


def test_object_of_a_replaced_cluster_is_deleted_before_it_is_created_again(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta"))
    before = publishing.uids["alpha"]
    publishing.end(cluster(), DisengageReason.REPLACED).engage(cluster(uid="2")).settle()
    assert publishing.writes()[-3:] == [DeleteObject, Create, Apply]
    assert publishing.uids["alpha"] != before


def test_object_of_a_cluster_that_was_replaced_unseen_is_deleted_after_two_answers(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta"))
    before = publishing.uids["alpha"]
    other = Publishing(publishing.server).synced(cluster(uid="2"), cluster("beta")).settle(5.0)
    assert other.uids["alpha"] == before
    other.settle(30.0)
    assert sum(isinstance(request, Ask) for request in other.sent) == 2
    assert other.uids["alpha"] != before


def test_daemon_is_asked_seldom_about_clusters_whose_removal_is_held():
    clusters = [cluster(f"a-{number}", uid=f"a{number}") for number in range(4)]
    server = Publishing().synced(*clusters).server
    held = Publishing(server).synced(clusters[0]).settle(25)
    assert "lacks 3 of 4 clusters" in held.publication.problems[0]
    assert held.sent.count(Ask("a-3", "a3")) == 2
    held.settle(600)
    assert 10 <= held.sent.count(Ask("a-3", "a3")) <= 13
    held.engage(clusters[1]).settle(70)
    assert held.publication.problems == ()
    assert held.uids.keys() == {"a-0", "a-1"}


def test_reviews_of_many_objects_leave_time_for_requests():
    """Found by an audit: with 100,000 objects, each took 0.8 s, and the next one began 0.1 s after the next answer."""
    many = Publishing().engage(*(cluster(f"a-{number}", uid=f"a{number}") for number in range(10_000)))
    few = Publishing()
    for publishing, least, most in ((few, 0.1, 0.2), (many, 0.4, 1.0)):
        publishing.removals.problem = "held"  # which each engagement may end
        publishing.engage(cluster())
        assert least <= publishing.publication._review_at <= most


def test_access_of_a_cluster_that_was_replaced_meanwhile_is_not_published(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta")).end(cluster(), DisengageReason.REPLACED)
    publishing.has_access = False
    publishing.engage(cluster(uid="2")).settle()
    assert [*publishing.server.objects] == ["beta"]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({}, "was not created"),
        ({"app.kubernetes.io/managed-by": "Helm"}, "was not created"),
        (Identity(publication="flux-kubeconfigs", publisher="milo").labels(), "was not created"),
        (identity("other").labels(), "publisher 'other'"),
    ],
)
def test_objects_of_other_publishers_or_programs_are_neither_overwritten_nor_deleted(
    publishing: Publishing, labels: dict[str, str], reason: str
):
    annotations = {"discovery.miloapis.com/cluster-uid": "1"}
    publishing.server.put("alpha", {"metadata": {"name": "alpha", "labels": labels, "annotations": annotations}})
    before = copy.deepcopy(publishing.server.objects)
    publishing.synced(cluster(), cluster("beta"))
    assert [reason in problem for problem in publishing.publication.problems] == [True]
    publishing.end(cluster()).settle(60.0)
    assert publishing.publication.problems == ()
    assert publishing.object == before["alpha"]


def test_object_that_another_client_keeps_changing_is_not_written_forever(publishing: Publishing):
    def change(request: Request) -> None:
        if isinstance(request, Apply):
            publishing.server.touch("alpha", {"other": str(len(publishing.sent))})

    publishing.before = change
    publishing.synced(cluster()).settle(60.0)
    assert len(publishing.sent) < 20
    assert "still differs" in publishing.publication.problems[0]


def test_burst_of_changes_of_a_cluster_that_each_arrive_during_a_write_is_published_to_the_last(publishing: Publishing):
    """Found by a reader: they counted as writes that another controller undoes."""
    steps = iter(range(20))

    def change(request: Request) -> None:
        if isinstance(request, Apply) and (step := next(steps, None)) is not None:
            publishing.engage(cluster(labels={"env": str(step)}))

    publishing.synced(cluster())
    publishing.before = change
    publishing.engage(cluster(labels={"env": "first"})).settle(60.0)
    assert publishing.object["metadata"]["labels"]["env"] == "19"
    assert not [report for report in publishing.reports if "still differs" in report]


def test_object_of_a_cluster_that_ends_during_the_last_write_that_a_webhook_changes_is_deleted(publishing: Publishing):
    def end(request: Request) -> None:
        if isinstance(request, Apply) and publishing.publication.records["alpha"].next.writes == 5:
            publishing.end(cluster())

    put, publishing.before = publishing.server.put, end
    publishing.server.put = lambda name, body: put(name, {**body, "spec": {"displayName": "changed"}})  # type: ignore[method-assign]
    publishing.synced(cluster()).settle(60.0)
    assert publishing.server.objects == {}
    assert publishing.publication.problems == ()


@pytest.mark.parametrize("group", ["", "dns"])
def test_object_that_another_client_changes_each_second_is_deleted_when_its_cluster_has_ended(group: str):
    """Found by a reader: each change voided the answer of the daemon, and nothing was reported."""
    publishing = Publishing(group=group).synced(cluster(incarnation="a"), cluster("beta"))
    publishing.end(cluster(incarnation="a"))
    for beat in range(30):
        if "alpha" in publishing.server.objects:
            publishing.server.touch("alpha", {"beat": str(beat)})
        publishing.settle(1.0)
    assert [*publishing.server.objects] == ["beta"]
    assert [type(request) for request in publishing.sent].count(Ask) == 1


@pytest.mark.parametrize("resync_s", [5.0, 8.0])
@pytest.mark.parametrize("group", ["", "dns"])
def test_object_that_another_client_changes_between_frequent_lists_delays_no_deletion(group: str, resync_s: float):
    """Found by a reader: each list that had another version voided the answer of the daemon, and what waited for it."""
    server, names = model_server(), [f"c{number}" for number in range(20)]
    Publishing(server, group=group).synced(*(cluster(name, uid=name) for name in names))
    publishing = Publishing(server, group=group, resync_s=resync_s)
    publishing.synced(*(cluster(name, uid=name) for name in names[2:]))
    for beat in range(20):
        if "c0" in server.objects:
            server.touch("c0", {"beat": str(beat)})
        publishing.settle(3.0)
    assert [*server.objects] == names[2:]


def test_deletion_whose_permit_ended_before_a_server_was_reached_does_not_end_an_outage(publishing: Publishing):
    """Found by a reader: it was reported that publishing continues, and all other objects were tried again at once."""
    publishing.synced(cluster(), cluster("beta"))

    def is_unreachable(request: Request) -> None:
        raise TargetUnavailable("no connection", is_unsent=not isinstance(request, DeleteObject))

    publishing.before = is_unreachable
    publishing.engage(cluster("beta", labels={"env": "prod"})).settle(0.1)
    publishing.engage(cluster("beta")).end(cluster()).settle(5.0)
    assert any(isinstance(request, DeleteObject) for request in publishing.sent)
    assert "publishing continues" not in publishing.reports
    publishing.before = lambda _: None
    publishing.settle(60.0)
    assert publishing.reports.count("publishing continues") == 1
    assert [*publishing.server.objects] == ["beta"]


def test_change_of_a_cluster_is_not_lost_while_a_retry_is_finally_refused(publishing: Publishing):
    """Found by a reader: an object stayed until the next list if its cluster ended during a retry that was refused."""
    publishing.synced(cluster(), cluster("beta"))
    answers = iter([TargetUnavailable("500: busy"), TargetRefused("422: too long", 422)])

    def refuse(request: Request) -> None:
        if isinstance(request, Apply):
            answer = next(answers)
            if isinstance(answer, TargetRefused):
                publishing.end(cluster())
            raise answer

    publishing.before = refuse
    publishing.engage(cluster(labels={"env": "prod"})).settle(5.0)
    assert [*publishing.server.objects] == ["beta"]


def test_failed_write_is_retried_with_growing_delays_and_its_outcome_is_read_first(publishing: Publishing):
    failed_at: list[float] = []

    def fail(request: Request) -> None:
        if not isinstance(request, ReadObject):
            failed_at.append(publishing.now)
            raise TargetUnavailable("500: the webhook fails")

    publishing.before = fail
    publishing.synced(cluster()).settle(60.0)
    delays = [later - earlier for earlier, later in pairwise(failed_at)]
    assert delays == sorted(delays)
    assert 5 < len(delays) < 10
    assert {type(request) for request in publishing.sent} == {Create, ReadObject}
    assert publishing.publication.problems == ("500: the webhook fails",)
    publishing.before = lambda _: None
    publishing.settle(60.0)
    assert publishing.publication.problems == ()
    assert "alpha" in publishing.server.objects


def test_creation_that_conflicts_in_a_quota_is_repeated_with_growing_delays(publishing: Publishing):
    """Found by a reader: six creations followed each other within a moment, and the next one the next list."""

    def conflicts(request: Request) -> None:
        if isinstance(request, Create) and publishing.now < 3.0:
            raise TargetRefused("409: cannot be fulfilled on resourcequotas", 409)

    publishing.before = conflicts
    publishing.synced(cluster()).settle(2.0)
    assert publishing.publication.problems == ("409: cannot be fulfilled on resourcequotas",)
    publishing.settle(60.0)
    assert publishing.writes()[-2:] == [Create, Apply]
    assert publishing.publication.problems == ()
    assert len(publishing.writes()) < 12


def test_outage_of_the_api_server_is_reported_once_and_ends_for_all_objects(publishing: Publishing):
    def refuse(_: Request) -> None:
        raise TargetUnavailable("connection refused", is_unsent=True)

    publishing.before = refuse
    publishing.synced(*(cluster(name) for name in ("alpha", "beta", "gamma"))).settle(60.0)
    interrupted = "publishing is interrupted: connection refused; retrying"
    assert publishing.reports == [interrupted]
    assert publishing.publication.problems == (interrupted,)
    publishing.before = lambda _: None
    publishing.settle(30.0)
    assert publishing.reports[1] == "publishing continues"
    assert len(publishing.server.objects) == 3


def test_outage_is_not_reported_if_nothing_is_left_to_send(publishing: Publishing):
    """Found by a reader: it was reported that publishing is interrupted and retried, and nothing was due."""

    def end_and_refuse(request: Request) -> None:
        if isinstance(request, Create):
            publishing.end(cluster())
            raise TargetUnavailable("connection refused", is_unsent=True)

    publishing.before = end_and_refuse
    publishing.synced(cluster()).settle(60.0)
    assert (publishing.reports, publishing.publication.problems) == ([], ())
    assert publishing.publication.is_done
    publishing.engage(cluster("beta")).settle()
    assert publishing.reports == ["publishing is interrupted: connection refused; retrying"]


def test_request_that_nobody_answers_does_not_end_an_outage(publishing: Publishing):
    """Found by a reader: it was reported that publishing continues, each time that a connection was not answered."""
    reasons = cycle([TargetUnavailable("connection refused", is_unsent=True), TargetUnavailable("no answer in 20 s")])

    def fail(_: Request) -> None:
        raise next(reasons)

    publishing.before = fail
    publishing.synced(*(cluster(name) for name in ("alpha", "beta", "gamma"))).settle(60.0)
    assert "publishing is interrupted: connection refused; retrying" in publishing.reports
    assert "publishing continues" not in publishing.reports
    publishing.before = lambda _: None
    publishing.settle(60.0)
    assert publishing.reports.count("publishing continues") == 1
    assert len(publishing.server.objects) == 3


NAMES = st.sampled_from(["a", "b"])
CLUSTERS = st.builds(
    cluster,
    NAMES,
    uid=st.sampled_from(["1", "2"]),
    state=st.sampled_from(["REACHABLE", "UNREACHABLE", "UNKNOWN"]),
    labels=st.sampled_from([{}, {"env": "prod"}]),
    organization=st.sampled_from(["", "acme"]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("engage"), CLUSTERS),
        st.tuples(st.sampled_from(["end", "restart", "foreign", "remove"]), NAMES),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.2, 5.0, 30.0])),
    )
)


@given(STEPS)
def test_objects_are_those_of_the_engaged_clusters_after_random_histories(steps: list[tuple[str, Any]]):
    at = Publishing().synced()
    engaged: dict[str, Cluster] = {}
    for step, what in steps:
        match step:
            case "engage":
                if what.name in engaged and engaged[what.name].uid != what.uid:
                    at.end(engaged[what.name], DisengageReason.REPLACED)
                engaged[what.name] = what
                at.engage(what)
            case "end" if what in engaged:
                at.end(engaged.pop(what))
            case "restart":
                at = Publishing(at.server).synced(*engaged.values())
            case "foreign" if what not in at.server.objects:
                at.server.put(what, {"metadata": {"name": what}, "spec": {}})
            case "remove":
                at.server.objects.pop(what, None)
            case "wait":
                at.settle(what)
    foreign = {name: obj for name, obj in at.server.objects.items() if not is_own(obj)}
    last = Publishing(at.server).synced(*engaged.values())
    last.removals.accepts = True
    last.settle(60.0)
    published = {
        name: obj["metadata"]["annotations"]["discovery.miloapis.com/cluster-uid"]
        for name, obj in last.server.own().items()
    }
    assert published == {name: one.uid for name, one in engaged.items() if name not in foreign}
    assert {name: last.server.objects[name] for name in foreign} == foreign


def test_reason_that_does_not_concern_the_cluster_is_no_evidence_of_its_end(publishing: Publishing):
    publishing.elsewhere = {"alpha"}
    publishing.synced(cluster(), cluster("beta")).end(cluster(), DisengageReason.REVOKED).settle(60.0)
    assert "alpha" in publishing.server.objects


def test_identity_selects_only_objects_of_the_publisher():
    assert replace(identity(), group="dns").selector() == identity().selector()


def test_list_considers_only_objects_that_other_clients_changed(publishing: Publishing):
    publishing.synced(cluster(), cluster("beta")).settle(5.0)
    publishing.server.touch("alpha", {"other": "x"})
    publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
    due = publishing.publication.due(publishing.now, publishing)  # type: ignore[arg-type]
    assert [task.name for task in due if task.lane is Lane.OBJECT] == ["alpha"]


def test_replica_without_a_stream_does_not_overwrite_the_object_of_a_moved_cluster():
    one = Publishing(group="dns", resync_s=30.0).synced(cluster(incarnation="a", endpoint="https://former.test"))
    one.connected = False
    two = Publishing(one.server, group="dns").synced(cluster(incarnation="b", endpoint="https://new.test"))
    written = copy.deepcopy(one.object)
    one.settle(60.0)
    assert one.object == written
    one.connected = True
    one.end(cluster(incarnation="a"), DisengageReason.MOVED).settle(60.0)
    assert two.object == written


def test_end_of_a_former_engagement_does_not_allow_deletion_of_an_object_that_names_another():
    one = Publishing(group="dns").synced(cluster(incarnation="a"), cluster("beta"))
    two = Publishing(one.server, group="dns").synced(cluster(incarnation="b"))
    one.publication.listed(one.now, one.server.list(), one.now)
    one.elsewhere = two.elsewhere = {"alpha", "beta"}
    before = one.uids["alpha"]
    one.end(cluster(incarnation="a"), DisengageReason.NOT_READY).settle(60.0)
    assert one.uids["alpha"] == before
    assert DeleteObject not in one.writes()


def test_object_whose_cluster_cannot_be_looked_up_delays_no_other_deletion():
    before = Publishing().synced(*(cluster(name, uid=name) for name in ("alpha", "beta", "gamma", "delta", "epsilon")))
    publishing = Publishing(before.server)
    refused = PermissionDenied("not by this caller", code="PERMISSION_DENIED")

    def cannot_look_up(request: Request) -> None:
        if request == Ask("alpha", "alpha"):
            raise refused

    publishing.before_ask = cannot_look_up
    publishing.synced(*(cluster(name, uid=name) for name in ("gamma", "delta", "epsilon"))).settle(60.0)
    assert [*publishing.server.objects] == ["alpha", "gamma", "delta", "epsilon"]
    assert f"alpha: cannot look up its cluster: {refused}" in publishing.reports


def test_removals_are_held_while_many_missing_clusters_cannot_be_looked_up():
    """Found by a reader: the objects of those that could be looked up were deleted, a few at a time."""
    clusters = [cluster(f"alpha-{number}", uid=f"{number}") for number in range(100)]
    publishing = Publishing(Publishing().synced(*clusters).server)
    failing = {one.name for one in clusters[5:60]}

    def cannot_look_up(request: Request) -> None:
        if isinstance(request, Ask) and request.cluster in failing:
            raise Unavailable("busy", code="UNAVAILABLE")

    publishing.before_ask = cannot_look_up
    publishing.synced(*clusters[60:])
    while failing:
        publishing.settle(60.0)
        failing.difference_update(sorted(failing)[:5])
    publishing.settle(60.0)
    assert len(publishing.server.objects) == 100
    assert "lacks 60 of 100 clusters" in publishing.publication.problems[0]


def test_removals_are_held_while_most_clusters_are_missing_or_of_a_source_that_is_not_followed():
    """Found by a reader: the objects of each source were deleted when it was followed, if they were few of all."""
    clusters = [cluster(f"{'a' if number < 10 else 'b'}#{number}", uid=f"{number}") for number in range(100)]
    publishing = Publishing(Publishing().synced(*clusters).server, resync_s=300.0)
    publishing.sources = {"a": STREAMING, "b": STALE}
    publishing.synced(*clusters[60:]).settle(60.0)
    assert len(publishing.server.objects) == 100
    assert "lacks 60 of 100 clusters" in publishing.publication.problems[0]
    publishing.sources = {"a": STREAMING, "b": STREAMING}
    publishing.synced(*clusters[10:]).settle(60.0)
    assert len(publishing.server.objects) == 90
    assert publishing.publication.problems == ()


@pytest.mark.parametrize(("clusters", "members", "lacked"), [(30, 3, 30), (60, 6, 60), (60, 6, 13), (8, 4, 5)])
def test_removals_are_held_if_all_replicas_together_lack_many_clusters(clusters: int, members: int, lacked: int):
    """Found by a reader: each deleted its share of the objects, although all daemons lacked all clusters."""
    fleet = [cluster(f"alpha-{number}", uid=f"{number}", incarnation="a") for number in range(clusters)]
    server = Publishing(group="dns").synced(*fleet).server
    replicas = [Publishing(server, group="dns", resync_s=300.0) for _ in range(members)]
    for number, replica in enumerate(replicas):
        replica.elsewhere = {one.name for place, one in enumerate(fleet) if place % members != number}
        replica.lacked = {one.name for one in fleet[:lacked]}
        replica.synced(*(one for one in fleet[lacked:] if one.name not in replica.elsewhere))
    for _ in range(20):
        for replica in replicas:
            replica.settle(60.0)
    assert len(server.objects) == clusters
    for replica in replicas:
        assert (
            f"lacks {'all' if lacked == clusters else f'{lacked} of'} {clusters} cl" in replica.publication.problems[0]
        )
    replicas[0].lacked = set()
    replicas[0].synced(*(one for one in fleet if one.name not in replicas[0].elsewhere)).settle(60.0)
    assert replicas[0].publication.problems == ()


def test_small_share_of_a_replica_is_deleted_if_the_group_lacks_few_clusters():
    fleet = [cluster(f"alpha-{number}", uid=f"{number}", incarnation="a") for number in range(8)]
    publishing = Publishing(Publishing(group="dns").synced(*fleet).server, group="dns")
    publishing.elsewhere = {one.name for one in fleet[1:]}
    publishing.synced().settle(60.0)
    assert publishing.server.objects.keys() == publishing.elsewhere


def test_clusters_of_other_replicas_that_cannot_be_looked_up_again_count_as_missing():
    """A right that was withdrawn ends no stream: what the daemon answered before says nothing."""
    fleet = [cluster(f"{'a' if number < 4 else 'b'}#{number}", uid=f"{number}", incarnation="a") for number in range(8)]
    publishing = Publishing(Publishing(group="dns").synced(*fleet).server, group="dns", resync_s=60.0)
    publishing.elsewhere = {one.name for one in fleet[4:]}
    publishing.synced(*fleet[:4])
    publishing.sources = {"a": STREAMING, "b": STALE}
    publishing.end(fleet[0], DisengageReason.REVOKED).settle(120.0)
    assert len(publishing.server.objects) == 8
    assert "lacks 5 of 8 clusters" in publishing.publication.problems[0]
    publishing.sources = {"a": STREAMING, "b": STREAMING}
    publishing.settle(120.0)
    assert len(publishing.server.objects) == 7


def test_revoked_clusters_count_as_missing_until_the_daemon_was_asked_about_them():
    fleet = [cluster(f"alpha-{number}", uid=f"{number}") for number in range(8)]
    publishing = Publishing(resync_s=60.0).synced(*fleet).settle(59.0)
    publishing.end(fleet[0], DisengageReason.REVOKED).settle(1.0)
    for one in fleet[1:]:
        publishing.end(one, DisengageReason.REVOKED)
    publishing.settle(120.0)
    assert len(publishing.server.objects) == 8
    assert "lacks all 8 clusters" in publishing.publication.problems[0]


def test_removals_are_held_if_the_rest_of_the_fleet_goes_missing_soon_after_a_part_of_it():
    """Found by a simulation: a view came to lack five of seven clusters in two portions, each half of what was left."""
    fleet = [cluster(f"alpha-{number}", uid=f"{number}") for number in range(7)]
    publishing = Publishing(resync_s=60.0).synced(*fleet)
    for left, held in ((fleet[3:], 4), (fleet[5:], 4)):
        publishing.publication.snapshot_begins()
        for one in fleet[:5]:
            publishing.end(one, DisengageReason.UNSPECIFIED)
        publishing.synced(*left).settle(60.0)
        assert len(publishing.server.objects) == held
    assert "lacks 5 of 7 clusters" in publishing.publication.problems[0]
    publishing.engage(*fleet[3:5]).settle(60.0)
    assert (publishing.publication.problems, len(publishing.server.objects)) == ((), 4)


def test_objects_that_are_about_to_be_deleted_are_no_part_of_the_fleet():
    """Found by a simulation: with them, three of five clusters were few of seven."""
    fleet = [cluster(f"alpha-{number}", uid=f"{number}") for number in range(7)]
    publishing = Publishing().synced(*fleet)

    def unreachable(_: Request) -> None:
        raise TargetUnavailable("refused", is_unsent=True)

    publishing.before = unreachable
    for one in fleet[:2]:
        publishing.end(one, DisengageReason.NOT_READY)
    publishing.settle(1.0)
    publishing.publication.snapshot_begins()
    for one in fleet[2:5]:
        publishing.end(one, DisengageReason.UNSPECIFIED)
    publishing.synced(*fleet[5:]).settle(8.0)
    publishing.settle(30.0)
    assert "lacks" in "".join(publishing.publication.problems)
    publishing.before = lambda _: None
    publishing.settle(60.0)
    assert len(publishing.server.objects) == 7


def test_late_deletion_of_an_ended_cluster_waits_while_removals_are_held():
    """Since then the cluster may be ready again, and one of those that the daemon lacks."""
    fleet = [cluster(name, uid=name) for name in ("alpha", "beta", "gamma", "delta", "epsilon")]
    publishing = Publishing().synced(*fleet)

    def unreachable(_: Request) -> None:
        raise TargetUnavailable("refused", is_unsent=True)

    publishing.before = unreachable
    publishing.end(fleet[0], DisengageReason.NOT_READY).settle(15.0)
    publishing.publication.snapshot_begins()
    for one in fleet[1:4]:
        publishing.end(one, DisengageReason.UNSPECIFIED)
    publishing.synced(fleet[4]).settle(15.0)
    publishing.before = lambda _: None
    publishing.settle(60.0)
    assert len(publishing.server.objects) == 5
    publishing.synced(*fleet[1:]).settle(60.0)
    assert len(publishing.server.objects) == 4


def test_late_deletion_of_an_ended_cluster_waits_while_the_group_lacks_many_clusters():
    """Found by a simulation: a cluster that was ready again was one of those, which other replicas judge."""
    fleet = [cluster(name, uid=name, incarnation="a") for name in ("alpha", "beta", "gamma", "delta", "epsilon")]
    server = Publishing(group="dns").synced(*fleet).server
    publishing = Publishing(server, group="dns", resync_s=30.0)
    publishing.elsewhere = {one.name for one in fleet[1:]}
    publishing.synced(fleet[0])

    def fails(_: Request) -> None:
        raise TargetUnavailable("500: the webhook fails")

    publishing.before = fails
    publishing.end(fleet[0], DisengageReason.NOT_READY).settle(25.0)
    publishing.lacked = publishing.elsewhere
    publishing.settle(65.0)
    publishing.before = lambda _: None
    publishing.settle(60.0)
    assert len(server.objects) == 5
    assert "lacks all 5 clusters" in publishing.publication.problems[0]
    publishing.lacked = set()
    publishing.settle(90.0)
    assert len(server.objects) == 4


def test_nothing_is_written_while_the_first_list_fails():
    publishing = Publishing(resync_s=30.0)

    def fails() -> None:
        raise TargetUnavailable("500")

    publishing.before_list = fails
    publishing.synced(cluster()).settle(60.0).engage(cluster("beta")).settle(60.0)
    assert publishing.sent == []
    publishing.before_list = lambda: None
    publishing.settle(20.0)
    assert publishing.writes()[0] is Create


@pytest.mark.parametrize("is_answered", [True, False])
def test_late_deletion_of_an_ended_cluster_waits_also_while_lists_fail(is_answered: bool):
    """Found by a simulation: until the next list, nobody asked for what the other members lack."""
    fleet = [cluster(name, uid=name, incarnation="a") for name in ("alpha", "beta", "gamma", "delta", "epsilon")]
    server = Publishing(group="dns").synced(*fleet).server
    publishing = Publishing(server, group="dns", resync_s=30.0)
    publishing.elsewhere = {one.name for one in fleet[1:]}
    publishing.synced(fleet[0])

    def unreachable(*_: Request) -> None:
        raise TargetUnavailable("refused", is_unsent=True)

    def fails() -> None:
        raise TargetUnavailable("500")

    publishing.before = publishing.before_list = unreachable
    publishing.end(fleet[0], DisengageReason.NOT_READY).settle(25.0)
    publishing.lacked = publishing.elsewhere
    publishing.unanswered = set() if is_answered else publishing.elsewhere
    publishing.settle(65.0)
    publishing.before, publishing.before_list = lambda _: None, fails
    publishing.settle(60.0)
    assert len(server.objects) == 5
    publishing.lacked = publishing.unanswered = set()
    publishing.before_list = lambda: None
    publishing.synced().settle(90.0)
    assert len(server.objects) == 4


def test_late_deletions_of_many_clusters_whose_ends_were_reported_are_not_held():
    fleet = [cluster(name, uid=name, incarnation="a") for name in ("alpha", "beta", "gamma", "delta", "epsilon")]
    server = Publishing(group="dns").synced(*fleet).server
    publishing = Publishing(server, group="dns", resync_s=30.0)
    publishing.elsewhere = {"epsilon"}
    publishing.synced(*fleet[:4])

    def unreachable(_: Request) -> None:
        raise TargetUnavailable("refused", is_unsent=True)

    publishing.before = unreachable
    for one in fleet[:4]:
        publishing.end(one)
    publishing.settle(60.0)
    publishing.synced()  # after which the others of the group are asked for again
    publishing.before = lambda _: None
    publishing.settle(20.0)
    assert server.objects.keys() == {"epsilon"}


def test_clusters_that_are_still_missing_when_removals_are_no_longer_held_are_checked_twice_again():
    """Clusters that come back are reported one by one."""
    fleet = [cluster(name, uid=name) for name in ("alpha", "beta", "gamma", "delta")]
    publishing = Publishing(Publishing().synced(*fleet).server)
    publishing.synced(fleet[0]).settle(65.0)
    assert "lacks 3 of 4 clusters" in publishing.publication.problems[0]
    publishing.engage(fleet[1]).settle(0.2)
    publishing.engage(fleet[2]).settle(5.0)
    assert publishing.publication.problems == ()
    assert len(publishing.server.objects) == 4
    publishing.settle(20.0)
    assert len(publishing.server.objects) == 3


def test_lookups_of_clusters_of_other_replicas_after_each_list_delay_no_deletion():
    fleet = [cluster(name, uid=name, incarnation="a") for name in ("alpha", "beta", "gamma", "delta")]
    publishing = Publishing(Publishing(group="dns").synced(*fleet).server, group="dns")
    publishing.elsewhere = {"beta"}
    publishing.synced(*fleet[2:])
    for _ in range(300):
        publishing.publication.listed(publishing.now, publishing.server.list(), publishing.now)
        publishing.settle(0.05)
    assert publishing.server.objects.keys() == {"beta", "gamma", "delta"}


def test_nothing_is_written_while_all_published_clusters_are_missing_and_none_can_be_looked_up():
    publishing = Publishing(Publishing().synced(cluster(), cluster("beta")).server)

    def cannot_look_up(_: Request) -> None:
        raise Unavailable("busy", code="UNAVAILABLE")

    publishing.before_ask = cannot_look_up
    publishing.synced(cluster("gamma")).settle(60.0)
    assert [*publishing.server.objects] == ["alpha", "beta"]
    publishing.before_ask, publishing.elsewhere = lambda _: None, {"alpha", "beta"}
    publishing.settle(60.0)
    assert [*publishing.server.objects] == ["alpha", "beta", "gamma"]


def lose(publishing: Publishing, clusters: list[Cluster]) -> None:
    """Receive a snapshot without these clusters, of which no event reports that they have ended."""
    publishing.publication.snapshot_begins()
    for one in clusters:
        publishing.end(one, DisengageReason.UNSPECIFIED)
    publishing.publication.snapshot_ends(publishing.now)


def settle(publishers: tuple[Publishing, ...], for_s: float) -> None:
    for _ in range(int(2 * for_s)):
        for publishing in publishers:
            publishing.settle(0.5)


def fleet_of(count: int) -> list[Cluster]:
    return [cluster(f"c{number:02}", uid=f"u{number}", incarnation=f"i{number}") for number in range(count)]


def shard_group(fleet: list[Cluster], share: int) -> tuple[Publishing, Publishing]:
    """Return the publishers of two members: the first one has `share` of the clusters."""
    server = model_server()
    one, two = Publishing(server, group="dns", resync_s=300.0), Publishing(server, group="dns", resync_s=300.0)
    one.elsewhere, two.elsewhere = {it.name for it in fleet[share:]}, {it.name for it in fleet[:share]}
    for publishing, own in ((one, fleet[:share]), (two, fleet[share:])):  # both start at the same time
        publishing.publication.snapshot_begins()
        publishing.engage(*own)
        publishing.publication.snapshot_ends(0.0)
    settle((one, two), 60.0)
    return one, two


def test_name_that_another_publisher_has_left_is_taken_before_the_next_list():
    """Found by a reader: a cluster that a label moved from one publisher to another had no object for five minutes."""
    one = Publishing(of=identity("gold"), resync_s=300.0).synced(cluster(), *fleet_of(4)).settle(10.0)
    two = Publishing(one.server, identity("silver"), resync_s=300.0).synced().settle(10.0)
    two.engage(cluster()).settle(5.0)
    assert two.publication.problems == ("the object of this name belongs to publisher 'gold'",)
    assert (two.publication.is_done, two.publication.unfinished != "") == (True, True)
    one.end(cluster(), DisengageReason.LABELS_CHANGED).settle()
    two.settle(20.0)
    assert two.object["metadata"]["labels"]["discovery.miloapis.com/publisher"] == "silver"
    assert two.publication.problems == ()


def test_name_that_another_publisher_keeps_is_read_about_once_a_minute_until_the_cluster_ends():
    one = Publishing(of=identity("gold")).synced(cluster())
    two = Publishing(one.server, identity("silver")).synced(cluster()).settle(3600.0)
    assert 40 < len(two.sent) < 100
    assert [report for report in two.reports if "belongs" in report] == [two.reports[0]]
    two.end(cluster()).settle()
    assert two.publication.problems == ()
    assert two.settle(3600.0).sent[-1] is two.sent[-1]


def test_cluster_that_is_published_again_when_another_one_ends_is_not_that_of_another_run():
    """Found by a reader: its object was kept for good once it had ended, too, as written by another run."""
    first, other = cluster("eu.alpha#one", uid="2"), cluster("eu#alpha.one")
    publishing = Publishing(resync_s=300.0)
    publishing.sources = {"eu": STREAMING, "eu.alpha": STREAMING}
    publishing.synced(first, *fleet_of(12))
    lose(publishing, [first])
    publishing.settle(25.0)
    assert "eu.alpha.one" not in publishing.server.objects
    publishing.engage(other).settle()
    publishing.engage(first).settle()
    publishing.end(other).settle()
    assert publishing.server.objects["eu.alpha.one"]["metadata"]["annotations"][CLUSTER] == first.name
    lose(publishing, [first])
    publishing.settle(25.0)
    assert "eu.alpha.one" not in publishing.server.objects


def test_object_whose_label_was_removed_while_its_source_was_stale_is_not_forgotten():
    """Found by a reader: no list had it, so it was taken for deleted."""
    publishing = Publishing(resync_s=30.0).synced(cluster(), *fleet_of(6))
    publishing.source = STALE
    lose(publishing, [cluster()])
    publishing.settle(5.0)
    publishing.server.change("alpha", "labels", "discovery.miloapis.com/publisher", None)
    publishing.settle(65.0)
    publishing.source = STREAMING
    publishing.settle(30.0)
    assert "alpha" not in publishing.server.objects


@pytest.mark.parametrize("between_s", [0.0, 240.0])
def test_portions_of_missing_clusters_are_held_together_across_restarts(between_s: float):
    """Found by a reader: each process removed less than a mass, and nothing was known of what a former one had."""
    fleet = fleet_of(24)
    first = Publishing().synced(*fleet)
    second = Publishing(first.server, began_at=1000.0, resync_s=30.0).synced(*fleet[7:]).settle(between_s)
    third = Publishing(first.server, began_at=second.now, resync_s=30.0).synced(*fleet[13:]).settle(900.0)
    assert len(first.server.objects) == 24
    assert "the daemon's view lacks 13 of 24 clusters" in third.publication.problems[0]


def test_few_missing_clusters_are_removed_five_minutes_after_a_restart():
    fleet = fleet_of(24)
    former = Publishing().synced(*fleet)
    publishing = Publishing(former.server, began_at=1000.0, resync_s=30.0).synced(*fleet[7:]).settle(295.0)
    assert len(publishing.server.objects) == 24
    assert sum(isinstance(request, Ask) for request in publishing.sent) < 7 * 10, "each is asked about once a minute"
    publishing.settle(70.0)
    assert len(publishing.server.objects) == 17


def test_what_another_member_has_removed_counts_as_missing():
    """Found by a reader: each of two members removed its portion of a mass."""
    fleet = fleet_of(24)
    one, two = shard_group(fleet, 12)
    two.lacked = {it.name for it in fleet[:7]}
    lose(one, fleet[:7])
    settle((one, two), 60.0)
    assert len(one.server.objects) == 17
    one.lacked = {it.name for it in fleet[12:18]}
    lose(two, fleet[12:18])
    settle((one, two), 600.0)
    assert len(one.server.objects) == 17
    assert "the daemon's view lacks 13 of 24 clusters" in two.publication.problems[0]


def test_what_another_member_has_removed_counts_no_longer_once_it_is_published_again():
    fleet = fleet_of(24)
    one, two = shard_group(fleet, 12)
    two.lacked = {it.name for it in fleet[:7]}
    lose(one, fleet[:7])
    settle((one, two), 60.0)
    two.publication.listed(two.now, two.server.list(two.publication.identity), two.now)
    assert len(one.server.objects) == 17
    two.lacked = set()
    one.engage(*fleet[:7])
    settle((one, two), 1.0)
    two.publication.listed(two.now, two.server.list(two.publication.identity), two.now)
    lose(two, fleet[12:18])
    settle((one, two), 60.0)
    assert len(one.server.objects) == 18


def test_objects_that_other_members_have_written_since_the_last_list_are_counted():
    """Found by a simulation: 15 of 42 objects were deleted, since each of two members knew only its own."""
    fleet = fleet_of(42)
    one, two = shard_group(fleet, 20)
    two.lacked, one.lacked = {it.name for it in fleet[:10]}, {it.name for it in fleet[20:25]}
    lose(one, fleet[:10])
    lose(two, fleet[20:25])
    settle((one, two), 600.0)
    assert len(one.server.objects) == 42
    assert "the daemon's view lacks 15 of 42 clusters" in one.publication.problems[0]


class HangingReads(Publishing):
    """Reads of the objects in `hanging` fail after 20 s."""

    hanging: frozenset[str] = frozenset()
    late: tuple[tuple[float, Any], ...] = ()

    def _perform(self, task: Any, request: Request) -> None:
        if isinstance(request, ReadObject) and request.name in self.hanging:
            self.late = (*self.late, (self.now + 20.0, task))
        else:
            super()._perform(task, request)

    def settle(self, for_s: float = 0.5) -> HangingReads:
        end = self.now + for_s
        while self.now < end:
            for at, task in self.late:
                if at <= self.now:
                    self.publication.failed(task, TargetUnavailable("no answer within 20 s"), self.now)
            self.late = tuple((at, task) for at, task in self.late if at > self.now)
            super().settle(min(0.25, end - self.now))
        return self


@pytest.mark.parametrize(("total", "lacked", "unread"), [(8, 5, 1), (100, 60, 40)])
def test_clusters_that_are_lacked_count_as_such_while_their_objects_are_read(total: int, lacked: int, unread: int):
    """Found by a reader: while a few reads hung, all others were removed, although most of the fleet was lacked."""
    fleet = fleet_of(total)
    publishing = HangingReads(resync_s=300.0)
    publishing.synced(*fleet).settle(5.0)
    hanging = publishing.hanging = frozenset(one.name for one in fleet[:unread])

    def unanswered(request: Request) -> None:
        if isinstance(request, Apply) and (request.body or request.status or {})["metadata"]["name"] in hanging:
            raise TargetUnavailable("no answer within 20 s")

    publishing.before = unanswered
    unreachable = Connectivity(state=ConnectivityState.UNREACHABLE, since=NOW)
    publishing.engage(*(dataclasses.replace(one, connectivity=unreachable) for one in fleet[:unread])).settle(1.0)
    lose(publishing, fleet[:lacked])
    publishing.settle(120.0)
    assert len(publishing.server.objects) == total
    assert "the daemon's view lacks" in publishing.publication.problems[0]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_cluster_that_was_replaced_unseen_is_published_although_it_changes_every_few_seconds(is_restarted: bool):
    """Found by a reader: each event of the new cluster erased what the daemon had answered about the former one."""
    others = fleet_of(6)
    publishing = Publishing(resync_s=300.0).synced(cluster(uid="1"), *others).settle(5.0)
    if is_restarted:
        publishing = Publishing(publishing.server, resync_s=300.0)
    publishing.synced(cluster(uid="2"), *others)
    for number in range(120):
        publishing.settle(5.0)
        publishing.engage(cluster(uid="2", state="REACHABLE" if number % 2 else "UNREACHABLE"))
    assert publishing.object["metadata"]["annotations"][CLUSTER_UID] == "2"


def held_in_portions() -> Publishing:
    """Return a publisher that has removed 7 objects of 24, and then holds those of 6 more."""
    fleet = fleet_of(24)
    publishing = Publishing(resync_s=30.0).synced(*fleet)
    lose(publishing, fleet[:7])
    publishing.settle(60.0)
    lose(publishing, fleet[7:13])
    publishing.settle(400.0)
    assert len(publishing.server.objects) == 17
    return publishing


@pytest.mark.parametrize("interruption", ["stale", "unanswered"])
def test_hold_outlasts_a_time_in_which_nothing_can_be_judged(interruption: str):
    """Found by an audit: with the hold, what was removed before was forgotten, so that the rest was no mass."""
    publishing = held_in_portions()
    if interruption == "stale":
        publishing.source = STALE
    else:
        publishing.before_ask = no_answer
        publishing.publication.snapshot_begins()
        publishing.publication.snapshot_ends(publishing.now)
    publishing.settle(120.0)
    assert "no longer held" not in " ".join(publishing.reports)
    publishing.source, publishing.before_ask = STREAMING, lambda _: None
    publishing.settle(300.0)
    assert len(publishing.server.objects) == 17
    assert "the daemon's view lacks 13 of 24 clusters" in publishing.publication.problems[0]


def no_answer(_: Request) -> None:
    raise Unavailable("no answer", code="UNAVAILABLE")


def test_objects_of_a_mass_that_another_client_deletes_still_count():
    """Found by a simulation: once one of four held objects of seven was deleted, the publisher deleted the rest."""
    fleet = fleet_of(7)
    publishing = Publishing(resync_s=30.0).synced(*fleet)
    lose(publishing, fleet[:4])
    publishing.settle(60.0)
    publishing.server.delete("c00")
    publishing.settle(300.0)
    assert len(publishing.server.objects) == 6
    assert "the daemon's view lacks 4 of 7 clusters" in publishing.publication.problems[0]


def test_clusters_of_other_members_count_while_their_objects_are_read():
    """Found by an audit: the objects of clusters that had moved were not counted while their reads hung."""
    fleet = fleet_of(8)
    one = HangingReads(group="dns", resync_s=30.0).synced(*fleet).settle(5.0)
    moved = [
        dataclasses.replace(it, connectivity=Connectivity(state=ConnectivityState.UNREACHABLE)) for it in fleet[3:6]
    ]
    one.hanging = one.elsewhere = frozenset(it.name for it in moved)

    def unanswered(request: Request) -> None:
        if isinstance(request, Apply) and (request.body or request.status or {})["metadata"]["name"] in one.hanging:
            raise TargetUnavailable("no answer within 20 s")

    one.before = unanswered
    one.engage(*moved).settle(1.0)
    for it in moved:
        one.end(it, DisengageReason.MOVED)
    one.settle(1.0)
    for it in fleet[:2]:
        one.end(it, DisengageReason.REVOKED)
    one.lacked = {*one.elsewhere}  # also by their owner
    one.settle(120.0)
    assert len(one.server.objects) == 8
    assert "the daemon's view lacks 5 of 8 clusters" in one.publication.problems[0]


def test_confirmed_removals_wait_if_a_mass_may_be_missing_with_those_that_were_removed_before():
    """Found by an audit: what was removed before did not count while the daemon was asked about the rest."""
    fleet = fleet_of(24)
    publishing = Publishing(resync_s=300.0).synced(*fleet)
    lose(publishing, fleet[:7])
    publishing.settle(60.0)

    def fail(request: Request) -> None:
        if isinstance(request, DeleteObject):
            raise TargetUnavailable("500: the webhook fails")

    publishing.before = fail
    lose(publishing, fleet[7:10])
    publishing.settle(11.0)
    publishing.unanswered = {it.name for it in fleet[10:14]}
    lose(publishing, fleet[10:14])
    publishing.settle(0.2)
    publishing.before = lambda _: None
    publishing.settle(30.0)
    assert len(publishing.server.objects) == 17


@pytest.mark.parametrize("how", ["revoked", "another snapshot", "restarted"])
def test_clusters_that_are_published_since_others_are_missing_release_no_hold(how: str):
    """Found by a reader: with six others in their place, five of six objects were half of the fleet at most."""
    fleet, others = fleet_of(6), [cluster(f"n{number}", uid=f"n{number}") for number in range(20)]
    publishing = Publishing(resync_s=30.0).synced(*fleet).settle(1000.0)
    if how == "restarted":
        publishing = Publishing(publishing.server, resync_s=30.0).synced(fleet[5], *others[:7])
    elif how == "revoked":
        for one in fleet[:5]:
            publishing.end(one, DisengageReason.REVOKED)
        publishing.engage(*others[:7])
    else:
        lose(publishing, fleet[:5])
        publishing.engage(*others[:7])
    publishing.settle(400.0)
    for one in others[7:]:
        publishing.engage(one)
        publishing.settle(60.0)
    assert publishing.server.objects.keys() >= {it.name for it in (*fleet, *others)}
    assert "the daemon's view lacks 5 of 6 clusters" in publishing.publication.problems[0]
    publishing.engage(*fleet[:5])
    publishing.settle(60.0)
    assert not publishing.publication.problems


def test_right_daemon_is_not_taken_for_that_of_another_fleet_after_a_wrong_one() -> None:
    """Found by a reader: nothing was written, since what was published for the wrong one did not count."""
    fleet, others = fleet_of(6), [cluster(f"n{number}", uid=f"n{number}") for number in range(20)]
    publishing = Publishing(resync_s=30.0).synced(*fleet)
    lose(publishing, fleet[:5])
    publishing.engage(*others).settle(60.0)
    publishing.engage(*fleet, new := cluster("new", uid="new"))
    lose(publishing, others)
    publishing.settle(60.0)
    assert "the daemon's view lacks 20 of 27 clusters" in publishing.publication.problems[0]
    assert publishing.server.objects.keys() == {it.name for it in (*fleet, *others, new)}
