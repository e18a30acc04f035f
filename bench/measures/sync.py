"""From the start of the process to a subscriber that has the whole fleet; and what the fleet weighs."""

import asyncio
import shutil
import time
from pathlib import Path
from statistics import median

from bench import daemon as daemons
from bench.access import PROJECTS, Access
from bench.milo import Milo
from bench.setting import Figures, Setting
from bench.subscribers import Subscriber

_STREAMING_LIST = (
    "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=300"
)
_END_OF_LIST = b"k8s.io/initial-events-end"


async def small(setting: Setting) -> Figures:
    return await _of_size(setting, setting.scale.small, "sync_1k")


async def usual(setting: Setting) -> Figures:
    return await _of_size(setting, setting.scale.clusters, "sync_10k")


async def large(setting: Setting) -> Figures:
    """The same at a hundred thousand; with the usual size beside it, what each cluster adds."""
    scale = setting.scale
    figures = await _of_size(setting, scale.large, "sync_100k")
    async with setting.milo(scale.clusters) as milo:
        base = (await _daemon(milo, setting.directory, scale.clusters))["rss_mib"]
    grown = figures["sync_100k.rss_mib"]
    assert grown is not None
    figures["bytes_per_cluster"] = (grown - base) * 2**20 / (scale.large - scale.clusters)
    return figures


async def _of_size(setting: Setting, count: int, key: str) -> Figures:
    async with setting.milo(count) as milo:
        # In turn, so that what else the machine does is the same for both.
        runs, curls = [], []
        for _ in range(setting.scale.rounds):
            curls.append(await _curl(milo.access, setting.directory))
            runs.append(await _daemon(milo, setting.directory, count))
    figures: Figures = {f"{key}.{name}": median(run[name] for run in runs) for name in runs[0]}
    timed = [seconds for seconds in curls if seconds is not None]
    figures[f"{key}.curl_seconds"] = median(timed) if timed else None
    figures[f"{key}.ratio_to_curl"] = median(run["seconds"] for run in runs) / median(timed) if timed else None
    return figures


async def _daemon(milo: Milo, directory: Path, count: int) -> dict[str, float]:
    began = time.perf_counter()
    async with daemons.daemon(milo.access.kubeconfig, directory) as daemon:
        listening = time.perf_counter()
        subscriber = Subscriber(daemon.address)
        await subscriber.until_synced()
        synced = time.perf_counter()
        cpu_s = daemon.cpu_s
        assert subscriber.events == count, f"synced with {subscriber.events} clusters of {count}"
        await subscriber.close()
        return {
            "seconds": synced - began,
            "listening_seconds": listening - began,
            "cpu_s": cpu_s,
            "rss_mib": daemon.rss_mib,
            "peak_mib": daemon.peak_mib,
        }


async def _curl(access: Access, directory: Path) -> float | None:
    """The same bytes, as fast as the server gives them; None where there is no curl."""
    curl = shutil.which("curl")
    if curl is None:
        return None
    authority = directory / "authority.pem"
    authority.write_text(access.authority)
    command = [curl, "--silent", "--no-buffer", "--fail", "--noproxy", "*", "--cacert", str(authority)]
    command += ["--header", f"Authorization: Bearer {access.token}", access.url + PROJECTS + _STREAMING_LIST]
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=1 << 22)
    assert process.stdout is not None
    seen = b""
    while _END_OF_LIST not in seen:
        chunk = await process.stdout.read(1 << 20)
        assert chunk, "the streaming list ended before it was complete"
        seen = seen[-len(_END_OF_LIST) :] + chunk
    took = time.perf_counter() - began
    process.kill()
    await process.communicate()
    return took
