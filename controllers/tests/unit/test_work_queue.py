"""The work queue: order, delays and limits."""

from datetime import timedelta
from itertools import islice
from typing import Any

import pytest

from milo_controllers.work_queue import (
    Done,
    Failed,
    Interrupted,
    ObjectKey,
    Outcome,
    Parked,
    Priority,
    QueuePolicy,
    Stopped,
    Work,
    WorkQueue,
    _first,
)
from milo_kube.rate_limit import Rate

POLICY = QueuePolicy(first_delay_s=1.0, max_delay_s=8.0, jitter=0.5)


def key(name: str, cluster: str = "a", incarnation: int = 1) -> ObjectKey:
    return ObjectKey(cluster, incarnation, "default", name)


def queue_of(
    *clusters: str, policy: QueuePolicy = POLICY, jitter: float = 0.0, per_cluster: int = 2, workers: int = 10_000
) -> WorkQueue:
    queue = WorkQueue(policy, lambda: jitter, 0.0, per_cluster=per_cluster, workers=workers)
    for cluster in clusters or ("a",):
        queue.engage(cluster, 1)
        queue.open(cluster, 1)
    return queue


def taken(queue: WorkQueue, now: float = 0.0) -> str | None:
    work = queue.take_next(now)
    return None if work is None else work.key.name


def failed_at(queue: WorkQueue, now: float, outcome: Outcome | None = None) -> float | None:
    """Take an object, record the outcome, by default a failure, and return the delay before its next reconcile."""
    work = queue.take_next(now)
    assert work is not None
    return queue.done(work.key, outcome or Failed(), now)


def test_work_queue_deduplicates_added_objects() -> None:
    queue = queue_of()
    for now in (0.0, 1.0):
        queue.add(key("x"), now)
    assert queue.take_next(3.0) == Work(key("x"), queued_s=3.0, failures=0)
    assert queue.take_next(3.0) is None


def test_work_queue_requeues_object_changed_in_flight_once_after_it_is_done() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    assert taken(queue) == "x"
    queue.add(key("x"), 0.0)
    queue.add(key("x"), 0.0, Priority.BACKGROUND)
    assert taken(queue) is None
    queue.done(key("x"), Done(), 1.0)
    assert taken(queue, 1.0) == "x"
    queue.done(key("x"), Done(), 1.0)
    assert taken(queue, 1.0) is None


def test_reconcile_that_did_not_begin_is_due_again_and_no_failure() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0, Interrupted(again_after_s=3.0)) == 3.0
    assert queue.take_next(2.9) is None
    assert queue.take_next(3.0) == Work(key("x"), queued_s=0.0, failures=0)


def test_work_queue_makes_objects_whose_reconciles_never_began_ready_again() -> None:
    queue = queue_of("a", "b")
    for object_key in (key("x"), key("y"), key("z", "b")):
        queue.add(object_key, 0.0, Priority.BACKGROUND)
    assert sorted([taken(queue), taken(queue), taken(queue)]) == ["x", "y", "z"]
    queue.add(key("y"), 1.0)  # changed meanwhile: it comes first
    queue.put_back(2.0)
    assert taken(queue, 2.0) == "y"
    assert {taken(queue, 2.0), taken(queue, 2.0)} == {"x", "z"}
    assert taken(queue, 2.0) is None


def test_work_queue_skips_backoff_for_object_changed_during_failed_reconcile() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    taken(queue)
    queue.add(key("x"), 0.0)
    assert queue.done(key("x"), Failed(), 0.0) is None
    assert queue.take_next(0.0) == Work(key("x"), queued_s=0.0, failures=1)


def test_work_queue_alternates_between_clusters() -> None:
    queue = queue_of("a", "b")
    for number in range(5):
        queue.add(key(f"a{number}"), 0.0)
    queue.add(key("b0", "b"), 0.0)
    assert [taken(queue), taken(queue)] == ["a0", "b0"]


@pytest.mark.parametrize("priority", Priority)
def test_work_queue_alternates_between_tenants_that_have_any_number_of_clusters(priority: Priority) -> None:
    """Otherwise a failed object waits for the retries of all clusters of another tenant, at a rate that all share."""
    queue = WorkQueue(POLICY, lambda: 0.0, 0.0, per_cluster=2, workers=10_000)
    for cluster, tenant in (*((f"a{number}", "a") for number in range(1000)), ("b0", "b"), ("b1", "b")):
        queue.engage(cluster, 1, (tenant,))
        queue.open(cluster, 1)
        queue.add(key(cluster, cluster), 0.0, priority)
    assert [taken(queue) for _ in range(5)] == ["a0", "b0", "a1", "b1", "a2"]


def test_work_queue_limits_objects_in_flight_per_cluster() -> None:
    queue = queue_of()
    for name in "xyz":
        queue.add(key(name), 0.0)
    assert [taken(queue), taken(queue), taken(queue)] == ["x", "y", None]
    queue.done(key("x"), Done(), 0.0)
    assert taken(queue) == "z"


def all_taken(queue: WorkQueue, workers: int, now: float = 0.0) -> list[Work]:
    """Take objects until none is left for these workers."""
    return [*islice(iter(lambda: queue.take_next(now), None), workers)]


def hung(queue: WorkQueue, taken: list[Work], now: float) -> None:
    for work in taken:
        queue.done(work.key, Failed(), now)
        queue.freed(work)


@pytest.mark.parametrize("clusters", [16, 31])
def test_clusters_that_hang_for_the_first_time_leave_workers_to_others(clusters: int) -> None:
    hanging = [f"hanging-{number}" for number in range(clusters)]
    queue = queue_of(*hanging, *(f"works-{number}" for number in range(100)), per_cluster=4, workers=64)
    for object_key in (key(f"x{number}", cluster) for number in range(9) for cluster in hanging):
        queue.add(object_key, 0.0)
    held = all_taken(queue, 64)
    assert len(held) == clusters + 32
    queue.add(key("x", "works-7"), 1.0)
    assert taken(queue, 1.0) == "x"


def test_clusters_that_hang_again_and_again_hold_half_of_the_workers_together() -> None:
    hanging = [f"hanging-{number}" for number in range(200)]
    queue = queue_of(*hanging, "works", per_cluster=4, workers=64)
    for object_key in (key(f"x{number}", cluster) for number in range(9) for cluster in hanging):
        queue.add(object_key, 0.0, Priority.BACKGROUND)
    served, now = set(), 0.0
    held = all_taken(queue, 64)
    for _ in range(20):
        now += 30.0
        hung(queue, held, now)
        held = all_taken(queue, 64, now)
        served.update(work.key.cluster for work in held)
    assert len(held) == 32
    assert served == {*hanging}  # in turns
    queue.add(key("x", "works"), now, Priority.BACKGROUND)
    assert taken(queue, now) == "x"


def test_cluster_that_hung_and_answers_again_has_its_turns_as_others() -> None:
    queue = queue_of("a", "b", per_cluster=2, workers=4)
    for cluster in "ab":
        for number in range(5):
            queue.add(key(f"x{number}", cluster), 0.0)
    hung(queue, all_taken(queue, 4), 30.0)
    held = all_taken(queue, 4, 30.0)
    assert [work.is_further for work in held] == [True, True]
    for work in held:
        queue.done(work.key, Done(), 31.0)
        queue.freed(work)
    assert [work.is_further for work in all_taken(queue, 4, 31.0)] == [False, False, True, True]


def test_cluster_alone_uses_all_workers() -> None:
    queue = queue_of("a", per_cluster=8, workers=8)
    for number in range(9):
        queue.add(key(f"x{number}"), 0.0)
    assert len(all_taken(queue, 8)) == 8


def test_workers_of_a_dropped_cluster_count_until_they_are_free() -> None:
    queue = queue_of(*"abcdef", per_cluster=8, workers=8)
    for cluster in "ab":
        for number in range(9):
            queue.add(key(f"x{number}", cluster), 0.0)
    held = all_taken(queue, 8)
    assert len(held) == 6
    queue.drop("a", 1)
    assert queue.take_next(1.0) is None
    for work in held[::2]:
        assert work.key.cluster == "a"
        queue.freed(work)
    assert len(all_taken(queue, 8)) == 2


@pytest.mark.parametrize("waiting", [Priority.RETRY, Priority.BACKGROUND])
def test_work_queue_takes_objects_of_other_clusters_while_those_of_one_always_change(waiting: Priority) -> None:
    queue = queue_of("busy", "quiet", per_cluster=4)
    for name in ("x", "y"):
        queue.add(key(name, "quiet"), 0.0, waiting)
    found = []
    for number in range(34):
        queue.add(key(f"busy{number % 4}", "busy"), 0.0)
        work = queue.take_next(0.0)
        assert work is not None
        queue.done(work.key, Done(), 0.0)
        if work.key.cluster == "quiet":
            found.append((number, work.key.name))
    assert found == [(15, "x"), (31, "y")]


def test_work_queue_takes_live_changes_before_objects_of_initial_lists() -> None:
    queue = queue_of("a", "b")
    queue.add(key("listed"), 0.0, Priority.BACKGROUND)
    queue.add(key("changed", "b"), 0.0)
    assert (queue.depth(Priority.LIVE), queue.depth(Priority.BACKGROUND), len(queue)) == (1, 1, 2)
    assert [taken(queue), taken(queue)] == ["changed", "listed"]


def test_work_queue_raises_priority_of_listed_object_that_changes() -> None:
    queue = queue_of()
    queue.add(key("first"), 0.0, Priority.BACKGROUND)
    queue.add(key("second"), 1.0, Priority.BACKGROUND)
    queue.add(key("second"), 2.0)
    queue.add(key("second"), 3.0, Priority.BACKGROUND)
    work = queue.take_next(5.0)
    assert work == Work(key("second"), queued_s=4.0, failures=0)
    assert [taken(queue), taken(queue)] == ["first", None]


def test_work_queue_takes_a_listed_and_changed_object_once() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0, Priority.BACKGROUND)
    queue.add(key("x"), 0.0)
    assert [taken(queue), taken(queue)] == ["x", None]


def test_work_queue_backoff_doubles_up_to_its_cap_and_resets_after_success() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    now, delays = 0.0, []
    for _ in range(5):
        delay = failed_at(queue, now)
        assert delay is not None
        delays.append(delay)
        assert queue.next_at == now + delay
        assert queue.take_next(now + delay - 0.1) is None
        now += delay
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert failed_at(queue, now, Done()) is None
    queue.add(key("x"), now)
    assert failed_at(queue, now) == 1.0


def test_work_queue_backoff_has_jitter() -> None:
    queue = queue_of(jitter=0.5)
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0) == 1.25


def test_work_queue_honors_retry_after_that_exceeds_the_backoff() -> None:
    queue = queue_of(jitter=0.5)
    queue.add(key("x"), 0.0)
    now, delays = 0.0, []
    for requested in (4.0, 0.5, -1.0, 1e9):
        delay = failed_at(queue, now, Failed(retry_after_s=requested))
        assert delay is not None
        delays.append(delay)
        now += delay
    assert delays == [5.0, 2.5, 5.0, 301.0]  # at most five minutes, whatever the longest backoff


def test_work_queue_retries_of_a_cluster_share_a_token_bucket() -> None:
    policy = QueuePolicy(
        first_delay_s=0.1, max_delay_s=2.5, cluster_retries=Rate(per_second=1.0, burst=1.0), jitter=0.0
    )
    queue = queue_of("a", "b", policy=policy)
    for name in "vwxyz":
        queue.add(key(name), 0.0)
    # Also if their turn is later than the longest backoff.
    assert [failed_at(queue, 0.0) for _ in "vwxyz"] == [0.1, 1.0, 2.0, 3.0, 4.0]
    queue.add(key("of b", "b"), 0.0)
    assert failed_at(queue, 0.0) == 0.1


def test_work_queue_retries_of_very_many_objects_keep_the_rate_limit_of_their_cluster() -> None:
    policy = QueuePolicy(max_delay_s=1.0, cluster_retries=Rate(per_second=1.0, burst=10.0))
    queue = queue_of(policy=policy)
    for n in range(100):
        queue.add(key(str(n)), 0.0)
        failed_at(queue, 0.0)
    now, retries = 0.0, 0
    while now < 1000.0:
        if (work := queue.take_next(now)) is None:
            assert queue.next_at is not None
            now = queue.next_at
        else:
            queue.done(work.key, Failed(), now)
            retries += 1
    assert 1000 <= retries <= 1010


def test_work_queue_object_that_changes_all_the_time_does_not_delay_retries_of_others() -> None:
    queue = queue_of(policy=QueuePolicy(cluster_retries=Rate(per_second=1.0, burst=1.0), jitter=0.0))
    for _ in range(1000):
        queue.add(key("hot"), 0.0)
        failed_at(queue, 0.0)
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0) == 2.0


def test_work_queue_alternates_between_clusters_that_share_the_token_bucket_of_all_retries() -> None:
    policy = QueuePolicy(first_delay_s=0.1, retries=Rate(per_second=1.0, burst=1.0), jitter=0.0)
    queue = queue_of("a", "b", policy=policy, per_cluster=10)
    for name in "xyz":
        queue.add(key(name), 0.0)
        failed_at(queue, 0.0)
    queue.add(key("of b", "b"), 0.1)
    failed_at(queue, 0.1)
    assert [taken(queue, 1.0), taken(queue, 1.0)] == ["x", None]
    assert queue.next_at == 2.0
    queue.add(key("live", "b"), 1.0)
    assert [taken(queue, 1.0), taken(queue, 2.0), taken(queue, 2.0), taken(queue, 3.0)] == ["live", "of b", None, "y"]


def test_work_queue_holds_object_until_it_is_settled() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    taken(queue)
    queue.add(key("x"), 0.0)
    queue.done(key("x"), Done(), 0.0, is_held=True)
    queue.add(key("y"), 0.0)
    queue.add(key("z"), 0.0)
    assert [taken(queue), taken(queue), taken(queue)] == ["y", "z", None]
    queue.settle(key("x"), 1.0)
    queue.done(key("y"), Done(), 1.0)
    assert [taken(queue, 1.0), taken(queue, 1.0)] == ["x", None]
    queue.settle(key("unknown"), 1.0)
    queue.settle(key("x", "unknown"), 1.0)


def test_work_queue_holds_unsettled_object_even_after_its_retry_delay() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    taken(queue)
    queue.done(key("x"), Failed(), 0.0, is_held=True)
    assert queue.retry_at(key("x")) == 1.0
    assert taken(queue, 2.0) is None
    queue.settle(key("x"), 3.0)
    assert taken(queue, 3.0) == "x"
    queue.done(key("x"), Done(), 3.0, is_held=True)
    queue.settle(key("x"), 4.0)
    assert (queue.next_at, taken(queue, 100.0)) == (None, None)


@pytest.mark.parametrize("requeue_after_s", [0.0, -5.0])
def test_work_queue_requeues_no_earlier_than_min_requeue_s(requeue_after_s: float) -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0, Done(requeue_after_s)) == 1.0


def test_work_queue_uses_the_delay_function_of_its_policy() -> None:
    queue = queue_of(policy=QueuePolicy(delay_s=lambda failures: 3.0 * failures, jitter=0.0))
    queue.add(key("x"), 0.0)
    assert [failed_at(queue, 0.0), failed_at(queue, 3.0)] == [3.0, 6.0]


def test_work_queue_takes_live_changes_before_retries() -> None:
    queue = queue_of()
    queue.add(key("listed"), 0.0, Priority.BACKGROUND)
    failed_at(queue, 0.0)
    queue.add(key("changed"), 1.0)
    assert [taken(queue, 1.0), taken(queue, 1.0)] == ["changed", "listed"]


def test_work_queue_takes_delayed_object_at_once_when_it_changes() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    failed_at(queue, 0.0)
    queue.add(key("x"), 0.5)
    assert queue.take_next(0.5) == Work(key("x"), queued_s=0.0, failures=1)
    queue.done(key("x"), Done(), 0.5)
    assert queue.next_at is None
    assert taken(queue, 100.0) is None


def test_work_queue_requeue_after_is_dropped_if_the_object_changed_during_its_reconcile() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0, Done(requeue_after_s=60.0)) == 60.0
    assert taken(queue, 59.0) is None
    assert taken(queue, 60.0) == "x"
    queue.add(key("x"), 61.0)
    assert queue.done(key("x"), Done(requeue_after_s=60.0), 61.0) is None
    assert taken(queue, 61.0) == "x"


def test_work_queue_takes_stopped_object_only_after_it_changed() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0, Stopped("invalid spec")) is None
    assert list(queue.stopped()) == [(key("x"), "invalid spec")]
    others = key("y"), ObjectKey("unknown", 1, "ns", "x")
    assert [queue.is_stopped(found) for found in (key("x"), *others)] == [True, False, False]
    assert taken(queue, 1e9) is None
    queue.add(key("x"), 1e9)
    assert list(queue.stopped()) == []
    assert taken(queue, 1e9) == "x"


def test_work_queue_takes_parked_object_only_after_it_is_unparked() -> None:
    queue = queue_of("a", "b")
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0, Parked()) is None
    assert (queue.parked("a", 1), queue.parked("b", 1)) == ((key("x"),), ())
    for other in (key("y"), key("x", "unknown")):
        queue.unpark(other, 1.0)
    assert taken(queue, 1e9) is None
    queue.unpark(key("x"), 1e9)
    assert taken(queue, 1e9) == "x"


def test_delays_of_thousands_of_objects_do_not_end_in_one_step() -> None:
    queue = queue_of(per_cluster=10_000)
    for number in range(1000):
        queue.add(key(str(number)), 0.0)
    while (work := queue.take_next(0.0)) is not None:
        queue.done(work.key, Done(requeue_after_s=5.0), 0.0)
    assert taken(queue, 6.0) == "0"
    assert len(queue) < 200
    assert queue.next_at == 5.0
    assert [taken(queue, 6.0) for _ in range(999)] == [str(number) for number in range(1, 1000)]


def test_work_queue_takes_no_object_before_its_cluster_is_open() -> None:
    queue = WorkQueue(POLICY, lambda: 0.0, 0.0, per_cluster=2, workers=256)
    queue.engage("a", 1)
    queue.add(key("x"), 0.0, Priority.BACKGROUND)
    assert queue.take_next(1.0) is None
    queue.open("a", 1)
    assert taken(queue, 1.0) == "x"


def test_dropped_cluster_cannot_be_opened_again() -> None:
    queue = queue_of()
    queue.drop("a", 1)
    queue.open("a", 1)
    queue.add(key("x"), 0.0)
    assert queue.take_next(1.0) is None


def test_work_queue_discards_objects_of_dropped_cluster() -> None:
    queue = queue_of()
    for name in "xyz":
        queue.add(key(name), 0.0)
    failed_at(queue, 0.0)
    assert taken(queue) == "y"
    queue.drop("a", 1)
    queue.drop("never engaged", 1)
    queue.add(key("w"), 0.0)
    assert queue.done(key("y"), Failed(), 0.0) is None
    assert (queue.take_next(1e9), queue.next_at, len(queue), queue.oldest) == (None, None, 0, None)
    queue.engage("a", 2)
    queue.open("a", 2)
    queue.add(key("y", incarnation=2), 0.0)
    assert queue.take_next(0.0) == Work(key("y", incarnation=2), queued_s=0.0, failures=0)


def test_work_queue_oldest_is_the_earliest_time_at_which_a_queued_object_became_ready() -> None:
    queue = queue_of("a", "b")
    assert queue.oldest is None
    queue.add(key("x"), 3.0)
    queue.add(key("y", "b"), 2.0, Priority.BACKGROUND)
    assert queue.oldest == 2.0


def test_object_of_a_cluster_in_which_nothing_is_reconciled_does_not_count_as_waiting() -> None:
    """A project that lacks an owned kind fired an alert."""
    queue = queue_of()
    queue.engage("b", 1)
    queue.add(key("x", "b"), 1.0)
    assert (queue.oldest, queue.depth(Priority.LIVE)) == (None, 1)
    queue.open("b", 1)
    assert queue.oldest == 1.0


@pytest.mark.parametrize("objects", [1, 100])
def test_work_queue_drops_timers_of_delays_that_were_ended_by_a_change(objects: int) -> None:
    queue = queue_of()
    for _ in range(100):
        for number in range(objects):
            queue.add(key(str(number)), 0.0)
            failed_at(queue, 0.0, Done(requeue_after_s=3600.0))
        assert len(queue._timers) + len(queue._uncompacted) <= 128 + 4 * objects


def test_delays_end_in_their_order_while_timers_are_compacted_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, is_current = 0, WorkQueue._is_current

    def counted(*arguments: Any) -> bool:
        nonlocal looks
        looks += 1
        return is_current(*arguments)

    monkeypatch.setattr(WorkQueue, "_is_current", counted)
    queue, numbers = queue_of(policy=QueuePolicy()), range(5_000)
    for number in numbers:
        queue.add(key(str(number)), 0.0)
        work, before = queue.take_next(0.0), looks
        assert work is not None
        queue.done(work.key, Done(requeue_after_s=10.0 + number * 7 % 5_000), 0.0)
        assert looks - before <= 10
        if number % 3 == 0:
            queue.add(work.key, 0.0)  # its delay ends, and its timer stays
            queue.forget(work.key)
    found = []
    for second in range(10, 5_010):
        while (work := queue.take_next(float(second))) is not None:
            found.append((second, work.key))
            queue.done(work.key, Parked(), float(second))
    assert found == sorted((10 + number * 7 % 5_000, key(str(number))) for number in numbers if number % 3)
    assert not queue._timers + queue._uncompacted


def test_timers_that_are_not_current_are_dropped_a_few_at_a_time() -> None:
    queue = queue_of(policy=QueuePolicy())
    for number in range(1_000):
        queue.add(key(str(number)), 0.0)
        failed_at(queue, 0.0, Done(requeue_after_s=10.0))
    queue.forget_waiting("a", 1)
    queue.add(key("last"), 0.0)
    failed_at(queue, 0.0, Done(requeue_after_s=20.0))
    assert queue.next_at == 10.0
    assert len(queue._timers) + len(queue._uncompacted) >= 700
    for _ in range(10):
        assert queue.take_next(10.0) is None
    assert queue.next_at == 20.0


def test_object_key_string_contains_the_namespace_of_a_namespaced_object() -> None:
    keys = ObjectKey("shop", 1, "default", "web"), ObjectKey("shop", 1, "", "node")
    assert [*map(str, keys)] == ["shop: default/web", "shop: node"]


@pytest.mark.parametrize("result", [timedelta(seconds=3), "3", None, float("nan"), -1.0, ZeroDivisionError()])
def test_default_backoff_applies_if_the_delay_function_fails_or_returns_no_delay(result: Any) -> None:
    def delay_s(_failures: int) -> float:
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]

    failed: list[tuple[ObjectKey, str]] = []
    policy = QueuePolicy(delay_s=delay_s, first_delay_s=2.0, jitter=0.0)
    queue = WorkQueue(
        policy,
        lambda: 0.0,
        0.0,
        per_cluster=1,
        workers=1,
        delay_failed=lambda key, error: failed.append((key, str(error))),
    )
    queue.engage("a", 1)
    queue.open("a", 1)
    queue.add(key("x"), 0.0)
    assert failed_at(queue, 0.0) == 2.0
    [(failed_key, error)] = failed
    assert failed_key == key("x")
    assert not error or "return seconds, a number of at least 0" in error


def test_stopped_object_is_forgotten() -> None:
    queue = queue_of()
    assert not queue.forget_stopped(key("x"))
    for name in ("x", "y"):
        queue.add(key(name), 0.0)
        failed_at(queue, 0.0, Stopped("why"))
    assert [queue.forget_stopped(key(name)) for name in ("x", "x", "z", "y")] == [True, False, False, True]
    assert list(queue.stopped()) == []
    assert queue.count("a", 1) == 0


def test_objects_that_are_kept_are_taken_after_others_were_forgotten() -> None:
    queue = queue_of()
    assert queue.waiting("unknown", 1) == ()
    for name in ("failed", "listed", "live", "other"):
        queue.add(key(name), 0.0, Priority.BACKGROUND if name == "listed" else Priority.LIVE)
    assert failed_at(queue, 0.0) == 1.0
    assert queue.waiting("a", 1) == tuple(map(key, ("live", "other", "listed", "failed")))
    queue.forget_waiting("a", 1, {key("failed"), key("live")})
    assert [taken(queue), taken(queue, 9.0), taken(queue, 9.0)] == ["live", "failed", None]


def test_object_that_changes_in_flight_waits() -> None:
    queue = queue_of()
    queue.add(key("x"), 0.0)
    assert queue.take_next(0.0) is not None
    assert not queue.waits(key("x"))
    queue.add(key("x"), 0.0)
    assert queue.waits(key("x"))


def test_ready_object_is_forgotten() -> None:
    queue = queue_of()
    queue.forget(key("x"))
    assert queue.is_open("a", 1)
    assert not queue.is_open("unknown", 1)
    for name in ("x", "y"):
        queue.add(key(name), 0.0)
    queue.forget(key("x"))
    assert [queue.waits(key(name)) for name in ("x", "y")] == [False, True]
    assert not queue.waits(ObjectKey("unknown", 1, "ns", "x"))
    assert queue.count("a", 1) == 1
    queue.forget(key("y"))
    assert queue.count("a", 1) == 0
    assert queue.take_next(0.0) is None


def test_forgotten_objects_are_not_taken_and_those_in_flight_or_held_are_kept() -> None:
    queue = queue_of(per_cluster=3)
    queue.forget_waiting("unknown", 1)
    for name in ("in flight", "held", "failed", "ready"):
        queue.add(key(name), 0.0)
    assert taken(queue) == "in flight"
    assert taken(queue) == "held"
    queue.done(key("held"), Done(), 0.0, is_held=True)
    assert failed_at(queue, 0.0) == 1.0
    assert queue.count("a", 1) == 4
    queue.forget_waiting("a", 1)
    assert queue.count("a", 1) == 2
    assert taken(queue, 9.0) is None
    queue.add(key("in flight"), 9.0)
    queue.done(key("in flight"), Done(), 9.0)
    assert taken(queue, 9.0) == "in flight"
    queue.settle(key("held"), 9.0)
    queue.done(key("in flight"), Stopped("why"), 9.0)
    queue.forget_waiting("a", 1)
    assert queue.count("a", 1) == 0
    assert list(queue.stopped()) == []


class ChangedOnce(dict[ObjectKey, float]):
    """A dict that another thread changes while its first value is looked up."""

    is_changed = True

    def values(self) -> Any:
        if self.is_changed:
            self.is_changed = False
            raise RuntimeError("dictionary changed size during iteration")
        return super().values()


def test_oldest_is_found_while_another_thread_changes_the_queue() -> None:
    assert _first(ChangedOnce({key("x"): 1.0, key("y"): 2.0})) == 1.0
