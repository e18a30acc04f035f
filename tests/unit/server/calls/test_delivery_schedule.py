"""The schedule of one stream's kubeconfigs."""

import gc
import math
import tracemalloc
from collections.abc import Callable
from typing import cast

import msgspec
import pytest

from milo_discoveryd.kubeconfigs.lease_handle import LeaseHandle
from milo_discoveryd.kubeconfigs.lease_table import LeaseEntry, LeaseKey
from milo_discoveryd.kubeconfigs.minter import LeaseWait, Minter
from milo_discoveryd.server.calls.delivery_schedule import CHARGED, DELIVERY_BYTES, DeliveryBudget, DeliverySchedule
from milo_discoveryd.server.calls.grpc_errors import ExhaustedError
from tests.unit.fleet.fleets import cluster
from tests.unit.server.calls.schedules import Memory, a_budget, a_schedule


def test_ended_and_replaced_deliveries_leave_no_entries_until_their_time() -> None:
    """A tenant's clusters may end, and change, many times in the lifetime of a credential."""
    schedule = a_schedule()
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
    schedule = a_schedule(caller=caller, budget=budget)
    deliver(schedule, clusters)
    return schedule


def deliver(schedule: DeliverySchedule, clusters: int) -> None:
    for number in range(clusters):
        schedule.schedule(cluster(f"c-{number}"), "i", None, 9000.0)


def test_caller_with_most_deliveries_loses_its_newest_stream_when_there_are_too_many() -> None:
    budget = a_budget(100)
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
    memory = Memory(100)
    budget = DeliveryBudget(memory)
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
    assert memory.taken == 100 * DELIVERY_BYTES


def test_many_deliveries_are_dropped_in_steps() -> None:
    steps: list[Callable[[], None]] = []
    schedule = a_schedule(later=steps.append)
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
    budget = a_budget(100)
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
    budget = a_budget(100)
    first, second, other = (schedule_of(caller, budget, 30) for caller in ("a", "a", "b"))
    deliver(first, 41)
    assert [len(stream) for stream in (first, second, other)] == [41, 0, 30]


def test_deliveries_that_wait_for_the_quota_take_turns_by_tenant() -> None:
    now = 0.0
    schedule = a_schedule(lambda: now)

    def wait(name: str, tenant: str, wait_s: float = math.inf) -> None:
        due_at = len(schedule) - 10.0
        schedule.await_turn(schedule.schedule(cluster(name), "i", None, due_at), tenant, wait_s)

    for number in range(3):
        wait(f"shop-{number}", "shop", 7.0)
    wait("tea-0", "tea")
    new = schedule.schedule(cluster("new"), "i", None, 0.0)
    assert not schedule.has_turn(new)
    while schedule.due_in_s <= 0:
        if (popped := schedule.pop_due()) is not None:
            schedule.await_turn(popped, "new", math.inf)
    assert schedule.due_in_s == 7.0
    now = 7.0
    refused = schedule.pop_due()
    assert refused is schedule["shop-0"]
    assert refused is not None
    assert schedule.has_turn(refused)
    schedule.await_turn(refused, "shop", 1.0)
    assert schedule.due_in_s == 1.0
    now = 8.0
    popped_in_turn = []
    while schedule.due_in_s <= 0:
        popped_in_turn.append(schedule.pop_due())
        if len(popped_in_turn) == 3:
            wait("tea-1", "tea")
    assert [each.name for each in popped_in_turn if each] == ["shop-0", "tea-0", "new", "shop-1", "tea-1", "shop-2"]


def test_deliveries_counted_against_the_quota_are_due_at_their_time() -> None:
    schedule = a_schedule()
    charged = schedule.schedule(cluster("charged"), "i", None, 0.0)
    charged.round = CHARGED
    schedule.postpone(charged, 9.0)
    schedule.schedule(cluster("sooner"), "i", None, 5.0)
    popped = [schedule.pop_due() for _ in range(3)]
    assert [each.name for each in popped if each] == ["sooner", "charged"]
    assert [each.round for each in popped if each] == [0, CHARGED]


class Entry(msgspec.Struct, gc=False):
    key: LeaseKey


class Lease:
    """A lease without a credential."""

    def __init__(self, name: str) -> None:
        self._entry = Entry(LeaseKey("i", 1, 600.0, (name,)))

    def wait(self) -> LeaseWait:
        return LeaseWait(cast("Minter", None), cast("LeaseEntry", self._entry))


@pytest.mark.parametrize("waits_for", ["nothing", "lease", "quota"])
@pytest.mark.parametrize("count", [1_000, 5_500, 11_000, 22_000])
def test_deliveries_take_no_more_memory_than_is_counted(count: int, waits_for: str) -> None:
    """The tables of 5500, 11,000 and 22,000 have just grown."""
    shared = [cluster(f"c-{number}") for number in range(count)]
    leases = [cast("LeaseHandle", Lease(each.target.name)) for each in shared]
    times = iter(range(1_000_000))
    gc.collect()
    tracemalloc.start()
    try:
        schedule = a_schedule()
        for each in shared:
            schedule.schedule(each, "i", None, float(next(times)))
            schedule.schedule(each, "i", None, 1000.0 + next(times))
        if waits_for == "quota":
            for number, name in enumerate(schedule.names):
                if (delivery := schedule[name]) is not None:
                    schedule.await_turn(delivery, number, 1.0)
        if waits_for == "lease":
            while (due := schedule.due_in_s) < math.inf:
                if (delivery := schedule.pop_due()) is not None:
                    assert due >= 0
                    schedule.await_lease(delivery, leases[int(delivery.name[2:])])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= count * DELIVERY_BYTES
