"""CPU and memory of the idle daemon."""

import asyncio
import time

from bench.setting import Samples, Setting
from bench.subscribers import Subscriber, meanwhile, synced

_SUBSCRIBERS = 20


async def measure(setting: Setting) -> Samples:
    """Measure without connectivity probes, and with probes of every cluster at the default rate."""
    samples = await _of("idle", setting, probed=False)
    return samples | await _of("idle.probed", setting, probed=True)


async def _of(key: str, setting: Setting, *, probed: bool) -> Samples:
    async with (
        setting.daemon(setting.scale.clusters, probed=probed) as (_, daemon),
        synced(daemon.address, _SUBSCRIBERS) as subscribers,
    ):
        async with meanwhile([_read(subscriber) for subscriber in subscribers]):
            spent, began = daemon.cpu_s, time.perf_counter()
            await asyncio.sleep(setting.scale.idle_s)
            cpu_s, took_s = daemon.cpu_s - spent, time.perf_counter() - began
        return {f"{key}.cpu_percent": [100 * cpu_s / took_s], f"{key}.rss_mib": [daemon.rss_mib]}


async def _read(subscriber: Subscriber) -> None:
    while True:
        await subscriber.read()
