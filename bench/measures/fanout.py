"""Changes committed in bursts, to many subscribers; beside it a bare gRPC server that sends the same batches.

The daemon has to read, judge and encode each change once, however many subscribers there are: `intake` is what that
takes with nobody to send it to. The bare server has its bytes ready.
"""

import time
from pathlib import Path
from statistics import median

from bench import projects
from bench.bare import bare
from bench.daemon import Daemon
from bench.milo import Milo
from bench.setting import Figures, Setting
from bench.subscribers import Subscriber, opened, synced, together


async def measure(setting: Setting) -> Figures:
    scale = setting.scale
    figures: Figures = {}
    changes = min(scale.fanout_changes, scale.clusters)
    async with setting.daemon(scale.clusters) as (milo, daemon):
        bursts = Bursts(milo, daemon, changes, scale.fanout_burst)
        intake_s = median([await bursts.intake_s() for _ in range(scale.rounds)])
        figures["fanout.intake_events_per_s"] = changes / intake_s
        for count in scale.subscribers:
            ours, theirs, cpu_s = [], [], []
            for _ in range(scale.rounds):
                spent = daemon.cpu_s
                took, batches = await bursts.fan_out_s(count)
                cpu_s.append(daemon.cpu_s - spent)
                ours.append(took)
                theirs.append(await bare_fan_out_s(batches, count, setting.directory))
            sent = changes * count
            key = f"fanout.{count}"
            figures[f"{key}.events_per_s"] = sent / median(ours)
            figures[f"{key}.bare_events_per_s"] = sent / median(theirs)
            figures[f"{key}.ratio_to_bare"] = median(theirs) / median(ours)
            figures[f"{key}.ratio_to_bare_and_intake"] = (median(theirs) + intake_s) / median(ours)
            figures[f"{key}.batches"] = float(len(batches))
            figures[f"{key}.cpu_s"] = median(cpu_s)
    return figures


class Bursts:
    """Each run changes each of the first so many clusters once, so that nothing can be merged."""

    def __init__(self, milo: Milo, daemon: Daemon, changes: int, size: int) -> None:
        self._milo = milo
        self._daemon = daemon
        self._changes = changes
        self._size = size
        self._runs = 0

    async def intake_s(self) -> float:
        """Until who only wants the last of them has it."""
        last = projects.name(self._changes - 1)
        async with synced(self._daemon.address, 1, names=(last,)) as subscribers:
            return await self._timed(subscribers, 1)

    async def fan_out_s(self, count: int) -> tuple[float, list[bytes]]:
        """Until all subscribers have all changes; and the batches that one of them got."""
        batches: list[bytes] = []
        async with synced(self._daemon.address, count) as subscribers:
            first, *_ = subscribers
            first.on_batch = lambda data, _: batches.append(data)
            took = await self._timed(subscribers, self._changes)
        return took, [batch for batch in batches if batch]

    async def _timed(self, subscribers: list[Subscriber], events: int) -> float:
        self._runs += 1
        began = time.perf_counter()
        await together(
            [
                self._milo.burst(0, self._changes, self._size, str(self._runs)),
                *(each.until(events) for each in subscribers),
            ]
        )
        return time.perf_counter() - began


async def bare_fan_out_s(batches: list[bytes], count: int, directory: Path) -> float:
    async with bare(batches, directory) as peer, opened(peer.address, count) as subscribers:
        await together([each.read() for each in subscribers])
        began = time.perf_counter()
        peer.go()
        await together([_all(each, len(batches)) for each in subscribers])
        return time.perf_counter() - began


async def _all(subscriber: Subscriber, batches: int) -> None:
    for _ in range(batches):
        await subscriber.read()
