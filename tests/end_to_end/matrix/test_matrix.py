"""The public scenarios over every combination of sources, state, daemons, consumers and restarts, on real processes."""

import asyncio
from itertools import product
from pathlib import Path

import pytest

from milo_discovery import SourceState
from tests.end_to_end.matrix.cell import Cell, World, restart
from tests.support.eventually import eventually

ALL = [
    Cell(*each)
    for each in product(
        ("one", "two", "reduced", "files"),
        ("no-state", "state"),
        (1, 3),
        ("subscriber", "kubeconfigs", "publisher"),
        ("running", "restarted", "bad-list"),
    )
]
SOME = {
    "one-no-state-1-subscriber-bad-list",
    "two-state-1-kubeconfigs-restarted",
    "reduced-no-state-1-subscriber-running",
    "files-state-1-publisher-bad-list",
    "one-no-state-3-publisher-restarted",
}
"""The cells of each CI run; all of them run nightly (`--cells all`)."""


def makes_sense(cell: Cell) -> bool:
    """Return whether a cell has rules of its own.

    In a group, clusters may move while a member restarts, so what its subscribers knew says nothing about its list.
    """
    return not (cell.daemons > 1 and cell.phase == "bad-list" and cell.state == "no-state")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = [each for each in ALL if makes_sense(each)]
    if metafunc.config.getoption("--cells") != "all":
        wanted = [each for each in wanted if str(each) in SOME]
    metafunc.parametrize("cell", wanted, ids=str)


@pytest.mark.timeout(400)
async def test_consumers_know_what_exists_and_lose_nothing_that_does(cell: Cell, directory: Path) -> None:
    async with World.running(cell, directory) as world:
        await world.settled()
        await PHASES[cell.phase](world)
        world.delete("p-0")
        world.create("later")
        await world.settled()


async def run_on(world: World) -> None:
    world.delete("p-5")
    world.create("new")
    await world.settled()


async def restarted(world: World) -> None:
    async def change() -> None:
        world.create("new")

    await restart(world, change)
    await world.settled()


async def restarted_with_a_bad_list(world: World) -> None:
    async def break_list() -> None:
        world.empty(on=True)

    await world.stored()
    await restart(world, break_list)
    if world.cell.daemons > 1 and world.watches:
        # Of a few clusters, a member may own too few to hold them as many: their deletion is then refuted one by one.
        await eventually(lambda: world.watches[0].connected)
    elif world.watches:
        held = (SourceState.CATCHING_UP, "RemovalsHeld")
        await eventually(lambda: (source := world.watches[0].source) and (source.state, source.reason) == held)
    else:
        await asyncio.sleep(2)  # the publisher says nothing to wait for
    world.empty(on=False)
    await world.settled()


PHASES = {"running": run_on, "restarted": restarted, "bad-list": restarted_with_a_bad_list}
