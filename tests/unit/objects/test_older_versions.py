"""Lists and reads that are older than what was seen: a lagging replica, or a server restored from a backup."""

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.objects.pending_deletions import Absent, Found
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    VersionReached,
)
from tests.unit.fleet.fleets import malformed, not_ready, outside, ready
from tests.unit.objects.test_held_removals import FLEET, Source

NEW = tuple(ready(name, "120") for name in "abcdef")
OLD = tuple(not_ready(name, "50") for name in "abcdef")


def at_version_120() -> Source:
    source = Source()
    source.take(*map(ObjectChanged, NEW))
    return source


def restored(source: Source, *listed: Observation, version: str = "50") -> None:
    """Apply the same old list until the server counts as restored."""
    for source.now in (0.0, 10.0, 30.0):
        assert source.lists(*listed, version=version) == []


def test_list_of_a_lagging_replica_is_ignored() -> None:
    source = at_version_120()
    assert source.lists(*OLD, version="50") == []
    assert source.collection.held is not None
    assert source.collection.relist_at == 5.0
    assert source.collection.trust.is_ignoring
    source.now = 5.0
    assert source.lists(*NEW) == []
    assert not source.collection.trust.is_ignoring
    assert (source.engaged, source.collection.held, source.pending_deletions.held) == (6, None, 0)


def test_list_of_a_lagging_replica_reports_no_deletion() -> None:
    source = at_version_120()
    source.lists(version="50")
    assert (source.engaged, source.requested_names()) == (6, [])


def test_list_of_a_lagging_replica_after_a_list_without_a_version_is_ignored() -> None:
    source = Source()
    source.lists(*NEW)
    source.lists(*OLD, version="0")
    assert not source.collection.trust.is_ignoring, "a server may always return version 0"
    source.lists(*NEW)
    assert source.lists(*OLD, version="50") == []
    assert source.collection.trust.is_ignoring
    [end] = source.lists(not_ready("a", "130"), *NEW[1:], version="130")
    assert end.reason is DisengageReason.NOT_READY


def test_restored_server_with_older_objects_disengages_no_cluster() -> None:
    source = at_version_120()
    restored(source, *OLD)
    assert (source.engaged, source.pending_deletions.held) == (6, 6)
    assert source.collection.held is not None
    assert "went back" in source.collection.held.message


@pytest.mark.parametrize(
    "older", [not_ready("a", "50"), ready("a", "50", labels={"env": "old"}), ready("a", "50", "u0")]
)
def test_restored_server_changes_no_engaged_cluster(older: Observation) -> None:
    source = at_version_120()
    restored(source, older, *(ready(name, "50") for name in "bcdef"))
    assert (source.engaged, source.pending_deletions.held) == (6, 1)


def test_restored_server_engages_new_clusters() -> None:
    source = at_version_120()
    source.lists(*(ready(name, "50") for name in "abcdef"), ready("g", "50"), version="50")
    source.now = 30.0
    source.lists(*(ready(name, "50") for name in "abcdef"), ready("g", "50"), version="50")
    assert source.engaged == 7


def test_next_change_of_cluster_held_after_a_server_restore_is_applied() -> None:
    source = at_version_120()
    restored(source, *OLD)
    assert [event.cluster.target.name for event in source.take(ObjectChanged(not_ready("a", "60")))] == ["a"]
    assert (source.engaged, source.pending_deletions.held) == (5, 5)


def test_cluster_held_after_a_restore_stays_engaged_when_the_same_state_is_repeated() -> None:
    source = at_version_120()
    restored(source, *OLD)
    assert source.take(ObjectChanged(not_ready("a", "50"))) == []
    source.now = 60.0
    assert source.lists(*OLD) == []  # the server's versions have passed those seen before
    assert (source.engaged, source.pending_deletions.held) == (6, 6)


def test_cluster_whose_state_is_older_in_a_newer_list_stays_engaged() -> None:
    source = at_version_120()
    assert source.lists(*NEW[1:], not_ready("a", "50")) == []
    assert (source.engaged, source.pending_deletions.held) == (6, 1)


def test_second_restore_of_the_server_is_detected() -> None:
    source = at_version_120()
    kept = [ready(name, "50") for name in "abcdef"]
    restored(source, *kept, version="50")
    source.take(ObjectChanged(ready("g", "60")))
    assert source.engaged == 7
    for source.now in (100.0, 110.0):
        assert source.lists(*kept, version="55") == []
        assert source.requested_names() == [], "the list is older than the change that engaged g"
    source.now = 130.0
    source.lists(*kept, version="55")
    assert (source.engaged, source.pending_deletions.held, source.requested_names()) == (7, 1, [])


def test_deletion_in_a_newer_list_of_a_restored_server_is_applied() -> None:
    source = at_version_120()
    kept = [ready(name, "50") for name in "abcdef"]
    restored(source, *kept, version="50")
    source.take(ObjectChanged(ready("g", "60")))
    source.now = 100.0
    source.lists(*kept, version="61")
    assert [event.cluster.target.name for event in source.answers(Absent())] == ["g"]


def test_deletion_after_a_server_restore_is_confirmed_although_other_removals_are_held() -> None:
    source = at_version_120()
    restored(source, *OLD[:3], *(ready(name, "50") for name in "de"))  # f is missing, and a, b, c are in an older state
    assert (source.engaged, source.pending_deletions.held) == (6, 4)
    source.now = 100.0
    source.lists(*OLD[:3], ready("d", "50"), version="50")
    assert [event.cluster.target.name for event in source.answers(Absent())] == ["e"]
    assert (source.engaged, source.pending_deletions.held) == (5, 4)
    assert source.collection.held is not None


def test_accepted_restore_disengages_clusters_that_are_missing_or_not_ready() -> None:
    source = at_version_120()
    restored(source, *OLD[:3], *(ready(name, "50") for name in "de"))
    source.now = 100.0
    assert source.collection.accept(source.now)
    gone = source.lists(*OLD[:3], *(ready(name, "50") for name in "de"), version="50")
    assert [event.cluster.target.name for event in gone] == ["a", "b", "c"]
    assert [event.cluster.target.name for event in source.answers(Absent())] == ["f"]
    assert (source.engaged, source.pending_deletions.held, source.collection.held) == (2, 0, None)


def test_accepting_a_restored_server_without_held_removals_changes_nothing() -> None:
    source = at_version_120()
    assert not source.collection.accept(0.0)
    source.lists()
    assert source.engaged == 6


def test_hold_after_a_server_restore_survives_a_daemon_restart() -> None:
    source = Source.restored("120")
    restored(source, *OLD[:3])
    assert (source.engaged, source.pending_deletions.held) == (6, 6)


def test_list_with_only_known_not_ready_objects_is_not_attributed_to_another_server() -> None:
    others = tuple(not_ready(name) for name in "uvwxyz")
    source = Source(*others)
    source.lists(*others)
    assert source.collection.held is not None
    assert "contains none of" not in source.collection.held.message
    source.now = 30.0
    source.lists(*others)
    gone = []
    for source.now in range(30, 40):
        gone += source.answers(Absent())
    assert (len(gone), source.engaged) == (6, 0)


def test_list_with_known_not_ready_names_but_different_uids_is_attributed_to_another_server() -> None:
    source = Source(not_ready("u"))
    source.lists(not_ready("u", uid="another"))
    assert source.collection.held is not None
    assert "contains none of" in source.collection.held.message


@pytest.mark.parametrize(("version", "is_ignored"), [("121", False), ("119", True)])
def test_list_after_a_list_of_another_server_is_compared_with_the_last_accepted_list(
    version: str, is_ignored: bool
) -> None:
    source = Source()
    source.lists(*NEW, version="120")
    source.lists(*(ready(name, "5000") for name in "uvw"), version="5000")
    assert source.collection.held is not None
    for _ in range(2):
        source.lists(*NEW, version=version)
        assert source.collection.trust.is_ignoring is is_ignored
    assert (source.engaged, source.collection.held is None) == (6, not is_ignored)


def test_confirmation_read_of_an_older_version_is_inconclusive() -> None:
    source = at_version_120()
    source.lists(*NEW[1:])
    assert source.answers(Found(not_ready("a", "100"))) == []
    assert source.pending_deletions.explain("a") == (0.0, "the read returned an older version than the watch or a list")
    assert source.engaged == 6


def test_reads_that_keep_returning_an_older_version_count_as_a_server_restore() -> None:
    source = at_version_120()
    source.lists(*NEW[1:])
    source.answers(Found(not_ready("a", "100")))
    source.now = 30.0
    assert source.answers(Found(not_ready("a", "100"))) == []
    assert source.collection.held is not None
    assert source.collection.trust.doubt is None
    assert (source.engaged, source.pending_deletions.held) == (6, 1)


@pytest.mark.parametrize("name", ["a?b#c", "x" * 254])
def test_missing_object_whose_name_is_invalid_in_a_path_counts_as_deleted_without_a_read(name: str) -> None:
    hostile = not_ready(name)
    source = Source(hostile)
    source.lists(*FLEET)
    assert source.requested_names() == []
    record = source.engagements[name]
    assert record is not None
    assert record.state is ObjectState.DELETED


def test_refuted_deletion_is_confirmed_by_a_later_read() -> None:
    source = Source()
    source.lists(*FLEET[1:])
    assert source.answers(Found(FLEET[0])) == []
    assert source.pending_deletions.explain("a") is None
    source.now = 1.0
    assert [event.cluster.target.name for event in source.answers(Absent())] == ["a"]


def test_object_whose_deletion_was_refuted_by_a_read_is_not_a_reference_object() -> None:
    """Otherwise the deletion of the only known object could never be confirmed."""
    source = Source()
    source.lists(*FLEET[1:])
    source.answers(Found(FLEET[0]))
    assert [name for name, _ in source.collection.reference_objects] == ["b", "c", "d"]
    source.take(ObjectChanged(ready("a", "2")))
    assert source.store.is_present("a", "u1")


def test_refuted_deletion_is_dropped_when_the_watch_shows_the_object() -> None:
    source = Source()
    source.lists(*FLEET[1:])
    source.answers(Found(FLEET[0]))
    seen = ready("a", "2")
    assert isinstance(seen, Ready)
    source.take(ObjectChanged(seen))
    source.now = 1000.0
    assert source.requested_names() == []


class TestReadThatContradictsTheList:
    """A list at version 120 lacks `a`, and the read that is to confirm its deletion returns an object."""

    @pytest.fixture
    def source(self) -> Source:
        source = Source()
        source.lists(*FLEET[1:], version="120")
        return source

    @pytest.mark.parametrize("older", [ready("a", "110", "u2"), not_ready("a", "110"), malformed("a", "110", "u2")])
    def test_read_older_than_the_list_does_not_refute_deletion(self, source: Source, older: Observation) -> None:
        assert source.answers(Found(older)) == []
        source.now = 5.0
        assert [event.reason for event in source.answers(Absent())] == [DisengageReason.DELETED]

    def test_read_older_than_the_list_is_applied_if_it_persists(self, source: Source) -> None:
        source.answers(Found(ready("a", "110", "u2")))
        source.now = 30.0
        ended, began = source.answers(Found(ready("a", "110", "u2")))
        assert (ended.reason, began.cluster.object_uid) == (DisengageReason.REPLACED, "u2")

    @pytest.mark.parametrize("newer", [ready("a", "121", "u2"), outside("a", "110")])
    def test_read_consistent_with_the_list_is_applied(self, source: Source, newer: Observation) -> None:
        assert source.answers(Found(newer)) != []

    def test_older_read_after_a_hold_is_not_applied_while_the_replica_may_catch_up(self, source: Source) -> None:
        for source.now in (0.0, 30.0):
            source.lists(*FLEET[3:], version="120")
        source.pending_deletions.discard("b")
        source.pending_deletions.discard("c")
        assert source.answers(Found(ready("a", "110", "u2"))) == []
        source.now = 35.0
        assert source.answers(Found(not_ready("a", "0"))) == []
        assert source.collection.held is None, "the replica may still catch up"
        source.now = 60.0
        assert [event.reason for event in source.answers(Absent())] == [DisengageReason.DELETED]

    def test_restored_cluster_is_not_replaced_after_one_read_of_another_object_outside_the_selector(self) -> None:
        source = Source.restored()
        source.lists(*FLEET[1:], version="120")
        assert source.answers(Found(outside("a", "110", "u0"))) == []
        source.now = 5.0
        assert [event.reason for event in source.answers(Absent())] == [DisengageReason.DELETED]

    def test_restored_cluster_is_replaced_after_two_reads_of_another_object_outside_the_selector(self) -> None:
        source = Source.restored()
        source.lists(*FLEET[1:], version="120")
        source.answers(Found(outside("a", "110", "u2")))
        source.now = 30.0
        assert [event.reason for event in source.answers(Found(outside("a", "110", "u2")))] == [
            DisengageReason.REPLACED
        ]

    def test_read_of_known_state_refutes_deletion(self, source: Source) -> None:
        assert source.answers(Found(FLEET[0])) == []
        assert source.pending_deletions.explain("a") is None


def test_list_does_not_overwrite_newer_state_from_a_read_during_the_list() -> None:
    source = at_version_120()
    source.take(DeletionReported("a", "u1"))
    (request,) = source.pending_deletions.take_due(source.now)
    listed = [ready(name, "121", labels={"from": "list"}) for name in "abcdef"]
    source.take(ListStarted(), *map(Listed, listed))
    read = Found(ready("a", "130", labels={"from": "read"}))
    assert [event.type.name for event in source.resolve(request, read)] == ["UPDATED"]
    source.take(ListEnded(version="121"))
    labels = {cluster.target.name: cluster.target.labels for cluster in source.engagements.clusters()}
    assert labels["a"] == (("from", "read"),)


def test_older_malformed_object_keeps_its_cluster_engaged() -> None:
    source = at_version_120()
    assert source.lists(malformed("a", "50"), *NEW[1:]) == []
    record = source.engagements["a"]
    assert record is not None
    assert (record.state, record.engaged) == (ObjectState.MALFORMED, True)


# --- defects of an earlier decision about removals ---


def test_read_that_overtakes_a_running_list_holds_no_cluster_until_accepted() -> None:
    source = at_version_120()
    source.lists(*NEW, version="120")
    listed = ready("a", "124", labels={"from": "list"})
    source.take(DeletionReported("a", "u1", version="121"), ListStarted(), *map(Listed, (listed, *NEW[1:])))
    source.answers(Found(ready("a", "130", labels={"from": "read"})))
    source.take(ListEnded(version="125"))
    assert (source.pending_deletions.until_accepted, source.collection.relist_at) == ({}, 5.0)
    source.now = 5.0
    source.lists(ready("a", "130", labels={"from": "read"}), *NEW[1:], version="130")
    assert (source.collection.held, len(source.pending_deletions)) == (None, 0)


def test_watch_that_follows_an_ignored_older_list_is_ignored() -> None:
    source = at_version_120()
    source.lists(*OLD, version="50")
    assert source.take(ObjectChanged(ready("new", "60")), DeletionReported("a", "u1", version="61")) == []
    assert (source.engaged, len(source.pending_deletions), source.collection.trust.version) == (6, 0, "120")


def test_hold_whose_objects_were_all_seen_again_is_not_confirmed_by_a_list_hours_later() -> None:
    source = at_version_120()
    source.lists(version="121")
    source.take(*(ObjectChanged(ready(name, "122")) for name in "abcdef"))
    assert (source.pending_deletions.held, source.collection.relist_at) == (0, 30.0)
    source.now = 7200.0
    source.lists(version="123")
    assert (source.requested_names(), source.pending_deletions.held) == ([], 6)
    assert source.collection.relist_at == 7230.0


def test_restored_server_with_older_states_and_one_new_object_is_not_another_server() -> None:
    source = at_version_120()
    for source.now in (0.0, 5.0, 30.0):
        source.lists(*OLD, ready("new", "55"), version="60")
    assert (source.engaged, source.pending_deletions.held) == (7, 6)
    assert not source.collection.trust.is_ignoring


def test_lagging_replica_does_not_undo_a_watched_deletion_after_a_restore() -> None:
    source = at_version_120()
    kept = [ready(name, "50") for name in "abcdef"]
    restored(source, *kept, version="50")
    source.take(DeletionReported("a", "u1", version="60"))
    assert [event.cluster.target.name for event in source.answers(Absent())] == ["a"]
    assert source.lists(*kept, version="55") == []
    assert (source.engaged, source.collection.trust.is_ignoring) == (5, True)


def test_restore_is_detected_by_a_bookmark_although_no_object_has_changed_for_long() -> None:
    source = at_version_120()
    source.take(VersionReached("5000"))
    source.lists(*NEW[1:], version="4000")
    assert (source.requested_names(), source.collection.trust.is_ignoring) == ([], True)
    source.now = 30.0
    source.lists(*NEW[1:], version="4001")
    assert (source.requested_names(), source.pending_deletions.until_accepted) == ([], {30.0: 1})
