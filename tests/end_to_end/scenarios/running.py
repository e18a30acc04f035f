"""Concurrent runs of scenarios, with results in the order of the file."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from tests.end_to_end.scenarios.scenario_run import ScenarioFailedError, run_scenario
from tests.end_to_end.scenarios.servers import Servers
from tests.end_to_end.scenarios.steps import Malformed, Mode, Scenario

AT_ONCE = 3
"""A scenario run waits most of the time, so several run concurrently."""


@dataclass(frozen=True)
class Result:
    name: str
    mode: Mode
    seconds: float = 0.0
    failure: str | None = None
    daemon: str = ""
    """The end of the daemon's log, if the run failed."""


def chosen(
    scenarios: Iterable[Scenario | Malformed], *, name: str = "", mode: Mode | None = None
) -> list[tuple[Scenario | Malformed, Mode]]:
    """Return each scenario whose name contains the text, in the given mode or in each of its own."""
    return [
        (scenario, own_mode)
        for scenario in scenarios
        for own_mode in scenario.modes
        if name in scenario.name and mode in (None, own_mode)
    ]


async def run(
    runs: Iterable[tuple[Scenario | Malformed, Mode]], servers: Servers, *, at_once: int = AT_ONCE
) -> AsyncGenerator[Result, None]:
    turns = asyncio.Semaphore(at_once)

    async def one(scenario: Scenario | Malformed, mode: Mode) -> Result:
        if isinstance(scenario, Malformed):
            return Result(scenario.name, mode, failure=scenario.problem)
        async with turns:
            started = time.monotonic()
            try:
                await run_scenario(scenario, mode, servers)
            except ScenarioFailedError as failed:
                return Result(scenario.name, mode, time.monotonic() - started, str(failed), failed.daemon)
            return Result(scenario.name, mode, time.monotonic() - started)

    tasks = [asyncio.create_task(one(*part), name=f"{part[0].name} [{part[1]}]") for part in runs]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def line(result: Result) -> str:
    if result.failure is None:
        return f"ok    {result.name} [{result.mode}] {result.seconds:.1f}s"
    return f"FAIL  {result.name} [{result.mode}] {result.seconds:.1f}s {result.failure}"
