"""What the daemon spends when nothing happens."""

import asyncio
import time

from bench.setting import Figures, Setting
from bench.subscribers import synced

_SUBSCRIBERS = 20


async def measure(setting: Setting) -> Figures:
    async with (
        setting.daemon(setting.scale.clusters) as (_, daemon),
        synced(daemon.address, _SUBSCRIBERS),
    ):
        spent, began = daemon.cpu_s, time.perf_counter()
        await asyncio.sleep(setting.scale.idle_s)
        cpu_s = daemon.cpu_s - spent
        return {"idle.cpu_percent": 100 * cpu_s / (time.perf_counter() - began), "idle.rss_mib": daemon.rss_mib}
