"""F35, O6: killed at any turn of its event loop - between reading and committing, committing and telling, asking for a
credential and handing it out - the daemon leaves nothing that the next one doesn't set right."""

import asyncio
from random import Random

import pytest
from msgspec.structs import replace

from tests.end_to_end.process.handing_out import mark
from tests.simulation.seeded.daemon import Traits
from tests.simulation.seeded.loop import VirtualLoop
from tests.simulation.seeded.stage import TRAITS, Stage, play

SCHEDULES = 4


class Counting(VirtualLoop):
    """Counts its turns, and can be waited for by them."""

    def __init__(self, seed: int) -> None:
        super().__init__(Random(seed))
        self.turns = 0
        self._awaited: dict[int, asyncio.Future[None]] = {}

    async def turn(self, number: int) -> None:
        self._awaited[number] = self.create_future()
        await self._awaited[number]

    def _run_once(self) -> None:
        super()._run_once()
        self.turns += 1
        if (awaited := self._awaited.pop(self.turns, None)) is not None:
            awaited.set_result(None)


@pytest.mark.parametrize("has_memory", [False, True], ids=["forgetful", "remembering"])
def test_at_whatever_turn_it_is_killed_the_next_one_tells_everybody_the_truth(has_memory: bool) -> None:
    traits = replace(TRAITS, has_memory=has_memory, batch_bytes=200)
    deaths = 0
    for seed in range(SCHEDULES):
        for turn in _turns_of_what_happens(seed, traits):
            _kill_at(turn, seed, traits)
            deaths += 1
    assert deaths > 10 * SCHEDULES, "it was not for nothing"


def _turns_of_what_happens(seed: int, traits: Traits) -> range:
    """Where nobody is killed."""
    loop = Counting(seed)
    spans: list[range] = []

    async def scene(stage: Stage) -> None:
        await _can_work(stage)
        began = loop.turns
        await _much_happens(stage)
        spans.append(range(began + 1, loop.turns + 1))

    play(scene, traits, with_kubeconfigs=True, on=loop)
    return spans[0]


def _kill_at(turn: int, seed: int, traits: Traits) -> None:
    loop = Counting(seed)

    async def scene(stage: Stage) -> None:
        await _can_work(stage)
        happening = asyncio.create_task(_much_happens(stage))
        await loop.turn(turn)
        happening.cancel()
        await stage.start_anew()
        await stage.settled()
        await _can_work(stage)

    play(scene, traits, with_kubeconfigs=True, on=loop)


async def _can_work(stage: Stage) -> None:
    await stage.until(lambda: stage.subscriber.session.view and stage.subscriber.can_work)


async def _much_happens(stage: Stage) -> None:
    """Until all is done: credentials are handed out, and what is over is revoked."""
    stage.put("a", content=2)
    stage.world.delete("b")
    stage.put("c", uid="uid-another")
    stage.happens("d")
    stage.subscriber.ask("d", None)
    await stage.settled()
    await stage.until(lambda: stage.subscriber.can_work and not stage.tokens.has_secret_of(mark("uid-b")))
