"""The validators of the shard group simulation: each reports the breach that it checks for."""

from random import Random

import pytest

from milo_discoveryd.sharding import rendezvous
from milo_discoveryd.sharding.leases import Evict, MemberLease, View, ViewMember, WriteLease, WriteView
from milo_discoveryd.sharding.timing import Timing
from tests.simulation.sharding.host import Host, Timeline
from tests.simulation.sharding.lease_api import ConflictError, LeaseApi
from tests.simulation.sharding.pod import Traits
from tests.simulation.sharding.simulation_run import CLUSTERS, Simulation, simulate

CLUSTER = CLUSTERS[0]


@pytest.fixture
def world() -> Simulation:
    return Simulation(1, Traits())


def view(number: int, *names: str, previous: tuple[str, ...] = ()) -> View:
    def members(of: tuple[str, ...]) -> dict[str, ViewMember]:
        return {name: ViewMember(f"{name}.1") for name in of}

    return View(number=number, id=f"{number}", members=members(names), previous=members(previous))


def test_handlers_of_two_pods_in_one_cluster_are_a_violation(world: Simulation) -> None:
    first, second = world.start("a"), world.start("b")
    world.began(first, CLUSTER)
    world.began(second, CLUSTERS[1])
    assert world.outcome.breaches == []
    world.began(second, CLUSTER)
    assert world.outcome.breaches == [f"0.00: {CLUSTER} has the writers a#1, b#2"]


def test_handler_that_runs_on_a_resumed_host_while_another_handler_runs_is_a_violation(world: Simulation) -> None:
    first, second = world.start("a"), world.start("b")
    first.engaged[CLUSTER] = 1
    first.operator.running.add(CLUSTER)
    world.began(first, CLUSTER)
    world.suspend(first.host, 10.0)
    world.began(second, CLUSTER)
    assert world.outcome.breaches == []
    first.operator._deadline = first.host.boottime() + 1e6  # as with a clock that stood still
    world.timeline.run(11.0)
    assert any("has the writers" in breach for breach in world.outcome.breaches)


def test_engagement_before_the_former_owner_has_released_is_a_violation(
    world: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.start("a"), world.start("b")
    monkeypatch.setattr(first, "_apply", lambda now: None)  # it would disengage, since it owns nothing
    first.engaged[CLUSTER] = 1
    world.engaged(second, CLUSTERS[1])
    assert world.outcome.breaches == []
    world.engaged(second, CLUSTER)
    assert world.outcome.breaches == [f"0.00: b#2 engaged {CLUSTER} before a#1 released it"]


@pytest.mark.parametrize("is_running", [True, False])
def test_release_while_the_handler_runs_is_a_violation(world: Simulation, is_running: bool) -> None:
    world.released(world.start("a"), CLUSTER, is_running=is_running)
    assert bool(world.outcome.breaches) is is_running


def test_unnecessary_move_of_a_cluster_is_a_violation(world: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    world.api.views = [view(1, "a", "b"), view(2, "a", "b", "c", previous=("a", "b"))]
    world.check_views()
    assert world.outcome.breaches == []

    def modulo(key: str, weights: dict[str, float]) -> str:
        return sorted(weights)[sum(key.encode()) % len(weights)]

    monkeypatch.setattr(rendezvous, "owner", modulo)
    world.check_views()
    assert any("without need" in breach for breach in world.outcome.breaches)


def test_view_that_does_not_follow_the_view_it_replaces_is_a_violation(world: Simulation) -> None:
    api = world.api
    api.has_preconditions = False
    for written in (view(1, "a", "b"), view(2, "a", "b", "c", previous=("a", "b")), view(2, "a", previous=("a", "b"))):
        api.apply(WriteView(written, ""), 0.0)
    world.check_views()
    assert [breach for breach in world.outcome.breaches if "does not follow" in breach] == [
        "view 2 does not follow 2, which it replaces"
    ]


def test_clusters_without_an_owner_after_the_last_fault_are_a_violation() -> None:
    [breach] = simulate(1, timing=Timing(debounce_s=1e6)).breaches
    assert "not the owners due" in breach


def test_lease_api_rejects_stale_versions_and_restores_backups() -> None:
    api = LeaseApi()
    lease = MemberLease(member="a", holder="a#1", term="a#1.1")
    _, version = api.apply(WriteLease(lease), 1.0)
    for refused in (WriteLease(lease), Evict(MemberLease(member="a", version="1")), WriteView(view(1, "a"), "7")):
        with pytest.raises(ConflictError):
            api.apply(refused, 2.0)
    api.apply(WriteView(view(1, "a"), ""), 3.0)
    assert api.as_of(2.0).view is None
    api.restore(2.0)
    assert (api.group.view, api.group.members["a"].version) == (None, version)


def test_host_clocks_differ_in_rate_and_in_the_effect_of_a_suspension() -> None:
    timeline = Timeline()
    hosts = [Host(timeline, Random(seed)) for seed in range(200)]
    assert all(0.95 <= host.rate <= 1.05 for host in hosts)
    assert min(host.rate for host in hosts) < 0.96
    assert max(host.rate for host in hosts) > 1.04
    [host, *_] = hosts
    booted, awake, wall = host.boottime(), host.monotonic(), host.wall()
    host.suspend()
    timeline.run(100.0)
    assert host.boottime() - booted == pytest.approx(100 * host.rate)
    assert host.monotonic() == pytest.approx(awake)
    assert host.wall() - wall == pytest.approx(100)
    host.resume(lambda: None)
    timeline.run(110.0)
    assert host.boottime() - booted == pytest.approx(110 * host.rate)
    assert host.monotonic() - awake == pytest.approx(10 * host.rate)
