"""Rotation of one stream's kubeconfigs, with a manual clock."""

import gc
import math
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.lease_table import LeaseKey
from milo_discoveryd.kubeconfigs.rendering import IssuedKubeconfig
from milo_discoveryd.log.change_log import ChangeLog, Retention, slice_of
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import EventType, Frame, Slice
from milo_discoveryd.log.filter import EVERYTHING, Filter
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.rights import Recipient, Terms
from milo_discoveryd.rights.scope import ClusterScope, scoped
from milo_discoveryd.server.calls import kubeconfig_rotation
from milo_discoveryd.server.calls.delivery_schedule import Delivery
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.server.calls.kubeconfig_rotation import RETRY_S, KubeconfigRotation
from milo_discoveryd.server.calls.verification import AlwaysFresh
from milo_kube.credential import Credential, Secret
from milo_kube.label_selector import parse
from milo_kube.moment import Moment
from tests.support.sources import new_source
from tests.unit.fleet.fleets import ready
from tests.unit.fleet.test_fleet_malformed import Ledger
from tests.unit.server.calls.schedules import a_schedule

EPOCH = "0123456789abcdef"
LIFE_S = 600.0
LATEST = 1 << 62
"""A revision up to which there is everything."""


class Lease:
    """A lease that always holds a new credential."""

    def __init__(self, world: "World", cluster: Cluster) -> None:
        self.key = LeaseKey(world.source_of(cluster), cluster.incarnation, LIFE_S)
        self._world = world
        self._name = cluster.target.name

    def wait(self) -> "Wait":
        self._world.waiting += 1
        return Wait(self._world, Entry(self.key))

    def credential(self) -> IssuedCredential:
        world = self._world
        world.asked.append(self._name)
        world.minted += 1
        token = Credential(token=Secret(f"{self._name}-{world.minted}"))
        return IssuedCredential(credential=token, issued_at=world.now, expires_at=world.now + LIFE_S)

    def issue(self, incarnation: str, to: Recipient) -> IssuedKubeconfig:
        now = self._world.now
        return IssuedKubeconfig(self._name, b"text", now, now + LIFE_S, now + LIFE_S / 2, self.credential())


class Entry(msgspec.Struct, gc=False):
    key: LeaseKey


class Wait(msgspec.Struct, gc=False):
    world: "World"
    entry: Entry

    def end(self) -> None:
        self.world.waiting -= 1


class World:
    """Stands in for the call, the issuer and the clock of a rotation."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ahead = 0.0
        """The difference between the wall clock and the steady clock."""
        self.wait_s = self.renewal_wait_s = 0.0
        self.recipient: Recipient | None = Recipient(Caller(listener="api"), "shop")
        self.taken = 0
        self.minted = 0
        self.asked: list[str] = []
        self.waiting = 0
        self.fleet = Fleet(ChangeLog(encoder(EPOCH), Retention()))
        self.source = new_source(Ledger(), fleet=self.fleet)
        self.source.engagements.commit([ready("alpha"), ready("beta")], Moment(0.0, 0.0))

    # The call

    freshness: AlwaysFresh = AlwaysFresh()
    identity = "shop's operator"

    def take_kubeconfig(self, *, is_renewal: bool = False) -> float:
        wait_s = self.renewal_wait_s if is_renewal else self.wait_s
        self.taken += not wait_s
        return wait_s

    # The issuer, which always has a credential for each cluster that it covers

    def find(self, cluster: Cluster, ttl_s: float | None, terms: Terms, caller: str) -> "Lease | None":
        assert caller == self.identity
        return Lease(self, cluster) if self.source_of(cluster) else None

    def source_of(self, cluster: Cluster) -> str:
        return dict(cluster.target.labels).get("source", "source")

    def rotation(self) -> KubeconfigRotation:
        made: Any = KubeconfigRotation(
            self.fleet,
            self,  # type: ignore[arg-type]
            EPOCH,
            shown=EVERYTHING,
            ttl_s=None,
            call=self,  # type: ignore[arg-type]
            schedule=a_schedule(lambda: self.now, lambda: self.now + self.ahead, Random(1).random),
        )
        assert isinstance(made, KubeconfigRotation)
        return made

    def snapshot(self) -> Slice:
        batch = Cursor(self.fleet.log, EVERYTHING, None).next_batch()
        assert batch is not None
        return batch.slice


@pytest.fixture
def world() -> World:
    return World()


def given(data: bytes) -> list[str]:
    """Return the names of clusters whose events contain a kubeconfig."""
    events = pb.WatchClustersResponse.FromString(data).events
    return [event.cluster.name for event in events if event.HasField("kubeconfig")]


def test_rotation_renews_each_kubeconfig_before_it_expires(world: World) -> None:
    rotation = world.rotation()
    assert given(rotation.attach_kubeconfigs(world.snapshot())) == ["alpha", "beta"]
    assert rotation.take_due(LATEST) == b""
    world.now += LIFE_S / 2
    assert sorted(given(rotation.take_due(LATEST))) == ["alpha", "beta"]


def test_kubeconfig_of_cluster_whose_change_was_not_sent_yet_is_due_later(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    sent = world.fleet.log.head
    world.source.engagements.commit([ready("beta", version="2", labels={"region": "eu"})], Moment(0.0, 0.0))
    world.now += LIFE_S / 2
    assert given(rotation.take_due(sent)) == ["alpha"]
    assert rotation.due_in_s == RETRY_S
    world.now += RETRY_S
    assert given(rotation.take_due(world.fleet.log.head)) == ["beta"]


def test_first_kubeconfig_of_cluster_whose_change_was_not_sent_yet_is_due_with_that_change(world: World) -> None:
    """Streams that renewed all the time sent those of new clusters 5 s late."""
    rotation, cursor = world.rotation(), Cursor(world.fleet.log, EVERYTHING, None)
    assert cursor.next_batch() is not None
    assert [None for _ in rotation.catch_up()]
    change_labels(world, "2", env="prod")
    assert given(rotation.take_due(world.fleet.log.head - 1)) == ["beta"]
    assert given(rotation.attach_kubeconfigs(updates(cursor))) == []
    assert given(rotation.take_due(world.fleet.log.head)) == ["alpha"]


def test_first_kubeconfigs_do_not_wait_for_the_quota_of_renewals(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.renewal_wait_s = 7.0
    world.now += LIFE_S / 2
    assert rotation.take_due(LATEST) == b""
    assert rotation.due_in_s == 7.0
    world.source.engagements.commit([ready("gamma")], Moment(0.0, 0.0))
    assert [None for _ in rotation.catch_up()]
    assert given(rotation.take_due(LATEST)) == ["gamma"]
    moved = replace(ready("gamma", "2").target, place=("https://elsewhere.example.com",))
    cursor = Cursor(world.fleet.log, EVERYTHING, None)
    assert cursor.next_batch() is not None
    world.source.engagements.commit([replace(ready("gamma", "2"), target=moved)], Moment(0.0, 0.0))
    rotation.attach_kubeconfigs(updates(cursor))
    assert rotation.take_due(LATEST) == b"", "tenants choose how often an endpoint changes"
    world.renewal_wait_s = 0.0
    world.now += 7.0
    assert sorted(given(rotation.take_due(LATEST))) == ["alpha", "beta", "gamma"]


def test_new_clusters_wait_for_the_quota_behind_others_that_wait(world: World) -> None:
    rotation = world.rotation()
    world.wait_s = 7.0
    rotation.attach_kubeconfigs(world.snapshot())
    world.wait_s = 0.0
    world.source.engagements.commit([ready("gamma")], Moment(0.0, 0.0))
    assert given(rotation.attach_kubeconfigs(world.snapshot())) == []
    assert world.taken == 0


def test_updates_of_a_cluster_without_a_credential_count_once_against_the_quota(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "credential", lambda self: None)
    monkeypatch.setattr(Lease, "issue", refuse)
    rotation, cursor = world.rotation(), Cursor(world.fleet.log, EVERYTHING, None)
    assert cursor.next_batch() is not None
    rotation.attach_kubeconfigs(world.snapshot())
    for version in range(2, 5):
        assert rotation.take_due(LATEST) == b""
        change_labels(world, str(version), turn=str(version))
        rotation.attach_kubeconfigs(updates(cursor))
    assert world.taken == 2


def test_rotation_sends_kubeconfig_of_cluster_with_changed_endpoint(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    cursor = Cursor(world.fleet.log, EVERYTHING, None)
    assert cursor.next_batch() is not None
    alpha = ready("alpha", "2", labels={"env": "prod"})
    world.source.engagements.commit([alpha], Moment(0.0, 0.0))
    assert given(rotation.attach_kubeconfigs(updates(cursor))) == []
    assert given(rotation.take_due(LATEST)) == []
    moved = replace(alpha, version="3", target=replace(alpha.target, place=("https://elsewhere.example.com",)))
    world.source.engagements.commit([moved], Moment(0.0, 0.0))
    assert given(rotation.attach_kubeconfigs(updates(cursor))) == []
    assert given(rotation.take_due(LATEST)) == ["alpha"]
    assert given(rotation.take_due(LATEST)) == []


def test_rotation_sends_kubeconfig_of_cluster_whose_labels_select_another_issuer(world: World) -> None:
    rotation = world.rotation()
    change_labels(world, "2", source="")
    assert given(rotation.attach_kubeconfigs(world.snapshot())) == ["beta"]
    assert rotation.take_due(LATEST) == b""
    cursor = Cursor(world.fleet.log, EVERYTHING, None)
    assert cursor.next_batch() is not None
    for version, labels, expected in (
        ("3", {"source": "other"}, ["alpha"]),
        ("4", {"source": "other", "env": "prod"}, []),
        ("5", {"source": ""}, []),
        ("6", {"source": "source"}, ["alpha"]),
    ):
        change_labels(world, version, **labels)
        rotation.attach_kubeconfigs(updates(cursor))
        assert given(rotation.take_due(LATEST)) == expected


def change_labels(world: World, version: str, **labels: str) -> None:
    world.source.engagements.commit([ready("alpha", version, labels=labels)], Moment(0.0, 0.0))


def updates(cursor: Cursor) -> Slice:
    batch = cursor.next_batch()
    assert batch is not None
    assert [frame.type for frame in batch.slice.frames] == [EventType.UPDATED]
    return batch.slice


def test_cluster_that_left_the_view_before_its_engagement_was_sent_gets_a_kubeconfig_when_it_returns(
    world: World,
) -> None:
    view = Filter(selector=parse("env=prod"))
    change_labels(world, "2", env="prod")
    rotation, cursor = world.rotation(), Cursor(world.fleet.log, view, None)
    rotation.change_view(view)
    change_labels(world, "3", env="dev")
    snapshot = cursor.next_batch()
    assert snapshot is not None
    assert [frame.type for frame in snapshot.slice.frames] == [EventType.ENGAGED]
    assert given(rotation.attach_kubeconfigs(snapshot.slice)) == []
    change_labels(world, "4", env="prod")
    assert given(rotation.attach_kubeconfigs(updates(cursor))) == []
    assert given(rotation.take_due(LATEST)) == ["alpha"]


def test_kubeconfigs_of_many_clusters_are_sent_in_several_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeconfig_rotation, "_CLUSTERS_PER_STEP", 1)
    rotation = world.rotation()
    assert len([*rotation.catch_up()]) == 2
    assert [given(rotation.take_due(LATEST)) for _ in range(3)] == [["alpha"], ["beta"], []]


def test_rotation_renews_all_kubeconfigs_after_wall_clock_jump(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.ahead = 2 * LIFE_S
    assert rotation.is_due()
    assert sorted(given(rotation.take_due(LATEST))) == ["alpha", "beta"]
    assert rotation.take_due(LATEST) == b""


def test_rotation_stops_for_clusters_outside_the_scope(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    rotation.change_view(scoped(EVERYTHING, ClusterScope(names=name_patterns(["beta"]))))
    world.asked.clear()
    world.now += LIFE_S / 2
    assert given(rotation.take_due(LATEST)) == ["beta"]
    assert set(world.asked) == {"beta"}


def test_rotation_stops_when_kubeconfigs_are_revoked(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.recipient = None
    rotation.change_view(EVERYTHING)
    world.asked.clear()
    world.now += LIFE_S / 2
    assert given(rotation.take_due(LATEST)) == given(rotation.attach_kubeconfigs(world.snapshot())) == world.asked == []


def test_rotation_reissues_kubeconfigs_when_terms_of_the_rule_change(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.recipient = Recipient(Caller(listener="api"), "another name of the rule")
    rotation.change_view(EVERYTHING)
    assert rotation.take_due(LATEST) == b""
    world.recipient = Recipient(Caller(listener="api"), "shop", Terms(issuers=frozenset({"source"})))
    rotation.change_view(EVERYTHING)
    assert sorted(given(rotation.take_due(LATEST))) == ["alpha", "beta"]


def test_other_terms_are_applied_to_many_clusters_in_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeconfig_rotation, "_CLUSTERS_PER_STEP", 1)
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.recipient = Recipient(Caller(listener="api"), "shop", Terms(issuers=frozenset({"source"})))
    rotation.change_view(EVERYTHING)
    assert rotation.is_due()
    steps = [given(rotation.take_due(LATEST)) for _ in range(8)]
    assert steps[0] == []
    assert sorted(name for step in steps for name in step) == ["alpha", "beta"]
    world.recipient = Recipient(Caller(listener="api"), "shop")
    rotation.change_view(EVERYTHING)
    rotation._schedule.forget("beta")
    assert [name for _ in range(8) for name in given(rotation.take_due(LATEST))] == ["alpha"]


def test_rotation_charges_quota_before_it_requests_a_credential(world: World) -> None:
    rotation = world.rotation()
    world.wait_s = 7.0
    assert given(rotation.attach_kubeconfigs(world.snapshot())) == []
    assert rotation.take_due(LATEST) == b""
    assert (world.asked, world.taken) == ([], 0)
    assert rotation.due_in_s == 7.0
    world.now += 7.0
    world.wait_s = 0.0
    assert sorted(given(rotation.take_due(LATEST))) == ["alpha", "beta"]
    assert world.taken == 2


def test_rotation_pauses_while_quota_is_exhausted(world: World) -> None:
    rotation = world.rotation()
    world.wait_s = 7.0
    rotation.attach_kubeconfigs(world.snapshot())
    looked = 0

    def counted(*, is_renewal: bool) -> float:
        nonlocal looked
        looked += 1
        return world.wait_s

    world.take_kubeconfig = counted  # type: ignore[method-assign]
    world.now += 7.0
    assert rotation.take_due(LATEST) == b""
    assert looked == 1, "the quota is not checked again for the second cluster"
    assert rotation.due_in_s == 7.0


def test_rotation_that_renews_for_long_yields(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    issue = Lease.issue

    def issue_slowly(lease: Lease, incarnation: str, to: Recipient) -> IssuedKubeconfig:
        world.now += 0.02
        return issue(lease, incarnation, to)

    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    monkeypatch.setattr(Lease, "issue", issue_slowly)
    world.now += LIFE_S / 2
    assert [len(given(rotation.take_due(LATEST))) for _ in range(3)] == [1, 1, 0]


def test_rotation_of_many_kubeconfigs_gives_the_garbage_collector_nothing_to_examine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.source.engagements.commit([ready(f"cluster-{number}") for number in range(1000)], Moment(0.0, 0.0))
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    monkeypatch.setattr(Lease, "credential", lambda self: None)
    world.now += LIFE_S / 2
    gc.collect()
    tracked = len(gc.get_objects())
    while rotation.due_in_s <= 0:
        rotation.take_due(LATEST)
    assert len(rotation._schedule._waiting) > 900
    gc.collect()
    assert len(gc.get_objects()) < tracked + 100
    assert not any(isinstance(tracked, Delivery | LeaseKey) for tracked in gc.get_objects())


def test_deliveries_that_wait_for_one_lease_are_due_once_it_changed(world: World) -> None:
    schedule = a_schedule(lambda: world.now, lambda: world.now, lambda: 0.0)
    clusters = {cluster.target.name: cluster for cluster in world.fleet.clusters()}
    lease: Any = Lease(world, clusters["alpha"])
    lease.key = key = LeaseKey("shared", 0, LIFE_S)
    for cluster in clusters.values():
        delivery = schedule.schedule(cluster, "shared", None, 0.0)
        assert schedule.pop_due() is delivery
        for _ in range(2):
            schedule.await_lease(delivery, lease)
    assert schedule.due_in_s == math.inf
    schedule.forget("alpha")
    assert world.waiting == 1
    schedule.lease_changed(key, "")
    assert world.waiting == 0
    assert schedule.due_in_s == 0.0
    assert schedule.pop_due() is schedule["beta"]
    assert schedule.due_in_s == math.inf


@pytest.mark.parametrize("forget", [True, False])
def test_stream_that_ends_or_forgets_its_clusters_waits_for_no_lease(world: World, forget: bool) -> None:
    schedule = a_schedule(lambda: world.now, lambda: world.now, lambda: 0.0)
    for cluster in world.fleet.clusters():
        lease: Any = Lease(world, cluster)
        schedule.await_lease(schedule.schedule(cluster, "own", None, 0.0), lease)
    assert world.waiting == 2
    if forget:
        for name in schedule.names:
            schedule.forget(name)
    else:
        schedule.clear()
    assert world.waiting == 0
    schedule.clear()
    assert world.waiting == 0


def test_rotation_renewals_are_kubeconfig_events(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.now += LIFE_S / 2
    kinds = {event.type for event in pb.WatchClustersResponse.FromString(rotation.take_due(LATEST)).events}
    assert kinds == {pb.ClusterEvent.TYPE_KUBECONFIG}


def test_rotation_forgets_clusters_disengaged_while_the_issuer_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "credential", lambda self: None)
    monkeypatch.setattr(Lease, "issue", refuse)
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    assert rotation.take_due(LATEST) == b""
    assert {*rotation._schedule._waiting.values()} == {"alpha", "beta"}
    ends = [Frame(EventType.DISENGAGED, cluster, "", b"") for cluster in world.fleet.clusters()]
    rotation.attach_kubeconfigs(slice_of(ends))
    assert not rotation._schedule._waiting
    assert not rotation._schedule._deliveries


def test_update_of_a_cluster_that_waits_for_its_lease_requests_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease may have ended meanwhile: another stream saw another endpoint, which this one reads as one change with
    the return to the former."""
    monkeypatch.setattr(Lease, "credential", lambda self: None)
    rotation, cursor = world.rotation(), Cursor(world.fleet.log, EVERYTHING, None)
    with monkeypatch.context() as while_it_fails:
        while_it_fails.setattr(Lease, "issue", refuse)
        batch = cursor.next_batch()
        assert batch is not None
        rotation.attach_kubeconfigs(batch.slice)
        assert rotation.take_due(LATEST) == b""
    assert rotation.due_in_s == math.inf
    world.source.engagements.commit([ready("alpha", "2", labels={"a": "b"})], Moment(0.0, 0.0))
    rotation.attach_kubeconfigs(updates(cursor))
    assert rotation.due_in_s == 0.0


def test_rotation_retries_a_kubeconfig_that_could_not_be_issued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rotation = world.rotation()
    with monkeypatch.context() as while_it_fails:
        while_it_fails.setattr(Lease, "issue", refuse)
        assert given(rotation.attach_kubeconfigs(world.snapshot())) == []
        assert rotation.take_due(LATEST) == b""
        assert rotation.due_in_s == RETRY_S
    world.now += RETRY_S
    assert sorted(given(rotation.take_due(LATEST))) == ["alpha", "beta"]
    assert world.taken == 2


def test_rotation_issues_nothing_until_the_token_was_reviewed(world: World) -> None:
    rotation = world.rotation()
    stale = Stale()
    world.freshness = stale
    assert given(rotation.attach_kubeconfigs(world.snapshot())) == []
    assert rotation.take_due(LATEST) == b""
    assert (rotation.due_in_s, world.taken) == (math.inf, 0)
    stale.is_reviewed = True
    assert sorted(given(rotation.take_due(LATEST))) == ["alpha", "beta"]


class Stale(AlwaysFresh):
    is_reviewed = False

    def is_fresh(self) -> bool:
        return self.is_reviewed


def refuse(*_: object) -> IssuedKubeconfig:
    raise BackendError("down")
