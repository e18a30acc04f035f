"""The schedule of host probes: one probe represents all clusters of a source on the host."""

import pytest

from milo_discoveryd.connectivity.host_schedule import HostSchedule
from milo_discoveryd.connectivity.reachability import (
    ConnectivityChange,
    Probe,
    ProbeFailed,
    ProbePolicy,
    ProbeReached,
    ProbeSchedule,
)
from milo_discoveryd.model.cluster import Reachability
from tests.unit.fleet.fleets import at

POLICY = ProbePolicy(unreachable_after_s=0.0)
HOST = "api.example.com"


def hosts(*names: str) -> HostSchedule:
    made = HostSchedule(POLICY, lambda: 0.5)
    for number, name in enumerate(names, 1):
        made.watch(name, HOST, number, 0.0)
    return made


def states(changes: list[ConnectivityChange]) -> dict[str, Reachability]:
    return {change.name: change.connectivity.state for change in changes}


def answer_due_probes(schedule: ProbeSchedule | HostSchedule, *, minutes: int) -> int:
    """Answer each due probe at once; return the number of probes."""
    count = 0
    while (due := schedule.next_at) is not None and due < 60.0 * minutes:
        for probe in schedule.due(due):
            schedule.record(probe, ProbeReached(), at(due))
            count += 1
    return count


@pytest.mark.parametrize(("make", "least", "most"), [(ProbeSchedule, 9_900, 11_000), (HostSchedule, 9, 11)])
def test_schedule_probes_each_cluster_or_each_host_once_per_minute(
    make: type[ProbeSchedule] | type[HostSchedule], least: int, most: int
) -> None:
    schedule = make(POLICY, lambda: 0.5)
    for number in range(1000):
        schedule.watch(f"c{number}", HOST, number, 0.0)
    assert least <= answer_due_probes(schedule, minutes=10) <= most


def test_host_probe_result_applies_to_all_clusters_behind_the_host() -> None:
    schedule = hosts("a", "b", "c")
    (probe,) = schedule.due(0.0)
    assert states(schedule.record(probe, ProbeReached(), at(0))) == dict.fromkeys("abc", Reachability.UNKNOWN)
    assert schedule.record(next(iter(schedule.due(100.0))), ProbeReached(), at(100)) == []
    (probe,) = schedule.due(200.0)
    failed = schedule.record(probe, ProbeFailed("timeout", "no answer", is_of_host=True), at(200))
    assert states(failed) == dict.fromkeys("abc", Reachability.UNREACHABLE)
    assert not any(change.disengages for change in failed)


def test_host_is_probed_through_another_cluster_once_one_fails_for_itself() -> None:
    schedule = HostSchedule(ProbePolicy(unreachable_after_s=90.0), lambda: 0.5)
    for name in "abc":
        schedule.watch(name, HOST, 1, 0.0)
    probed, changes, now = [], [], 0.0
    for _ in range(6):
        (probe,) = schedule.due(now)
        probed.append(probe.name)
        outcome = ProbeFailed("credential", "its own") if probe.name == "a" else ProbeReached()
        changes += schedule.record(probe, outcome, at(now))
        now += 100.0
    assert probed == ["a", "b", "b", "b", "b", "b"]
    assert set(states(changes).values()) == {Reachability.UNKNOWN}
    (probe,) = schedule.due(now)
    schedule.forget("b")
    schedule.record(probe, ProbeFailed("credential", "its own"), at(now))
    assert [probe.name for probe in schedule.due(now + 100)] == ["c"]


def test_host_schedule_probes_each_host_separately() -> None:
    schedule = hosts("a")
    schedule.watch("b", "other.example.com", 7, 0.0)
    probes = schedule.due(10.0)
    assert {probe.name for probe in probes} == {"a", "b"}
    by_name = {probe.name: probe for probe in probes}
    changes = schedule.record(by_name["b"], ProbeReached(), at(0))
    assert [(change.name, change.incarnation) for change in changes] == [("b", 7)]


def test_host_shared_by_two_sources_is_probed_through_one_cluster_of_each_source() -> None:
    """Each source has its own credential issuers, and probes use the credentials that these issue."""
    schedule = hosts("eu#a", "eu#b", "us#a")
    probes = {probe.name: probe for probe in schedule.due(10.0)}
    assert set(probes) == {"eu#a", "us#a"}
    assert set(states(schedule.record(probes["eu#a"], ProbeReached(), at(0)))) == {"eu#a", "eu#b"}
    assert set(states(schedule.record(probes["us#a"], ProbeReached(), at(0)))) == {"us#a"}


def test_cluster_added_after_host_was_probed_has_connectivity_of_its_host() -> None:
    schedule = hosts("a")
    (probe,) = schedule.due(0.0)
    schedule.record(probe, ProbeReached(), at(0))
    assert schedule.known_changes() == []
    schedule.watch("b", HOST, 9, 10.0)
    (known,) = schedule.known_changes()
    assert (known.name, known.incarnation, known.connectivity.state) == ("b", 9, Reachability.UNKNOWN)
    assert schedule.known_changes() == []
    assert schedule.due(10.0) == []


def test_connectivity_of_cluster_added_before_first_host_probe_result_is_not_reported() -> None:
    schedule = hosts("a")
    schedule.watch("b", HOST, 9, 0.0)
    assert schedule.known_changes() == []


def test_host_without_clusters_is_not_probed() -> None:
    schedule = hosts("a", "b")
    schedule.forget("a")
    assert [probe.name for probe in schedule.due(0.0)] == ["b"]
    schedule.forget("b")
    schedule.forget("b")
    assert schedule.next_at is None


def test_probe_result_of_host_without_clusters_is_ignored() -> None:
    schedule = hosts("a")
    (probe,) = schedule.due(0.0)
    schedule.forget("a")
    schedule.watch("b", HOST, 2, 0.0)
    (again,) = schedule.due(1.0)
    assert schedule.record(probe, ProbeReached(), at(1)) == []
    assert states(schedule.record(again, ProbeReached(), at(1))) == {"b": Reachability.UNKNOWN}


def test_host_is_probed_through_another_cluster_after_the_probed_cluster_was_removed() -> None:
    schedule = hosts("a", "b")
    (probe,) = schedule.due(10.0)
    schedule.drop(probe)
    (probe,) = schedule.due(10.0)
    assert probe.name == "b"
    schedule.drop(probe)
    assert (schedule.next_at, schedule.due(1000.0)) == (None, [])


def test_host_probe_uses_a_cluster_that_was_not_removed() -> None:
    schedule = hosts("a", "b")
    schedule.forget("a")
    (probe,) = schedule.due(0.0)
    assert probe == Probe("b", 2, probe.watch)
