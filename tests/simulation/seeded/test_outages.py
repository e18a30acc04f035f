"""API server outages of one hour, by kind: no cluster is disengaged, and the request rate stays low."""

import asyncio
import math

import pytest
from msgspec.structs import replace

from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_kube.api_request import Answer
from milo_kube.http.errors import TransportError
from milo_kube.reflect.view_status import ViewState
from tests.simulation.seeded.harness import TRAITS, VERIFIED_S, Harness, run_steps
from tests.simulation.seeded.request_faults import REQUEST_FAULTS, Answered, Lost, RequestFault, status

HOUR_S = 3600.0
BUDGET = 250
LASTING = [fault for fault in REQUEST_FAULTS if set(fault.kinds) == {"list", "open", "look"}]
ALSO = [fault for fault in REQUEST_FAULTS if fault.name in ("a watch that ends at once", "expired")]


@pytest.mark.parametrize("fault", [*LASTING, *ALSO], ids=lambda fault: f"{fault.row}-{fault.name.replace(' ', '-')}")
def test_outage_of_an_hour_causes_few_requests_and_disengages_nothing(fault: RequestFault) -> None:
    async def outage(harness: Harness) -> None:
        harness.api.only = fault
        harness.api.cut()
        harness.api.requests.clear()
        await asyncio.sleep(HOUR_S)
        asked = sum(count for kind, count in harness.api.requests.items() if kind != "livez")
        assert 100 <= asked <= BUDGET, harness.api.requests
        assert harness.received == []
        harness.world.delete("b")
        harness.api.only = None
        harness.api.requests.clear()
        assert await harness.settled() <= 60.0
        assert harness.api.requests["list"] <= 2
        assert harness.received == ["DISENGAGED b"]

    run_steps(outage)


GRACE_S = 10.0


def test_f71_grace_period_paused_by_an_outage_ends_without_another_event() -> None:
    async def outage(harness: Harness) -> None:
        await asyncio.sleep(VERIFIED_S)
        harness.change("a", ready=False)
        await asyncio.sleep(GRACE_S / 2)
        harness.api.down_until = harness.loop.time() + 2 * GRACE_S
        harness.api.cut()
        await asyncio.sleep(2 * GRACE_S)
        await harness.until(lambda: harness.daemon.source.status.state is ViewState.STREAMING)
        assert harness.received == []
        assert await harness.until(lambda: harness.received == ["DISENGAGED a"]) <= GRACE_S + 1.0

    run_steps(outage, replace(TRAITS, grace_s=GRACE_S))


TEN_MINUTES_S = 600.0
DELETED = 80
READS = [
    # One refusal pauses all reads.
    pytest.param(RequestFault("F74", "forbidden", Answered(status(403, "Forbidden")), ("look",)), 60, id="F74-403"),
    pytest.param(
        RequestFault("F74", "too many", Answered(status(429, "TooManyRequests", **{"Retry-After": "5"})), ("look",)),
        150,
        id="F74-429",
    ),
    pytest.param(RequestFault("F74", "error", Answered(status(500, "InternalError")), ("look",)), 60, id="F74-500"),
    # Each object has a backoff of its own.
    pytest.param(RequestFault("F75", "no answer", Lost("timeout", late=True), ("look",)), 1_200, id="F75-hanging"),
    pytest.param(None, 1_200, id="F72-lagging"),
]


@pytest.mark.parametrize(("fault", "budget"), READS)
def test_failed_confirmation_reads_are_limited_by_a_budget(
    fault: RequestFault | None, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many objects are deleted while reads of single objects are refused, hang, or still find the objects."""
    names = [f"p-{number}" for number in range(DELETED)]

    async def outage(harness: Harness) -> None:
        for name in names:
            harness.put(name)
        harness.api.ring()
        await harness.settled()
        found = {name: harness.server.read_object(name) for name in ["a", "b", "c", *names]}
        if fault is None:
            monkeypatch.setattr(harness.server, "read_object", found.get)
        harness.api.only = fault
        for name in names:
            harness.world.delete(name)
        harness.api.ring()
        harness.api.requests.clear()
        await asyncio.sleep(TEN_MINUTES_S)
        assert 0 < harness.api.requests["look"] <= budget
        assert not any(event.startswith("DISENGAGED") for event in harness.received)
        harness.api.only = None
        monkeypatch.undo()
        await harness.settled(within_s=TEN_MINUTES_S)
        assert sum(event.startswith("DISENGAGED p-") for event in harness.received) == DELETED

    run_steps(outage)


@pytest.mark.parametrize(
    ("hanging", "is_reported_last", "within_s"),
    [(20, True, 2.0), (60, True, 2.0), (300, True, 2.0), (60, False, 2.0), (300, False, 10.0)],
)
def test_f75_hung_confirmation_reads_delay_other_confirmations_by_seconds_only(
    hanging: int, is_reported_last: bool, within_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"p-{number}" for number in range(hanging)]
    # Enough clusters stay that the removal guard does not hold the deletions.
    stay = [f"stays-{number}" for number in range(math.ceil(len([*names, "a"]) / RemovalLimits().share))]

    async def steps(harness: Harness) -> None:
        for name in (*names, *stay):
            harness.put(name)
        harness.api.ring()
        await harness.settled()
        get = harness.api.get

        async def hang(path: str, query: object = (), *, timeout_s: float, **_: object) -> Answer:
            if path.rpartition("/")[2] in names:
                await asyncio.sleep(timeout_s)
                raise TransportError("timeout", "no answer")
            return await get(path, query, timeout_s=timeout_s)

        monkeypatch.setattr(harness.api, "get", hang)
        for name in (*names, "a") if is_reported_last else ("a", *names):
            harness.world.delete(name)
        harness.api.ring()
        assert await harness.until(lambda: harness.received[-1:] == ["DISENGAGED a"]) <= within_s
        monkeypatch.undo()
        await harness.settled(TEN_MINUTES_S)

    run_steps(steps)
