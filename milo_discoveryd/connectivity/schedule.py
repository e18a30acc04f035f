"""When to probe which cluster, and what the answers say of it.

Probes have a budget, one for all and one for each host, and spread themselves over it: a thousand clusters behind one
host are asked about in turn, each less often. A host that can't be reached at all is probed once and not a thousand
times, and what that finds holds for all behind it. And a cluster is called unreachable only after it failed for a
while: an API server that restarts is nobody's news.

Where the settings want it, one that stays unreachable for long is given up; but never for an outage of a host that it
shares, and nobody is while many are away: then it is rather we who are.
"""

import heapq
import math
from collections.abc import Callable

import msgspec

from milo_discoveryd.model.cluster import Connectivity, ConnectivityState
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.reflect.backoff import Backoff


class ProbePolicy(msgspec.Struct, frozen=True, kw_only=True):
    interval_s: float = 60.0
    """Between two probes of a cluster, where the budget allows it."""
    rate_per_s: float = 50.0
    host_rate_per_s: float = 20.0
    at_once: int = 250
    """See the function of that name."""
    unreachable_after_s: float = 30.0
    """For how long a cluster has to fail before it is called unreachable."""
    host_down_after: int = 3
    """So many probes of a host in a row that found nobody there, and it is the host."""
    host_backoff: Backoff = Backoff(first_s=1.0, cap_s=15.0)
    give_up_after_s: float | None = None
    """For how long a cluster has to be unreachable to be given up; None: it never is."""
    give_up_count: int = 10
    """Nobody is given up while more are unreachable than this..."""
    give_up_share: float = 0.2
    """...or than this part of all, if that is more. More than half are always too many."""


AT_ONCE = 512
"""Each takes a file of the process while it is under way."""


def at_once(rate_per_s: float, timeout_s: float) -> int:
    """As many as can be under way if nobody answers: fewer, and those who do would wait for those who don't."""
    return min(AT_ONCE, math.ceil(rate_per_s * timeout_s))


class ProbeReached(msgspec.Struct, frozen=True):
    """An API server answered: with a refusal, perhaps, but it is there."""

    note: str = ""


class ProbeFailed(msgspec.Struct, frozen=True):
    cause: str
    """One word: dns, connect, tls, timeout, closed, credential, 429, 404, 5xx."""
    message: str
    is_of_host: bool = False
    """Nobody answered there: it would be the same for whoever else is behind that host."""


ProbeOutcome = ProbeReached | ProbeFailed


class Probe(msgspec.Struct, frozen=True):
    """To be made now; its outcome is to be told."""

    name: str
    incarnation: int


class ConnectivityChange(msgspec.Struct, frozen=True):
    """What a cluster's connectivity is from now on."""

    name: str
    incarnation: int
    connectivity: Connectivity
    disengages: bool = False


class _Host(msgspec.Struct):
    due: list[tuple[float, int, str]] = msgspec.field(default_factory=list)
    """A heap: when to probe which. What was forgotten or planned again is passed over."""
    turn: int = 0
    """Of its place in the line of hosts."""
    free_at: float = 0.0
    """When its budget, or its being down, allows the next probe."""
    failures: int = 0
    """Probes in a row, of any cluster, that found nobody there."""
    is_probed_for_all: bool = False
    """While it is down: one is being probed for all."""
    names: set[str] = msgspec.field(default_factory=set)


class _ProbedCluster(msgspec.Struct):
    host: str
    incarnation: int
    turn: int = 0
    state: ConnectivityState = ConnectivityState.UNKNOWN
    said: str = ""
    """The note of an answer, or the cause of a failure: another wording of the same is no news."""
    since: float = 0.0
    failing_since: float | None = None
    by_host: bool = False
    """It failed with its host, and comes back with it."""
    away_since: float = 0.0
    """On the steady clock: since when it has been unreachable, by itself."""


class ProbeSchedule:
    def __init__(self, policy: ProbePolicy, jitter: Callable[[], float]) -> None:
        self._policy = policy
        self._jitter = jitter
        self._hosts: dict[str, _Host] = {}
        self._watched: dict[str, _ProbedCluster] = {}
        self._line: list[tuple[float, int, str]] = []
        """A heap: which host may be probed when."""
        self._free_at = 0.0
        self._under_way: dict[Probe, str] = {}
        """With the host that each is made of."""
        self._turns = 0
        self._away = 0
        """Clusters that are unreachable."""

    def watch(self, name: str, host: str, incarnation: int, now: float) -> None:
        """A cluster was engaged. It is looked at as soon as the budget allows."""
        self.forget(name)
        self._watched[name] = _ProbedCluster(host, incarnation)
        self._hosts.setdefault(host, _Host()).names.add(name)
        self._plan(name, now)

    def forget(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is None:
            return
        self._away -= watched.state is ConnectivityState.UNREACHABLE
        host = self._hosts[watched.host]
        host.names.discard(name)
        if host.names:
            self._line_up(watched.host)
        else:
            del self._hosts[watched.host]

    def due(self, now: float) -> list[Probe]:
        """Those to make now. The outcome of each is to be told."""
        found: list[Probe] = []
        while self._line and self._may(now):
            _, turn, key = heapq.heappop(self._line)
            host = self._hosts.get(key)
            if host is None or host.turn != turn:
                continue
            _, _, name = heapq.heappop(host.due)
            probe = Probe(name, self._watched[name].incarnation)
            self._under_way[probe] = key
            found.append(probe)
            host.is_probed_for_all = self._is_down(host)
            # A budget not used for a moment may be used up at once, but not one of an hour.
            host.free_at = max(host.free_at, now - 1.0) + 1.0 / self._policy.host_rate_per_s
            self._free_at = max(self._free_at, now - 1.0) + 1.0 / self._policy.rate_per_s
            self._line_up(key)
        return found

    def drop(self, probe: Probe) -> None:
        """It is not to be made after all: nobody wants to know."""
        del self._under_way[probe]
        self.forget(probe.name)

    @property
    def next_at(self) -> float | None:
        """When there will be something to do, if no outcome comes before."""
        if not self._line or len(self._under_way) >= self._policy.at_once:
            return None
        return max(self._line[0][0], self._free_at)

    def told(self, probe: Probe, outcome: ProbeOutcome, now: Moment) -> list[ConnectivityChange]:
        key = self._under_way.pop(probe)
        watched = self._watched.get(probe.name)
        if watched is None or watched.incarnation != probe.incarnation:
            if key in self._hosts:
                self._hosts[key].is_probed_for_all = False
                self._line_up(key)
            return []
        host = self._hosts[watched.host]
        was_down = self._is_down(host)
        host.is_probed_for_all = False
        host.failures = host.failures + 1 if isinstance(outcome, ProbeFailed) and outcome.is_of_host else 0
        judged = [probe.name]
        if self._is_down(host):
            waits = host.failures - self._policy.host_down_after + 1
            host.free_at = now.steady + self._policy.host_backoff.delay(waits, self._jitter)
            judged = sorted(host.names)
        elif was_down:
            judged += [name for name in sorted(host.names) if self._watched[name].by_host and name != probe.name]
        self._plan(probe.name, now.steady + self._interval_s(host))
        verdicts = (self._judge(name, outcome, now, by_host=self._is_down(host)) for name in judged)
        return [verdict for verdict in verdicts if verdict is not None]

    def _judge(self, name: str, outcome: ProbeOutcome, now: Moment, *, by_host: bool) -> ConnectivityChange | None:
        watched = self._watched[name]
        if isinstance(outcome, ProbeReached):
            watched.failing_since, watched.by_host = None, False
            state, said, message = ConnectivityState.REACHABLE, outcome.note, outcome.note
        else:
            if watched.failing_since is None:
                watched.failing_since = now.steady
            if now.steady - watched.failing_since < self._policy.unreachable_after_s:
                return None
            state, said, message = ConnectivityState.UNREACHABLE, outcome.cause, f"{outcome.cause}: {outcome.message}"
            # One that failed by itself before has to be seen well by itself.
            watched.by_host = by_host and (watched.by_host or watched.state is not ConnectivityState.UNREACHABLE)
        is_news = (state, said) != (watched.state, watched.said)
        if state is not watched.state:
            self._away += (state is ConnectivityState.UNREACHABLE) - (watched.state is ConnectivityState.UNREACHABLE)
            watched.since, watched.away_since = now.wall, now.steady
        watched.state, watched.said = state, said
        if by_host and len(self._hosts[watched.host].names) > 1:
            watched.away_since = now.steady
        disengages = state is ConnectivityState.UNREACHABLE and self._disengages(watched, now.steady)
        if not is_news and not disengages:
            return None
        return ConnectivityChange(name, watched.incarnation, Connectivity(state, watched.since, message), disengages)

    def _disengages(self, watched: _ProbedCluster, now: float) -> bool:
        policy = self._policy
        if policy.give_up_after_s is None:
            return False
        all_clusters = len(self._watched)
        limit = max(policy.give_up_count, policy.give_up_share * all_clusters)
        if 2 * self._away > all_clusters or self._away > limit:
            # The daemon itself may be cut off: time in which so many are unreachable does not count.
            watched.away_since = now
            return False
        return now - watched.away_since >= policy.give_up_after_s

    def _plan(self, name: str, at: float) -> None:
        watched = self._watched[name]
        self._turns += 1
        watched.turn = self._turns
        heapq.heappush(self._hosts[watched.host].due, (at, watched.turn, name))
        self._line_up(watched.host)

    def _line_up(self, key: str) -> None:
        """Gives a host its place in the line, by the first in its own queue that still counts."""
        host = self._hosts[key]
        self._turns += 1
        host.turn = self._turns
        while host.due and self._is_passed_over(host.due[0]):
            heapq.heappop(host.due)
        if host.due and not host.is_probed_for_all:
            heapq.heappush(self._line, (max(host.due[0][0], host.free_at), host.turn, key))

    def _is_passed_over(self, planned: tuple[float, int, str]) -> bool:
        _, turn, name = planned
        watched = self._watched.get(name)
        return watched is None or watched.turn != turn

    def _may(self, now: float) -> bool:
        return max(self._line[0][0], self._free_at) <= now and len(self._under_way) < self._policy.at_once

    def _is_down(self, host: _Host) -> bool:
        return host.failures >= self._policy.host_down_after

    def _interval_s(self, host: _Host) -> float:
        spread = len(host.names) / self._policy.host_rate_per_s
        return max(self._policy.interval_s, spread) * (0.9 + 0.2 * self._jitter())
