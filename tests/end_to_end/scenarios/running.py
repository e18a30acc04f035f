"""Many plays, a few at once; their results in the order of the file."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from tests.end_to_end.scenarios.play import PlayFailedError, play
from tests.end_to_end.scenarios.servers import Servers
from tests.end_to_end.scenarios.steps import Malformed, Mode, Scenario

AT_ONCE = 3
"""Most of a play is waiting for quiet."""


@dataclass(frozen=True)
class Result:
    name: str
    mode: Mode
    seconds: float = 0.0
    failure: str | None = None
    daemon: str = ""
    """What it said last, where the play failed."""


def chosen(
    scenarios: Iterable[Scenario | Malformed], *, name: str = "", mode: Mode | None = None
) -> list[tuple[Scenario | Malformed, Mode]]:
    """Each scenario whose name holds these letters, in each of its modes or the one that is asked for."""
    return [
        (scenario, each)
        for scenario in scenarios
        for each in scenario.modes
        if name in scenario.name and mode in (None, each)
    ]


async def run(
    plays: Iterable[tuple[Scenario | Malformed, Mode]], servers: Servers, *, at_once: int = AT_ONCE
) -> AsyncGenerator[Result, None]:
    turns = asyncio.Semaphore(at_once)

    async def one(scenario: Scenario | Malformed, mode: Mode) -> Result:
        if isinstance(scenario, Malformed):
            return Result(scenario.name, mode, failure=scenario.problem)
        async with turns:
            started = time.monotonic()
            try:
                await play(scenario, mode, servers)
            except PlayFailedError as failed:
                return Result(scenario.name, mode, time.monotonic() - started, str(failed), failed.daemon)
            return Result(scenario.name, mode, time.monotonic() - started)

    tasks = [asyncio.create_task(one(*each), name=f"{each[0].name} [{each[1]}]") for each in plays]
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
