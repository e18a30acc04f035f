"""Changes, restarts and attacks over every combination of sources, state, daemons and consumers, on real processes."""

from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path

import pytest

from tests.end_to_end.matrix.cell import Cell, World, restart
from tests.end_to_end.matrix.intruders import INTRUDERS

ALL = [
    Cell(*values)
    for values in product(
        ("one", "two", "reduced", "files"),
        ("no-state", "state"),
        (1, 3),
        ("subscriber", "kubeconfigs", "publisher"),
        ("running", "restarted", "bad-list", "attacked", "intruded"),
    )
]
SOME = {
    "one-no-state-1-subscriber-bad-list",
    "two-state-1-kubeconfigs-restarted",
    "reduced-no-state-1-subscriber-running",
    "files-state-1-publisher-bad-list",
    "one-no-state-3-publisher-restarted",
    "two-state-3-subscriber-attacked",
    "files-no-state-1-kubeconfigs-attacked",
    "two-state-3-publisher-intruded",
    "reduced-no-state-1-kubeconfigs-intruded",
}
"""The cells of each CI run; all of them run nightly (`--cells all`)."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_all = metafunc.config.getoption("--cells") == "all"
    wanted = [cell for cell in ALL if is_all or str(cell) in SOME]
    metafunc.parametrize("cell", wanted, ids=str)


@pytest.mark.timeout(400)
async def test_subscribers_and_publishers_receive_all_existing_clusters_and_lose_none(
    cell: Cell, directory: Path
) -> None:
    async with World.running(cell, directory) as world:
        await world.settled()
        await world.joined()
        await PHASES[cell.phase](world)
        world.delete("p-0")
        world.create("later")
        await world.settled()
        world.delete("later")
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
    await world.listed()
    world.empty(on=False)
    await world.settled()


async def attacked(world: World) -> None:
    async with world.attacked():
        world.delete("p-5")
        world.create("new")
        await world.settled()
        for cluster in ("p-4", "p-3"):
            world.delete(cluster)
        await world.gone("p-3")
        await world.healed()
    await world.settled()


async def intruded(world: World) -> None:
    async def change() -> None:
        world.create("new")
        world.create("shop-new")

    for name in ("shop-1", "shop-2"):
        world.create(name)
    async with AsyncExitStack() as stack:
        for intruder in INTRUDERS:
            await stack.enter_async_context(intruder(world))
        world.delete("p-5")
        world.delete("shop-1")
        await world.settled()
        await restart(world, change)
        await world.settled()
        await world.joined()


PHASES = {
    "running": run_on,
    "restarted": restarted,
    "bad-list": restarted_with_a_bad_list,
    "attacked": attacked,
    "intruded": intruded,
}
