"""A pod of a simulation: a daemon that is a member of the group, and an operator that subscribes to it."""

from collections.abc import Callable
from random import Random
from typing import Protocol

from milo_discoveryd.sharding.leases import Delete, GroupState, Read, Request, WaitUntil
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.ownership import KeyOwnership, Ownership
from tests.simulation.sharding.host import Host

SLOW_SHARE = 0.1
"""Share of the drains whose handlers end slowly."""
POLL_S = 3.0
"""Interval at which the operator requests from the daemon how long its ownership is valid."""


class Network(Protocol):
    def send(self, pod: "Pod", request: Request, answer: Callable[[GroupState | None, str | None], None]) -> None: ...


class Observer(Protocol):
    def began(self, pod: "Pod", cluster: str) -> None: ...

    def ended(self, pod: "Pod", cluster: str) -> None: ...

    def engaged(self, pod: "Pod", cluster: str) -> None: ...

    def released(self, pod: "Pod", cluster: str, *, is_running: bool) -> None: ...


class Traits:
    """Behavior that a mutant changes."""

    clock = staticmethod(Host.boottime)
    releases_early = False
    acknowledges_early = False
    engages_unacknowledged = False
    has_preconditions = True


class Operator:
    """One handler per engaged cluster, as the client library's Fleet runs them."""

    def __init__(self, pod: "Pod", random: Random, observer: Observer) -> None:
        self._pod = pod
        self._random = random
        self._observer = observer
        self._deadline = 0.0
        self.running: set[str] = set()
        self._ending: dict[str, list[Callable[[], None]]] = {}
        self._wanted: dict[str, int] = {}
        self._slow: set[str] = set()
        """Handlers that stop slowly, unless the ownership expires first."""
        self.is_dead = False

    def ask(self) -> None:
        if not self.is_dead:
            self.ask_once()
            self._pod.host.after(POLL_S, self.ask)

    def ask_once(self) -> None:
        """Request from the daemon how long its ownership is valid, counted from the request."""
        if self.is_dead:
            return
        self.expire()
        asked_at = self._pod.host.boottime()
        valid_s = self._pod.valid_s()
        if valid_s is not None:
            self._deadline = max(self._deadline, asked_at + valid_s)
            self._pod.host.after(valid_s, self.expire)
            for cluster, incarnation in self._pod.engaged.items():
                if cluster not in self._pod.draining:
                    self._engage(cluster, incarnation)

    def drain(self, cluster: str, incarnation: int, *, releases_early: bool) -> None:
        def release() -> None:
            if not self.is_dead:
                self._observer.released(self._pod, cluster, is_running=cluster in self.running)
                self._pod.release(cluster, incarnation)

        if releases_early:
            release()
        if cluster in self.running and cluster not in self._ending and self._random.random() < SLOW_SHARE:
            self._wanted.pop(cluster, None)
            self._ending[cluster] = [release]
            self._slow.add(cluster)
            self._pod.host.after(self._random.uniform(3, 30), lambda: self._end(cluster))
        else:
            self.cancel(cluster, then=release)

    def cancel(self, cluster: str, then: Callable[[], None] = lambda: None) -> None:
        self._wanted.pop(cluster, None)
        if cluster in self._slow:
            self._slow.discard(cluster)
            self._pod.host.after(self._random.uniform(0, 3), lambda: self._end(cluster))
        if cluster in self._ending:
            self._ending[cluster].append(then)
        elif cluster in self.running:
            self._ending[cluster] = [then]
            self._pod.host.after(self._random.uniform(0, 3), lambda: self._end(cluster))
        else:
            then()

    def expire(self) -> None:
        if self._pod.host.boottime() >= self._deadline:
            for cluster in sorted({*self._wanted, *self._slow}):
                self.cancel(cluster)

    def host_resumed(self) -> None:
        """Check the deadline before anything else: an operator that was suspended for longer writes nothing more."""
        if self._pod.host.boottime() >= self._deadline:
            self._end_all()

    def kill(self) -> None:
        self.is_dead = True
        self._end_all()

    def _engage(self, cluster: str, incarnation: int) -> None:
        if self._pod.host.boottime() < self._deadline and self._wanted.get(cluster) != incarnation:
            self._wanted[cluster] = incarnation
            if cluster not in self.running:
                self._begin(cluster)

    def _begin(self, cluster: str) -> None:
        self.running.add(cluster)
        self._observer.began(self._pod, cluster)

    def _end(self, cluster: str) -> None:
        if cluster in self._ending:
            self._slow.discard(cluster)
            self.running.discard(cluster)
            self._observer.ended(self._pod, cluster)
            for then in self._ending.pop(cluster):
                then()
            if cluster in self._wanted:
                self._begin(cluster)

    def _end_all(self) -> None:
        self._wanted.clear()
        for cluster in sorted(self.running):
            self._ending.setdefault(cluster, [])
            self._end(cluster)


class Pod:
    def __init__(
        self,
        member: Member,
        host: Host,
        clusters: list[str],
        network: Network,
        observer: Observer,
        random: Random,
        traits: Traits,
    ) -> None:
        self.member = member
        self.host = host
        self.engaged: dict[str, int] = {}
        """Incarnations of the clusters that were engaged for the operator."""
        self._incarnations = 0
        self.draining: set[str] = set()
        self.is_paused = False
        self.is_dead = False
        self._clusters = clusters
        self._network = network
        self._observer = observer
        self._traits = traits
        self._in_flight = 0
        self._deletion = 0
        self._requests = 0
        self._deferred: list[Callable[[], None]] = []
        self._applied: Ownership | None = None
        self._wakes_at = float("inf")
        self.requests = 0
        self.operator = Operator(self, random, observer)
        host.after(random.uniform(0, 2), self.step)
        host.after(random.uniform(0, 2), self.operator.ask)

    def clock(self) -> float:
        return self._traits.clock(self.host)

    def valid_s(self) -> float | None:
        """Return how long the ownership is valid, as the daemon reports it to its operator; None without one."""
        if self.is_paused or self.is_dead:
            return None
        now = self.clock()
        self._apply(now)
        return self.member.fence_at - now if self.member.ownership(now) is not None else None

    def release(self, cluster: str, incarnation: int) -> None:
        def released() -> None:
            if self.engaged.get(cluster) == incarnation:
                self.draining.discard(cluster)
                del self.engaged[cluster]
                self._applied = None  # a later view may have returned the cluster
                self._step()

        self._run(released)

    def step(self) -> None:
        self._run(self._step)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            deferred, self._deferred = self._deferred, []
            for happens in (self._step, *deferred):
                self._run(happens)

    def kill(self, *, with_operator: bool = True) -> None:
        self.is_dead = True
        self.engaged.clear()
        self.draining.clear()
        if with_operator:
            self.operator.kill()

    def _run(self, happens: Callable[[], None]) -> None:
        if self.is_dead:
            return
        if self.is_paused:
            self._deferred.append(happens)
        else:
            happens()

    def _step(self) -> None:
        now = self.clock()
        self._apply(now)
        if self._in_flight:
            self._wake_at(self.member.fence_at, now)
            return
        action = self.member.next(now)
        self._apply(now)
        if self.member.has_ended:
            self.kill()
        elif isinstance(action, WaitUntil):
            self._wake_at(action.until, now)
        else:
            self._send(action, now)

    def _wake_at(self, at: float, now: float) -> None:
        if now < at < float("inf") and not now < self._wakes_at <= at:
            self._wakes_at = at
            self.host.after(at - now + 0.001, self.step)

    def _send(self, request: Request, now: float) -> None:
        self._requests += 1
        self.requests += 1
        number = self._requests
        if isinstance(request, Delete):
            self._deletion = number
            self._step()  # no other request waits for it
        else:
            self._in_flight = number
        # The member wakes up at its fence, which may be earlier than the response.
        self._wake_at(self.member.fence_at, now)

        def answered(group: GroupState | None, version: str | None) -> None:
            if self._in_flight == number:
                self._in_flight = 0
            elif self._deletion == number:
                self._deletion = 0
            else:
                return
            received_at = self.clock()
            if group is None:
                self.member.failed(request, received_at)
            elif version is None:
                self.member.conflicted(request, received_at)
            elif isinstance(request, Read):
                self.member.was_read(group, now, received_at)
            else:
                self.member.was_written(request, version, now, received_at)
            self._step()

        def answer(group: GroupState | None, version: str | None) -> None:
            self.host.run(lambda: self._run(lambda: answered(group, version)))

        self._network.send(self, request, answer)
        self.host.after(4.0, lambda: self._run(lambda: answered(None, None)))

    def _apply(self, now: float) -> None:
        """Send the operator the engagements that follow from the ownership."""
        ownership = self.member.ownership(now)
        if ownership is None:
            if self.engaged:
                self._lost()
            self._applied = None
            return
        if ownership != self._applied:
            self._applied = ownership
            for cluster in self._clusters:
                self._decide(cluster, ownership)
        pending = frozenset() if self._traits.acknowledges_early else frozenset(self.draining)
        waiting = (ownership.decide(key).state for _, keys in ownership.pending for key in keys)
        self.member.drained(ownership.view.number, pending, awaits_release=KeyOwnership.WAITING in waiting)

    def _decide(self, cluster: str, ownership: Ownership) -> None:
        state = ownership.decide(cluster).state
        if self._traits.engages_unacknowledged and state is KeyOwnership.WAITING and ownership.may_engage:
            state = KeyOwnership.OWNED
        if state is KeyOwnership.OWNED and cluster not in self.engaged:
            self._incarnations += 1
            self.engaged[cluster] = self._incarnations
            self._observer.engaged(self, cluster)
            self.host.after(0.01, self.operator.ask_once)
        elif state is KeyOwnership.FOREIGN and cluster in self.engaged and cluster not in self.draining:
            self.draining.add(cluster)
            early = self._traits.releases_early
            self.operator.drain(cluster, self.engaged[cluster], releases_early=early)

    def _lost(self) -> None:
        for cluster in sorted(self.engaged):
            self.operator.cancel(cluster)
        self.engaged.clear()
        self.draining.clear()
