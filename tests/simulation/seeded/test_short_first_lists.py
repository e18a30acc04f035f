"""A restart of the daemon while the API server lists nothing, or a part of the fleet, with and without a state file."""

import asyncio
from collections.abc import Callable, Iterable
from copy import deepcopy

import pytest
from msgspec.structs import replace

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_kube.reflect.view_status import ViewState
from tests.simulation.properties.api_server import ApiObject, Server
from tests.simulation.seeded.harness import TRAITS, Harness, run_steps
from tests.simulation.seeded.request_faults import EMPTY_LIST, THIRD_OF_LIST, RequestFault

NAMES = [f"n{number:02}" for number in range(60)]
VERIFY_AFTER_S = RemovalLimits().verify_after_s


async def grown(harness: Harness) -> None:
    """Engage a fleet, and wait for as long as the daemon takes to write a state file."""
    for name in NAMES:
        harness.put(name)
    harness.api.ring()
    await harness.settled()
    await asyncio.sleep(10.0)


def ends(harness: Harness) -> list[str]:
    return [event for event in harness.received if event.startswith("DISENGAGED")]


@pytest.mark.parametrize("has_memory", [False, True], ids=["no state file", "state file"])
@pytest.mark.parametrize("streaming", [False, True], ids=["pages", "streaming list"])
@pytest.mark.parametrize("fault", [EMPTY_LIST, THIRD_OF_LIST], ids=lambda fault: fault.name)
def test_f93_short_first_list_disengages_nothing(fault: RequestFault, streaming: bool, has_memory: bool) -> None:
    async def steps(harness: Harness) -> None:
        await grown(harness)
        harness.api.only = fault
        await harness.restart_daemon()
        await harness.until(lambda: harness.daemon.holds_removals)
        await asyncio.sleep(VERIFY_AFTER_S / 2)
        harness.api.only = None
        await harness.settled(VERIFY_AFTER_S + 10.0)
        assert ends(harness) == []

    run_steps(steps, replace(TRAITS, has_memory=has_memory, streaming=streaming))


def server_of(names: list[str], version: int) -> Server:
    """Return a server whose objects differ from those of the fleet."""
    other = Server()
    other.version = version
    for name in names:
        other.put(name, ApiObject(f"other-{name}", 0, True, True, True, 1))
    other.compact()
    return other


async def restart_beside(harness: Harness, other: Server) -> None:
    """Restart the daemon while another server responds, until two seconds after its first list."""
    own, harness.api.server = harness.api.server, other
    lists = harness.api.lists
    await harness.restart_daemon()
    await harness.until(lambda: harness.api.lists > lists)
    await asyncio.sleep(2.0)
    own.compact()
    harness.api.server = own
    harness.api.cut()
    await harness.settled(5 * VERIFY_AFTER_S)


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("version", [1, 1000], ids=["older", "newer"])
def test_first_list_of_another_server_disengages_nothing(version: int, count: int) -> None:
    async def steps(harness: Harness) -> None:
        await grown(harness)
        await restart_beside(harness, server_of([f"other{number}" for number in range(count)], version))
        assert ends(harness) == []

    run_steps(steps)


@pytest.mark.parametrize("version", [1, 1000], ids=["older", "newer"])
def test_first_list_with_different_uids_for_all_names_replaces_no_restored_cluster(version: int) -> None:
    async def steps(harness: Harness) -> None:
        await grown(harness)
        await restart_beside(harness, server_of([*"abc", *NAMES], version))
        assert ends(harness) == []

    run_steps(steps, replace(TRAITS, has_memory=True))


@pytest.mark.parametrize("has_memory", [False, True], ids=["no state file", "state file"])
def test_f93_short_list_after_real_deletions_is_applied_after_second_list(has_memory: bool) -> None:
    async def steps(harness: Harness) -> None:
        await grown(harness)
        for name in NAMES:
            harness.world.delete(name)
        harness.server.compact()
        await harness.restart_daemon()
        assert await harness.settled() >= VERIFY_AFTER_S - 5.0
        assert sorted(harness.subscriber.view) == ["a", "b", "c"]

    run_steps(steps, replace(TRAITS, has_memory=has_memory))


@pytest.mark.parametrize("known", [999_999_999, 5], ids=["an absurd claim", "a claim that fits"])
def test_subscriber_that_claims_to_know_more_clusters_than_exist_delays_only_itself(known: int) -> None:
    async def steps(harness: Harness) -> None:
        await grown(harness)
        await harness.restart_daemon()
        log, scans = harness.daemon.fleet.log, 0
        clusters, fleet_clusters = log.clusters, harness.daemon.fleet.clusters

        def counted(of: Callable[[], Iterable[Cluster]]) -> Callable[[], Iterable[Cluster]]:
            def counting() -> Iterable[Cluster]:
                nonlocal scans
                scans += 1
                return of()

            return counting

        log.clusters = counted(clusters)  # type: ignore[method-assign,assignment]
        harness.daemon.fleet.clusters = counted(fleet_clusters)  # type: ignore[method-assign,assignment]
        for number in range(14):
            request = pb.WatchClustersRequest(
                resume_revision=f"{'f' * 16}.1.knownb1fe-{known}.{'A' * 22}",
                filter=pb.ClusterFilter(label_selector=f"team!=t{number},in=no"),
            )
            harness.daemon.call(request, f"claims {number}", _read)
        waiting, source = harness.daemon.fleet.waiting, harness.daemon.source
        await harness.until(lambda: len(waiting) == 14)
        await asyncio.sleep(VERIFY_AFTER_S - 5.0)
        assert len(waiting) == 14
        assert source.status.state is ViewState.STREAMING, "a claim delays no other subscriber"
        assert scans <= 14 * 6
        await harness.until(lambda: source.first_list.is_verified and not waiting)

    async def _read(_: bytes) -> None:
        pass

    run_steps(steps)


def test_first_list_of_a_lagging_replica_disengages_nothing() -> None:
    async def steps(harness: Harness) -> None:
        await grown(harness)
        replica = deepcopy(harness.api.server)
        for number in range(8):
            harness.put(f"later{number}")
        harness.api.ring()
        await harness.settled()
        await restart_beside(harness, replica)
        assert ends(harness) == []

    run_steps(steps)
