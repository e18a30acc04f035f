"""Fan-out of bursts of changes to many subscribers.

Caught up: the changes are in the daemon's log, and many subscribers resume from an earlier revision at once. The
baseline is a bare gRPC server with the same batches as bytes.

Live: the same changes, to connected subscribers, including the API server's time and the daemon's processing of each
change; `intake` is the same with one subscriber, which selects only the cluster that changes last.
"""

import time
from pathlib import Path
from typing import NamedTuple

from bench import projects
from bench.bare import bare
from bench.daemon import Daemon
from bench.milo import Milo
from bench.setting import Samples, Setting
from bench.subscribers import Subscriber, opened, synced, together


class Caught(NamedTuple):
    seconds: float
    batches: list[bytes]
    """The batches that one subscriber received."""


class Live(NamedTuple):
    seconds: float
    cpu_s: float


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    samples: Samples = {}
    changes = min(scale.fanout_changes, scale.clusters)
    async with setting.daemon(scale.clusters) as (milo, daemon):
        bursts = Bursts(milo, daemon, changes, scale.fanout_burst)
        intakes = [await bursts.intake() for _ in range(scale.fanout_rounds)]
        samples["fanout.intake_events_per_s"] = [changes / intake.seconds for intake in intakes]
        samples["fanout.intake_cpu_us_per_event"] = [intake.cpu_s / changes * 1e6 for intake in intakes]
        for count in scale.subscribers:
            caught, theirs, live = [], [], []
            for _ in range(scale.fanout_rounds):
                caught.append(await bursts.caught_up(count))
                theirs.append(await bare_s(caught[-1].batches, count, setting.directory))
                live.append(await bursts.live(count))
            sent, key = changes * count, f"fanout.{count}"
            samples[f"{key}.events_per_s"] = [sent / run.seconds for run in caught]
            samples[f"{key}.bare_events_per_s"] = [sent / took_s for took_s in theirs]
            samples[f"{key}.ratio_to_bare"] = [took_s / run.seconds for took_s, run in zip(theirs, caught, strict=True)]
            samples[f"{key}.batches"] = [float(len(run.batches)) for run in caught]
            samples[f"{key}.live_events_per_s"] = [sent / run.seconds for run in live]
            samples[f"{key}.live_cpu_us_per_event"] = [run.cpu_s / sent * 1e6 for run in live]
    return samples


class Bursts:
    """Changes in bursts. They change each cluster at most once, so that nothing is coalesced."""

    def __init__(self, milo: Milo, daemon: Daemon, changes: int, size: int) -> None:
        self._milo = milo
        self._daemon = daemon
        self._changes = changes
        self._size = size
        self._runs = 0

    async def caught_up(self, count: int) -> Caught:
        async with synced(self._daemon.address, 1) as (present,):
            before = present.revision
            await self._made([present], self._changes)
            batches: list[bytes] = []
            began = time.perf_counter()
            async with opened(self._daemon.address, count, resume=before) as subscribers:
                subscribers[0].on_batch = batches.append
                await together([subscriber.until(self._changes) for subscriber in subscribers])
                return Caught(time.perf_counter() - began, batches)

    async def live(self, count: int) -> Live:
        async with synced(self._daemon.address, count) as subscribers:
            return await self._timed(subscribers, self._changes)

    async def intake(self) -> Live:
        """Measure the changes until the only subscriber has the last of them."""
        last = projects.name(self._changes - 1)
        async with synced(self._daemon.address, 1, names=(last,)) as subscribers:
            return await self._timed(subscribers, 1)

    async def _timed(self, subscribers: list[Subscriber], events: int) -> Live:
        spent, began = self._daemon.cpu_s, time.perf_counter()
        await self._made(subscribers, events)
        return Live(time.perf_counter() - began, self._daemon.cpu_s - spent)

    async def _made(self, subscribers: list[Subscriber], events: int) -> None:
        self._runs += 1
        burst = self._milo.burst(0, self._changes, self._size, str(self._runs))
        await together([burst, *(subscriber.until(events) for subscriber in subscribers)])


async def bare_s(batches: list[bytes], count: int, directory: Path) -> float:
    async with bare(batches, directory) as server:
        began = time.perf_counter()
        async with opened(server.address, count) as subscribers:
            await together([_all(subscriber, len(batches)) for subscriber in subscribers])
            return time.perf_counter() - began


async def _all(subscriber: Subscriber, batches: int) -> None:
    for _ in range(batches):
        await subscriber.read()
