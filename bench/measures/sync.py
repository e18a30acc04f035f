"""Time from the start of a process until it, or its subscriber, has the whole fleet, and its CPU time and memory."""

import asyncio
import shutil
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from bench import daemon as daemons
from bench import peers
from bench.access import PROJECTS, Access
from bench.milo import Milo
from bench.peers import Peer
from bench.setting import Samples, Setting
from bench.subscribers import Subscriber

_STREAMING_LIST = (
    "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=300"
)
_TOLD_OF_PEERS = ("seconds", "cpu_s", "rss_mib")
_END_OF_LIST = b"k8s.io/initial-events-end"


async def small(setting: Setting) -> Samples:
    return await _of_size(setting, setting.scale.small, "sync_1k")


async def usual(setting: Setting) -> Samples:
    return await _of_size(setting, setting.scale.clusters, "sync_10k")


async def large(setting: Setting) -> Samples:
    """Measure a hundred thousand clusters, and the cost per cluster from the difference to other sizes."""
    scale = setting.scale
    samples = await _of_size(setting, scale.large, "sync_100k")
    small, base = [await _alone(setting, count) for count in (scale.small, scale.clusters)]
    grown = {name: median(samples[f"sync_100k.{name}"]) for name in base}
    for few, (one, other) in {
        "": ((base, scale.clusters), (grown, scale.large)),
        ".to_10k": ((small, scale.small), (base, scale.clusters)),
    }.items():
        clusters = other[1] - one[1]
        samples[f"bytes_per_cluster{few}"] = [(other[0]["rss_mib"] - one[0]["rss_mib"]) * 2**20 / clusters]
        samples[f"cpu_us_per_cluster{few}"] = [(other[0]["cpu_s"] - one[0]["cpu_s"]) * 1e6 / clusters]
    return samples


async def _alone(setting: Setting, count: int) -> dict[str, float]:
    async with setting.milo(count) as milo:
        return await _daemon(milo, setting.directory, count)


async def _of_size(setting: Setting, count: int, key: str) -> Samples:
    async with setting.milo(count) as milo:
        readers = peers.readers(setting.scale)
        # In alternating rounds, so that other load affects all.
        runs, curls, beside = [], [], defaultdict(list)
        for _ in range(setting.scale.rounds):
            curls.append(await _curl(milo.access, setting.directory))
            runs.append(await _daemon(milo, setting.directory, count))
            for name, start in readers.items():
                began = time.perf_counter()
                async with start(milo.access.kubeconfig, setting.directory) as peer:
                    if peer is not None:
                        beside[name].append(await _peer(peer, began, count))
    samples: Samples = {f"{key}.{name}": [run[name] for run in runs] for name in runs[0]}
    for name in readers:
        samples |= {f"{key}.{name}_{figure}": [run[figure] for run in beside[name]] for figure in _TOLD_OF_PEERS}
    samples[f"{key}.curl_seconds"] = [seconds for seconds in curls if seconds is not None]
    for name in (*readers, "curl"):
        theirs = samples[f"{key}.{name}_seconds"]
        # One ratio per round; none if the peer was not measured.
        samples[f"{key}.ratio_to_{name}"] = [run["seconds"] / took for run, took in zip(runs, theirs, strict=False)]
    return samples


async def _peer(peer: Peer, began: float, count: int) -> dict[str, float]:
    found = await peer.synced()
    took_s = time.perf_counter() - began
    assert found == count, f"synced with {found} projects, want {count}"
    return {"seconds": took_s, "cpu_s": peer.cpu_s, "rss_mib": peer.rss_mib}


async def _daemon(milo: Milo, directory: Path, count: int) -> dict[str, float]:
    began = time.perf_counter()
    async with daemons.daemon(milo.access.kubeconfig, directory) as daemon:
        listening = time.perf_counter()
        subscriber = Subscriber(daemon.address)
        await subscriber.until_synced()
        synced = time.perf_counter()
        cpu_s = daemon.cpu_s
        assert subscriber.events == count, f"synced with {subscriber.events} clusters, want {count}"
        await subscriber.close()
        return {
            "seconds": synced - began,
            "listening_seconds": listening - began,
            "cpu_s": cpu_s,
            "rss_mib": daemon.rss_mib,
            "peak_mib": daemon.peak_mib,
        }


async def _curl(access: Access, directory: Path) -> float | None:
    """Return the seconds in which curl reads a streaming list; None if curl is not installed."""
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
