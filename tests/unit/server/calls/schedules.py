"""Schedules of deliveries, with room for few or many."""

from collections.abc import Callable, Hashable

from milo_discoveryd.kubeconfigs.credential_lease import Draw
from milo_discoveryd.server.calls.delivery_schedule import DELIVERY_BYTES, DeliveryBudget, DeliverySchedule


class Memory:
    """Room for a number of deliveries."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    def count_deliveries(self, added: int) -> bool:
        self.taken += added
        return self.taken <= self.most * DELIVERY_BYTES


def a_budget(most: int = 1 << 20) -> DeliveryBudget:
    return DeliveryBudget(Memory(most))


def a_schedule(
    clock: Callable[[], float] = lambda: 0.0,
    wall: Callable[[], float] = lambda: 0.0,
    draw: Draw = lambda: 0.5,
    *,
    caller: Hashable = "",
    budget: DeliveryBudget | None = None,
    later: Callable[[Callable[[], None]], object] = lambda step: step(),
) -> DeliverySchedule:
    return DeliverySchedule(clock, wall, draw, budget=budget or a_budget(), caller=caller, later=later)
