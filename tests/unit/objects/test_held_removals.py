"""A collection whose lists lack much of the fleet."""

from typing import NoReturn

import pytest

from milo_discoveryd.log.events import Event
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.pending_deletions import Absent, ConfirmationResult, DoubtedObjects, Found
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
)
from tests.unit.fleet.fleets import ListedClusters, at, not_ready, outside, ready

FLEET = tuple(ready(name) for name in "abcdef")
LIMITS = RemovalLimits(count=1, share=0.0, verify_after_s=30.0, per_second=1.0)


class Source(ListedClusters):
    """A fleet of six ready clusters."""

    def __init__(self, *more: Observation) -> None:
        super().__init__(LIMITS)
        self.lists(*FLEET, *more, version="10")

    @classmethod
    def unlisted(cls) -> "Source":
        """Return a fleet without a list."""
        source = cls.__new__(cls)
        ListedClusters.__init__(source, LIMITS)
        return source

    @classmethod
    def restored(cls, version: str = "") -> "Source":
        """Return a fleet that was restored from a state file, which stores no versions of objects."""
        source = cls.unlisted()
        source.restore(((ready(observation.name, version=""), 0.0) for observation in FLEET), at(0.0), version)
        return source

    def answers(self, answer: ConfirmationResult) -> list[Event]:
        """Answer all pending confirmation reads."""
        requests = self.pending_deletions.take_due(self.now)
        return [done for request in requests for done in self.resolve(request, answer)]

    @property
    def engaged(self) -> int:
        return self.engagements.engaged


def test_empty_relist_holds_removal_of_all_clusters_with_reason() -> None:
    source = Source()
    source.lists()
    assert source.requested_names() == []
    assert (source.engaged, source.pending_deletions.held) == (6, 6)
    assert source.collection.held is not None
    why = source.pending_deletions.explain("a")
    assert why is not None
    assert "lacks 6 of 6 engaged clusters" in why[1]


def test_empty_list_holds_removal_of_clusters_that_other_members_own() -> None:
    source = Source()
    source.engagements.assigned_elsewhere = lambda _: "another member owns it"
    for observation in FLEET:
        source.engagements.lose(observation.name, "another member owns it", at(1.0))
    assert (source.engaged, source.store.established_count) == (0, 6)
    source.lists()
    assert source.requested_names() == []
    assert source.pending_deletions.held == 6


def test_empty_list_holds_removal_of_clusters_that_were_ready_before() -> None:
    source = Source()
    source.take(*(ObjectChanged(not_ready(observation.name, "2")) for observation in FLEET))
    assert source.engaged == 0
    source.lists()
    assert source.requested_names() == []
    assert source.pending_deletions.held == 6


def test_empty_list_does_not_hold_removal_of_objects_that_were_never_ready_under_their_uid() -> None:
    source = Source()
    source.take(*(ObjectChanged(not_ready(observation.name, "2", uid="another")) for observation in FLEET))
    assert source.store.established_count == 0
    source.lists()
    assert len(source.requested_names()) == 6


def test_removals_confirmed_by_second_list_are_released_at_limited_rate() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    assert source.collection.held is None
    gone = []
    for second in range(6):
        source.now = 30.0 + second
        gone += source.answers(Absent())
        assert len(gone) == second + 1
    assert {done.reason for done in gone} == {DisengageReason.DELETED}
    assert source.engaged == 0


def test_tenants_take_turns_in_removals_that_are_released_at_limited_rate() -> None:
    source = Source(*(ready(f"evil-{number}", organization="evil") for number in range(100)))
    source.take(ObjectChanged(ready("z", "11", organization="shop")))
    source.lists()
    source.now = 30.0
    source.lists()
    source.now = 33.0
    assert "z" in {request.name for request in source.pending_deletions.take_due(source.now)}


def churned(*, tenant: str = "", of_others: str = "") -> dict[str, float]:
    """Return when each deletion was read, by name, if a tenant creates and deletes a project every 2 s, and another one
    deletes its project "a" after 10 s."""
    source, read_at = Source(ready("a", organization=of_others)), dict[str, float]()
    for second in range(0, 120, 2):
        source.now = float(second)
        if (relist_at := source.collection.relist_at) is not None and relist_at <= source.now:
            source.lists(*FLEET[1 if second > 10 else 0 :], version=str(100 + second))
        name = f"churn-{second}"
        source.take(ObjectChanged(ready(name, str(101 + second), f"uid-{name}", organization=tenant)))
        source.take(DeletionReported(name, f"uid-{name}"))
        if second == 10:
            source.take(DeletionReported("a", "u1"))
        for request in source.pending_deletions.take_due(source.now):
            read_at.setdefault(request.name, source.now)
            source.resolve(request, Absent())
    return read_at


def test_projects_that_are_created_and_deleted_all_the_time_hold_no_deletion_for_long() -> None:
    read_at = churned()
    assert 40.0 <= read_at["a"] <= 70.0, "held for `verify_after` or twice as long"
    assert len(read_at) > 30, "the others go as well"


def test_tenant_that_creates_and_deletes_projects_all_the_time_holds_only_its_own_deletions() -> None:
    read_at = churned(tenant="churning", of_others="shop")
    assert read_at["a"] == 10.0
    assert len(read_at) > 30


def test_clusters_that_are_replaced_steadily_are_not_held_in_a_source_that_is_only_listed() -> None:
    """What earlier lists lacked counts for nothing: its removal is confirmed, and there are new ones."""
    source, shown = Source(), [*FLEET]
    for number in range(12):
        source.now += 5.0
        gone = shown.pop(0)
        shown.append(ready(f"new{number}"))
        source.lists(*shown)
        assert [done.cluster.target.name for done in source.answers(Absent())] == [gone.name]
        assert (source.engaged, source.pending_deletions.held) == (6, 0)


def test_number_of_held_removals_is_known_without_counting_them() -> None:
    """It is read after each change of a fleet of which very much is held."""
    source = Source()
    source.lists()
    source.pending_deletions.doubted.__class__ = Uncounted
    source.take(ObjectChanged(ready("a", "11")), ObjectChanged(ready("b", "12")))
    assert source.collection.held is not None
    assert (source.pending_deletions.held, source.collection.held_count) == (4, 4)


class Uncounted(DoubtedObjects):
    def __iter__(self) -> NoReturn:
        raise AssertionError("all pending deletions were counted")

    values = items = __iter__


def test_objects_that_are_seen_again_after_a_restart_are_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.restored()
    source.lists(FLEET[0])
    source.now = 30.0
    source.lists(FLEET[0])
    assert source.collection.is_restored
    source.lists(*FLEET)
    assert not source.collection.is_restored
    monkeypatch.setattr(source.pending_deletions, "awaits_read", None)
    assert not source.collection.is_restored


def test_held_removals_are_dropped_if_second_list_has_the_objects() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    assert source.lists(*FLEET) == []
    assert (source.engaged, len(source.pending_deletions), source.collection.held) == (6, 0, None)


def test_held_removal_is_canceled_by_watch_event() -> None:
    source = Source()
    source.lists()
    source.take(*(ObjectChanged(ready(name, "2")) for name in "abcdef"))
    assert len(source.pending_deletions) == 0
    assert source.collection.held is None


def test_refuted_deletion_stops_release_of_held_removals() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    source.answers(Found(ready("a")))
    source.now = 40.0
    assert source.requested_names() == ["a"]  # a refuted deletion is checked again
    assert (source.engaged, source.pending_deletions.held) == (6, 5)
    assert source.collection.held is not None


def test_refuted_deletion_holds_only_removals_that_were_not_yet_released() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    source.answers(Absent())
    source.now = 31.0
    source.answers(Found(ready("b")))
    assert (source.engaged, source.pending_deletions.held) == (5, 4)


def test_object_found_outside_selector_does_not_stop_release_of_held_removals() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    (done,) = source.answers(Found(outside("a")))
    assert done.reason is DisengageReason.LABELS_CHANGED
    source.now = 31.0
    assert source.requested_names() == ["b"]


def test_cluster_missing_from_list_of_restored_server_stays_engaged() -> None:
    source = Source()
    source.lists(*FLEET[1:], version="5")
    source.now = 30.0
    source.lists(*FLEET[1:], version="5")
    source.now = 1000.0
    source.lists(*FLEET[1:])
    assert source.requested_names() == []
    assert source.engaged == 6


def test_deletion_reported_by_watch_is_confirmed_although_its_removal_was_held() -> None:
    source = Source()
    source.lists()
    source.take(DeletionReported("a", "u1"))
    (done,) = source.answers(Absent())
    assert done.cluster.target.name == "a"
    assert source.pending_deletions.held == 5


def test_pending_deletion_resolved_during_list_is_not_held() -> None:
    source = Source()
    source.take(DeletionReported("a", "u1"))
    [requested_names] = source.pending_deletions.take_due(source.now)
    applied = source.store.applied
    batches = source.take_batches((ListStarted(), Listed(ready("b", "2")), ListEnded()))
    while source.store.applied == applied:
        next(batches)
    assert source.pending_deletions.held == 0, "the missing objects are not held yet"
    [left] = source.resolve(requested_names, Found(outside("a")))
    assert left.reason is DisengageReason.LABELS_CHANGED
    for _ in batches:
        pass
    assert source.pending_deletions.explain("a") is None
    assert source.pending_deletions.held == 4


def test_removals_of_objects_that_are_not_engaged_are_not_held() -> None:
    source = Source(not_ready("x"), not_ready("y"), not_ready("z"))
    source.lists(*FLEET)
    assert sorted(source.requested_names()) == ["x", "y", "z"]
    assert source.collection.held is None


def test_state_counts_as_restored_while_the_first_list_is_held() -> None:
    source = Source()
    source.restore([], at(0.0))
    source.lists()
    assert source.collection.is_restored
    source.lists(*FLEET)
    assert not source.collection.is_restored


def test_f35_second_list_is_requested_even_if_all_held_objects_reappear() -> None:
    """No watch reports objects that were created while the daemon was down."""
    source = Source()
    source.restore([], at(0.0))
    source.lists()
    source.take(*(ObjectChanged(ready(name, "2")) for name in "abcdef"))
    assert source.pending_deletions.held == 0
    assert source.collection.held is not None
    assert source.collection.relist_at == 30.0
    source.lists(*(ready(name, "2") for name in "abcdef"))
    assert (source.collection.is_restored, source.collection.held) == (False, None)


OTHERS = tuple(ready(name, uid="u9") for name in "xyz")


def recreated(names: str) -> tuple[Observation, ...]:
    return tuple(ready(name, "9", uid="u9") for name in names)


def test_f21_list_of_another_server_is_ignored() -> None:
    source = Source()
    assert source.lists(*OTHERS) == []
    assert (source.engaged, source.collection.held_count) == (6, 6)
    assert source.engagements["x"] is None
    assert source.collection.held is not None
    assert "none of the 6 engaged clusters" in source.collection.held.message


def test_f21_watch_of_another_server_is_ignored() -> None:
    source = Source()
    source.lists(*OTHERS)
    assert (
        source.take(ObjectChanged(ready("a", "9", uid="u9")), DeletionReported("b", "u1"), ObjectChanged(OTHERS[0]))
        == []
    )
    assert source.requested_names() == []


def test_f21_repeated_lists_of_another_server_disengage_nothing() -> None:
    source = Source()
    for second in range(0, 1000, 30):
        source.now = float(second)
        assert source.lists(*OTHERS) == []
    assert source.requested_names() == []
    assert source.engaged == 6


def test_f21_list_of_own_server_ends_the_hold() -> None:
    source = Source()
    source.lists(*OTHERS)
    source.now = 30.0
    (engaged,) = source.lists(*FLEET[1:], ready("g"))
    assert engaged.cluster.target.name == "g"
    assert source.requested_names() == ["a"]
    assert source.collection.held is None
    assert [done.cluster.target.name for done in source.take(ObjectChanged(ready("h")))] == ["h"]


def test_clusters_of_an_unverified_first_list_are_disengaged_once_two_larger_lists_agree() -> None:
    source = Source.unlisted()
    source.lists(*OTHERS)
    source.now = 2.0
    assert source.lists(*FLEET) == []
    source.now = 32.0
    assert {event.cluster.target.name for event in source.lists(*FLEET)} == set("abcdef")
    assert source.collection.is_restored, "a subscriber of an earlier run must not see the clusters of the other server"
    ended = []
    for source.now in (32.0, 33.0, 34.0):
        ended += source.answers(Absent())
    assert {event.cluster.target.name for event in ended} == set("xyz")
    assert not source.collection.is_restored


def test_f21_empty_list_after_a_list_of_another_server_requires_a_second_list() -> None:
    source = Source()
    source.lists(*OTHERS)
    source.now = 30.0
    source.lists()
    assert source.requested_names() == []
    source.now = 60.0
    source.lists()
    assert source.requested_names() == ["a"]


def test_f19_replacement_of_most_objects_is_held_then_applied_one_by_one() -> None:
    source = Source()
    (engaged,) = source.lists(FLEET[0], *recreated("bcdef"), ready("g"))
    assert engaged.cluster.target.name == "g"
    assert (source.engaged, source.pending_deletions.held) == (7, 5)
    source.now = 30.0
    source.lists(FLEET[0], *recreated("bcdef"), ready("g"))
    events = []
    for place, name in enumerate("bcdef"):
        source.now = 30.0 + place
        events += source.answers(Found(recreated(name)[0]))
    assert [event.reason for event in events] == [DisengageReason.REPLACED, None] * 5
    assert len(source.pending_deletions) == 0


def test_f19_replacement_of_few_objects_is_applied_at_once() -> None:
    source = Source()
    done = source.lists(*FLEET[1:], *recreated("a"))
    assert [event.reason for event in done] == [DisengageReason.REPLACED, None]


def test_f35_restored_cluster_with_another_uid_is_replaced_at_once() -> None:
    source = Source.restored()
    done = source.lists(*FLEET[1:], *recreated("a"))
    assert [event.reason for event in done] == [DisengageReason.REPLACED, None]
    assert not source.collection.is_restored


def test_replacement_of_most_restored_clusters_is_held_as_in_a_running_daemon() -> None:
    source = Source.restored()
    assert source.lists(*recreated("abcdef")) == []
    assert (source.engaged, source.pending_deletions.held, source.collection.is_restored) == (6, 6, True)
    source.now = 30.0
    source.lists(*recreated("abcdef"))
    events = []
    for place, name in enumerate("abcdef"):
        source.now = 30.0 + place
        events += source.answers(Found(recreated(name)[0]))
    assert [event.reason for event in events] == [DisengageReason.REPLACED, None] * 6
    assert not source.collection.is_restored


def test_confirmation_read_applies_a_replacement_that_the_second_list_contains() -> None:
    source = Source.restored()
    for source.now in (0.0, 30.0):
        source.lists(*recreated("abcdef"), version="20")
    [request] = source.pending_deletions.take_due(source.now)
    events = source.resolve(request, Found(recreated(request.name)[0]))
    assert [event.reason for event in events] == [DisengageReason.REPLACED, None]


def test_first_list_of_another_server_is_ignored_if_clusters_were_restored() -> None:
    source = Source.restored()
    assert source.lists(*OTHERS) == []
    assert (source.engaged, source.collection.is_restored) == (6, True)
    source.now = 2.0
    assert source.lists(*FLEET) == []
    assert not source.collection.is_restored


def test_restored_clusters_are_disengaged_after_two_lists_without_any_of_them() -> None:
    source = Source.restored()
    source.lists(*OTHERS)
    source.now = 30.0
    source.lists(*OTHERS)
    assert (source.engaged, len(source.requested_names())) == (9, 1)
    source.now = 40.0
    assert len(source.requested_names()) == 5


def test_removal_stays_held_although_a_later_list_lacks_only_few_clusters() -> None:
    source = Source()
    source.lists()
    source.now = 2.0
    source.lists(*FLEET[1:])
    assert (source.requested_names(), source.pending_deletions.held) == ([], 1)
    source.now = 30.0
    source.lists(*FLEET[1:])
    assert source.requested_names() == ["a"]


def test_mass_deletion_reported_by_the_watch_is_held_until_a_list_confirms_it() -> None:
    source = Source()
    assert source.take(*(DeletionReported(name, "u1") for name in "abcd")) == []
    assert source.requested_names() == ["a"]
    held = source.collection.held
    assert held is not None
    assert held.message in (source.pending_deletions.explain("d") or (0.0, ""))[1]

    source.now = 30.0
    source.lists(*FLEET[4:])
    assert source.collection.held is None
    assert source.requested_names() == []
    source.now = 33.0
    assert sorted(source.requested_names()) == ["b", "c", "d"]


def test_cluster_whose_reported_deletion_is_held_stays_engaged_when_it_is_listed() -> None:
    source = Source()
    source.take(*(DeletionReported(name, "u1") for name in "abcd"))
    source.answers(Absent())
    source.now = 30.0
    assert source.lists(*FLEET[1:]) == []
    assert (source.engaged, source.collection.held, len(source.pending_deletions)) == (5, None, 0)


def test_second_list_is_due_until_the_first_is_verified_and_while_removals_are_held() -> None:
    source = Source()
    assert source.collection.relist_at == 30.0
    source.now = 20.0
    source.lists()
    assert source.collection.relist_at == 50.0


def terminating(name: str, version: str = "2") -> Observation:
    return ready(name, version, deletion_requested_at=7.0)


def test_watched_deletions_of_terminating_objects_are_not_a_mass_removal() -> None:
    source = Source()
    source.take(*(ObjectChanged(terminating(name)) for name in "abcde"))
    source.take(*(DeletionReported(name, "u1") for name in "abcde"))
    assert len(source.answers(Absent())) == 5
    assert (source.engaged, source.collection.held) == (1, None)


def test_list_that_lacks_terminating_objects_is_not_a_mass_removal() -> None:
    source = Source()
    source.take(*(ObjectChanged(terminating(name)) for name in "abcde"))
    source.lists(FLEET[5])
    assert len(source.answers(Absent())) == 5
    assert (source.engaged, source.collection.held) == (1, None)


def test_mass_removal_is_held_although_deletions_of_terminating_objects_are_confirmed() -> None:
    source = Source()
    source.take(*(ObjectChanged(terminating(name)) for name in "ab"))
    source.lists(FLEET[5])
    assert sorted(source.requested_names()) == ["a", "b"]
    assert source.pending_deletions.held == 3


def test_terminating_object_recreated_under_its_name_is_replaced_at_once() -> None:
    source = Source()
    source.take(*(ObjectChanged(terminating(name)) for name in "abcde"))
    done = source.lists(FLEET[5], *recreated("abcde"))
    assert [event.reason for event in done] == [DisengageReason.REPLACED, None] * 5


def test_f21_list_of_another_server_confirms_no_deletion_of_terminating_objects() -> None:
    source = Source()
    source.take(*(ObjectChanged(terminating(name)) for name in "abcdef"))
    assert source.lists(*OTHERS) == []
    assert (source.requested_names(), source.collection.held_count) == ([], 6)


def test_list_of_restored_server_confirms_no_deletion_of_terminating_objects() -> None:
    source = Source()
    source.take(*(ObjectChanged(terminating(name)) for name in "ab"))
    source.lists(*FLEET[2:], version="5")
    source.now = 30.0
    source.lists(*FLEET[2:], version="5")
    assert (source.requested_names(), source.engaged) == ([], 6)


def test_list_is_requested_at_once_when_an_administrator_accepts_what_is_held() -> None:
    source = Source()
    assert not source.collection.accept(1.0), "nothing is held, but the first list is verified at once"
    assert source.collection.relist_at == 1.0
    source.lists()
    assert source.collection.relist_at == 30.0
    assert source.collection.accept(7.0)
    assert source.collection.relist_at == 7.0
    source.now = 7.0
    source.lists()
    assert (source.collection.held, source.requested_names()) == (None, ["a"])


def test_deletions_that_the_watch_reports_one_at_a_time_are_not_held() -> None:
    source = Source()
    for source.now, name in ((0.0, "a"), (30.0, "b"), (60.0, "c"), (90.0, "d")):
        source.take(DeletionReported(name, "u1"))
        assert source.requested_names() == [name]
    source.take(DeletionReported("e", "u1"))
    assert (source.requested_names(), source.pending_deletions.held) == ([], 1)
