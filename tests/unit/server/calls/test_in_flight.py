"""The limit on calls in flight."""

import pytest

from milo_discoveryd.server.calls.grpc_errors import TooManyCallsError
from milo_discoveryd.server.calls.in_flight import (
    LARGE_BYTES,
    MAX_LARGE,
    MAX_PER_LISTENER,
    MAX_PER_OWNER,
    InFlightCalls,
)


@pytest.mark.parametrize(("owners", "limit"), [(("uid 1",), MAX_PER_OWNER), ((), MAX_PER_LISTENER)])
def test_calls_in_flight_are_limited_per_owner(owners: tuple[str, ...], limit: int) -> None:
    calls = InFlightCalls()
    slots = [calls.slot(owners) for _ in range(limit)]
    with pytest.raises(TooManyCallsError) as caught:
        calls.slot(owners)
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_CALLS", 1.0)
    calls.slot(["uid 2"])
    with slots[0]:
        pass
    calls.slot(owners)


def test_in_flight_limit_is_not_increased_by_additional_certificate_names() -> None:
    calls = InFlightCalls()
    slots = [calls.slot([f"dns:{number}", "dns:own"]) for number in range(MAX_PER_OWNER)]
    with pytest.raises(TooManyCallsError):
        calls.slot(["dns:another", "dns:own"])
    calls.slot(["dns:0"])
    slots[0].release()
    calls.slot(["dns:another", "dns:own"])


def test_call_slot_is_released_once() -> None:
    calls = InFlightCalls()
    first, second = calls.slot(["a", "b"]), calls.slot(["a"])
    with first:
        first.release()
    assert len(calls) == 1
    second.release()
    assert len(calls) == 0


def test_large_requests_of_a_listener_without_owners_have_a_lower_limit() -> None:
    calls = InFlightCalls()
    large = [calls.slot((), LARGE_BYTES + 1) for _ in range(MAX_LARGE)]
    with pytest.raises(TooManyCallsError):
        calls.slot((), LARGE_BYTES + 1)
    calls.slot((), LARGE_BYTES).release()
    calls.slot(("uid 1",), LARGE_BYTES + 1).release()
    large[0].release()
    calls.slot((), LARGE_BYTES + 1)
