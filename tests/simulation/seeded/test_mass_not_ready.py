"""A controller makes most of the fleet not ready within a second."""

import asyncio

import pytest
from msgspec.structs import replace

from milo_discoveryd.fleet.source import NOT_READY_HELD
from tests.simulation.seeded.harness import TRAITS, Harness, run_steps

NAMES = [f"n{number:02}" for number in range(60)]


async def engaged(harness: Harness) -> None:
    for name in NAMES:
        harness.put(name)
    harness.api.ring()
    await harness.settled()
    harness.subscriber.history.events()


async def becomes(harness: Harness, *, ready: bool) -> None:
    for name in NAMES:
        harness.put(name, ready=ready, content=1)
        harness.api.ring()
        await asyncio.sleep(0.01)


def ends(harness: Harness) -> list[str]:
    return [event for event in harness.received if event.startswith("DISENGAGED")]


@pytest.mark.parametrize("grace_s", [0.0, 20.0])
def test_f79_fleet_that_is_ready_again_while_held_stays_engaged(grace_s: float) -> None:
    async def steps(harness: Harness) -> None:
        await engaged(harness)
        await becomes(harness, ready=False)
        await harness.until(lambda: harness.daemon.fleet.status.reason == NOT_READY_HELD)
        await asyncio.sleep(20.0)
        await becomes(harness, ready=True)
        await harness.settled()
        assert len(ends(harness)) == 10

    run_steps(steps, replace(TRAITS, grace_s=grace_s))


def test_f79_fleet_that_stays_not_ready_is_disengaged_when_the_hold_expires() -> None:
    async def steps(harness: Harness) -> None:
        await engaged(harness)
        await becomes(harness, ready=False)
        await asyncio.sleep(25.0)
        assert len(ends(harness)) == 10
        assert await harness.settled() <= 20.0
        assert len(ends(harness)) == len(NAMES)

    run_steps(steps)


def test_f79_fleet_that_became_not_ready_during_an_outage_is_held_after_the_outage() -> None:
    async def steps(harness: Harness) -> None:
        await engaged(harness)
        harness.api.down_until = harness.loop.time() + 100.0
        harness.api.cut()
        await becomes(harness, ready=False)
        await harness.until(lambda: harness.daemon.fleet.status.reason == NOT_READY_HELD)
        assert len(ends(harness)) <= 10
        await becomes(harness, ready=True)
        await harness.settled()
        assert len(ends(harness)) <= 10

    run_steps(steps)


def test_f79_fleet_is_held_again_after_a_restart_during_the_hold() -> None:
    async def steps(harness: Harness) -> None:
        await engaged(harness)
        await asyncio.sleep(10.0)  # long enough for the state file to be written
        await becomes(harness, ready=False)
        await asyncio.sleep(10.0)
        before = len(ends(harness))
        await harness.restart_daemon()
        await harness.until(lambda: harness.daemon.fleet.status.reason == NOT_READY_HELD)
        await becomes(harness, ready=True)
        await harness.settled()
        assert before == 10
        assert len(ends(harness)) <= 20

    run_steps(steps, replace(TRAITS, has_memory=True))
