"""F35, O6: a daemon killed at any step of its event loop leaves no state that the next one does not repair.

The steps include those between read and commit, commit and send, and the request and the issue of a credential.
"""

import asyncio
from random import Random

import pytest
from msgspec.structs import replace

from tests.end_to_end.process.issued_credentials import mark
from tests.simulation.seeded.daemon import Traits
from tests.simulation.seeded.harness import TRAITS, Harness, run_steps
from tests.simulation.seeded.loop import VirtualLoop

SCHEDULES = 4


class Counting(VirtualLoop):
    """An event loop that counts its iterations."""

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
def test_daemon_killed_at_any_step_is_replaced_without_loss(has_memory: bool) -> None:
    traits = replace(TRAITS, has_memory=has_memory, batch_bytes=200)
    deaths = 0
    for seed in range(SCHEDULES):
        for turn in _iterations_without_kill(seed, traits):
            _kill_at(turn, seed, traits)
            deaths += 1
    assert deaths > 10 * SCHEDULES, "too few loop iterations in which clusters change"


def _iterations_without_kill(seed: int, traits: Traits) -> range:
    """Return the loop iterations in which the clusters change, in a scenario without a kill."""
    loop = Counting(seed)
    spans: list[range] = []

    async def steps(harness: Harness) -> None:
        await _can_work(harness)
        began = loop.turns
        await _change_several(harness)
        spans.append(range(began + 1, loop.turns + 1))

    run_steps(steps, traits, with_kubeconfigs=True, on=loop)
    return spans[0]


def _kill_at(turn: int, seed: int, traits: Traits) -> None:
    loop = Counting(seed)

    async def steps(harness: Harness) -> None:
        await _can_work(harness)
        happening = asyncio.create_task(_change_several(harness))
        await loop.turn(turn)
        happening.cancel()
        await harness.restart_daemon()
        await harness.settled()
        await _can_work(harness)

    run_steps(steps, traits, with_kubeconfigs=True, on=loop)


async def _can_work(harness: Harness) -> None:
    await harness.until(lambda: harness.subscriber.session.view and harness.subscriber.can_work)


async def _change_several(harness: Harness) -> None:
    """Change clusters; wait until credentials are issued, and credentials of disengaged clusters are revoked."""
    harness.put("a", content=2)
    harness.world.delete("b")
    harness.put("c", uid="uid-another")
    harness.change("d")
    harness.subscriber.ask("d", None)
    await harness.settled()
    await harness.until(lambda: harness.subscriber.can_work and not harness.tokens.has_secret_of(mark("uid-b")))
