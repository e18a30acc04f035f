"""F58: unreachable clusters, among five hundred and behind one host.

They delay no other cluster. If configured, they are disengaged after a time, unless more are unreachable than
`removals` allows.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from milo_discoveryd.connectivity.prober import Prober
from milo_discoveryd.connectivity.reachability import (
    ConnectivityChange,
    ProbeFailed,
    ProbeOutcome,
    ProbePolicy,
    ProbeReached,
    ProbeSchedule,
)
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.server.calls.frames import encoder
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted
from tests.simulation.seeded.daemon import Ledger
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.support.sources import new_source
from tests.unit.fleet.fleets import ready

CLUSTERS = [f"p-{number:03}" for number in range(500)]
GIVE_UP_AFTER_S = 240.0
NOTICED_S = 200.0
"""How long after `GIVE_UP_AFTER_S`, or after a recovery, the daemon may act: more than two probe intervals and a
timeout.
"""


class TimedJournal(Ledger):
    """A journal that records engagements and disengagements with their times."""

    def __init__(self) -> None:
        super().__init__(lambda *_: None)
        self.changes: list[tuple[float, str, str]] = []

    def changed(self, done: Event, *, is_live: bool) -> None:
        super().changed(done, is_live=is_live)
        reason = "" if done.reason is None else done.reason.value
        if done.type is not EventType.UPDATED:
            at = asyncio.get_running_loop().time()
            self.changes.append((at, done.cluster.target.name, f"{done.type.value} {reason}".strip()))


class World:
    """Engaged clusters; probes of those in `holes` time out."""

    def __init__(self, policy: ProbePolicy) -> None:
        self.holes: set[str] = set()
        self.reached: dict[str, float] = {}
        self.journal = TimedJournal()
        self._clock = asyncio.get_running_loop().time
        self.source = new_source(self.journal, ChangeLog(encoder("0" * 16), Retention()))
        schedule = ProbeSchedule(policy, lambda: 0.5)
        prober = Prober(schedule, self._ask, self._tell, self.journal, self.source.engagements.needs_probe)
        self.source.changes.add_listener(EventType.ENGAGED, lambda event: prober.engaged(event.cluster))
        self.source.changes.add_listener(EventType.UPDATED, lambda event: prober.updated(event.cluster))
        self.source.changes.add_listener(EventType.DISENGAGED, lambda event: prober.disengaged(event.cluster))
        self.probing = asyncio.create_task(prober.run())
        for _ in self.source.apply(
            self.source.collections[0], [ListStarted(), *(Listed(ready(name)) for name in CLUSTERS), ListEnded()], 0.0
        ):
            pass

    @property
    def disengaged(self) -> set[str]:
        return {name for _, name, what in self.journal.changes if what == "DISENGAGED UNREACHABLE"}

    async def _ask(self, cluster: Cluster) -> ProbeOutcome:
        await asyncio.sleep(0.01)
        if cluster.target.name in self.holes:
            await asyncio.sleep(5.0)
            return ProbeFailed("timeout", "no answer", is_of_host=True)
        return ProbeReached()

    def _tell(self, verdict: ConnectivityChange) -> None:
        self.reached.setdefault(verdict.name, self._clock())
        self.source.clusters.connectivity_changed(verdict)


def run_steps(steps: Callable[[World], Awaitable[None]], policy: ProbePolicy) -> None:
    loop = VirtualLoop(Random(1))

    async def main() -> None:
        world = World(policy)
        await steps(world)
        world.probing.cancel()

    run_on(loop, main())


def test_f58_unresponsive_clusters_delay_probes_of_no_other_cluster() -> None:
    async def steps(world: World) -> None:
        world.holes = set(CLUSTERS[::10])
        assert (world.source.engagements.engaged, len(world.reached)) == (500, 0), (
            "clusters are engaged before they are probed"
        )
        await asyncio.sleep(30.0)
        assert world.reached.keys() == set(CLUSTERS) - world.holes
        assert max(world.reached.values()) <= 500 / ProbePolicy().rate_per_s + 10.0

    run_steps(steps, ProbePolicy())


def test_f58_unreachable_minority_is_disengaged_and_engaged_again() -> None:
    async def steps(world: World) -> None:
        await asyncio.sleep(60.0)
        world.holes = set(CLUSTERS[::10])
        began = asyncio.get_running_loop().time()
        world.journal.changes.clear()
        await asyncio.sleep(GIVE_UP_AFTER_S + NOTICED_S)
        assert world.disengaged == world.holes
        assert min(at for at, *_ in world.journal.changes) >= began + GIVE_UP_AFTER_S
        world.journal.changes.clear()
        back, world.holes = world.holes, set()
        await asyncio.sleep(NOTICED_S)
        assert {(name, what) for _, name, what in world.journal.changes} == {(name, "ENGAGED") for name in back}

    run_steps(steps, ProbePolicy(give_up_after_s=GIVE_UP_AFTER_S))


@pytest.mark.parametrize("every", [1, 2, 4], ids=["all", "half", "a-quarter"])
def test_f58_unreachable_clusters_beyond_the_removal_limit_stay_engaged(every: int) -> None:
    async def steps(world: World) -> None:
        await asyncio.sleep(60.0)
        world.holes = set(CLUSTERS[::every])
        await asyncio.sleep(2 * GIVE_UP_AFTER_S)
        assert world.source.engagements.engaged == 500
        world.holes = set(CLUSTERS[:7])
        await asyncio.sleep(GIVE_UP_AFTER_S + NOTICED_S)
        assert world.disengaged == world.holes, "only clusters that stay unreachable are disengaged"

    run_steps(steps, ProbePolicy(give_up_after_s=GIVE_UP_AFTER_S))
