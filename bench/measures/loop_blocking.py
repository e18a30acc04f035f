"""The longest time that the daemon's event loop is blocked, with a large fleet."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from bench.daemon import Daemon
from bench.loop_blocking import SAYS
from bench.milo import SandboxMilo
from bench.setting import Samples, Setting
from bench.subscribers import opened, synced, together
from milo_discovery import DiscoveryClient


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    clusters, subscribers = scale.large, scale.churn_subscribers
    marks = map(str, count(1))
    async with setting.daemon(clusters, program="bench.loop_blocking") as (milo, daemon):
        if not isinstance(milo, SandboxMilo):
            return {}  # a real server takes minutes for these changes
        loop = _Loop(daemon)
        async with loop.holds("sync"), synced(daemon.address, 1):
            pass
        for _ in range(scale.rounds):
            async with loop.holds("snapshot"), synced(daemon.address, subscribers):
                pass
            async with synced(daemon.address, 1) as (present,):
                before = present.revision
                async with loop.holds("changes"):
                    burst = milo.burst(0, clusters, scale.fanout_burst, next(marks))
                    await together([burst, present.until(clusters)])
                async with loop.holds("resume"), opened(daemon.address, subscribers, resume=before) as returned:
                    await together([subscriber.until(clusters) for subscriber in returned])
                async with loop.holds("relist"):
                    await together([milo.relist(next(marks)), present.until(clusters + 1)])
            async with loop.holds("answer"), DiscoveryClient(daemon.address) as client:
                assert len(await client.list()) == clusters
        return loop.samples


class _Loop:
    def __init__(self, daemon: Daemon) -> None:
        self.samples: Samples = {}
        self._daemon = daemon
        self._asked = 0

    @asynccontextmanager
    async def holds(self, key: str) -> AsyncIterator[None]:
        if self._asked:  # the first value includes the daemon's startup
            await self._longest_s()
        yield
        self.samples.setdefault(f"loop_blocking.{key}_ms", []).append(1000 * await self._longest_s())

    async def _longest_s(self) -> float:
        """Return the duration of the longest callback since the last call."""
        self._asked += 1
        self._daemon.signal(signal.SIGRTMIN + 1)
        *_, line = await self._daemon.wait_for_lines(self._asked, beginning=SAYS)
        return float(line.removeprefix(SAYS))
