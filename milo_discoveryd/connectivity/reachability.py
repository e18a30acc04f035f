"""The schedule of connectivity probes, and the connectivity that follows from their outcomes. Callers pass the time.

Probes are rate limited in total and per host: the more clusters share a host, the less often each is probed. Tenants
take turns: one may have thousands of hosts. While a host is down, one probe at a time represents all clusters behind
it. A cluster becomes unreachable only after its probes failed for `unreachable_after_s`, so that the restart of an API
server is not reported.

With `give_up_after_s`, a cluster that stays unreachable is disengaged. An outage of a host that several clusters share
disengages none of them, and neither does an outage of many clusters: then the daemon itself may be cut off.
"""

import heapq
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import chain

import msgspec

from milo_discoveryd.model.cluster import ConnectivityStatus, Reachability
from milo_discoveryd.model.tenant_counts import TenantCounts
from milo_kube.moment import Moment
from milo_kube.reflect.backoff import Backoff


class ProbePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Intervals, rate limits and thresholds of probes."""

    interval_s: float = 60.0
    """Interval between probes of a cluster, if the rate limits allow it."""
    rate_per_s: float = 50.0
    host_rate_per_s: float = 20.0
    at_once: int = 250
    """Maximum probes in flight; see the function `at_once`."""
    unreachable_after_s: float = 30.0
    """How long probes must fail before a cluster is unreachable."""
    host_down_after: int = 3
    """Consecutive probes without a response after which a host is considered down."""
    host_backoff: Backoff = Backoff(first_s=1.0, cap_s=15.0)
    give_up_after_s: float | None = None
    """How long a cluster must be unreachable before it is disengaged; None: never."""
    give_up_count: int = 10
    """No cluster is disengaged while the number of unreachable clusters exceeds both this number and the share
    `give_up_share`."""
    give_up_share: float = 0.2
    """Share of all clusters: see `give_up_count`. While more than half of them are unreachable, no cluster is
    disengaged."""


_READY_PER_PROBE = 100
"""How many hosts become ready at once, for each probe that is sent: to look at all of 100,000 takes 0.1 s."""
AT_ONCE = 512
"""Limit of probes in flight: each uses a file descriptor."""


def at_once(rate_per_s: float, timeout_s: float) -> int:
    """Return the limit of probes in flight: the number that is sent within one timeout, capped at `AT_ONCE`.

    With a lower limit, probes of servers that do not respond would delay those of servers that do.
    """
    return min(AT_ONCE, math.ceil(rate_per_s * timeout_s))


class ProbeReached(msgspec.Struct, frozen=True):
    """A probe that the API server answered. If it denied the request, `note` describes the denial."""

    note: str = ""


class ProbeFailed(msgspec.Struct, frozen=True):
    """A probe without a usable response."""

    cause: str
    """One word, such as `timeout`: the cause of the `TransportError`, the status, or `5xx`."""
    message: str
    is_of_host: bool = False
    """Whether the host itself did not answer: the outcome then applies to every cluster behind it."""


ProbeOutcome = ProbeReached | ProbeFailed


class Probe(msgspec.Struct, frozen=True):
    """A probe to send now. Its outcome goes to `ProbeSchedule.record`, unless the probe is dropped."""

    name: str
    incarnation: int
    watch: int
    """Distinguishes the probes before and after a change of the cluster's endpoint."""


class ConnectivityChange(msgspec.Struct, frozen=True):
    """A change of a cluster's connectivity."""

    name: str
    incarnation: int
    connectivity: ConnectivityStatus
    disengages: bool = False
    """Whether to disengage the cluster, because it was unreachable for `give_up_after_s`."""


class _Host(msgspec.Struct):
    """The clusters behind one host, and its rate limit."""

    due: list[tuple[float, int, str]] = msgspec.field(default_factory=list)
    """A heap of probe times by cluster. Entries of clusters that were removed or rescheduled are skipped."""
    turn: int = 0
    """Identifies the host's valid entry in the heap of hosts."""
    free_at: float = 0.0
    """When the rate limit, or the backoff of a host that is down, allows the next probe."""
    failures: int = 0
    """The number of consecutive probes of the host's clusters without a response."""
    latest: Probe | None = None
    """The probe that was sent last. While the host is down, no other is sent until it has ended."""
    names: dict[str, None] = msgspec.field(default_factory=dict)
    answering: int = 0
    """The number of clusters whose last probe was answered."""
    reached_at: float = -math.inf
    """When a probe was last answered."""
    passing: int = 0
    """Identifies the pass under way that applies an outcome to all clusters of the host; 0 if there is none."""


class _ProbedCluster(msgspec.Struct, gc=False):
    host: str
    incarnation: int
    watch: int
    tenant: str = ""
    turn: int = 0
    """Identifies the cluster's valid entry in the host's heap. It increases with each outcome of its own."""
    state: Reachability = Reachability.UNKNOWN
    detail: str = ""
    """The note or cause that was last reported. A different message with the same cause is not reported."""
    since: float = 0.0
    failing_since: float | None = None
    by_host: bool = False
    """Whether the cluster became unreachable together with its host, and so becomes reachable together with it."""
    unreachable_since: float = 0.0
    """When the cluster became unreachable (steady clock), or when an outage of its shared host or of many clusters was
    last seen, if that was later."""

    @property
    def answers(self) -> bool:
        """Whether the last probe was answered."""
        return self.state is Reachability.REACHABLE and self.failing_since is None


class ProbeSchedule:
    """Decides when to probe each cluster, and when its connectivity changed."""

    def __init__(self, policy: ProbePolicy, jitter: Callable[[], float]) -> None:
        self._policy = policy
        self._jitter = jitter
        self._hosts: dict[str, _Host] = {}
        self._watched: dict[str, _ProbedCluster] = {}
        self._host_queue: list[tuple[float, int, str]] = []
        """A heap of hosts by the time at which each may be probed."""
        self._ready = OrderedDict[str, deque[tuple[int, str]]]()
        """The hosts whose time has come, by the tenant of the cluster to probe. The next tenant is the first."""
        self._free_at = 0.0
        self._in_flight: dict[Probe, str] = {}
        """Probes in flight, with the host of each."""
        self._turns = 0
        self._unreachable = TenantCounts()
        self._of_tenants: Counter[str] = Counter()
        """Number of clusters by tenant."""

    def watch(self, name: str, host: str, incarnation: int, now: float, tenant: str = "") -> None:
        """Add an engaged cluster. It is probed as soon as the rate limits allow."""
        self.forget(name)
        self._turns += 1
        self._watched[name] = _ProbedCluster(host, incarnation, self._turns, tenant)
        self._of_tenants[tenant] += 1
        self._hosts.setdefault(host, _Host()).names[name] = None
        self._plan(name, now)

    def forget(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is None:
            return
        self._of_tenants[watched.tenant] -= 1
        if not self._of_tenants[watched.tenant]:
            del self._of_tenants[watched.tenant]
        if watched.state is Reachability.UNREACHABLE:
            self._unreachable.remove(watched.tenant)
        host = self._hosts[watched.host]
        del host.names[name]
        host.answering -= watched.answers
        if host.names:
            self._enqueue_host(watched.host)
        else:
            del self._hosts[watched.host]

    def due(self, now: float) -> list[Probe]:
        """Return the probes to send now. Each must be passed to `record` or `drop`."""
        found: list[Probe] = []
        while self._may_send(now) and (key := self._take_ready(now)) is not None:
            host = self._hosts[key]
            _, _, name = heapq.heappop(host.due)
            probe = Probe(name, self._watched[name].incarnation, self._watched[name].watch)
            self._in_flight[probe] = key
            found.append(probe)
            host.latest = probe
            # Token bucket: at most one second's worth of unused probes accumulates.
            host.free_at = max(host.free_at, now - 1.0) + 1.0 / self._policy.host_rate_per_s
            self._free_at = max(self._free_at, now - 1.0) + 1.0 / self._policy.rate_per_s
            self._enqueue_host(key)
        return found

    def drop(self, probe: Probe) -> None:
        """Withdraw a probe that was not sent, and remove its cluster."""
        del self._in_flight[probe]
        self.forget(probe.name)

    def known_changes(self) -> list[ConnectivityChange]:
        """Return no changes, because each cluster has its own probes. `HostSchedule` has the same method."""
        return []

    @property
    def next_at(self) -> float | None:
        """When the next probe is due; None if none is planned, or too many are in flight."""
        if not (self._host_queue or self._ready) or len(self._in_flight) >= self._policy.at_once:
            return None
        return self._free_at if self._ready else max(self._host_queue[0][0], self._free_at)

    def record(self, probe: Probe, outcome: ProbeOutcome, now: Moment) -> Iterator[ConnectivityChange | None]:
        """Record the outcome of a probe, and return the changes that follow from it, with None for each cluster that
        does not change.

        An outcome that applies to all clusters of a host is applied to each when its change is taken from the iterator,
        unless the cluster or the host has had a later outcome by then.
        """
        key = self._in_flight.pop(probe)
        watched = self._watched.get(probe.name)
        if watched is None or watched.watch != probe.watch:
            if key in self._hosts:
                self._enqueue_host(key)
            return iter(())
        host = self._hosts[watched.host]
        was_down = self._is_down(host)
        is_of_host = isinstance(outcome, ProbeFailed) and outcome.is_of_host
        # A probe that was sent before the host was down, as many may have been, says nothing new of the host.
        is_late = is_of_host and was_down and probe != host.latest
        if not is_late:
            host.failures = host.failures + 1 if is_of_host else 0
        is_down = self._is_down(host)
        if is_down and not is_late:
            waits = host.failures - self._policy.host_down_after + 1
            host.free_at = now.steady + self._policy.host_backoff.delay(waits, self._jitter)
        turn = self._turns
        self._plan(probe.name, now.steady + self._interval_s(host))
        own = iter((self._connectivity_change(probe.name, outcome, now, by_host=is_down),))
        # The pass of an outage goes on while its probes fail: if each began another, the last clusters might wait.
        if is_late or not (was_down or is_down) or (was_down and is_down and host.passing):
            return own
        host.passing = turn
        return chain(own, self._pass(host, turn, outcome, now))

    def _pass(self, host: _Host, turn: int, outcome: ProbeOutcome, now: Moment) -> Iterator[ConnectivityChange | None]:
        """Apply an outcome to the host's clusters: to all if the host is down, else to those that were down with it."""
        is_down = self._is_down(host)
        for name in tuple(host.names):
            if host.passing != turn:
                return
            watched = self._watched.get(name)
            if watched is None or watched.turn > turn or not (is_down or watched.by_host):
                yield None
            else:
                yield self._connectivity_change(name, outcome, now, by_host=is_down)
        if host.passing == turn:
            host.passing = 0

    def _connectivity_change(
        self, name: str, outcome: ProbeOutcome, now: Moment, *, by_host: bool
    ) -> ConnectivityChange | None:
        watched = self._watched[name]
        host = self._hosts[watched.host]
        host.answering += isinstance(outcome, ProbeReached) - watched.answers
        if isinstance(outcome, ProbeReached):
            host.reached_at = now.steady
            watched.failing_since, watched.by_host = None, False
            state, detail, message = Reachability.REACHABLE, outcome.note, outcome.note
        else:
            if watched.failing_since is None:
                watched.failing_since = now.steady
            if now.steady - watched.failing_since < self._policy.unreachable_after_s:
                return None
            state, detail, message = Reachability.UNREACHABLE, outcome.cause, f"{outcome.cause}: {outcome.message}"
            # A cluster whose probes failed before its host was down must itself be probed successfully.
            watched.by_host = by_host and (watched.by_host or watched.state is not Reachability.UNREACHABLE)
            # Of a shared host, each cluster may fail for itself: it is an outage until another is known to answer.
            if len(host.names) > 1 and (by_host or not host.answering or host.reached_at <= watched.failing_since):
                watched.unreachable_since = now.steady
        is_news = (state, detail) != (watched.state, watched.detail)
        if state is not watched.state:
            if state is Reachability.UNREACHABLE:
                self._unreachable.add(watched.tenant)
            elif watched.state is Reachability.UNREACHABLE:
                self._unreachable.remove(watched.tenant)
            watched.since, watched.unreachable_since = now.wall, now.steady
        watched.state, watched.detail = state, detail
        disengages = state is Reachability.UNREACHABLE and self._disengages(watched, now.steady)
        if not is_news and not disengages:
            return None
        return ConnectivityChange(
            name, watched.incarnation, ConnectivityStatus(state, watched.since, message), disengages
        )

    def _disengages(self, watched: _ProbedCluster, now: float) -> bool:
        policy = self._policy
        if policy.give_up_after_s is None:
            return False
        unreachable, all_clusters = self._unreachable.counted_for(watched.tenant), len(self._watched)
        if (other := self._unreachable.not_counted_for(watched.tenant)) is not None:
            all_clusters -= self._of_tenants[other]
        limit = max(policy.give_up_count, policy.give_up_share * all_clusters)
        if 2 * unreachable > all_clusters or unreachable > limit:
            # The daemon itself may be cut off: time during which too many clusters are unreachable does not count.
            watched.unreachable_since = now
            return False
        return now - watched.unreachable_since >= policy.give_up_after_s

    def _plan(self, name: str, at: float) -> None:
        watched = self._watched[name]
        self._turns += 1
        watched.turn = self._turns
        heapq.heappush(self._hosts[watched.host].due, (at, watched.turn, name))
        self._enqueue_host(watched.host)

    def _enqueue_host(self, key: str) -> None:
        """Put a host into the heap of hosts, at the time of its next valid probe."""
        host = self._hosts[key]
        self._turns += 1
        host.turn = self._turns
        while host.due and self._is_stale(host.due[0]):
            heapq.heappop(host.due)
        if host.due and not (self._is_down(host) and host.latest in self._in_flight):
            heapq.heappush(self._host_queue, (max(host.due[0][0], host.free_at), host.turn, key))

    def _is_stale(self, planned: tuple[float, int, str]) -> bool:
        _, turn, name = planned
        watched = self._watched.get(name)
        return watched is None or watched.turn != turn

    def _may_send(self, now: float) -> bool:
        return self._free_at <= now and len(self._in_flight) < self._policy.at_once

    def _take_ready(self, now: float) -> str | None:
        """Return the host to probe now: one of the tenant whose turn it is; None if there is none."""
        more = _READY_PER_PROBE
        while more and self._host_queue and self._host_queue[0][0] <= now:
            _, turn, key = heapq.heappop(self._host_queue)
            if (host := self._host_of_turn(key, turn)) is not None:
                tenant = self._watched[host.due[0][-1]].tenant
                self._ready.setdefault(tenant, deque()).append((turn, key))
                more -= 1
        while self._ready:
            tenant, hosts = next(iter(self._ready.items()))
            turn, key = hosts.popleft()
            if not hosts:
                del self._ready[tenant]
            if self._host_of_turn(key, turn) is not None:
                if hosts:
                    self._ready.move_to_end(tenant)
                return key
        return None

    def _host_of_turn(self, key: str, turn: int) -> _Host | None:
        host = self._hosts.get(key)
        return host if host is not None and host.turn == turn else None

    def _is_down(self, host: _Host) -> bool:
        return host.failures >= self._policy.host_down_after

    def _interval_s(self, host: _Host) -> float:
        spread = len(host.names) / self._policy.host_rate_per_s
        return max(self._policy.interval_s, spread) * (0.9 + 0.2 * self._jitter())
