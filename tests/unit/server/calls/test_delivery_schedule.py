"""The schedule of one stream's kubeconfigs."""

import math
from collections.abc import Callable

import pytest

from milo_discoveryd.server.calls.delivery_schedule import DeliveryBudget, DeliverySchedule
from milo_discoveryd.server.calls.grpc_errors import ExhaustedError
from tests.unit.fleet.fleets import cluster


def test_ended_and_replaced_deliveries_leave_no_entries_until_their_time() -> None:
    """A tenant's clusters may end, and change, many times in the lifetime of a credential."""
    schedule = DeliverySchedule(lambda: 0.0, lambda: 0.0, lambda: 0.5)
    for number in range(1000):
        schedule.schedule(cluster("stays"), "i", None, 9000.0 - number)
        schedule.schedule(cluster(f"ends-{number}"), "i", None, 9000.0)
        schedule.forget(f"ends-{number}")
    assert len(schedule._due) < 120
    popped = [schedule.pop_due() for _ in range(len(schedule._due))]
    assert [delivery.name for delivery in popped if delivery is not None] == ["stays"]
    schedule.schedule(cluster("stays"), "i", None, 9000.0)
    assert schedule.due_in_s == 9000.0


def schedule_of(caller: str, budget: DeliveryBudget, clusters: int = 0) -> DeliverySchedule:
    schedule = DeliverySchedule(lambda: 0.0, lambda: 0.0, lambda: 0.5, caller=caller, budget=budget)
    deliver(schedule, clusters)
    return schedule


def deliver(schedule: DeliverySchedule, clusters: int) -> None:
    for number in range(clusters):
        schedule.schedule(cluster(f"c-{number}"), "i", None, 9000.0)


def test_caller_with_most_deliveries_loses_its_newest_stream_when_there_are_too_many() -> None:
    budget = DeliveryBudget(100)
    honest = schedule_of("honest", budget, 30)
    first, second = (schedule_of("hostile", budget, 30) for _ in range(2))
    with pytest.raises(ExhaustedError):
        schedule_of("hostile", budget, 30)
    deliver(honest, 40)
    assert len(honest.names) == 40
    assert len(first.names) == len(second.names) == 30
    deliver(schedule_of("another", budget), 1)
    assert not second.names
    assert second.due_in_s == math.inf
    for use in (second.require_room, lambda: deliver(second, 1)):
        with pytest.raises(ExhaustedError, match="too many clusters"):
            use()


def test_deliveries_count_until_they_are_forgotten_or_their_stream_has_ended() -> None:
    budget = DeliveryBudget(100)
    for _ in range(20):
        ended = schedule_of("a", budget, 50)
        ended.forget("c-0")
        ended.forget("c-0")
        deliver(ended, 50)
        ended.clear()
        ended.clear()
        for name in (last := schedule_of("b", budget, 50)).names:
            last.forget(name)
    deliver(schedule_of("a", budget), 100)
    assert not budget._schedules.get("b")


def test_many_deliveries_are_dropped_in_steps() -> None:
    steps: list[Callable[[], None]] = []
    schedule = DeliverySchedule(lambda: 0.0, lambda: 0.0, lambda: 0.5, later=steps.append)
    deliver(schedule, 2500)
    held = schedule._deliveries
    schedule.clear()
    assert (len(schedule), schedule.due_in_s) == (0, math.inf)
    deliver(schedule, 1)
    left = [len(held)]
    while steps:
        steps.pop()()
        left.append(len(held))
    assert left == [1500, 500, 0]
    assert schedule.names == ["c-0"]


def test_callers_that_have_as_many_deliveries_as_others_keep_their_streams() -> None:
    budget = DeliveryBudget(100)
    streams = [schedule_of(caller, budget, 20) for caller in ("a", "b", "c", "d", "e")]
    for _ in range(3):
        late = schedule_of("late", budget)
        with pytest.raises(ExhaustedError):
            deliver(late, 20)
        late.clear()
    assert [len(stream) for stream in streams] == [20] * 5
    streams.append(schedule_of("a", budget))
    with pytest.raises(ExhaustedError):
        deliver(streams[0], 21)
    assert [len(stream) for stream in streams] == [0, 20, 20, 20, 20, 0]
    deliver(streams[1], 40)


def test_live_stream_that_grows_ends_the_newest_of_its_caller() -> None:
    budget = DeliveryBudget(100)
    first, second, other = (schedule_of(caller, budget, 30) for caller in ("a", "a", "b"))
    deliver(first, 41)
    assert [len(stream) for stream in (first, second, other)] == [41, 0, 30]
