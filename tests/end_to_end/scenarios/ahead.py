"""Plays for pytest: one test each, a few of them under way at once, since most of a play is waiting for quiet."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.end_to_end.scenarios.play import PlayFailedError, play
from tests.end_to_end.scenarios.servers import Servers
from tests.end_to_end.scenarios.steps import Malformed, Mode, Scenario

PLAY = "scenario_and_mode"
Part = tuple[Scenario | Malformed, Mode]


class Plays:
    """Those that this run selects, in its order."""

    def __init__(self, parts: Sequence[Part], servers: Servers, *, ahead: int) -> None:
        self._parts = list(parts)
        self._ahead = ahead
        self._servers = servers
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


def selected(request: pytest.FixtureRequest, servers: Servers, *, at_once: int) -> Plays:
    """The plays of the tests of this run that ask for the requested fixture."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asking = [item for item in items if request.fixturename in item.fixturenames]
    parts: list[Any] = [item.callspec.params[PLAY] for item in asking]
    return Plays(parts, servers, ahead=at_once - 1)
