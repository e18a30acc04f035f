"""Confirmation of deletions: reads, retries and limits."""

import math
from collections import deque
from random import Random

import pytest

from milo_discoveryd.model.observation import Malformed, NotReady
from milo_discoveryd.objects.pending_deletions import (
    Absent,
    ConfirmationRequest,
    ConfirmedDeletion,
    Found,
    Inconclusive,
    PendingDeletions,
)
from milo_kube.reflect.backoff import Backoff

STILL_THERE = NotReady("a", "u1", "5", "")


def pending_deletions(concurrency: int = 20) -> PendingDeletions:
    return PendingDeletions(lambda: 0.0, concurrency, Backoff(first_s=1.0, cap_s=4.0))


def next_request(of: PendingDeletions, now: float = 0.0) -> ConfirmationRequest:
    (request,) = of.take_due(now)
    return request


def test_not_found_response_confirms_deletion() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    assert pending.resolve(next_request(pending), Absent(), 1.0) == ConfirmedDeletion("a", "u1")
    assert len(pending) == 0


def test_deletions_that_were_settled_are_skipped_whether_or_not_a_read_can_be_sent() -> None:
    """Each has a place in the queue until then, and whether a read can be sent depends on all reads in flight."""
    pending = pending_deletions(1)
    pending.add("hangs", "u0", 0.0)
    assert next_request(pending).name == "hangs"
    for number in range(100):
        pending.add(f"a{number}", "u1", 0.0)
        pending.discard(f"a{number}")
    pending.add("a", "u1", 0.0)
    pending.discard("a")
    assert pending.take_due(0.0) == []
    assert pending.next_at is None
    pending.add("b", "u1", 0.0)
    assert next_request(pending, 1.0).name == "b"


def test_found_object_is_returned_as_observation() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    assert pending.resolve(next_request(pending), Found(STILL_THERE), 1.0) == STILL_THERE
    assert len(pending) == 0


def test_malformed_object_neither_confirms_nor_refutes_deletion() -> None:
    """The object may be outside the selector, where no watch would ever report it."""
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    assert pending.resolve(next_request(pending), Found(Malformed("a", "u1", "5", "nonsense")), 0.0) is None
    assert pending.explain("a") == (0.0, "the object can't be decoded")
    assert pending.resolve(next_request(pending, 1.0), Found(STILL_THERE), 1.0) == STILL_THERE


def test_malformed_object_with_another_uid_resolves_deletion() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    another = Malformed("a", "u2", "5", "nonsense")
    assert pending.resolve(next_request(pending), Found(another), 0.0) == another


def test_deletion_reported_twice_is_confirmed_by_one_read() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    request = next_request(pending)
    pending.add("a", "u1", 1.0)
    assert pending.take_due(5.0) == []
    assert pending.explain("a") == (0.0, "")
    assert pending.resolve(request, Absent(), 6.0) == ConfirmedDeletion("a", "u1")


def test_inconclusive_confirmation_is_retried_with_backoff() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    now = 0.0
    for delay in (1.0, 2.0, 4.0, 4.0):
        assert pending.resolve(next_request(pending, now), Inconclusive("503: not now"), now) is None
        assert pending.explain("a") == (0.0, "503: not now")
        assert pending.next_at == now + delay
        assert pending.take_due(now + delay - 0.1) == []
        now += delay
    assert pending.resolve(next_request(pending, now), Absent(), now) == ConfirmedDeletion("a", "u1")


def test_response_time_counts_toward_confirmation_backoff() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    now = 0.0
    for delay in (1.0, 2.0, 4.0, 4.0):
        request = next_request(pending, now)
        now += 1.5
        pending.resolve(request, Inconclusive("no answer"), now)
        assert pending.next_at == now + max(delay - 1.5, 1.0)
        now = pending.next_at


def test_refuted_deletion_is_not_checked_again_while_rechecks_are_deferred() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    pending.resolve(next_request(pending), Found(STILL_THERE), 0.0)
    pending.add("b", "u2", 0.0)
    pending.resolve(next_request(pending), Inconclusive("503"), 0.0)
    pending.defers_rechecks = True
    assert [(deletion.name, deletion.was_refuted) for deletion in pending.take_due(1000.0)] == [("b", False)]
    assert pending.next_at is None
    pending.defers_rechecks = False
    assert pending.next_at == 1.0
    assert [(deletion.name, deletion.was_refuted) for deletion in pending.take_due(1000.0)] == [("a", True)]


def test_concurrent_confirmations_are_limited() -> None:
    pending = pending_deletions(concurrency=2)
    for name in "abc":
        pending.add(name, "u", 0.0)
    first, second = pending.take_due(0.0)
    assert [first.name, second.name] == ["c", "b"], "the newest are first"
    assert pending.next_at == 0.1, "a slot is free once a read counts as hanging"
    assert pending.take_due(0.0) == []
    pending.resolve(first, Absent(), 1.0)
    assert pending.next_at is not None
    assert pending.next_at <= 1.0, "a slot is free"
    assert [request.name for request in pending.take_due(1.0)] == ["a"]
    pending.resolve(second, Inconclusive("no"), 2.0)
    assert pending.next_at == 3.0


def test_pending_deletion_ends_when_object_is_seen_and_late_answer_is_ignored() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    request = next_request(pending)
    pending.discard("a")
    assert pending.explain("a") is None
    assert pending.resolve(request, Absent(), 1.0) is None


def test_list_resolves_deletions_of_listed_names() -> None:
    pending = pending_deletions()
    for name in "abc":
        pending.add(name, "u1", 0.0)
    pending.discard_all({"a", "c", "never suspected"})
    assert [pending.explain(name) for name in "abc"] == [None, (0.0, ""), None]


def test_late_confirmation_does_not_resolve_later_deletion() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    early = next_request(pending)
    pending.discard("a")
    pending.add("a", "u1", 1.0)
    late = next_request(pending, 1.0)
    assert pending.resolve(early, Absent(), 2.0) is None
    assert pending.resolve(late, Absent(), 2.0) == ConfirmedDeletion("a", "u1")


def test_pending_deletions_of_different_uids_are_separate() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    early = next_request(pending)
    pending.add("a", "u2", 1.0)
    assert pending.explain("a") == (1.0, "")
    assert pending.resolve(early, Absent(), 2.0) is None
    assert pending.resolve(next_request(pending, 1.0), Absent(), 2.0) == ConfirmedDeletion("a", "u2")


def test_discarded_pending_deletion_sends_no_confirmation_request() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    pending.discard("a")
    assert pending.take_due(0.0) == []
    assert pending.next_at is None


def test_at_most_twenty_confirmations_are_in_flight_by_default() -> None:
    pending = PendingDeletions(lambda: 0.0)
    for index in range(30):
        pending.add(f"a{index}", "u", 0.0)
    assert len(pending.take_due(0.0)) == 20


def test_held_deletion_is_not_confirmed_until_reported_again() -> None:
    pending = pending_deletions()
    pending.hold("a", "u1", 0.0, "too many at once")
    assert (len(pending), pending.held, pending.next_at) == (1, 1, None)
    assert pending.take_due(1000.0) == []
    assert pending.explain("a") == (0.0, "too many at once")
    pending.add("a", "u1", 1000.0)
    assert pending.held == 0
    assert pending.explain("a") == (0.0, "")
    assert pending.resolve(next_request(pending, 1000.0), Absent(), 1000.0) == ConfirmedDeletion("a", "u1")


def test_in_flight_confirmation_of_held_deletion_is_ignored() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    request = next_request(pending)
    pending.hold("a", "u1", 1.0, "too many at once")
    assert pending.resolve(request, Absent(), 2.0) is None
    assert pending.held == 1


def test_deletion_of_replaced_object_is_not_held_with_the_deletion_of_its_predecessor() -> None:
    pending = pending_deletions()
    pending.hold("a", "u1", 0.0, "too many at once")
    pending.add("a", "u2", 5.0)
    assert pending.explain("a") == (5.0, "")


def test_deletion_confirmation_can_be_scheduled_later() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0, confirm_at=3.0)
    assert pending.next_at == 3.0
    assert pending.take_due(2.9) == []
    assert next_request(pending, 3.0).name == "a"


REFUSED = Inconclusive("403: forbidden", is_refusal=True)


def test_refused_confirmation_read_pauses_all_other_reads() -> None:
    pending = pending_deletions(concurrency=20)
    for number in range(5000):
        pending.add(f"a{number}", "u", 0.0)
    for request in pending.take_due(0.0):
        pending.resolve(request, REFUSED, 0.0)
    made = 0
    now = 0.0
    while now < 60.0:
        now = max(now, pending.next_at or now)
        requests = pending.take_due(now)
        made += len(requests)
        for request in requests:
            pending.resolve(request, REFUSED, now)
    assert pending.refused == "403: forbidden"
    assert made <= 20


def test_refused_confirmation_reads_obey_retry_after() -> None:
    pending = pending_deletions()
    pending.add("a", "u", 0.0)
    pending.resolve(next_request(pending), Inconclusive("429", is_refusal=True, retry_after_s=42.0), 0.0)
    assert pending.next_at == 42.0
    assert pending.take_due(41.9) == []


def test_confirmation_reads_continue_at_full_rate_after_the_first_successful_read() -> None:
    pending = pending_deletions(concurrency=20)
    for number in range(100):
        pending.add(f"a{number}", "u", 0.0)
    first, *_ = pending.take_due(0.0)
    pending.resolve(first, REFUSED, 0.0)
    for request in list(pending._in_flight):
        pending._in_flight.pop(request)
    (probe,) = pending.take_due(10.0)
    pending.resolve(probe, Absent(), 10.0)
    assert pending.refused is None
    assert len(pending.take_due(10.0)) == 20


def test_confirmation_retries_use_at_most_half_of_the_concurrency() -> None:
    pending = pending_deletions(concurrency=4)
    for number in range(8):
        pending.add(f"hangs{number}", "u", 0.0)
    for _ in range(2):
        for request in pending.take_due(0.0):
            pending.resolve(request, Inconclusive("no answer"), 0.0)
    assert len(pending.take_due(100.0)) == 2
    pending.add("quick", "u", 100.0)
    assert [request.name for request in pending.take_due(100.0)] == ["quick"]


def test_refuted_deletion_is_checked_again_at_growing_intervals() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    now, waits = 0.0, []
    for _ in range(12):
        pending.resolve(next_request(pending, now), Found(STILL_THERE), now)
        assert len(pending) == 0
        assert pending.next_at is not None
        waits.append(pending.next_at - now)
        now = pending.next_at
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == 300.0
    assert pending.resolve(next_request(pending, now), Absent(), now) == ConfirmedDeletion("a", "u1")


def test_refuted_deletion_ends_when_the_object_is_seen() -> None:
    pending = pending_deletions()
    for seen in (pending.discard, lambda name: pending.discard_all({name})):
        pending.add("a", "u1", 0.0)
        pending.resolve(next_request(pending), Found(STILL_THERE), 0.0)
        seen("a")
        assert pending.take_due(1000.0) == []


def test_refuted_deletion_that_is_reported_again_is_pending_again() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    pending.resolve(next_request(pending), Found(STILL_THERE), 0.0)
    pending.add("a", "u1", 5.0)
    assert pending.explain("a") == (5.0, "")


@pytest.mark.parametrize("count", [20, 60, 300, 3000])
def test_hanging_reads_delay_a_later_read_by_at_most_a_second(count: int) -> None:
    pending = pending_deletions(concurrency=20)
    for number in range(count):
        pending.add(f"hanging-{number}", "uid", 0.0)
    hanging, delays = deque[tuple[float, ConfirmationRequest]](), list[float]()
    for step in range(20 * 61):
        now = step / 20
        while hanging and hanging[0][0] <= now:
            pending.resolve(hanging.popleft()[1], Inconclusive("timeout"), now)
        if step % 37 == 0:  # at varying times within the timeout of the hanging reads
            pending.add(f"quick-{now}", "uid", now)
        for request in pending.take_due(now):
            if request.name.startswith("quick"):
                delays.append(now - float(request.name.removeprefix("quick-")))
                pending.resolve(request, Absent(), now)
            else:
                hanging.append((now + 5.0, request))
    assert len(delays) == 33
    assert max(delays) <= 1.0


@pytest.mark.parametrize(("count", "within_s"), [(60, 1.0), (300, 9.0)])
def test_deletion_reported_before_many_deletions_with_hanging_reads_is_checked_within_seconds(
    count: int, within_s: float
) -> None:
    pending = pending_deletions(concurrency=20)
    pending.add("quick", "uid", 0.0)
    for number in range(count):
        pending.add(f"hanging-{number}", "uid", 0.0)
    hanging = deque[tuple[float, ConfirmationRequest]]()
    for now in (step / 20 for step in range(20 * 61)):
        while hanging and hanging[0][0] <= now:
            pending.resolve(hanging.popleft()[1], Inconclusive("timeout"), now)
        requests = pending.take_due(now)
        if any(request.name == "quick" for request in requests):
            assert now <= within_s
            return
        hanging.extend((now + 5.0, request) for request in requests)
    raise AssertionError("the object `quick` was not read within a minute")


def test_read_that_failed_once_is_not_behind_hundreds_that_hang() -> None:
    """Found by CI on a busy machine: each retry waited for a timeout, ten at a time."""
    pending, now, timeouts = pending_deletions(), 0.0, deque[tuple[float, ConfirmationRequest]]()
    for number in range(300):
        pending.add(f"hangs-{number}", "u1", 0.0)
    while now < 60.0:
        if now == 20.0:
            pending.add("quick", "u1", now)
        while timeouts and timeouts[0][0] <= now:
            pending.resolve(timeouts.popleft()[1], Inconclusive("timeout"), now)
        for request in pending.take_due(now):
            if request.name != "quick":
                timeouts.append((now + 5.0, request))
            elif pending.explain("quick") == (20.0, ""):
                pending.resolve(request, Inconclusive("the machine stood still"), now)
            else:
                assert now < 30.0
                return
        now += 0.25
    raise AssertionError("the deletion was not read again")


def test_deletion_that_is_settled_before_its_retry_is_not_read_again() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    pending.resolve(next_request(pending), Inconclusive("timeout"), 0.0)
    pending.discard("a")
    assert pending.take_due(60.0) == []
    assert pending.next_at is None


def test_number_of_hanging_reads_is_limited() -> None:
    pending = pending_deletions(concurrency=2)
    for number in range(30):
        pending.add(f"hanging-{number}", "uid", 0.0)
    sent = sum(len(pending.take_due(now)) for now in map(float, range(60)))
    assert sent == 20
    assert pending.next_at is None


def test_deletions_that_are_refuted_while_reads_hang_leave_nothing() -> None:
    """An API server can report an object as deleted, and then show it again, thousands of times in a second."""
    of = pending_deletions()
    for number in range(300):
        of.add(f"hanging-{number}", "u1", 0.0)
    for second in range(100):
        of.take_due(float(second))
    for number in range(10_000):
        of.add("flapping", f"u{number}", 100.0)
        of.discard("flapping")
    assert len(of._due) < 1000
    for number in range(300):
        of.discard(f"hanging-{number}")
    of.add("flapping", "u", 100.0)
    assert len(of._due) == 1


def test_tenants_take_turns_and_the_newest_report_of_each_is_first() -> None:
    pending = pending_deletions(concurrency=3)
    for number in range(4):
        pending.add(f"many-{number}", "u", 0.0, tenant="many")
    pending.add("other-0", "u", 0.0, tenant="other")
    pending.add("other-1", "u", 0.0, tenant="other")
    pending.add("unknown", "u", 0.0)
    read = list[str]()
    while requests := pending.take_due(0.0):
        read += [request.name for request in requests]
        for request in requests:
            pending.resolve(request, Absent(), 0.0)
    assert read == ["unknown", "other-1", "many-3", "other-0", "many-2", "many-1", "many-0"]


@pytest.mark.parametrize("evil_tenants", [1, 8])
def test_tenants_that_delete_more_than_is_read_do_not_delay_others(evil_tenants: int) -> None:
    """Of 400 deletions in a second, 200 are read."""
    pending, delays = pending_deletions(concurrency=20), list[float]()
    for step in range(300):
        now = step / 10
        for number in range(40):
            pending.add(f"evil-{step}-{number}", "u", now, tenant=f"evil-{number % evil_tenants}")
        if step % 10 == 0:
            pending.add(f"good-{step}", "u", now, tenant=f"good-{step // 10 % 5}")
            pending.add(f"released-{step}", "u", now, tenant="released", confirm_at=now + 0.2)
            for number in range(20):  # newer than those of the others
                pending.add(f"evil-{step}-newest-{number}", "u", now, tenant=f"evil-{number % evil_tenants}")
        for request in pending.take_due(now):
            if not request.name.startswith("evil"):
                delays.append(now - int(request.name.split("-")[1]) / 10)
            pending.resolve(request, Absent(), now + 0.1)
    assert len(delays) == 60
    assert max(delays) <= 0.5


def test_deletion_whose_read_failed_does_not_wait_for_new_reports_of_others() -> None:
    pending = pending_deletions(concurrency=2)
    pending.add("good", "u", 0.0, tenant="good")
    pending.resolve(next_request(pending), Inconclusive("timeout"), 0.0)
    for number in range(10):
        pending.add(f"evil-{number}", "u", 1.0, tenant="evil")
    assert [request.name for request in pending.take_due(1.0)] == ["good", "evil-9"]


@pytest.mark.parametrize("unreadable", [1, 5, 30])
def test_objects_whose_reads_are_always_refused_do_not_delay_others_for_minutes(unreadable: int) -> None:
    """Found by a reader: a server that cannot convert five objects, and refuses to read them, was asked for no others:
    whenever one read was tried after the last refusal, it was one of theirs."""
    draw = Random(1).random
    pending, now = PendingDeletions(draw), 0.0
    for number in range(unreadable):
        pending.add(f"unreadable-{number}", "u", now, tenant="shop")
    answers: list[tuple[float, ConfirmationRequest]] = []
    while now < 400.0 and (now < 300.0 or pending.is_doubted("a")):
        due_at = min(pending.next_at or math.inf, *(at for at, _ in answers), math.inf)
        if now < 300.0 <= due_at:
            due_at = 300.0
            pending.add("a", "u", due_at, tenant="tea")
        now = max(now, due_at)
        answers += [(now + 0.02, request) for request in pending.take_due(now)]
        for answer in [answer for answer in answers if answer[0] <= now]:
            answers.remove(answer)
            is_found = answer[1].name == "a"
            pending.resolve(answer[1], Absent() if is_found else Inconclusive("500", is_refusal=True), now)
    assert now <= 330.0, "one pause"


def test_object_whose_reads_are_always_refused_does_not_keep_a_refuted_deletion_from_being_checked_again() -> None:
    pending = pending_deletions()
    pending.add("a", "u1", 0.0)
    pending.resolve(next_request(pending), Found(STILL_THERE), 0.0)
    pending.add("unreadable", "u2", 0.0)
    pending.resolve(next_request(pending), Inconclusive("500", is_refusal=True), 0.0)
    assert [request.name for request in pending.take_due(10.0)] == ["a"]


def test_deletion_that_was_settled_takes_no_turn_of_its_tenant() -> None:
    pending = pending_deletions(concurrency=1)
    for name in ("a", "b", "settled"):
        pending.add(name, "u", 0.0, tenant="t")
    pending.add("other", "u", 0.0, tenant="other")
    pending.discard("settled")
    read = list[str]()
    while requests := pending.take_due(0.0):
        read += [request.name for request in requests]
        pending.resolve(requests[0], Absent(), 0.0)
    assert read == ["other", "b", "a"]


def test_settled_deletions_of_one_tenant_are_dropped_while_those_of_another_wait() -> None:
    pending = pending_deletions(concurrency=1)
    pending.add("a", "u", 0.0, tenant="a")
    pending.add("b", "u", 0.0, tenant="b")
    pending.add("settled", "u", 0.0, tenant="d")
    pending.discard("settled")
    for number in range(200):
        pending.add("flapping", f"u{number}", 0.0, tenant="c")
        pending.discard("flapping")
    assert len(pending._due) < 110
    assert [request.name for request in pending.take_due(0.0)] == ["b"]


def test_deletions_that_are_settled_before_the_set_time_of_their_read_leave_nothing() -> None:
    pending = pending_deletions()
    for number in range(1000):
        pending.add("flapping", f"u{number}", 0.0, confirm_at=100.0)
        pending.discard("flapping")
    assert len(pending._due.later) < 110
    assert pending.take_due(100.0) == []
