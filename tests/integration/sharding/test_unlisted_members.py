"""Members of a shard group whose sources are not listed yet, for example because Milo cannot be reached."""

import asyncio

from milo_discoveryd.model.observation import Observation
from milo_discoveryd.sharding.assignment import FleetAssignment
from milo_discoveryd.sharding.group import ShardGroup
from milo_discoveryd.sharding.member import Member
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.integration.sharding.test_group import TIMING, Leases, Requests
from tests.simulation.sharding.lease_api import LeaseApi
from tests.support.eventually import eventually
from tests.unit.fleet.fleets import ready
from tests.unit.sharding.fleets import fleet_of_one_source

NAMES = {f"project-{number}" for number in range(30)}


class Daemon:
    """A member of the group with a fleet, whose source is listed when the test says so."""

    def __init__(self, name: str, api: LeaseApi, holder: str = "1") -> None:
        self.fleet = fleet_of_one_source()
        self.group = ShardGroup(
            "ops",
            Member(name, f"{name}#{holder}", timing=TIMING),
            Leases(api),
            FleetAssignment(self.fleet, 30.0),
            metrics=Requests(),
        )
        self.running = asyncio.create_task(self.group.run())

    def list(self) -> None:
        (source,) = self.fleet.sources
        found: list[SourceEvent[Observation]] = [Listed(ready(name, uid=name)) for name in sorted(NAMES)]
        for _ in source.apply(source.collections[0], [ListStarted(), *found, ListEnded()], 0.0):
            pass
        source.set_followed(source.collections[0], ViewStatus(ViewState.STREAMING, 0.0))

    @property
    def engaged(self) -> set[str]:
        return {cluster.target.name for cluster in self.fleet.clusters()}


async def test_new_member_takes_no_clusters_over_before_its_sources_are_listed(daemons: list[Daemon]) -> None:
    """Found by a reader: its share was disengaged by its owners, and engaged by none while Milo was unreachable."""
    api = LeaseApi()
    first, second = Daemon("a", api), Daemon("b", api)
    daemons += [first, second]
    first.list()
    second.list()
    await eventually(lambda: len(first.engaged) + len(second.engaged) == len(NAMES))
    third = Daemon("c", api)
    daemons.append(third)
    await eventually(lambda: third.group.member.is_confirmed)
    await asyncio.sleep(3 * TIMING.debounce_s)
    assert first.engaged | second.engaged == NAMES
    assert third.group.share_problem() is not None
    third.list()
    await eventually(lambda: third.engaged and first.engaged | second.engaged | third.engaged == NAMES)
    await eventually(lambda: third.group.share_problem() is None)


async def test_restarted_member_is_not_ready_before_its_sources_are_listed(daemons: list[Daemon]) -> None:
    """Found by a reader: a rollout went on to the next pod, although the former one had no clusters."""
    api = LeaseApi()
    first = Daemon("operator-0", api)
    daemons.append(first)
    first.list()
    await eventually(lambda: first.engaged == NAMES)
    await first.group.leave(keeps_term=True)
    successor = Daemon("operator-0", api, holder="2")
    daemons.append(successor)
    await eventually(lambda: successor.group.valid_s() is not None)
    await asyncio.sleep(3 * TIMING.unsettled_read_interval_s)
    assert successor.group.share_problem() is not None
    successor.list()
    await eventually(lambda: successor.engaged == NAMES and successor.group.share_problem() is None)
