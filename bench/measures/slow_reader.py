"""The effect of subscribers that do not read on subscribers that do."""

import asyncio
import time
from collections.abc import Callable
from statistics import quantiles

from bench.daemon import Daemon
from bench.milo import Milo
from bench.setting import Samples, Setting
from bench.subscribers import Subscriber, opened, synced, together

_HEALTHY = 20
_PAUSE_S = 0.1


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    alone, beside = [], []
    async with setting.daemon(scale.clusters) as (milo, daemon):
        bursts = Bursts(milo, daemon, min(scale.fanout_burst, scale.clusters), scale.slow_reader_bursts)
        for _ in range(scale.rounds):
            alone.append(await bursts.p99_ms())
            # After one batch these subscribers never read again: their flow-control windows fill up, and further
            # messages stay in the daemon.
            async with opened(daemon.address, scale.stuck) as stuck:
                await together([subscriber.read() for subscriber in stuck])
                beside.append(await bursts.p99_ms())
    return {
        "fanout.slow_reader_effect": [one / other for one, other in zip(beside, alone, strict=True)],
        "fanout.slow_reader_p99_ms": beside,
        "fanout.no_slow_reader_p99_ms": alone,
    }


class Bursts:
    def __init__(self, milo: Milo, daemon: Daemon, size: int, count: int) -> None:
        self._milo = milo
        self._daemon = daemon
        self._size = size
        self._count = count

    async def p99_ms(self) -> float:
        """Return the 99th percentile of the time from the start of a burst until a healthy subscriber has all of it."""
        latencies: list[float] = []
        async with synced(self._daemon.address, _HEALTHY) as subscribers:
            for number in range(self._count):
                began = time.perf_counter()
                events = self._size * (number + 1)
                note = _noting(latencies, began)
                await together(
                    [
                        self._milo.burst(0, self._size, self._size, f"{began}"),
                        *(_until(subscriber, events, note) for subscriber in subscribers),
                    ]
                )
                await asyncio.sleep(_PAUSE_S)
        return quantiles(latencies, n=100)[98]


async def _until(subscriber: Subscriber, events: int, note: Callable[[], None]) -> None:
    await subscriber.until(events)
    note()


def _noting(latencies: list[float], began: float) -> Callable[[], None]:
    return lambda: latencies.append((time.perf_counter() - began) * 1000)
