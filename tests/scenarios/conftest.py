"""Plays for pytest: one test each, a few of them under way at once, since most of a play is waiting for quiet."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from tests.scenarios.play import PlayFailedError, play
from tests.scenarios.servers import Sandboxes
from tests.scenarios.steps import Malformed, Mode, Scenario

PLAY = "scenario_and_mode"
AT_ONCE = 4

Part = tuple[Scenario | Malformed, Mode]


class Plays:
    """Those that this run selects, in its order."""

    def __init__(self, parts: Sequence[Part], ahead: int) -> None:
        self._parts = list(parts)
        self._ahead = ahead
        self._servers = Sandboxes()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def outcome(self, part: Part) -> None:
        """Waits for this one, and lets the next few begin. Raises PlayFailedError."""
        index = self._parts.index(part)
        for each in range(index, min(index + self._ahead + 1, len(self._parts))):
            if each not in self._tasks:
                scenario, mode = self._parts[each]
                self._tasks[each] = asyncio.create_task(self._play(scenario, mode), name=f"{scenario.name} [{mode}]")
        await self._tasks[index]

    async def _play(self, scenario: Scenario | Malformed, mode: Mode) -> None:
        if isinstance(scenario, Malformed):
            raise PlayFailedError("as it was read", scenario.problem, "")
        await play(scenario, mode, self._servers)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def plays(request: pytest.FixtureRequest) -> AsyncIterator[Plays]:
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    parts: list[Any] = [item.callspec.params[PLAY] for item in items if PLAY in item.fixturenames]
    # With other workers, the next one may be another's.
    made = Plays(parts, 0 if "PYTEST_XDIST_WORKER" in os.environ else AT_ONCE - 1)
    yield made
    await made.close()
