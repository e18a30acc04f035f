"""Hundreds of changes a second for minutes: latency, completeness and memory growth.

One subscriber keeps the state of the whole fleet, which is compared with a list at the end. The revisions of each
stream must be a chain without missing batches and resets.
"""

import asyncio
import time
from statistics import median, quantiles

from bench.crowd import Heard, crowd
from bench.daemon import Daemon
from bench.milo import SandboxMilo
from bench.projects import MARK
from bench.setting import Samples, Setting
from bench.subscribers import Subscriber, meanwhile
from milo_discovery import DiscoveryClient
from milo_discovery.v1 import discovery_pb2 as pb

_WEIGHED_EVERY_S = 1.0
_END, _END_WITHIN_S = "end", 60.0
_WARM_UP = 0.25
"""The share of the time after which the daemon's log has reached its final size."""


async def steady(setting: Setting) -> Samples:
    """Measure a fleet of the usual size."""
    scale = setting.scale
    return await _measure("churn", setting, scale.clusters, scale.churn_subscribers)


async def crowded(setting: Setting) -> Samples:
    """Measure a large fleet, with hundreds of subscribers."""
    scale = setting.scale
    return await _measure("fleet_50k", setting, scale.fleet, scale.fleet_subscribers)


async def _measure(key: str, setting: Setting, clusters: int, count: int) -> Samples:
    scale = setting.scale
    async with (
        setting.daemon(clusters) as (milo, daemon),
        crowd(daemon.address, count, setting.directory) as subscribers,
    ):
        if not isinstance(milo, SandboxMilo):
            return {}  # too many writes for a real server on the benchmark's machine
        keeper = _Keeper(Subscriber(daemon.address))
        await keeper.subscriber.until_synced()
        kept, weights = Heard(), list[float]()
        async with meanwhile([_weigh(daemon, weights), kept.listen(keeper.subscriber)]):
            spent, began = daemon.cpu_s, time.perf_counter()
            await milo.churn(scale.changes_per_s, scale.churn_s)
            took_s, cpu_s = time.perf_counter() - began, daemon.cpu_s - spent
            await milo.burst(0, 1, 1, _END)
            async with asyncio.timeout(_END_WITHIN_S):
                await keeper.ended.wait()
            differences = await _differences(daemon.address, keeper.fleet)
            heard = kept + await subscribers.heard()
        await keeper.subscriber.close()
    later = weights[int(len(weights) * _WARM_UP) :]
    third = len(later) // 3 + 1
    return {
        f"{key}.p50_ms": [median(heard.late_ms)],
        f"{key}.p99_ms": [quantiles(heard.late_ms, n=100)[98]],
        f"{key}.resets": [float(heard.resets)],
        f"{key}.gaps": [float(heard.gaps)],
        f"{key}.differences": [float(differences)],
        f"{key}.changes": [scale.changes_per_s * scale.churn_s],
        f"{key}.cpu_percent": [100 * cpu_s / took_s],
        f"{key}.rss_mib": [weights[-1]],
        f"{key}.growth_percent": [100 * (median(later[-third:]) / median(later[:third]) - 1)],
    }


class _Keeper:
    """The fleet according to the received events: incarnation and label value of each cluster."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.fleet: dict[str, tuple[str, str]] = {}
        self.ended = asyncio.Event()
        subscriber.on_batch = self._apply

    def _apply(self, data: bytes) -> None:
        for event in pb.WatchClustersResponse.FromString(data).events:
            cluster = event.cluster
            if event.type == pb.ClusterEvent.TYPE_DISENGAGED:
                del self.fleet[cluster.name]
                continue
            self.fleet[cluster.name] = (cluster.incarnation, cluster.labels[MARK])
            if cluster.labels[MARK] == _END:
                self.ended.set()


async def _weigh(daemon: Daemon, weights: list[float]) -> None:
    while True:
        weights.append(daemon.rss_mib)
        await asyncio.sleep(_WEIGHED_EVERY_S)


async def _differences(address: str, kept: dict[str, tuple[str, str]]) -> int:
    async with DiscoveryClient(address) as client:
        listed = {cluster.name: (cluster.incarnation, cluster.labels[MARK]) for cluster in await client.list()}
    return len(set(listed.items()) ^ set(kept.items()))
