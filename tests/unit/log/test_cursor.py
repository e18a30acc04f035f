"""What a cursor returns: a snapshot, then changes, coalesced for a slow reader."""

import pytest

from milo_discoveryd.log import change_log
from milo_discoveryd.log.change_log import Retention
from milo_discoveryd.log.cursor import Batch, Cursor
from milo_discoveryd.log.events import NO_CHANGES, Event, EventType
from milo_discoveryd.log.filter import EVERYTHING, RECORDS_PER_STEP, Filter
from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import NamedLog, cluster, disengaged, engaged, read, readable_log, updated

DELETED, NOT_READY, REPLACED, LABELS_CHANGED = (
    DisengageReason.DELETED,
    DisengageReason.NOT_READY,
    DisengageReason.REPLACED,
    DisengageReason.LABELS_CHANGED,
)
PROD = Filter(parse("env=prod"))


def engage(log: NamedLog, name: str = "a", **fields: object) -> Cluster:
    return log.engage(log.entry(name), lambda revision: cluster(name, revision, **fields))  # type: ignore[arg-type]


def update(log: NamedLog, before: Cluster, now: float = 0.0, **fields: object) -> Cluster:
    name, incarnation = before.target.name, before.incarnation
    changed = cluster(name, incarnation, **fields)  # type: ignore[arg-type]
    log.update(log.entry(changed.target.name), changed, now)
    return changed


def reader(log: NamedLog, wanted: Filter = EVERYTHING, resume: int | None = None) -> Cursor:
    return Cursor(log, wanted, resume)


def following(log: NamedLog, wanted: Filter = EVERYTHING) -> Cursor:
    cursor = reader(log, wanted)
    batch = cursor.next_batch()
    assert batch is not None
    assert batch.synced
    return cursor


def evict_frames(log: NamedLog) -> None:
    for _ in log.evict_frames():
        pass


def received(cursor: Cursor) -> list[Event]:
    """Return all pending events, over as many batches as it takes."""
    return [event for _, events in parts(cursor) for event in events]


def parts(cursor: Cursor) -> list[tuple[int, list[Event]]]:
    batches = [batch for batch in iter(cursor.next_batch, None) if batch.is_sendable]
    return [(batch.revision, read(batch.slice.frames)) for batch in batches]


# --- snapshots ---


def test_cursor_starts_with_all_engaged_clusters() -> None:
    log = readable_log()
    a, b = engage(log, "a"), engage(log, "b")
    cursor = reader(log)
    assert not cursor.is_following
    assert cursor.lag == 2
    batch = cursor.next_batch()
    assert batch is not None
    assert read(batch.slice.frames) == [engaged(a), engaged(b)]
    assert (batch.revision, batch.reset, batch.synced) == (2, True, True)
    assert cursor.next_batch() is None
    assert (cursor.revision, cursor.lag) == (2, 0)


def test_cursor_of_empty_fleet_returns_empty_snapshot() -> None:
    assert reader(readable_log()).next_batch() == Batch(NO_CHANGES, 0, reset=True, synced=True)


def test_snapshot_is_split_into_batches() -> None:
    log = readable_log(batch_bytes=1)
    clusters = [engage(log, name) for name in "abc"]
    cursor = reader(log)
    batches = [cursor.next_batch() for _ in clusters]
    assert [read(batch.slice.frames) for batch in batches if batch] == [[engaged(each)] for each in clusters]
    assert [(batch.reset, batch.synced) for batch in batches if batch] == [(True, False), (False, False), (False, True)]
    assert cursor.next_batch() is None


def test_snapshot_contains_only_clusters_in_filter() -> None:
    log = readable_log()
    engage(log, "a", labels={"env": "dev"})
    b = engage(log, "b", labels={"env": "prod"})
    cursor = reader(log, PROD)
    batch = cursor.next_batch()
    assert batch is not None
    assert read(batch.slice.frames) == [engaged(b)]
    assert batch.synced


def test_snapshot_with_few_matches_is_searched_in_steps_and_has_only_matches() -> None:
    log = readable_log()
    count = 2 * RECORDS_PER_STEP + 1
    for index in range(count):
        engage(log, f"a{index}")
    cursor = reader(log, Filter(names=frozenset({f"a{count - 1}"})))
    first_frame, second, third = cursor.next_batch(), cursor.next_batch(), cursor.next_batch()
    assert first_frame == Batch(NO_CHANGES, count, reset=True, synced=False, is_whole=False)
    assert second == Batch(NO_CHANGES, count, synced=False, is_whole=False)
    assert third is not None
    assert (len(third.slice.frames), third.reset, third.synced) == (1, False, True)
    assert (first_frame.is_sendable, second.is_sendable, third.is_sendable) == (True, False, True)


def test_steps_of_selector_with_many_requirements_examine_few_records() -> None:
    log = readable_log()
    costly = Filter(parse(",".join([*(f"env!=dev-{index}" for index in range(63)), "env"])))
    live = following(log, costly)
    for index in range(RECORDS_PER_STEP):
        engage(log, f"a{index}")
    first = live.next_batch()
    assert first == Batch(NO_CHANGES, 31, is_whole=False)
    starting = reader(log, costly)
    starting.next_batch()
    assert starting.lag == RECORDS_PER_STEP - 31


def test_many_changes_with_few_matches_are_searched_in_steps_and_only_matches_are_sent() -> None:
    log = readable_log()
    cursor = following(log, Filter(names=frozenset({"b"})))
    for index in range(RECORDS_PER_STEP + 1):
        engage(log, f"a{index}")
    b = engage(log, "b")
    step, last = cursor.next_batch(), cursor.next_batch()
    assert step == Batch(NO_CHANGES, RECORDS_PER_STEP, is_whole=False)
    assert not step.is_sendable
    assert last is not None
    assert (read(last.slice.frames), last.revision, last.is_whole) == ([engaged(b)], log.head, True)
    engage(log, "c")
    assert cursor.next_batch() is None


def test_snapshot_is_followed_by_changes_made_while_it_is_read() -> None:
    log = readable_log(batch_bytes=1)
    a, b = engage(log, "a"), engage(log, "b")
    cursor = reader(log)
    cursor.next_batch()
    c = engage(log, "c")
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert cursor.lag == 3
    batch = cursor.next_batch()
    assert batch is not None
    assert read(batch.slice.frames) == [engaged(b)]
    assert (batch.revision, batch.synced) == (2, True)
    assert received(cursor) == [engaged(c), disengaged(a, DELETED, "gone")]


def test_readers_that_start_close_together_share_a_snapshot() -> None:
    log = readable_log()
    for index in range(100):
        engage(log, f"a{index}")
    early = reader(log)
    one_more = engage(log, "b")
    late = reader(log)
    batch = late.next_batch()
    assert batch is not None
    assert batch.revision == 100
    assert received(late) == [engaged(one_more)]
    assert early.revision == 100
    for index in range(2):
        engage(log, f"c{index}")
    assert reader(log).revision == 103, "the earlier snapshot is too far behind to be shared"


def test_reader_starts_with_a_new_snapshot_after_sharing_was_stopped() -> None:
    log = readable_log()
    for index in range(100):
        engage(log, f"a{index}")
    early = reader(log)
    engage(log, "b")
    log.stop_sharing()
    assert reader(log).revision == 101
    assert early.revision == 100


def test_snapshot_older_than_compaction_is_not_shared() -> None:
    log = readable_log(Retention(count=0))
    for index in range(200):
        engage(log, f"a{index}")
    early = reader(log)
    log.disengage(log.entry("a0"), DELETED, "", 0.0)
    assert reader(log).revision == 201
    assert early.revision == 200


def test_reader_keeps_few_of_the_states_that_it_has_beyond_its_snapshot() -> None:
    log = readable_log(batch_bytes=10_000)
    for index in range(1000):
        engage(log, f"a{index}")
    cursor = reader(log)
    first = cursor.next_batch()
    assert first is not None
    changed = [update(log, before, version="2") for before in log.clusters()]
    kept, latest = list[int](), {event.cluster.target.name: event.cluster for event in read(first.slice.frames)}
    while (batch := cursor.next_batch()) is not None:
        kept.append(len(cursor.place.ahead))
        latest |= {event.cluster.target.name: event.cluster for event in read(batch.slice.frames)}
    assert 100 < max(kept) <= 256
    assert latest == {each.target.name: each for each in changed}


# --- following ---


def test_cursor_returns_changes_in_order() -> None:
    log = readable_log()
    cursor = following(log)
    a, b = engage(log, "a"), engage(log, "b")
    assert received(cursor) == [engaged(a), engaged(b)]
    b = update(log, b, suspended=True)
    log.disengage(log.entry("a"), NOT_READY, "degraded", 0.0)
    assert received(cursor) == [updated(b), disengaged(a, NOT_READY, "degraded")]
    assert cursor.next_batch() is None


def test_batch_that_was_not_sent_is_read_again_with_later_changes() -> None:
    log = readable_log()
    a = engage(log, "a")
    cursor = reader(log)
    for _ in range(2):
        place = cursor.place
        batch = cursor.next_batch()
        assert batch is not None
        assert (read(batch.slice.frames), batch.reset) == ([engaged(a)], True)
        cursor.return_to(place)
    assert received(cursor) == [engaged(a)]
    place, b = cursor.place, engage(log, "b")
    assert received(cursor) == [engaged(b)]
    cursor.return_to(place)
    c = engage(log, "c")
    assert received(cursor) == [engaged(b), engaged(c)]


def test_cursor_without_changes_returns_no_batch() -> None:
    log = readable_log()
    assert following(log).next_batch() is None


def test_repeated_changes_are_coalesced_to_the_latest() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    for message in ("2 left", "1 left", "none left"):
        a = update(log, a, deletion_message=message)
    assert received(cursor) == [updated(a)]


def test_cluster_engaged_and_disengaged_between_reads_is_omitted() -> None:
    log = readable_log()
    cursor = following(log)
    engage(log)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert received(cursor) == []
    assert cursor.revision == 2


def test_cluster_disengaged_and_engaged_again_is_sent_as_two_events() -> None:
    log = readable_log()
    first_frame = engage(log)
    cursor = following(log)
    log.disengage(log.entry("a"), NOT_READY, "degraded", 0.0)
    second = engage(log)
    assert received(cursor) == [disengaged(first_frame, NOT_READY, "degraded"), engaged(second)]


def test_repeated_reengagements_are_coalesced_to_first_disengagement_and_last_engagement() -> None:
    log = readable_log()
    first_frame = engage(log)
    cursor = following(log)
    for message in ("one", "two", "three"):
        log.disengage(log.entry("a"), NOT_READY, message, 0.0)
        last = engage(log)
    assert received(cursor) == [disengaged(first_frame, NOT_READY, "one"), engaged(last)]


def test_disengagement_carries_last_known_cluster() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    a = update(log, a, suspended=True)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert received(cursor) == [disengaged(a, DELETED, "gone")]


def test_replacement_of_cluster_is_sent_in_one_batch() -> None:
    log = readable_log()
    first_frame = engage(log)
    cursor = following(log)
    second = log.replace(log.entry("a"), "another UID", lambda revision: cluster("a", revision, "u2"), 0.0)
    batch = cursor.next_batch()
    assert batch is not None
    assert read(batch.slice.frames) == [disengaged(first_frame, REPLACED, "another UID"), engaged(second)]
    assert batch.revision == 2


# --- filters ---


def test_label_change_engages_or_disengages_cluster_according_to_filter() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "dev"})
    cursor = following(log, PROD)
    a = update(log, a, labels={"env": "prod"})
    assert received(cursor) == [engaged(a)]
    a = update(log, a, labels={"env": "dev"})
    assert received(cursor) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]
    update(log, a, labels={"env": "test"})
    assert received(cursor) == []


def test_cluster_that_left_and_reentered_filter_between_reads_is_sent_as_update() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "prod"})
    cursor = following(log, PROD)
    update(log, a, labels={"env": "dev"})
    a = update(log, a, labels={"env": "prod"}, suspended=True)
    assert received(cursor) == [updated(a)]


def test_cluster_that_left_filter_and_was_deleted_is_disengaged() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "prod"})
    cursor = following(log, PROD)
    a = update(log, a, labels={"env": "dev"})
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert received(cursor) == [disengaged(a, DELETED, "gone")]


def test_disengagement_outside_filter_is_not_sent() -> None:
    log = readable_log()
    engage(log, labels={"env": "dev"})
    cursor = following(log, PROD)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert received(cursor) == []


def test_replacement_outside_filter_disengages_previous_incarnation() -> None:
    log = readable_log()
    first_frame = engage(log, labels={"env": "prod"})
    cursor = following(log, PROD)
    log.replace(
        log.entry("a"), "another UID", lambda revision: cluster("a", revision, "u2", labels={"env": "dev"}), 0.0
    )
    assert received(cursor) == [disengaged(first_frame, REPLACED, "another UID")]


def test_cluster_whose_new_organization_is_outside_the_filter_is_disengaged() -> None:
    log = readable_log()
    a = engage(log, organization="nasa")
    cursor = following(log, Filter(organizations=frozenset({"nasa"})))
    a = update(log, a, organization="esa")
    assert received(cursor) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]


# --- resume ---


def test_resume_returns_changes_since_revision() -> None:
    log = readable_log()
    a, b = engage(log, "a"), engage(log, "b")
    b = update(log, b, suspended=True)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    cursor = reader(log, resume=2)
    assert cursor.is_following
    assert cursor.lag == 2
    assert received(cursor) == [updated(b), disengaged(a, DELETED, "gone")]


def test_resume_at_head_returns_nothing() -> None:
    log = readable_log()
    engage(log)
    cursor = reader(log, resume=1)
    assert cursor.is_following
    assert cursor.next_batch() is None


def test_resume_reports_cluster_that_left_filter() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "prod"})
    a = update(log, a, labels={"env": "dev"})
    assert received(reader(log, PROD, resume=1)) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]
    assert received(reader(log, PROD, resume=2)) == []


def test_resume_at_future_revision_returns_snapshot() -> None:
    log = readable_log()
    a = engage(log)
    cursor = reader(log, resume=2)
    assert not cursor.is_following
    assert received(cursor) == [engaged(a)]


def test_resume_before_compaction_returns_snapshot() -> None:
    log = readable_log(Retention(count=1))
    engage(log, "a")
    b = engage(log, "b")
    engage(log, "c")
    log.disengage(log.entry("a"), DELETED, "", 0.0)
    assert reader(log, resume=3).is_following
    log.disengage(log.entry("c"), DELETED, "", 0.0)
    assert not reader(log, resume=3).is_following
    assert reader(log, resume=4).is_following
    assert received(reader(log, resume=3)) == [engaged(b)]


def test_label_change_counts_toward_log_retention_like_a_tombstone() -> None:
    log = readable_log(Retention(count=0))
    a = engage(log, labels={"env": "prod"})
    update(log, a, suspended=True, labels={"env": "prod"})
    assert reader(log, resume=1).is_following
    update(log, a, labels={"env": "dev"})
    assert not reader(log, resume=2).is_following


def test_changes_older_than_retention_are_forgotten() -> None:
    log = readable_log(Retention(age_s=60.0))
    engage(log, "a")
    engage(log, "b")
    log.disengage(log.entry("a"), DELETED, "", 100.0)
    log.disengage(log.entry("b"), DELETED, "", 130.0)
    log.forget(160.0)
    assert reader(log, resume=2).is_following
    log.forget(160.1)
    assert not reader(log, resume=2).is_following
    assert reader(log, resume=3).is_following
    log.forget(1000.0)
    assert not reader(log, resume=3).is_following
    assert reader(log, resume=4).is_following


def test_idle_reader_beyond_retention_receives_snapshot() -> None:
    log = readable_log(Retention(count=0))
    engage(log, "a")
    b = engage(log, "b")
    cursor = following(log)
    log.disengage(log.entry("a"), DELETED, "", 0.0)
    batch = cursor.next_batch()
    assert batch is not None
    assert read(batch.slice.frames) == [engaged(b)]
    assert (batch.reset, batch.synced, batch.revision) == (True, True, 3)


def test_reader_of_snapshot_beyond_retention_receives_another_snapshot() -> None:
    log = readable_log(Retention(count=1), batch_bytes=1)
    a, *_ = [engage(log, name) for name in "abc"]
    cursor = reader(log)
    first = cursor.next_batch()
    assert first is not None
    assert (read(first.slice.frames), first.reset, first.synced) == ([engaged(a)], True, False)
    for name in "bc":
        log.disengage(log.entry(name), DELETED, "", 0.0)
    second = cursor.next_batch()
    assert second is not None
    assert (read(second.slice.frames), second.reset, second.revision) == ([engaged(a)], True, 5)
    assert received(cursor) == []


def test_change_made_before_a_snapshot_is_read_is_included_in_the_snapshot() -> None:
    log = readable_log()
    a = engage(log)
    cursor = reader(log)
    changed = update(log, a, version="2")
    assert parts(cursor) == [(1, [engaged(changed)])]
    assert cursor.revision == log.head


def test_snapshot_has_cluster_that_left_the_filter_after_the_snapshot_revision() -> None:
    log = readable_log(batch_bytes=1)
    a, b = (engage(log, name, labels={"env": "dev"}) for name in "ab")
    cursor = reader(log, Filter(parse("env=dev")))
    first = cursor.next_batch()
    assert first is not None
    assert read(first.slice.frames) == [engaged(a)]
    relabeled = update(log, b, labels={"env": "prod"})
    second = cursor.next_batch()
    assert second is not None
    assert (read(second.slice.frames), second.revision, second.synced) == ([engaged(b)], 2, True)
    assert received(cursor) == [disengaged(relabeled, LABELS_CHANGED, "the cluster left the filter")]


# --- readers that are far behind ---


def test_large_batch_is_split_into_parts_with_their_own_revisions() -> None:
    log = readable_log(batch_bytes=1)
    cursor = following(log)
    clusters = [engage(log, name) for name in "abc"]
    batches = [cursor.next_batch() for _ in clusters]
    assert [(read(batch.slice.frames), batch.revision) for batch in batches if batch] == [
        ([engaged(each)], revision) for revision, each in enumerate(clusters, 1)
    ]
    assert cursor.next_batch() is None


def test_batch_part_has_the_state_at_its_revision_and_the_next_part_has_later_changes() -> None:
    log = readable_log(batch_bytes=1)
    cursor = following(log)
    first_frame = engage(log, "a", labels={"env": "dev"})  # 1
    b = engage(log, "b")  # 2
    second = update(log, first_frame, labels={"env": "prod"})  # 3
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)  # 4
    c = engage(log, "c")  # 5
    assert parts(cursor) == [
        (2, [engaged(b), engaged(first_frame)]),
        (4, [disengaged(second, DELETED, "gone")]),
        (5, [engaged(c)]),
    ]


def test_filter_exit_and_reentry_across_parts_is_sent_as_disengagement_and_engagement() -> None:
    log = readable_log(batch_bytes=1)
    before = engage(log, "a", labels={"env": "prod"})  # 1
    cursor = following(log, PROD)
    away = update(log, before, labels={"env": "dev"})  # 2
    b = engage(log, "b", labels={"env": "prod"})  # 3
    back = update(log, away, labels={"env": "prod"})  # 4
    assert parts(cursor) == [
        (2, [disengaged(away, LABELS_CHANGED, "the cluster left the filter")]),
        (3, [engaged(b)]),
        (4, [engaged(back)]),
    ]


def test_resume_between_batch_parts_misses_no_change() -> None:
    log = readable_log(batch_bytes=1)
    a = engage(log, "a")  # 1
    b = engage(log, "b")  # 2
    a = update(log, a, suspended=True)  # 3
    assert parts(reader(log, resume=0)) == [(1, [engaged(a)]), (2, [engaged(b)])]
    assert parts(reader(log, resume=1)) == [(2, [engaged(b)]), (3, [updated(a)])]


def test_reader_with_narrow_filter_receives_only_its_cluster_after_many_changes() -> None:
    log = readable_log(batch_bytes=1)
    cursor = following(log, Filter(names=frozenset({"z"})))
    for index in range(100):
        engage(log, f"a{index}")
    z = engage(log, "z")
    batch = cursor.next_batch()
    assert batch is not None
    assert read(batch.slice.frames) == [engaged(z)]
    assert batch.revision == 101


# --- frames ---


def test_snapshot_frames_are_cached_briefly_and_rebuilt_later() -> None:
    made: list[Event] = []

    def encode(event: Event) -> bytes:
        made.append(event)
        return b"%d" % len(made)

    log = NamedLog(encode, Retention())
    engage(log)

    def first_frame() -> bytes:
        """Return the first frame of a new reader. It shares no snapshot, since the previous reader has ended."""
        batch = reader(log).next_batch()
        assert batch is not None
        return batch.slice.data

    assert [first_frame(), first_frame()] == [b"1", b"1"]
    evict_frames(log)
    assert first_frame() == b"1", "the eviction keeps frames, since a snapshot was read after the previous one"
    for _ in range(3):
        evict_frames(log)
    assert first_frame() == b"2"


def test_frames_of_large_clusters_are_cached_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "MAX_FRAME_BYTES", 20)
    made: list[str] = []

    def encode(event: Event) -> bytes:
        made.append(event.cluster.target.name)
        return b"0123456789"

    log = NamedLog(encode, Retention())
    clusters = [engage(log, name) for name in ("a", "b", "c")]

    def encoded_for_a_new_reader() -> list[str]:
        made.clear()
        batch = reader(log).next_batch()
        assert batch is not None
        assert len(batch.slice.data) == 30
        return [*made]

    assert encoded_for_a_new_reader() == ["a", "b", "c"]
    assert encoded_for_a_new_reader() == ["c"]
    update(log, clusters[0], version="2")
    assert encoded_for_a_new_reader() == ["c", "a"]
    assert encoded_for_a_new_reader() == ["a"]
    evict_frames(log)
    evict_frames(log)
    assert encoded_for_a_new_reader() == ["b", "c", "a"]
    assert encoded_for_a_new_reader() == ["a"]


def test_cursor_sends_same_events_after_frames_are_evicted() -> None:
    log = readable_log()
    a, b = engage(log, "a"), engage(log, "b")
    cursor = following(log)
    a = update(log, a, labels={"env": "prod"})
    assert received(following(log)) == []
    evict_frames(log)
    evict_frames(log)
    assert received(cursor) == [updated(a)]
    assert received(reader(log)) == [engaged(b), engaged(a)]


def test_prefetched_batch_reflects_later_changes() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    a = update(log, a, version="2")
    cursor.prefetch()
    update(log, a, version="3")
    (event,) = received(cursor)
    assert event.cluster.source_version == "3"


def test_cursor_in_filter_transition_does_not_prefetch() -> None:
    log = readable_log()
    engage(log)
    cursor = following(log)
    cursor.change_view(Filter(names=frozenset("b")))
    cursor.prefetch()
    assert [event.type for event in received(cursor)] == [EventType.DISENGAGED]


def test_cursor_beyond_retention_does_not_prefetch() -> None:
    log = readable_log(Retention(count=0))
    a = engage(log)
    cursor = following(log)
    a = update(log, a, labels={"env": "prod"})
    update(log, a, labels={"env": "test"})
    cursor.prefetch()
    assert [event.type for event in received(cursor)] == [EventType.ENGAGED]
