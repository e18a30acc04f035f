"""Clusters that are made of what several objects say."""

from collections.abc import Sequence

import pytest

from milo_discoveryd.model.claims import Claim, ClaimingObject, ObjectClaim, earliest
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.observation import NotReady, Observation, Ready, Withdrawn
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.intake_sink import REMOVALS_HELD
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.not_ready import NotReadyClusters
from milo_discoveryd.registry.pending_deletions import Inconclusive, NotFound, PendingDeletions
from milo_discoveryd.registry.reduced_fleet import ObjectFeed, ReducedFleet
from milo_discoveryd.registry.reduction import Reduce
from milo_discoveryd.registry.registry import ObjectState
from milo_discoveryd.registry.removal_guard import RemovalGuard, RemovalLimits
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    Relisting,
    SourceEvent,
)
from milo_kube.reflect.source_status import SourceState, SourceStatus
from tests.unit.registry.fleets import malformed, target

STREAMING = SourceStatus(SourceState.STREAMING, 0.0, last_contact=0.0)


def any_of(cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
    """Engage while one object says so; the identity is that of the first object of an engagement."""
    if not claims:
        return None
    first = claims[0]
    if not any(claim.content for claim in claims):
        return NotReady(cluster, uid or first.uid, first.version, "no object wants it")
    return Ready(uid or first.uid, first.version, target(cluster, cluster))


def first_of(cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
    return earliest(cluster, claims)


class Told(Journal):
    def __init__(self) -> None:
        super().__init__(Metrics(), Audit(Metrics()))
        self.events: list[tuple[str, ...]] = []
        self.statuses: list[str] = []

    def changed(self, done: Event, *, is_live: bool) -> None:
        reason = () if done.reason is None else (done.reason.value,)
        self.events.append((done.type.value, done.cluster.target.name, *reason))

    def source(self, status: SourceStatus) -> None:
        self.statuses.append(status.reason)


class World:
    """A reduced fleet, and what it told."""

    def __init__(self, reduce: Reduce = any_of, resources: int = 1, grace_s: float = 0.0) -> None:
        self.told = Told()
        self.fleet = ReducedFleet(
            ChangeLog(lambda _: b"", Retention()),
            reduce,
            self.told,
            keys=[NAMES] * resources,
            pending_deletions=lambda: PendingDeletions(lambda: 0.0),
            guard=lambda: RemovalGuard(RemovalLimits()),
            not_ready=NotReadyClusters(grace_s),
        )

    @property
    def engaged(self) -> set[str]:
        return {cluster.target.name for cluster in self.fleet.registry.clusters()}

    def feed(self, watch: int = 0) -> ObjectFeed:
        return self.fleet.feeds[watch]

    def take(self, *events: SourceEvent[Observation], watch: int = 0, at: float = 0.0) -> list[tuple[str, ...]]:
        before = len(self.told.events)
        for _ in self.feed(watch).take(events, at):
            pass
        return self.told.events[before:]

    def listed(self, *objects: Ready, watch: int = 0, at: float = 0.0) -> list[tuple[str, ...]]:
        return self.take(ListStarted(), *map(Listed, objects), ListEnded(), watch=watch, at=at)

    def delete(self, name: str, uid: str, watch: int = 0) -> list[tuple[str, ...]]:
        """Report a deletion, and confirm it."""
        before = len(self.told.events)
        self.take(DeletionReported(name, uid), watch=watch)
        assert self.told.events[before:] == []
        feed = self.feed(watch)
        for request in feed.pending_deletions.take_due(0.0):
            feed.resolve(request, NotFound(), 0.0)
        return self.told.events[before:]


def thing(name: str, version: int = 1, uid: str = "", **claims: object) -> Ready:
    uid = uid or f"uid-{name}"
    said = tuple(Claim(cluster, content) for cluster, content in claims.items())
    return Ready(uid, str(version), ClaimingObject(name=name, uid=uid, place=(), claims=said))


def test_cluster_is_engaged_while_one_of_its_objects_says_so() -> None:
    world = World()
    assert world.listed(thing("x", shop=True), thing("y", shop=True)) == [("ENGAGED", "shop")]
    assert world.take(ObjectChanged(thing("x", 2, shop=False))) == []
    assert world.take(ObjectChanged(thing("y", 3, shop=False))) == [("DISENGAGED", "shop", "NOT_READY")]
    assert world.take(ObjectChanged(thing("y", 4, shop=True))) == [("ENGAGED", "shop")]


def test_cluster_is_disengaged_when_the_deletion_of_its_last_object_is_confirmed() -> None:
    world = World()
    world.listed(thing("x", shop=True), thing("y", shop=True))
    assert world.delete("x", "uid-x") == []
    world.take(DeletionReported("y", "uid-y"))
    assert world.fleet.pending_reports.explain("shop") == (0.0, "")
    assert world.fleet.pending_reports.explain("none") is None
    assert len(world.fleet.pending_reports) == 1
    (request,) = world.feed().pending_deletions.take_due(0.0)
    world.feed().resolve(request, Inconclusive("timeout"), 0.0)
    assert world.engaged == {"shop"}
    assert world.delete("y", "uid-y") == []
    (request,) = world.feed().pending_deletions.take_due(100.0)
    world.feed().resolve(request, NotFound(), 100.0)
    assert world.told.events[-1] == ("DISENGAGED", "shop", DisengageReason.DELETED.value)
    assert world.fleet.registry["shop"].state is ObjectState.DELETED  # type: ignore[union-attr]


def test_object_may_name_several_clusters_and_change_them() -> None:
    world = World()
    assert world.listed(thing("x", shop=True, bank=True)) == [("ENGAGED", "shop"), ("ENGAGED", "bank")]
    assert world.take(ObjectChanged(thing("x", 2, bank=True, farm=True))) == [
        ("DISENGAGED", "shop", "DELETED"),
        ("ENGAGED", "farm"),
    ]


def test_identity_stays_while_objects_overlap_and_changes_when_all_are_new() -> None:
    world = World()
    world.listed(thing("x", shop=True))
    world.take(ObjectChanged(thing("y", 2, shop=True)))
    assert world.delete("x", "uid-x") == []
    replaced = world.take(ObjectChanged(thing("y", 3, uid="another", shop=True)))
    assert replaced == [("DISENGAGED", "shop", "REPLACED"), ("ENGAGED", "shop")]


def test_earliest_object_keeps_a_name_that_another_one_claims_later() -> None:
    world = World(first_of)
    mine = Ready("mine", "1", target("shop", "mine"))
    theirs = Ready("theirs", "2", target("shop", "theirs"))
    assert world.listed(thing("b", uid="mine", shop=mine)) == [("ENGAGED", "shop")]
    assert world.take(ObjectChanged(thing("a", 2, uid="theirs", shop=theirs))) == []
    again = Ready("mine", "3", target("shop", "mine", organization="acme"))
    assert world.take(ObjectChanged(thing("b", 3, uid="mine", shop=again))) == [("UPDATED", "shop")]
    assert world.delete("b", "mine") == [("DISENGAGED", "shop", "REPLACED"), ("ENGAGED", "shop")]


def test_name_that_two_objects_of_one_list_claim_is_engaged_for_neither() -> None:
    world = World(first_of)
    both = [thing(name, shop=Ready(f"uid-{name}", "1", target("shop", name))) for name in "ab"]
    assert world.listed(*both) == []
    assert world.fleet.registry["shop"].state is ObjectState.MALFORMED  # type: ignore[union-attr]
    assert world.delete("a", "uid-a") == [("ENGAGED", "shop")]


def test_object_that_becomes_invalid_keeps_its_last_claims() -> None:
    world = World()
    world.listed(thing("x", shop=True))
    assert world.take(ObjectChanged(malformed("x", "2", "uid-x"))) == []
    assert world.engaged == {"shop"}


def test_fleet_is_synced_when_every_resource_was_listed() -> None:
    world = World(resources=2)
    world.listed(thing("x", shop=True))
    assert not world.fleet.synced
    world.listed(thing("x", shop=False), watch=1)
    assert world.fleet.synced
    assert world.engaged == {"shop"}


def test_status_is_that_of_the_worst_resource() -> None:
    world = World(resources=2)
    world.feed(0).source(STREAMING)
    assert world.fleet.status.state is SourceState.CATCHING_UP
    world.feed(1).source(STREAMING)
    assert world.fleet.status.state is SourceState.STREAMING
    world.feed(0).source(SourceStatus(SourceState.STALE, 5.0, "Timeout", "", 4.0))
    assert (world.fleet.status.reason, world.fleet.status.last_contact) == ("Timeout", 0.0)


def test_list_that_lacks_most_objects_is_held() -> None:
    world = World()
    world.listed(*(thing(f"x{n}", **{f"c{n}": True}) for n in range(30)))
    assert world.listed() == []
    assert world.fleet.pending_reports.held == 30
    world.feed().source(STREAMING)
    assert world.fleet.status.reason == REMOVALS_HELD
    assert world.feed().relist_at is not None


def test_grace_of_a_cluster_ends_by_the_timer_of_any_feed() -> None:
    world = World(grace_s=10.0)
    world.listed(thing("x", shop=True))
    world.feed().source(STREAMING)
    assert world.take(ObjectChanged(thing("x", 2, shop=False)), at=1.0) == []
    assert world.feed().due_at == 11.0
    world.feed().tick(11.0)
    assert world.told.events[-1] == ("DISENGAGED", "shop", "NOT_READY")


def test_relisting_and_liveness_are_observed() -> None:
    world = World()
    assert world.take(Relisting("Expired")) == []
    world.feed().liveness_checked("answered")
    assert world.feed().reference_objects == ()


@pytest.fixture
def restored() -> World:
    """A daemon that starts with the state of an earlier run: x and y named shop, z named bank."""
    before = World(resources=2)
    before.listed(thing("x", shop=True), thing("y", shop=True), thing("w"))
    before.listed(thing("z", bank=True), watch=1)
    world = World(resources=2)
    stored = [(Ready(record.uid, "", record.cluster.target), 5.0) for _, record in before.fleet.registry.items()]  # type: ignore[union-attr]
    stored.append((Ready("gone", "", target("farm", "farm")), 5.0))
    status = SourceStatus(SourceState.STALE, 0.0, "Restored", "")
    world.fleet.restore(stored, before.fleet.stored_objects(), status)
    assert world.engaged == {"shop", "bank", "farm"}
    assert world.fleet.synced
    assert world.fleet.is_restored
    world.told.events.clear()
    return world


def test_restored_clusters_stay_until_all_their_objects_were_seen_again(restored: World) -> None:
    assert restored.listed(thing("x", 9, shop=False), thing("y", 9, shop=True)) == []
    assert restored.listed(thing("z", 9, bank=False), watch=1)[0] == ("DISENGAGED", "bank", "NOT_READY")
    assert not restored.fleet.is_restored
    assert restored.engaged == {"shop"}


def test_restored_cluster_ends_when_the_deletion_of_its_objects_is_confirmed(restored: World) -> None:
    assert restored.listed(thing("x", 9, shop=False), thing("w", 9)) == []
    feed = restored.feed()
    for request in feed.pending_deletions.take_due(0.0):
        feed.resolve(request, NotFound(), 0.0)
    assert restored.told.events == [("DISENGAGED", "shop", "NOT_READY")]


def test_restored_cluster_of_which_nothing_is_known_stays(restored: World) -> None:
    restored.take(ListStarted(), Listed(malformed("x", "9", "uid-x")), Listed(thing("y", 9)), ListEnded())
    assert restored.engaged == {"shop", "bank", "farm"}


def test_restored_cluster_that_no_object_names_ends_when_all_resources_were_listed(restored: World) -> None:
    restored.listed(thing("x", 9, shop=True), thing("y", 9, shop=True))
    assert restored.listed(thing("z", 9, bank=True), watch=1) == [("DISENGAGED", "farm", "DELETED")]


def test_namespaced_objects_are_deleted_under_their_key() -> None:
    world = World()
    world.fleet = ReducedFleet(
        ChangeLog(lambda _: b"", Retention()),
        any_of,
        world.told,
        keys=[ObjectKeys(namespaced=True)],
        pending_deletions=lambda: PendingDeletions(lambda: 0.0),
    )
    world.listed(thing("a/x", shop=True), thing("b/x", shop=False))
    world.take(DeletionReported("x", "uid-a/x", "a"))
    (request,) = world.feed().pending_deletions.take_due(0.0)
    assert request.name == "a/x"
    world.feed().resolve(request, NotFound(), 0.0)
    assert world.told.events[-1] == ("DISENGAGED", "shop", "NOT_READY")


def test_object_that_means_nothing_makes_no_cluster() -> None:
    world = World(lambda *_: None)
    assert world.listed(thing("x", shop=True)) == []
    assert world.fleet.registry["shop"] is None


def test_withdrawn_cluster_ends_as_removed() -> None:
    def withdrawn(cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
        if claims and claims[0].content:
            return any_of(cluster, claims, uid)
        return Withdrawn(cluster, uid, "", "deactivated")

    world = World(withdrawn)
    world.listed(thing("x", shop=True))
    assert world.take(ObjectChanged(thing("x", 2, shop=False))) == [("DISENGAGED", "shop", "REMOVED")]
    assert world.fleet.registry["shop"].state is ObjectState.WITHDRAWN  # type: ignore[union-attr]
