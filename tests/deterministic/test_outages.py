"""An hour without the API server, in each way that there is: nobody is disengaged, and it is not asked too often."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from milo_discoveryd.model.source import SourceState
from tests.deterministic.api import Api
from tests.deterministic.daemon import Daemon, Traits
from tests.deterministic.loop import VirtualLoop, clocks_of
from tests.deterministic.troubles import TROUBLES, Trouble
from tests.deterministic.world import World
from tests.properties.api_server import Server, Thing

HOUR_S = 3600.0
BUDGET = 250
LASTING = [each for each in TROUBLES if set(each.kinds) == {"list", "open", "look"}]
AT_ONCE = next(each for each in TROUBLES if each.name == "a watch that ends at once")
EXPIRED = next(each for each in TROUBLES if each.name == "expired")


async def outage(trouble: Trouble, random: Random) -> None:
    loop = asyncio.get_running_loop()
    notes: list[tuple[object, ...]] = []

    def note(*parts: object) -> None:
        notes.append(parts)

    server = Server()
    world = World(server, random)
    for name in "abc":
        world.put(name, Thing(f"uid-{name}", 0, True, True, True, 1))
    api = Api(server, random, note, lies=lambda: False)
    traits = Traits(streaming=True, page_size=500, grace_s=0.0, batch_bytes=1000, tombstones=10_000, has_memory=False)
    daemon = Daemon(api, f"{1:016x}", traits, None, random, note)
    await until(lambda: daemon.fleet.status.state is SourceState.STREAMING)
    api.only = trouble
    api.cut()
    api.requests.clear()
    await asyncio.sleep(HOUR_S)
    asked = sum(count for kind, count in api.requests.items() if kind != "livez")
    assert 100 <= asked <= BUDGET, api.requests
    world.delete("b")
    api.only = None
    api.requests.clear()
    healed_at = loop.time()
    await until(lambda: daemon.is_quiet and api.has_told_all and daemon.fleet.registry.engaged == 2)
    assert loop.time() - healed_at <= 60.0
    assert api.requests["list"] <= 2
    ended = [parts for parts in notes if parts[:2] == ("daemon:", "DISENGAGED")]
    assert ended == [("daemon:", "DISENGAGED", "b", "uid-b", "DELETED")]
    daemon.check()
    await daemon.kill()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("trouble", [*LASTING, AT_ONCE, EXPIRED], ids=lambda each: f"{each.row} {each.name}")
def test_an_hour_of_it_costs_few_requests_and_no_cluster(trouble: Trouble) -> None:
    random = Random(1)
    loop = VirtualLoop(random)
    with clocks_of(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(outage(trouble, random))
