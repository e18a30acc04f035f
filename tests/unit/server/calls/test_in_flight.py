"""The limit on calls in flight."""

import pytest

from milo_discoveryd.server.calls.grpc_errors import ExhaustedError
from milo_discoveryd.server.calls.in_flight import MAX_PER_LISTENER, MAX_PER_OWNER, InFlightCalls


@pytest.mark.parametrize(("owner", "limit"), [("uid 1", MAX_PER_OWNER), ("", MAX_PER_LISTENER)])
def test_calls_in_flight_are_limited_per_owner(owner: str, limit: int) -> None:
    calls = InFlightCalls()
    slots = [calls.slot(owner) for _ in range(limit)]
    with pytest.raises(ExhaustedError) as caught:
        calls.slot(owner)
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_CALLS", 1.0)
    calls.slot("uid 2")
    with slots[0]:
        pass
    calls.slot(owner)


def test_call_slot_is_released_once() -> None:
    calls = InFlightCalls()
    first, second = calls.slot("a"), calls.slot("a")
    with first:
        first.release()
    assert len(calls) == 1
    second.release()
    assert len(calls) == 0
