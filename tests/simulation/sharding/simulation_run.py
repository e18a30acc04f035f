"""One seeded simulation: members on virtual time, random faults, and validators of what operators received."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from milo_discoveryd.sharding import rendezvous
from milo_discoveryd.sharding.leases import GroupState, Read, Request, View
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.timing import TIMING, Timing
from tests.simulation.sharding.host import Host, Timeline
from tests.simulation.sharding.lease_api import ConflictError, LeaseApi
from tests.simulation.sharding.pod import Pod, Traits

CLUSTERS = [f"project-{number}" for number in range(6)]
FAULTS_UNTIL_S = 240.0
UNWEIGHTED_SHARES = (0.0, 0.0, 0.3, 0.7)
"""Shares of the processes that have weight 0, one of which each simulation has."""
OWNED_WITHIN_S = 120.0
"""The time within which every cluster is owned after the last fault: an eviction (35 s on a slow clock) after a fence
or a takeover of the same length, and a change of the view."""


@dataclass
class Outcome:
    seed: int
    breaches: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    views: int = 0
    engagements: int = 0
    settled_s: float = 0.0
    """The time from the end of the faults until every cluster was owned, in steps of 5 s."""
    virtual_s: float = 0.0


class Simulation:
    def __init__(self, seed: int, traits: Traits, timing: Timing = TIMING) -> None:
        self.random = Random(seed)
        self.timeline = Timeline()
        self.api = LeaseApi()
        self.api.has_preconditions = traits.has_preconditions
        self.outcome = Outcome(seed)
        self.pods: list[Pod] = []
        self.error_share = 0.0
        self.is_down = False
        self.lag_s = 0.0
        self.lost_to: set[Host] = set()
        self.lost_from: set[Host] = set()
        self._traits = traits
        self._timing = timing
        self._running: dict[str, set[Pod]] = {name: set() for name in CLUSTERS}
        self._processes = 0
        self.unweighted_share = 0.0
        self.weights = Random(f"weights of the processes {seed}")

    # --- pods ---

    def start(self, name: str, host: Host | None = None, instance: str = "") -> Pod:
        self._processes += 1
        weight = 0.0 if self.weights.random() < self.unweighted_share else 1.0
        holder = f"{name}#{self._processes}"
        member = Member(name, holder, weight=weight, instance=instance, timing=self._timing)
        host = host or Host(self.timeline, self.random)
        pod = Pod(member, host, CLUSTERS, self, self, self.random, self._traits)
        self.pods.append(pod)
        return pod

    @property
    def living(self) -> list[Pod]:
        return [pod for pod in self.pods if not pod.is_dead]

    def suspend(self, host: Host, for_s: float) -> None:
        def resume() -> None:
            pods = [pod for pod in self.pods if pod.host is host]
            host.resume(lambda: [pod.operator.host_resumed() for pod in pods] and None)
            for pod in pods:
                pod.step()
            self._check_running()

        host.suspend()
        self.timeline.after(for_s, resume)

    # --- network ---

    def send(self, pod: Pod, request: Request, answer: Callable[[GroupState | None, str | None], None]) -> None:
        random, host = self.random, pod.host
        if self.is_down or host in self.lost_to or random.random() < 0.5 * self.error_share:
            # The request is lost or rejected before it takes effect. A lost request may still arrive after its sender
            # has timed out.
            if random.random() < 0.3:
                self.timeline.after(random.uniform(0, 0.2), lambda: answer(None, None))
            elif host in self.lost_to and random.random() < 0.5:
                self.timeline.after(random.uniform(1, 15), lambda: self._arrive(pod, request, answer))
            return
        self.timeline.after(random.uniform(0.001, 0.1), lambda: self._arrive(pod, request, answer))

    def _arrive(self, pod: Pod, request: Request, answer: Callable[[GroupState | None, str | None], None]) -> None:
        if self.is_down:
            return
        group: GroupState | None = None
        version: str | None = None
        try:
            group, version = self.api.apply(request, self.timeline.now)
            if isinstance(request, Read) and self.lag_s and self.random.random() < 0.5:
                group = self.api.as_of(self.timeline.now - self.random.uniform(0, self.lag_s))
        except ConflictError:
            group = self.api.group
        if pod.host not in self.lost_from and self.random.random() >= 0.5 * self.error_share:
            self.timeline.after(self.random.uniform(0.001, 0.1), lambda: answer(group, version))

    # --- validators ---

    def breach(self, text: str) -> None:
        self.outcome.breaches.append(f"{self.timeline.now:.2f}: {text}")

    def began(self, pod: Pod, cluster: str) -> None:
        self._running[cluster].add(pod)
        self._check(cluster)

    def ended(self, pod: Pod, cluster: str) -> None:
        self._running[cluster].discard(pod)

    def engaged(self, pod: Pod, cluster: str) -> None:
        self.outcome.engagements += 1
        for other in self.living:
            # A paused process cannot disengage at its fence; its operator stops at the deadline.
            if other is not pod and cluster in other.engaged and not other.is_paused and not other.host.is_suspended:
                other.step()
                if cluster in other.engaged:
                    self.breach(f"{pod.member.holder} engaged {cluster} before {other.member.holder} released it")

    def released(self, pod: Pod, cluster: str, *, is_running: bool) -> None:
        if is_running:
            self.breach(f"{pod.member.holder} released {cluster} while its handler runs")

    def _check_running(self) -> None:
        for cluster in CLUSTERS:
            self._check(cluster)

    def _check(self, cluster: str) -> None:
        writers = sorted(pod.member.holder for pod in self._running[cluster] if not pod.host.is_suspended)
        if len(writers) > 1:
            self.breach(f"{cluster} has the writers {', '.join(writers)}")

    def check_views(self) -> None:
        self.outcome.breaches += self.api.replaced
        for former, view in zip(self.api.views, self.api.views[1:], strict=False):
            if view.number == former.number + 1:
                for cluster in CLUSTERS:
                    self._check_move(cluster, former, view)

    def _check_move(self, cluster: str, former: View, view: View) -> None:
        was, now = (rendezvous.owner(cluster, {n: m.weight for n, m in v.members.items()}) for v in (former, view))
        if was != now and was in view.members and now in former.members:
            self.breach(f"{cluster} moved from {was} to {now} without need")

    def owners(self, cluster: str) -> list[str]:
        return [
            pod.member.name
            for pod in self.living
            if cluster in pod.operator.running and cluster in pod.engaged and cluster not in pod.draining
        ]

    def is_owned(self, cluster: str) -> bool:
        """Return whether the cluster has one owner, or rightly none: one of weight 0 owns nothing."""
        weighted = {pod.member.name for pod in self.living if pod.member.weight}
        owners = self.owners(cluster)
        return len(owners) == min(1, len(weighted)) and weighted.issuperset(owners)

    @property
    def are_owned(self) -> bool:
        return all(map(self.is_owned, CLUSTERS))


def simulate(seed: int, traits: Traits | None = None, *, timing: Timing = TIMING) -> Outcome:
    from tests.simulation.sharding.faults import schedule  # noqa: PLC0415 - it schedules on this module's simulation

    world = Simulation(seed, traits or Traits(), timing)
    world.unweighted_share = world.weights.choice(UNWEIGHTED_SHARES)
    for number in range(world.random.randint(2, 4)):
        world.start(f"operator-{number}")
    last = schedule(world)
    world.timeline.run(last)
    until = last + OWNED_WITHIN_S
    while world.timeline.now < until and not world.outcome.breaches:
        world.timeline.run(world.timeline.now + 5.0)
        if world.are_owned and not world.outcome.settled_s:
            world.outcome.settled_s = world.timeline.now - last
    world.check_views()
    if not world.outcome.breaches and not world.are_owned:
        world.breach(f"not the owners due: {[(c, world.owners(c)) for c in CLUSTERS if not world.is_owned(c)]}")
    world.outcome.views = len(world.api.views)
    world.outcome.virtual_s = world.timeline.now
    return world.outcome
