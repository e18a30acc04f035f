"""How many calls of the same owners are in the queue of gRPC."""

import asyncio
from collections.abc import Callable

import pytest

from milo_discoveryd.server.connections import call_queue
from milo_discoveryd.server.connections.call_queue import MAX_OWNERS, MOST_QUEUED, QUEUED_S, CallQueue

ONE, TWO = ("uid 1",), ("uid 2",)


class Connection:
    def __init__(self, serve: Callable[[], None] = lambda: None) -> None:
        self.served = asyncio.Event()
        self._serve = serve

    def serve_held(self) -> None:
        self._serve()
        self.served.set()


def queue_of(calls: int) -> CallQueue[str]:
    queue: CallQueue[str] = CallQueue(lambda _: None)
    queue.enter(Connection(), ONE, "peer 1", calls, 0.0)
    return queue


async def test_owner_with_many_calls_in_the_queue_waits_until_one_is_taken_without_affecting_other_owners() -> None:
    queue, first, second = queue_of(MOST_QUEUED + 1), Connection(), Connection()
    assert queue.wait_s(first, ONE, 0.25) == queue.wait_s(second, ONE, 0.25) == QUEUED_S - 0.25
    assert queue.wait_s(Connection(), TWO, 0.25) == 0.0
    queue.taken(ONE)
    queue.taken(TWO)
    assert not first.served.is_set()
    queue.taken(ONE)
    assert first.served.is_set()
    assert not second.served.is_set()
    assert queue.wait_s(first, ONE, 0.25) == 0.0
    queue.taken(ONE)
    assert second.served.is_set()


async def test_connection_that_asks_again_keeps_its_turn() -> None:
    queue, first, second = queue_of(MOST_QUEUED), Connection(), Connection()
    for connection in (first, second, first):
        assert queue.wait_s(connection, ONE, 0.0) > 0.0
    queue.taken(ONE)
    assert first.served.is_set()


async def test_connection_that_ended_is_not_served() -> None:
    queue, ended, second = queue_of(MOST_QUEUED), Connection(), Connection()
    for connection in (ended, second):
        assert queue.wait_s(connection, ONE, 0.0) > 0.0
    queue.forget(ended, ONE)
    queue.taken(ONE)
    assert second.served.is_set()
    assert not ended.served.is_set()
    queue.forget(second, ONE)
    assert not queue._held


async def test_calls_that_grpc_rejects_are_not_waited_for_long() -> None:
    assert queue_of(MOST_QUEUED).wait_s(Connection(), ONE, QUEUED_S) == 0.0


async def test_calls_that_wait_are_served_once_grpc_takes_none_and_others_count_as_rejected_unless_it_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_queue, "ROUND_S", 0.0)
    rejected = list[str]()
    queue: CallQueue[str] = CallQueue(rejected.append)
    waits = list[float]()
    first, second = (Connection(lambda: waits.append(queue.wait_s(first, ONE, 0.0))) for _ in range(2))
    for has_taken in (True, False, False, True):
        if has_taken:
            queue.taken(TWO)
        queue.enter(Connection(), ONE, "peer 1", MOST_QUEUED, 0.0)
        for connection in (first, second):
            connection.served.clear()
            assert queue.wait_s(connection, ONE, 0.0) > 0.0
        await asyncio.wait_for(asyncio.gather(first.served.wait(), second.served.wait()), 10)
        assert rejected == [] if has_taken else ["peer 1"] * MOST_QUEUED
        rejected.clear()
    assert waits == [0.0] * 8


async def test_queue_from_which_grpc_takes_calls_of_others_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_queue, "ROUND_S", 0.0)
    queue, connection = queue_of(MOST_QUEUED), Connection()
    assert queue.wait_s(connection, ONE, 0.0) > 0.0
    for _ in range(5 * call_queue.IDLE_ROUNDS):
        queue.taken(TWO)
        await asyncio.sleep(0)
    assert not connection.served.is_set()


def test_no_more_is_kept_of_owners_whose_calls_were_all_taken() -> None:
    queue = queue_of(2)
    for _ in range(3):
        queue.taken(ONE)
    assert not queue._queued


def test_calls_of_a_limited_number_of_owners_are_counted() -> None:
    queue = queue_of(1)
    for owner in range(MAX_OWNERS):
        queue.enter(Connection(), (str(owner),), "", 1, 0.0)
    assert len(queue._queued) == MAX_OWNERS
    assert ONE not in queue._queued
