"""A shard group on real API servers: writes by two owners, duration of hand-overs, and cost of the Leases.

Five daemons with five operators share a thousand projects, and each operator writes to an object for each of its
projects. Pods are killed, stopped, updated, added and removed, and etcd is restarted: tests/end_to_end/real/sharding.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.setting import Samples, Setting

if TYPE_CHECKING:
    from tests.end_to_end.real.sharding.run import Moved, ShardingRun

_INTERVAL_S = 5.0


async def measure(setting: Setting) -> Samples:
    if not setting.is_real:
        return {}
    # Imported only here, since these modules build programs in Go.
    from tests.end_to_end.real.builds import say_to_stderr  # noqa: PLC0415
    from tests.end_to_end.real.programs import programs  # noqa: PLC0415
    from tests.end_to_end.real.sharding.run import sharding_run  # noqa: PLC0415

    found = await asyncio.to_thread(programs, say_to_stderr)
    # A short path, since the path of a socket has at most 107 characters.
    with TemporaryDirectory(prefix="milo-shard-") as directory:
        async with sharding_run(found, Path(directory), interval_s=_INTERVAL_S) as run:
            figures = await _Measurement(run, setting).figures()
    for breach in run.history.breaches:
        sys.stderr.write(f"bench: {breach}\n")
    return {key: [value] for key, value in figures.items()}


class _Measurement:
    def __init__(self, run: "ShardingRun", setting: Setting) -> None:
        self._run = run
        self._scale = setting.scale
        self._found: dict[str, float] = {}

    async def figures(self) -> dict[str, float]:
        run, count = self._run, self._scale.shard_members
        members = range(count)
        await run.populate(self._scale.shard_projects[0])
        await run.start(*members)
        for projects in self._scale.shard_projects:
            await run.populate(projects)
            await run.settled(members)
            key = f"sharding.{projects}_projects.lease_requests"
            self._found[key] = await run.lease_requests(members, self._scale.shard_quiet_s)
        shares = [run.share(number) for number in members]
        self._found["sharding.imbalance"] = max(shares) * count / sum(shares)

        async with self._step("kill", members[1:]):
            await run.pod(0).kill()
        async with self._step("return", members):
            await run.start(0)
        # The daemon alone is stopped in one pod, the daemon and the operator in another.
        async with self._step("stop", members[2:]):
            run.pod(0).signal(signal.SIGSTOP, with_operator=False)
            run.pod(1).signal(signal.SIGSTOP, with_operator=True)
        async with self._step("continue", members):
            run.pod(0).signal(signal.SIGCONT, with_operator=False)
            run.pod(1).signal(signal.SIGCONT, with_operator=True)
        async with self._step("rolling_update", members):
            for number in reversed(members):
                await run.terminate(number)
                await run.start(number)
                await run.settled(members)
        async with self._step("scale_up", range(count + 1)):
            await run.start(count)
        ideal = self._scale.shard_projects[-1] / (count + 1)
        self._found["sharding.scale_up.ratio_to_ideal"] = self._found["sharding.scale_up.moved"] / ideal
        left = range(count - 2)
        async with self._step("scale_down", left):
            await run.terminate(*range(left.stop, count + 1))
        async with self._step("short_outage", left):
            await run.stop_etcd()
            await run.start_etcd()
        async with self._step("outage", left):
            await run.stop_etcd()
            await run.fenced(left)
            await run.start_etcd()
        return {
            **self._found,
            "sharding.overlaps": len(run.history.breaches),
            "sharding.writes": run.history.writes,
            "sharding.refused_writes": run.conflicts,
        }

    @asynccontextmanager
    async def _step(self, name: str, members: Iterable[int]) -> AsyncIterator[None]:
        sys.stderr.write(f"bench: {name}\n")
        async with self._run.step(members) as moved:
            yield
        self._note(f"sharding.{name}", moved[0])

    def _note(self, key: str, moved: "Moved") -> None:
        self._found[f"{key}.moved"] = moved.projects
        for cut in (50, 99):
            if moved.hand_overs:
                self._found[f"{key}.hand_over_p{cut}_s"] = moved.gap_s(cut / 100)
