"""What a reader of the change log is given: a snapshot, then what came since, merged where it is slow."""

from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.model.selector import parse
from milo_discoveryd.registry.cursor import Batch, Cursor
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.filter import EVERYTHING, Filter
from milo_discoveryd.registry.log import RECORDS_PER_STEP, Retention
from tests.unit.registry.fleets import NamedLog, cluster, disengaged, engaged, read, readable_log, updated

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
    batch = cursor.take()
    assert batch is not None
    assert batch.synced
    return cursor


def evict_frames(log: NamedLog) -> None:
    for _ in log.evict_frames():
        pass


def told(cursor: Cursor) -> list[Event]:
    """All that there is for it, however many batches it takes."""
    return [event for _, events in parts(cursor) for event in events]


def parts(cursor: Cursor) -> list[tuple[int, list[Event]]]:
    return [(batch.revision, read(batch.frames)) for batch in iter(cursor.take, None)]


# --- snapshots ---


def test_it_begins_with_everything_that_is_engaged() -> None:
    log = readable_log()
    a, b = engage(log, "a"), engage(log, "b")
    cursor = reader(log)
    assert not cursor.resumed
    assert cursor.lag == 2
    batch = cursor.take()
    assert batch is not None
    assert read(batch.frames) == [engaged(a), engaged(b)]
    assert (batch.revision, batch.reset, batch.synced) == (2, True, True)
    assert cursor.take() is None
    assert (cursor.revision, cursor.lag) == (2, 0)


def test_an_empty_fleet_is_an_empty_snapshot() -> None:
    assert reader(readable_log()).take() == Batch((), 0, reset=True, synced=True)


def test_a_snapshot_comes_in_as_many_batches_as_it_needs() -> None:
    log = readable_log(batch_bytes=1)
    clusters = [engage(log, name) for name in "abc"]
    cursor = reader(log)
    batches = [cursor.take() for _ in clusters]
    assert [read(batch.frames) for batch in batches if batch] == [[engaged(each)] for each in clusters]
    assert [(batch.reset, batch.synced) for batch in batches if batch] == [(True, False), (False, False), (False, True)]
    assert cursor.take() is None


def test_a_snapshot_holds_what_the_filter_covers() -> None:
    log = readable_log()
    engage(log, "a", labels={"env": "dev"})
    b = engage(log, "b", labels={"env": "prod"})
    cursor = reader(log, PROD)
    batch = cursor.take()
    assert batch is not None
    assert read(batch.frames) == [engaged(b)]
    assert batch.synced


def test_few_of_many_are_looked_for_in_parts_and_only_where_some_are_found_there_is_news() -> None:
    log = readable_log()
    count = 2 * RECORDS_PER_STEP + 1
    for index in range(count):
        engage(log, f"a{index}")
    cursor = reader(log, Filter(names=frozenset({f"a{count - 1}"})))
    first, second, third = cursor.take(), cursor.take(), cursor.take()
    assert first == Batch((), count, reset=True, synced=False, is_whole=False)
    assert second == Batch((), count, synced=False, is_whole=False)
    assert third is not None
    assert (len(third.frames), third.reset, third.synced) == (1, False, True)
    assert (first.is_sendable, second.is_sendable, third.is_sendable) == (True, False, True)


def test_what_changes_while_a_snapshot_is_read_follows_it() -> None:
    log = readable_log(batch_bytes=1)
    a, b = engage(log, "a"), engage(log, "b")
    cursor = reader(log)
    cursor.take()
    c = engage(log, "c")
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert cursor.lag == 3
    batch = cursor.take()
    assert batch is not None
    assert read(batch.frames) == [engaged(b)]
    assert (batch.revision, batch.synced) == (2, True)
    assert told(cursor) == [engaged(c), disengaged(a, DELETED, "gone")]


def test_readers_at_about_the_same_time_share_a_snapshot() -> None:
    log = readable_log()
    for index in range(100):
        engage(log, f"a{index}")
    early = reader(log)
    one_more = engage(log, "b")
    late = reader(log)
    batch = late.take()
    assert batch is not None
    assert batch.revision == 100
    assert told(late) == [engaged(one_more)]
    assert early.revision == 100
    for index in range(2):
        engage(log, f"c{index}")
    assert reader(log).revision == 103, "an earlier one that is too far behind is not as good"


def test_a_snapshot_that_the_log_no_longer_follows_is_shared_with_nobody() -> None:
    log = readable_log(Retention(count=0))
    for index in range(200):
        engage(log, f"a{index}")
    early = reader(log)
    log.disengage(log.entry("a0"), DELETED, "", 0.0)
    assert reader(log).revision == 201
    assert early.revision == 200


# --- following ---


def test_changes_come_in_order() -> None:
    log = readable_log()
    cursor = following(log)
    a, b = engage(log, "a"), engage(log, "b")
    assert told(cursor) == [engaged(a), engaged(b)]
    b = update(log, b, suspended=True)
    log.disengage(log.entry("a"), NOT_READY, "degraded", 0.0)
    assert told(cursor) == [updated(b), disengaged(a, NOT_READY, "degraded")]
    assert cursor.take() is None


def test_with_nothing_new_there_is_no_batch() -> None:
    log = readable_log()
    assert following(log).take() is None


def test_what_changed_more_than_once_is_told_once_as_it_is_now() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    for message in ("2 left", "1 left", "none left"):
        a = update(log, a, deletion_message=message)
    assert told(cursor) == [updated(a)]


def test_what_came_and_went_between_two_looks_was_never_there() -> None:
    log = readable_log()
    cursor = following(log)
    engage(log)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert told(cursor) == []
    assert cursor.revision == 2


def test_what_went_and_came_back_is_told_as_both() -> None:
    log = readable_log()
    first = engage(log)
    cursor = following(log)
    log.disengage(log.entry("a"), NOT_READY, "degraded", 0.0)
    second = engage(log)
    assert told(cursor) == [disengaged(first, NOT_READY, "degraded"), engaged(second)]


def test_of_many_comings_and_goings_the_first_end_and_the_last_beginning_are_told() -> None:
    log = readable_log()
    first = engage(log)
    cursor = following(log)
    for message in ("one", "two", "three"):
        log.disengage(log.entry("a"), NOT_READY, message, 0.0)
        last = engage(log)
    assert told(cursor) == [disengaged(first, NOT_READY, "one"), engaged(last)]


def test_a_disengagement_shows_the_cluster_as_it_last_was() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    a = update(log, a, suspended=True)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert told(cursor) == [disengaged(a, DELETED, "gone")]


def test_a_replacement_is_one_step_for_every_reader() -> None:
    log = readable_log()
    first = engage(log)
    cursor = following(log)
    second = log.replace(log.entry("a"), "another UID", lambda revision: cluster("a", revision, "u2"), 0.0)
    batch = cursor.take()
    assert batch is not None
    assert read(batch.frames) == [disengaged(first, REPLACED, "another UID"), engaged(second)]
    assert batch.revision == 2


# --- filters ---


def test_what_enters_the_filter_is_engaged_and_what_leaves_it_disengaged() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "dev"})
    cursor = following(log, PROD)
    a = update(log, a, labels={"env": "prod"})
    assert told(cursor) == [engaged(a)]
    a = update(log, a, labels={"env": "dev"})
    assert told(cursor) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]
    update(log, a, labels={"env": "test"})
    assert told(cursor) == []


def test_what_left_the_filter_and_came_back_between_two_looks_was_never_away() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "prod"})
    cursor = following(log, PROD)
    update(log, a, labels={"env": "dev"})
    a = update(log, a, labels={"env": "prod"}, suspended=True)
    assert told(cursor) == [updated(a)]


def test_what_left_the_filter_and_ended_is_told_to_have_ended() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "prod"})
    cursor = following(log, PROD)
    a = update(log, a, labels={"env": "dev"})
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert told(cursor) == [disengaged(a, DELETED, "gone")]


def test_the_end_of_what_the_filter_did_not_cover_is_not_told() -> None:
    log = readable_log()
    engage(log, labels={"env": "dev"})
    cursor = following(log, PROD)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    assert told(cursor) == []


def test_a_new_incarnation_outside_the_filter_ends_the_old_one_within() -> None:
    log = readable_log()
    first = engage(log, labels={"env": "prod"})
    cursor = following(log, PROD)
    log.replace(
        log.entry("a"), "another UID", lambda revision: cluster("a", revision, "u2", labels={"env": "dev"}), 0.0
    )
    assert told(cursor) == [disengaged(first, REPLACED, "another UID")]


def test_a_change_of_organization_moves_it_between_filters_too() -> None:
    log = readable_log()
    a = engage(log, organization="nasa")
    cursor = following(log, Filter(organizations=frozenset({"nasa"})))
    a = update(log, a, organization="esa")
    assert told(cursor) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]


# --- coming back ---


def test_who_comes_back_is_told_what_came_since() -> None:
    log = readable_log()
    a, b = engage(log, "a"), engage(log, "b")
    b = update(log, b, suspended=True)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    cursor = reader(log, resume=2)
    assert cursor.resumed
    assert cursor.lag == 2
    assert told(cursor) == [updated(b), disengaged(a, DELETED, "gone")]


def test_who_comes_back_to_where_it_was_is_told_nothing() -> None:
    log = readable_log()
    engage(log)
    cursor = reader(log, resume=1)
    assert cursor.resumed
    assert cursor.take() is None


def test_what_left_the_filter_while_the_reader_was_away_is_told() -> None:
    log = readable_log()
    a = engage(log, labels={"env": "prod"})
    a = update(log, a, labels={"env": "dev"})
    assert told(reader(log, PROD, resume=1)) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]
    assert told(reader(log, PROD, resume=2)) == []


def test_a_revision_of_the_future_is_answered_by_a_snapshot() -> None:
    log = readable_log()
    a = engage(log)
    cursor = reader(log, resume=2)
    assert not cursor.resumed
    assert told(cursor) == [engaged(a)]


def test_a_revision_from_before_the_oldest_memory_is_answered_by_a_snapshot() -> None:
    log = readable_log(Retention(count=1))
    engage(log, "a")
    b = engage(log, "b")
    engage(log, "c")
    log.disengage(log.entry("a"), DELETED, "", 0.0)
    assert reader(log, resume=3).resumed
    log.disengage(log.entry("c"), DELETED, "", 0.0)
    assert not reader(log, resume=3).resumed
    assert reader(log, resume=4).resumed
    assert told(reader(log, resume=3)) == [engaged(b)]


def test_a_change_of_labels_is_remembered_like_an_end() -> None:
    log = readable_log(Retention(count=0))
    a = engage(log, labels={"env": "prod"})
    update(log, a, suspended=True, labels={"env": "prod"})
    assert reader(log, resume=1).resumed
    update(log, a, labels={"env": "dev"})
    assert not reader(log, resume=2).resumed


def test_memory_ends_with_age() -> None:
    log = readable_log(Retention(age_s=60.0))
    engage(log, "a")
    engage(log, "b")
    log.disengage(log.entry("a"), DELETED, "", 100.0)
    log.disengage(log.entry("b"), DELETED, "", 130.0)
    log.forget(160.0)
    assert reader(log, resume=2).resumed
    log.forget(160.1)
    assert not reader(log, resume=2).resumed
    assert reader(log, resume=3).resumed
    log.forget(1000.0)
    assert not reader(log, resume=3).resumed
    assert reader(log, resume=4).resumed


def test_who_sleeps_longer_than_the_log_remembers_begins_anew() -> None:
    log = readable_log(Retention(count=0))
    engage(log, "a")
    b = engage(log, "b")
    cursor = following(log)
    log.disengage(log.entry("a"), DELETED, "", 0.0)
    batch = cursor.take()
    assert batch is not None
    assert read(batch.frames) == [engaged(b)]
    assert (batch.reset, batch.synced, batch.revision) == (True, True, 3)


def test_nothing_given_out_before_the_log_was_cleared_can_be_come_back_to() -> None:
    log = readable_log()
    engage(log)
    log.clear()
    assert not reader(log, resume=1).resumed
    assert log.snapshot().clusters == []


# --- far behind ---


def test_much_comes_in_parts_and_each_part_is_true_of_the_revision_it_ends_with() -> None:
    log = readable_log(batch_bytes=1)
    cursor = following(log)
    clusters = [engage(log, name) for name in "abc"]
    batches = [cursor.take() for _ in clusters]
    assert [(read(batch.frames), batch.revision) for batch in batches if batch] == [
        ([engaged(each)], revision) for revision, each in enumerate(clusters, 1)
    ]
    assert cursor.take() is None


def test_what_moved_on_beyond_a_part_is_told_as_it_stood_and_then_as_it_moved() -> None:
    log = readable_log(batch_bytes=1)
    cursor = following(log)
    first = engage(log, "a", labels={"env": "dev"})  # 1
    b = engage(log, "b")  # 2
    second = update(log, first, labels={"env": "prod"})  # 3
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)  # 4
    c = engage(log, "c")  # 5
    assert parts(cursor) == [
        (2, [engaged(b), engaged(first)]),
        (4, [disengaged(second, DELETED, "gone")]),
        (5, [engaged(c)]),
    ]


def test_what_left_the_filter_within_a_part_and_came_back_beyond_it_is_told_as_both() -> None:
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


def test_who_comes_back_in_the_middle_of_it_misses_nothing() -> None:
    log = readable_log(batch_bytes=1)
    a = engage(log, "a")  # 1
    b = engage(log, "b")  # 2
    a = update(log, a, suspended=True)  # 3
    assert parts(reader(log, resume=0)) == [(1, [engaged(a)]), (2, [engaged(b)])]
    assert parts(reader(log, resume=1)) == [(2, [engaged(b)]), (3, [updated(a)])]


def test_a_reader_of_little_passes_over_much() -> None:
    log = readable_log(batch_bytes=1)
    cursor = following(log, Filter(names=frozenset({"z"})))
    for index in range(100):
        engage(log, f"a{index}")
    z = engage(log, "z")
    batch = cursor.take()
    assert batch is not None
    assert read(batch.frames) == [engaged(z)]
    assert batch.revision == 101


# --- frames ---


def test_frames_are_kept_for_who_begins_soon_and_made_again_for_who_begins_later() -> None:
    made: list[Event] = []

    def encode(event: Event) -> bytes:
        made.append(event)
        return b"%d" % len(made)

    log = NamedLog(encode, Retention())
    engage(log)

    def first() -> bytes:
        """That a newcomer is sent; each goes before the next comes, so they share no snapshot."""
        batch = reader(log).take()
        assert batch is not None
        return batch.frames.joined

    assert [first(), first()] == [b"1", b"1"]
    evict_frames(log)
    assert first() == b"1", "somebody had begun since it was last asked to let go"
    for _ in range(3):
        evict_frames(log)
    assert first() == b"2"


def test_what_changes_is_told_as_before_when_frames_were_let_go_of() -> None:
    log = readable_log()
    a, b = engage(log, "a"), engage(log, "b")
    cursor = following(log)
    a = update(log, a, labels={"env": "prod"})
    assert told(following(log)) == []
    evict_frames(log)
    evict_frames(log)
    assert told(cursor) == [updated(a)]
    assert told(reader(log)) == [engaged(b), engaged(a)]


def test_what_changed_since_it_was_looked_for_is_told_as_it_is() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    a = update(log, a, version="2")
    cursor.prefetch()
    update(log, a, version="3")
    (event,) = told(cursor)
    assert event.cluster.source_version == "3"


def test_who_is_being_turned_looks_for_nothing_ahead() -> None:
    log = readable_log()
    engage(log)
    cursor = following(log)
    cursor.change_view(Filter(names=frozenset("b")))
    cursor.prefetch()
    assert [event.type for event in told(cursor)] == [EventType.DISENGAGED]


def test_who_slept_for_too_long_looks_for_nothing_ahead() -> None:
    log = readable_log(Retention(count=0))
    a = engage(log)
    cursor = following(log)
    a = update(log, a, labels={"env": "prod"})
    update(log, a, labels={"env": "test"})
    cursor.prefetch()
    assert [event.type for event in told(cursor)] == [EventType.ENGAGED]
