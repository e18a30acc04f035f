"""A shard group in which each request to the Lease API fails once, one per run: before it takes effect, or after."""

from collections.abc import Callable

import pytest

from milo_discoveryd.sharding.leases import Evict, GroupState, Read, Request, WriteLease, WriteView
from tests.simulation.sharding.pod import Pod, Traits
from tests.simulation.sharding.simulation_run import CLUSTERS, OWNED_WITHIN_S, Simulation

FIRST_REQUESTS = 25
"""Requests of each kind that fail, one per run, counted over all members. A run makes fewer requests of most kinds."""
END_S = 170.0
Answer = Callable[[GroupState | None, str | None], None]


class FailingOnce(Simulation):
    """A group whose n-th request of one kind fails: members start, join, are killed and leave."""

    def __init__(self, kind: type[Request], number: int, failure: str) -> None:
        super().__init__(seed=3, traits=Traits())
        self._kind, self._left, self._failure = kind, number, failure
        self.failed = False

    def send(self, pod: Pod, request: Request, answer: Answer) -> None:
        self._left -= isinstance(request, self._kind)
        if self.failed or self._left >= 0:
            super().send(pod, request, answer)
            return
        self.failed = True
        if self._failure == "rejected":
            self.timeline.after(0.05, lambda: answer(None, None))
        elif self._failure == "response lost":
            super().send(pod, request, lambda _group, _version: None)
        # A request that is lost has no effect, and its sender's timeout ends it.

    def run(self) -> None:
        for name in ("a", "b"):
            self.start(name)
        self.timeline.run(30.0)
        self.start("c")
        self.timeline.run(60.0)
        self._pod("a").kill()
        self.timeline.run(125.0)
        self._pod("b").member.leave()
        self.timeline.run(END_S)
        while not self.are_owned and self.timeline.now < END_S + OWNED_WITHIN_S:
            self.timeline.run(self.timeline.now + 5.0)
        self.check_views()

    def _pod(self, name: str) -> Pod:
        [pod] = [pod for pod in self.living if pod.member.name == name]
        return pod


@pytest.mark.parametrize("failure", ["rejected", "lost", "response lost"])
@pytest.mark.parametrize("kind", [Read, WriteLease, Evict, WriteView], ids=lambda kind: kind.__name__)
def test_request_that_fails_causes_no_second_owner_and_no_lost_cluster(kind: type[Request], failure: str) -> None:
    failures = 0
    for number in range(FIRST_REQUESTS):
        world = FailingOnce(kind, number, failure)
        world.run()
        assert world.outcome.breaches == [], f"{kind.__name__} {number}"
        assert {len(world.owners(cluster)) for cluster in CLUSTERS} == {1}, f"{kind.__name__} {number}"
        failures += world.failed
        if not world.failed:
            break
    assert failures
