"""Scenario runs for pytest: one test each, and a few run concurrently, since a run mostly waits."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.end_to_end.scenarios.scenario_run import ScenarioFailedError, run_scenario
from tests.end_to_end.scenarios.servers import Servers
from tests.end_to_end.scenarios.steps import Malformed, Mode, Scenario

PARAMETER = "scenario_and_mode"
Part = tuple[Scenario | Malformed, Mode]


class ScenarioRuns:
    """The selected scenario runs, in the order of their tests."""

    def __init__(self, parts: Sequence[Part], servers: Servers, *, prefetch: int) -> None:
        self._parts = list(parts)
        self._prefetch = prefetch
        self._servers = servers
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def outcome(self, part: Part) -> None:
        """Wait for this run and start the next few. Raises ScenarioFailedError."""
        index = self._parts.index(part)
        for number in range(index, min(index + self._prefetch + 1, len(self._parts))):
            if number not in self._tasks:
                scenario, mode = self._parts[number]
                self._tasks[number] = asyncio.create_task(self._run(scenario, mode), name=f"{scenario.name} [{mode}]")
        await self._tasks[index]

    async def _run(self, scenario: Scenario | Malformed, mode: Mode) -> None:
        if isinstance(scenario, Malformed):
            raise ScenarioFailedError("as it was read", scenario.problem, "")
        await run_scenario(scenario, mode, self._servers)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def selected(request: pytest.FixtureRequest, servers: Servers, *, at_once: int) -> ScenarioRuns:
    """Return the runs of the selected tests that use the requested fixture."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asking = [item for item in items if request.fixturename in item.fixturenames]
    parts: list[Any] = [item.callspec.params[PARAMETER] for item in asking]
    return ScenarioRuns(parts, servers, prefetch=at_once - 1)
