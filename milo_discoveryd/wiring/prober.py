"""Builds and runs the connectivity prober that the settings `connectivity` describe."""

import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, aclosing

from milo_discoveryd.config import Settings
from milo_discoveryd.connectivity.host_schedule import HostSchedule
from milo_discoveryd.connectivity.prober import Prober
from milo_discoveryd.connectivity.reachability import ProbePolicy, ProbeSchedule, at_once
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.instruments import ProbeMetrics
from milo_discoveryd.kubeconfigs.kubeconfigs import Kubeconfigs
from milo_discoveryd.log.events import EventType
from milo_discoveryd.watchers.probing import ClusterAccess, ProbeSender
from milo_discoveryd.wiring.configured_source import ConfiguredSource


async def probe(
    settings: Settings,
    sources: Sequence[ConfiguredSource],
    environ: Mapping[str, str],
    *,
    fleet: Fleet,
    kubeconfigs: Kubeconfigs,
    metrics: ProbeMetrics,
) -> None:
    """Probe the clusters of the fleet until canceled."""
    connectivity = settings.connectivity
    of_hosts = probes_hosts(settings)
    access = ClusterAccess(
        held=kubeconfigs.held,
        trust_of=kubeconfigs.trust_of,
        rejected=lambda cluster, is_rejected: kubeconfigs.probed(cluster, is_rejected=is_rejected),
    )
    async with AsyncExitStack() as stack:
        senders: dict[str, ProbeSender] = {}
        for source in sources:
            sender = ProbeSender(
                source.project,
                environ,
                access,
                sends_own_credential=source.of.settings.addresses_are_configured,
                path=connectivity.path,
                timeout_s=connectivity.timeout.total_seconds(),
                of_hosts=of_hosts,
            )
            senders[source.of.name] = await stack.enter_async_context(aclosing(sender))
        prober = Prober(
            (HostSchedule if of_hosts else ProbeSchedule)(_policy(settings), random.random),
            lambda cluster: senders[cluster.target.source].send(cluster),
            fleet.connectivity_changed,
            metrics,
            is_wanted=fleet.needs_probe,
        )
        fleet.changes.add_listener(EventType.ENGAGED, lambda event: prober.engaged(event.cluster))
        fleet.changes.add_listener(EventType.UPDATED, lambda event: prober.updated(event.cluster))
        fleet.changes.add_listener(EventType.DISENGAGED, lambda event: prober.disengaged(event.cluster))
        await prober.run()


def probes_hosts(settings: Settings) -> bool:
    """Return whether connectivity is probed per host instead of per cluster."""
    connectivity = settings.connectivity
    if connectivity.per != "auto":
        return connectivity.per == "host"
    share_host = all(source.settings.shares_host for source in settings.sources)
    return share_host and connectivity.disengage_unreachable_after is None


def _policy(settings: Settings) -> ProbePolicy:
    connectivity = settings.connectivity
    assert connectivity.interval is not None, "connectivity.interval must be set if clusters are probed"
    give_up_after = connectivity.disengage_unreachable_after
    return ProbePolicy(
        interval_s=connectivity.interval.total_seconds(),
        rate_per_s=connectivity.rate,
        host_rate_per_s=connectivity.host_rate,
        at_once=at_once(connectivity.rate, connectivity.timeout.total_seconds()),
        unreachable_after_s=connectivity.unreachable_after.total_seconds(),
        give_up_after_s=None if give_up_after is None else give_up_after.total_seconds(),
        give_up_count=settings.removals.count,
        give_up_share=settings.removals.share,
    )
