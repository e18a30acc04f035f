"""The schedule of one stream's kubeconfigs."""

from milo_discoveryd.server.calls.delivery_schedule import DeliverySchedule
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
