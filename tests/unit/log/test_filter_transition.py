"""What a reader receives when its visible clusters change with its rights."""

from milo_discoveryd.log.change_log import Retention
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import Event
from milo_discoveryd.log.filter import EVERYTHING, RECORDS_PER_STEP, ClusterView, Filter
from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import NamedLog, cluster, disengaged, engaged, read, readable_log, updated

REVOKED, DELETED = DisengageReason.REVOKED, DisengageReason.DELETED
PROD, DEV = Filter(parse("env=prod")), Filter(parse("env=dev"))
NO_LONGER = "the subscriber's authorization rule no longer covers this cluster"


def engage(log: NamedLog, name: str, env: str = "prod") -> Cluster:
    return log.engage(log.entry(name), lambda revision: cluster(name, revision, labels={"env": env}))


def update(log: NamedLog, before: Cluster, env: str = "prod", **fields: object) -> Cluster:
    changed = cluster(before.target.name, before.incarnation, labels={"env": env}, **fields)  # type: ignore[arg-type]
    log.update(log.entry(changed.target.name), changed, 0.0)
    return changed


def following(log: NamedLog, wanted: ClusterView) -> Cursor:
    cursor = Cursor(log, wanted, None)
    received(cursor)
    return cursor


def parts(cursor: Cursor) -> list[tuple[list[Event], bool]]:
    batches = list(iter(cursor.next_batch, None))
    assert all(batch.synced and not batch.reset for batch in batches)
    return [(read(batch.slice.frames), batch.is_whole) for batch in batches]


def received(cursor: Cursor) -> list[Event]:
    return [event for batch in iter(cursor.next_batch, None) for event in read(batch.slice.frames)]


def test_filter_transition_revokes_lost_and_engages_gained_clusters() -> None:
    log = readable_log()
    a, b = engage(log, "a", "prod"), engage(log, "b", "dev")
    cursor = following(log, PROD)
    cursor.change_view(DEV)
    assert cursor.lag == 2
    assert parts(cursor) == [([disengaged(a, REVOKED, NO_LONGER), engaged(b)], True)]
    assert (cursor.revision, cursor.lag) == (2, 0)


def test_filter_transition_omits_unaffected_clusters() -> None:
    log = readable_log()
    engage(log, "a", "prod")
    cursor = following(log, PROD)
    cursor.change_view(EVERYTHING)
    assert cursor.next_batch() is None


def test_changes_after_filter_transition_use_new_filter() -> None:
    log = readable_log()
    a, b = engage(log, "a", "prod"), engage(log, "b", "dev")
    cursor = following(log, EVERYTHING)
    cursor.change_view(PROD)
    b = update(log, b, "dev", suspended=True)
    a = update(log, a, "prod", suspended=True)
    assert received(cursor) == [disengaged(b, REVOKED, NO_LONGER), updated(a)]


def test_filter_transition_is_sent_before_unread_disengagements() -> None:
    log = readable_log()
    a, b = engage(log, "a", "prod"), engage(log, "b", "dev")
    cursor = following(log, PROD)
    log.disengage(log.entry("a"), DELETED, "gone", 0.0)
    log.disengage(log.entry("b"), DELETED, "gone", 0.0)
    cursor.change_view(DEV)
    assert received(cursor) == [
        disengaged(a, REVOKED, NO_LONGER),
        engaged(b),
        disengaged(b, DELETED, "gone"),
    ]


def test_filter_transition_coalesces_unread_changes() -> None:
    log = readable_log()
    b = engage(log, "b", "dev")
    cursor = following(log, PROD)
    b = update(log, b, "dev", suspended=True)
    cursor.change_view(DEV)
    assert received(cursor) == [engaged(b)]


def test_unread_engagement_is_sent_once_after_filter_transition() -> None:
    log = readable_log()
    cursor = following(log, PROD)
    b = engage(log, "b", "dev")
    cursor.change_view(DEV)
    assert received(cursor) == [engaged(b)]


def test_filter_transition_in_parts_is_resumable_only_after_its_last_part() -> None:
    log = readable_log(batch_bytes=1)
    a, b = engage(log, "a", "prod"), engage(log, "b", "dev")
    cursor = following(log, PROD)
    cursor.change_view(DEV)
    assert parts(cursor) == [([disengaged(a, REVOKED, NO_LONGER)], False), ([engaged(b)], True)]


def test_filter_transition_with_few_matches_yields_between_steps() -> None:
    log = readable_log()
    for index in range(RECORDS_PER_STEP + 1):
        last = engage(log, f"a{index}", "dev" if index == RECORDS_PER_STEP else "prod")
    cursor = following(log, Filter(names=frozenset({"none"})))
    cursor.change_view(DEV)
    assert parts(cursor) == [([], False), ([engaged(last)], True)]


def test_second_filter_transition_reverts_only_what_was_sent() -> None:
    log = readable_log(batch_bytes=1)
    a, b = engage(log, "a", "prod"), engage(log, "b", "prod")
    cursor = following(log, PROD)
    cursor.change_view(DEV)
    batch = cursor.next_batch()
    assert batch is not None
    assert read(batch.slice.frames) == [disengaged(a, REVOKED, NO_LONGER)]
    cursor.change_view(PROD)
    assert received(cursor) == [engaged(a)]
    cursor.change_view(DEV)
    assert received(cursor) == [disengaged(a, REVOKED, NO_LONGER), disengaged(b, REVOKED, NO_LONGER)]


def test_third_filter_transition_accounts_for_the_first_two() -> None:
    log = readable_log(batch_bytes=1)
    for name, env in (("a", "prod"), ("b", "dev"), ("c", "prod")):
        engage(log, name, env)
    cursor = following(log, PROD)
    cursor.change_view(DEV)
    cursor.next_batch()  # a is lost
    cursor.next_batch()  # b is gained
    cursor.change_view(EVERYTHING)
    cursor.next_batch()  # a is back
    cursor.change_view(Filter(names=frozenset({"none"})))
    names = [event.cluster.target.name for event in received(cursor)]
    assert names == ["a", "b", "c"]


def test_filter_transition_during_snapshot_restarts_the_snapshot() -> None:
    log = readable_log(batch_bytes=1)
    engage(log, "a", "prod")
    b = engage(log, "b", "dev")
    cursor = Cursor(log, EVERYTHING, None)
    cursor.next_batch()
    cursor.change_view(DEV)
    batch = cursor.next_batch()
    assert batch is not None
    assert batch.reset
    assert [*read(batch.slice.frames), *received(cursor)] == [engaged(b)]


def test_cached_snapshot_is_reused_for_transitions_up_to_its_revision() -> None:
    log = readable_log()
    engage(log, "a")
    first = log.snapshot(1)
    assert log.snapshot(1) is first
    engage(log, "b")
    assert log.snapshot(1) is first
    assert log.snapshot(2) is not first


def test_filter_transition_beyond_retention_restarts_with_snapshot() -> None:
    log = readable_log(Retention(count=0))
    engage(log, "a", "prod")
    b = engage(log, "b", "dev")
    cursor = following(log, PROD)
    cursor.change_view(DEV)
    log.disengage(log.entry("a"), DELETED, "", 0.0)
    batch = cursor.next_batch()
    assert batch is not None
    assert (read(batch.slice.frames), batch.reset) == ([engaged(b)], True)
