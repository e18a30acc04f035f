"""The prober, which sends the probes of the schedule."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from milo_discoveryd.connectivity import prober as prober_module
from milo_discoveryd.connectivity.prober import Prober
from milo_discoveryd.connectivity.reachability import (
    ConnectivityChange,
    ProbeFailed,
    ProbeOutcome,
    ProbePolicy,
    ProbeReached,
    ProbeSchedule,
)
from milo_discoveryd.model.cluster import Cluster, ConnectivityStatus, Reachability
from milo_kube.tenants import Tenant, working_for
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.unit.fleet.fleets import cluster

QUICK = ProbePolicy(interval_s=0.001, rate_per_s=1000.0, host_rate_per_s=1000.0, at_once=2, unreachable_after_s=0.0)


class World:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tenants: list[Tenant] = []
        """For which each probe was sent."""
        self.results: list[str] = []
        self.states: dict[str, Reachability] = {}
        self.answer: ProbeOutcome | None = ProbeReached()
        """The outcome of every probe; None if probes never end."""
        self.waiting = 0
        self.gone: set[str] = set()
        self.prober = Prober(
            ProbeSchedule(QUICK, lambda: 0.5),
            self.ask,
            self.tell,
            self,
            is_wanted=lambda name, incarnation: name not in self.gone,
        )

    def end(self, name: str) -> None:
        self.gone.add(name)
        self.prober.disengaged(cluster(name))

    async def ask(self, of: Cluster) -> ProbeOutcome:
        self.asked.append(of.target.endpoint)
        self.tenants.append(working_for.get())
        if self.answer is not None:
            return self.answer
        self.waiting += 1
        try:
            return await asyncio.Future()
        finally:
            self.waiting -= 1

    def tell(self, verdict: ConnectivityChange) -> None:
        self.states[verdict.name] = verdict.connectivity.state

    def probed(self, result: str) -> None:
        self.results.append(result)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    task = asyncio.create_task(made.prober.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert made.waiting == 0


def moved(to: Cluster) -> Cluster:
    return cluster("alpha", incarnation=to.incarnation, uid="u1", labels={"moved": "yes"})


async def test_prober_reports_and_counts_result(world: World) -> None:
    world.prober.engaged(cluster("alpha", organization="acme"))
    await eventually(lambda: world.states == {"alpha": Reachability.REACHABLE})
    assert world.asked[0] == "https://alpha.example.com"
    assert set(world.results) == {"reached"}
    assert world.tenants[0] == ("", "acme")


async def test_prober_counts_failure_by_cause(world: World) -> None:
    world.answer = ProbeFailed("dns", "no such host", is_of_host=True)
    world.prober.engaged(cluster("alpha"))
    await eventually(lambda: world.states == {"alpha": Reachability.UNREACHABLE})
    assert set(world.results) == {"dns"}


async def test_other_tasks_run_while_the_outage_of_a_host_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage of an API server with 100,000 clusters held the event loop for two seconds."""
    monkeypatch.setattr(prober_module, "STEP_S", 0.0, raising=False)
    down = [ConnectivityChange(name, 1, ConnectivityStatus(Reachability.UNREACHABLE, 0.0, "")) for name in "abc"]
    reported, rounds = list[tuple[str, int]](), 0
    monkeypatch.setattr(world.prober, "_report", lambda change: reported.append((change.name, rounds)))
    monkeypatch.setattr(world.prober._schedule, "record", lambda *_: iter([None, None, *down]))
    world.prober.engaged(cluster("alpha"))
    while len(reported) < len(down):
        await asyncio.sleep(0)
        rounds += 1
    names, at = zip(*reported, strict=True)
    assert (names, len({*at})) == (("a", "b", "c"), 3)
    assert at[0] > 2


async def test_hanging_probe_does_not_delay_the_next_probe(world: World) -> None:
    world.answer = None
    world.prober.engaged(cluster("alpha"))
    await eventually(lambda: world.waiting == 1)
    world.answer = ProbeReached()
    world.prober.engaged(cluster("beta"))
    await eventually(lambda: world.states == {"beta": Reachability.REACHABLE})


async def test_probe_of_disengaged_cluster_is_not_reported(world: World) -> None:
    world.answer = None
    world.prober.engaged(cluster("alpha"))
    await eventually(lambda: world.waiting == 1)
    world.end("alpha")
    world.prober.engaged(cluster("beta"))
    world.answer = ProbeReached()
    await eventually(lambda: world.waiting == 2 or "beta" in world.states)
    assert "alpha" not in world.states


async def test_update_with_same_endpoint_causes_no_probe(world: World) -> None:
    known = cluster("alpha")
    world.answer = None
    world.prober.engaged(known)
    await eventually(lambda: world.waiting == 1)
    world.prober.updated(moved(known))
    world.prober.engaged(cluster("beta"))
    await eventually(lambda: len(world.asked) == 2)
    assert world.asked == ["https://alpha.example.com", "https://beta.example.com"]


async def test_cluster_with_changed_endpoint_is_probed_at_new_endpoint(world: World) -> None:
    world.answer = None
    world.prober.engaged(cluster("alpha"))
    await eventually(lambda: world.waiting == 1)
    elsewhere = cluster("beta")
    world.prober.updated(elsewhere)
    await eventually(lambda: world.asked[-1] == elsewhere.target.endpoint)


async def test_probe_result_of_cluster_disengaged_before_its_probe_begins_is_not_reported(world: World) -> None:
    await asyncio.sleep(0)  # the prober waits for a due probe
    world.prober.engaged(cluster("alpha"))
    # The prober has created the task, which has not begun.
    asyncio.get_running_loop().call_soon(world.end, "alpha")
    await eventually(lambda: world.asked == ["https://alpha.example.com"])
    world.prober.engaged(cluster("beta"))
    await eventually(lambda: world.states == {"beta": Reachability.REACHABLE})


async def test_cluster_disengaged_as_unreachable_is_probed_until_forgotten(world: World) -> None:
    world.answer = ProbeFailed("dns", "no such host")
    world.prober.engaged(cluster("alpha"))
    await eventually(lambda: len(world.asked) > 1)
    world.prober.disengaged(cluster("alpha"))
    asked = len(world.asked)
    await eventually(lambda: len(world.asked) > asked + 1)
    world.gone.add("alpha")
    world.prober.engaged(cluster("beta"))
    await eventually(lambda: world.asked[-5:] == ["https://beta.example.com"] * 5)


async def test_unexpected_error_of_a_probe_is_a_failure_of_its_cluster(world: World) -> None:
    async def send(of: Cluster) -> ProbeOutcome:
        if of.target.name == "broken":
            raise ZeroDivisionError
        return ProbeReached()

    world.prober._send = send
    with capture_logs() as logs:
        world.prober.engaged(cluster("broken"))
        world.prober.engaged(cluster("alpha"))
        await eventually(lambda: world.states == {"broken": Reachability.UNREACHABLE, "alpha": Reachability.REACHABLE})
    assert "internal" in world.results
    assert {entry["cluster"] for entry in logs if entry["event"] == "probe failed"} == {"broken"}


async def test_unexpected_error_of_a_report_does_not_stop_probes_of_other_clusters(world: World) -> None:
    def report(change: ConnectivityChange) -> None:
        if change.name == "broken":
            raise ZeroDivisionError
        world.tell(change)

    world.prober._report = report
    with capture_logs() as logs:
        world.prober.engaged(cluster("broken"))
        world.prober.engaged(cluster("alpha"))
        await eventually(lambda: world.states == {"alpha": Reachability.REACHABLE})
        await eventually(lambda: "connectivity not recorded" in {entry["event"] for entry in logs})
