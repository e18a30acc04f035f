"""CPU, memory and requests of a daemon, by the number of projects, of subscribers and of changes per second.

Each cluster is probed. All runs with one number of projects share a daemon, so that the memory of a run includes what
remains of runs with fewer changes and subscribers.
"""

import time

from bench.crowd import crowd
from bench.milo import SandboxMilo
from bench.setting import Samples, Setting


async def measure(setting: Setting) -> Samples:
    samples: Samples = {}
    for projects in setting.scale.capacity_projects:
        async with setting.daemon(projects, probed=True) as (milo, daemon):
            if not isinstance(milo, SandboxMilo):
                return {}
            for subscribers in setting.scale.capacity_subscribers:
                async with crowd(daemon.address, subscribers, setting.directory):
                    for changes in setting.scale.capacity_changes:
                        spent, asked, began = daemon.cpu_s, await milo.requests(), time.perf_counter()
                        await milo.churn(changes, setting.scale.capacity_s)
                        took_s = time.perf_counter() - began
                        requests = await milo.requests() - asked
                        key = f"capacity.{projects}.{subscribers}.{changes:g}"
                        samples[f"{key}.cpu_percent"] = [100 * (daemon.cpu_s - spent) / took_s]
                        samples[f"{key}.rss_mib"] = [daemon.rss_mib]
                        samples[f"{key}.requests_per_s"] = [requests / took_s]
    return samples
