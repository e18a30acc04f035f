"""Requests that do not arrive completely."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from milo_discoveryd.server.calls import request_arrival
from milo_discoveryd.server.calls.grpc_errors import InvalidRequestError, LateRequestError
from milo_discoveryd.server.calls.request_arrival import ArrivingRequests
from tests.support.eventually import eventually


async def messages(*arrived: str, ends: bool = True) -> AsyncIterator[str]:
    for message in arrived:
        yield message
    if not ends:
        await asyncio.Event().wait()


async def test_request_is_the_first_message() -> None:
    arriving = ArrivingRequests()
    assert await arriving.received(messages("one", "two", ends=False)) == "one"
    assert not len(arriving)


async def test_call_without_a_request_is_invalid() -> None:
    with pytest.raises(InvalidRequestError, match="request: the call has none"):
        await ArrivingRequests().received(messages())


async def test_request_that_does_not_arrive_in_time_is_given_up() -> None:
    arriving = ArrivingRequests(timeout_s=0.01)
    with pytest.raises(LateRequestError, match=r"did not arrive within 0\.01 s"):
        await arriving.received(messages(ends=False))
    assert not len(arriving)


async def test_request_that_has_been_arriving_for_longest_is_given_up_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_arrival, "MAX_ARRIVING", 4)
    arriving = ArrivingRequests(2)
    waiting = []
    for count in (1, 2):
        waiting.append(asyncio.create_task(arriving.received(messages(ends=False))))
        await eventually(lambda count=count: len(arriving) == count)  # type: ignore[misc]
    assert await arriving.received(messages("new")) == "new"
    with pytest.raises(LateRequestError, match="too many others were arriving"):
        await waiting[0]
    assert not waiting[1].done()
    assert len(arriving) == 1
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    assert not len(arriving)


async def test_several_requests_are_given_up_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_arrival, "MAX_ARRIVING", 1)
    arriving = ArrivingRequests()
    calls = [arriving.received(messages(ends=False)) for _ in range(4)]
    results = await asyncio.gather(*calls, arriving.received(messages("last")), return_exceptions=True)
    assert [type(result) for result in results[:4]] == [LateRequestError] * 4
    assert results[4] == "last"
