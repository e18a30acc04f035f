"""Runs the probe schedule: sends the probes that are due and reports changes of connectivity."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit

from milo_discoveryd.connectivity.host_schedule import HostSchedule
from milo_discoveryd.connectivity.reachability import (
    ConnectivityChange,
    Probe,
    ProbeFailed,
    ProbeOutcome,
    ProbeReached,
    ProbeSchedule,
)
from milo_discoveryd.instruments import ProbeMetrics
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster
from milo_kube.moment import Moment
from milo_kube.tenants import working_for

STEP_S = 0.01
"""How long changes are reported before other tasks run on the event loop: all clusters of a host can change at once."""

SendProbe = Callable[[Cluster], Awaitable[ProbeOutcome]]
"""Probes the cluster's API server within a deadline. Returns expected failures instead of raising them."""


class Prober:
    """The task that probes engaged clusters, or their hosts, when the schedule requires it."""

    def __init__(
        self,
        schedule: ProbeSchedule | HostSchedule,
        send: SendProbe,
        report: Callable[[ConnectivityChange], None],
        metrics: ProbeMetrics,
        is_wanted: Callable[[str, int], bool],
    ) -> None:
        """`is_wanted` returns whether this incarnation of a cluster still needs probes."""
        self._schedule = schedule
        self._is_wanted = is_wanted
        self._send = send
        self._report = report
        self._metrics = metrics
        self._clusters: dict[str, Cluster] = {}
        self._unreported = deque[Iterator[ConnectivityChange | None]]()
        self._changed = asyncio.Event()
        self._clock = asyncio.get_running_loop().time

    def engaged(self, cluster: Cluster) -> None:
        target = cluster.target
        self._clusters[target.name] = cluster
        host = urlsplit(target.endpoint).netloc
        self._schedule.watch(target.name, host, cluster.incarnation, self._clock(), target.tenant)
        self._changed.set()

    def updated(self, cluster: Cluster) -> None:
        before = self._clusters.get(cluster.target.name)
        if before is None or before.target.endpoint != cluster.target.endpoint:
            self.engaged(cluster)
        else:
            self._clusters[cluster.target.name] = cluster

    def disengaged(self, cluster: Cluster) -> None:
        name = cluster.target.name
        if not self._is_wanted(name, cluster.incarnation):
            self._clusters.pop(name, None)
            self._schedule.forget(name)

    async def run(self) -> None:
        """Send probes until canceled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._unreported.append(iter(self._schedule.known_changes()))
                self._report_step()
                for probe in self._schedule.due(self._clock()):
                    if not self._is_wanted(probe.name, probe.incarnation):
                        # The cluster was disengaged as unreachable. Its later removal sent no second DISENGAGED event.
                        del self._clusters[probe.name]
                        self._schedule.drop(probe)
                        continue
                    # Looked up here, because the cluster may be removed before the task starts.
                    tasks.create_task(self._probe(probe, self._clusters[probe.name]), name=f"probe {probe.name}")
                try:
                    async with asyncio.timeout_at(self._clock() if self._unreported else self._schedule.next_at):
                        await self._changed.wait()
                except TimeoutError:
                    pass  # the next probe is due
                self._changed.clear()

    def _report_step(self) -> None:
        until = self._clock() + STEP_S
        while self._unreported:
            for change in self._unreported[0]:
                if change is not None:
                    with log.contained("connectivity not recorded", cluster=change.name):
                        self._report(change)
                if self._clock() >= until:
                    return
            self._unreported.popleft()

    async def _probe(self, probe: Probe, cluster: Cluster) -> None:
        working_for.set((cluster.target.source, cluster.target.tenant))
        try:
            outcome = await self._send(cluster)
        except Exception as error:
            log.exception("probe failed", cluster=probe.name)
            outcome = ProbeFailed("internal", f"{type(error).__name__} in the daemon; its stack is in the log")
        self._metrics.probed("reached" if isinstance(outcome, ProbeReached) else outcome.cause)
        self._unreported.append(iter(self._schedule.record(probe, outcome, Moment(time.time(), self._clock()))))
        self._changed.set()
