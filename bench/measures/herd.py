"""Many subscribers that request the whole fleet at once, as after a restart of the daemon."""

import time

from bench.setting import Samples, Setting
from bench.subscribers import opened, synced, together


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    took = []
    async with setting.daemon(scale.clusters) as (_, daemon):
        async with synced(daemon.address, 1):
            rss_mib = daemon.rss_mib
        for _ in range(scale.rounds):
            began = time.perf_counter()
            async with opened(daemon.address, scale.herd) as subscribers:
                await together([subscriber.until_synced() for subscriber in subscribers])
                took.append(time.perf_counter() - began)
                assert all(subscriber.events == scale.clusters for subscriber in subscribers)
        return {"herd_500.seconds": took, "herd_500.rss_growth_mib": [daemon.peak_mib - rss_mib]}
