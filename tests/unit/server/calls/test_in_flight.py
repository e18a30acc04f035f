"""The limit on calls in flight."""

import pytest

from milo_discoveryd.server.calls.grpc_errors import TooManyCallsError
from milo_discoveryd.server.calls.in_flight import (
    LARGE_BYTES,
    MAX_CALLS,
    MAX_LARGE,
    MAX_PER_OWNER,
    MAX_REFLECTIONS,
    InFlightCalls,
)


@pytest.mark.parametrize(
    ("owners", "listeners", "limit"),
    [(("uid 1",), 1, MAX_PER_OWNER), ((), 1, MAX_CALLS), ((), 4, MAX_CALLS // 4), ((), 10_000, 1)],
)
def test_calls_in_flight_are_limited_per_owner_and_in_total(
    owners: tuple[str, ...], listeners: int, limit: int
) -> None:
    calls = InFlightCalls(listeners)
    slots = [calls.slot(owners) for _ in range(limit)]
    with pytest.raises(TooManyCallsError) as caught:
        calls.slot(owners)
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_CALLS", 1.0)
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


@pytest.mark.parametrize(
    ("request_bytes", "slots"), [(LARGE_BYTES, [100, 100, 100, 100]), (LARGE_BYTES + 1, [10, 5, 3, 1])]
)
def test_calls_of_several_owners_leave_a_slot_for_another_owner(request_bytes: int, slots: list[int]) -> None:
    calls = InFlightCalls()
    for number, count in enumerate(slots):
        for _ in range(count):
            calls.slot([f"uid {number}"], request_bytes)
        with pytest.raises(TooManyCallsError):
            calls.slot([f"uid {number}"], request_bytes)
    calls.slot(["uid 4"], request_bytes)


def test_calls_with_large_requests_have_a_lower_limit() -> None:
    calls = InFlightCalls()
    large = [calls.slot((), LARGE_BYTES + 1) for _ in range(MAX_LARGE)]
    for owners in ((), ("uid 1",)):
        with pytest.raises(TooManyCallsError):
            calls.slot(owners, LARGE_BYTES + 1)
        calls.slot(owners, LARGE_BYTES).release()
    large[0].release()
    calls.slot((), LARGE_BYTES + 1)


def test_calls_of_reflection_have_a_lower_limit() -> None:
    calls = InFlightCalls()
    slots = [calls.slot(["uid 1"], is_reflection=True) for _ in range(MAX_REFLECTIONS // 2)]
    with pytest.raises(TooManyCallsError):
        calls.slot(["uid 1"], is_reflection=True)
    calls.slot(["uid 1"])
    calls.slot(["uid 2"], is_reflection=True)
    slots[0].release()
    slots[1].release()
    calls.slot(["uid 1"], is_reflection=True)
