"""Selection of faults: the requests that they match, their responses, and their end."""

from typing import Any

import pytest

from milo_sandbox.calls import Call
from milo_sandbox.faults import Approach, Faults
from milo_sandbox.refusals import PlainError, RefusalError
from milo_sandbox.resources import PROJECT_CONTROL_PLANES, PROJECTS
from tests.integration.sandbox.client import Client

WATCH = Approach(segments=("apis",), query={"watch": "1"}, call=Call(verb="watch", resource=PROJECTS))
LIST = Approach(segments=("apis",), query={}, call=Call(verb="list", resource=PROJECTS))
GET = Approach(segments=("apis",), query={}, call=Call(verb="get", resource=PROJECTS, name="alpha"))
AT_THE_DOOR = Approach(segments=("apis",), query={})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults(clock: Clock) -> Faults:
    return Faults(clock)


def answer(faults: Faults, approach: Approach) -> tuple[int, Any]:
    """Return the status of the fault's response and its Retry-After; 0 if the API serves the request."""
    try:
        faults.check(approach)
    except (RefusalError, PlainError) as refusal:
        return refusal.code, refusal.retry_after
    return 0, None


def test_initializing_server_answers_429_with_increasing_retry_after(faults: Faults, clock: Clock) -> None:
    faults.initializing(seconds=20)
    waits = []
    for now in (100, 104, 110, 119, 120):
        clock.now = now
        waits.append(answer(faults, LIST))
    assert waits == [(429, 1), (429, 2), (429, 3), (429, 3), (0, None)]


def test_initializing_fault_can_be_limited_to_a_resource(faults: Faults) -> None:
    faults.initializing(resource=PROJECT_CONTROL_PLANES)
    assert answer(faults, LIST) == (0, None)


def test_fault_counts_matching_requests_only(faults: Faults) -> None:
    faults.overloaded(times=2)
    answers = [answer(faults, request)[0] for request in (AT_THE_DOOR, LIST, AT_THE_DOOR, GET, WATCH)]
    assert answers == [0, 429, 0, 429, 0]


FAULT = {"project": "alpha", "verb": "get", "kind": "v1/secrets", "status": 403, "times": 1}
REFUSED = [
    (FAULT | {"times": 0}, "Expected `int` >= 1 - at `$.times`"),
    (FAULT | {"times": "2"}, "Expected `int | null`, got `str` - at `$.times`"),
    (FAULT | {"verb": "read"}, "Invalid enum value 'read' - at `$.verb`"),
    (FAULT | {"status": 200}, "Invalid enum value 200 - at `$.status`"),
    ({"project": "alpha"}, "Object missing required field `verb`"),
    (b"{", "Input data was truncated"),
]


async def test_fault_endpoint_rejects_an_invalid_fault_with_the_reason(client: Client) -> None:
    for body, why in REFUSED:
        refused = await client.call("POST", "/sandbox/faults", body)
        assert (refused.status, refused.json["message"]) == (400, f"the body of the request is not a fault: {why}")
    assert (await client.call("POST", "/sandbox/faults", FAULT)).json == {"hanging": 0}


def test_first_matching_fault_applies(faults: Faults) -> None:
    faults.failing(502, times=1)
    faults.forbidden()
    assert [answer(faults, LIST)[0] for _ in range(3)] == [502, 403, 403]
    faults.clear()
    assert answer(faults, LIST) == (0, None)
