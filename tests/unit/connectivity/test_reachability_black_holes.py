"""Probes of 450 responsive clusters are not delayed by 50 unresponsive ones."""

import heapq

from milo_discoveryd.connectivity.reachability import (
    Probe,
    ProbeFailed,
    ProbeOutcome,
    ProbePolicy,
    ProbeReached,
    ProbeSchedule,
    at_once,
)
from milo_kube.moment import Moment

TIMEOUT_S = 5.0
ANSWERED_S = 0.02
SWALLOWED = ProbeFailed("timeout", "it did not answer in time", is_of_host=True)


def first_reports(clusters: int, black_holes: int, *, minutes: float = 5.0) -> dict[str, float]:
    """Return the time of the first result of each responsive cluster, with default settings and a host per cluster."""
    rate = ProbePolicy().rate_per_s
    schedule = ProbeSchedule(ProbePolicy(at_once=at_once(rate, TIMEOUT_S)), lambda: 0.5)
    for number in range(clusters):
        # The clusters that never answer come first, which is the worst case.
        schedule.watch(f"{'dead' if number < black_holes else 'well'}-{number}", f"host-{number}", 1, 0.0)
    known: dict[str, float] = {}
    under_way: list[tuple[float, str, Probe]] = []
    now = 0.0
    while now < minutes * 60.0:
        for probe in schedule.due(now):
            takes_s = TIMEOUT_S if probe.name.startswith("dead") else ANSWERED_S
            heapq.heappush(under_way, (now + takes_s, probe.name, probe))
        ends = [under_way[0][0]] if under_way else []
        now = min(ends if schedule.next_at is None else [*ends, schedule.next_at])
        while under_way and under_way[0][0] <= now:
            _, _, probe = heapq.heappop(under_way)
            outcome: ProbeOutcome = SWALLOWED if probe.name.startswith("dead") else ProbeReached()
            for verdict in filter(None, schedule.record(probe, outcome, Moment(now, now))):
                known.setdefault(verdict.name, now)
    return {name: at for name, at in known.items() if name.startswith("well")}


def test_unresponsive_cluster_does_not_delay_probes_of_other_clusters() -> None:
    without, beside = first_reports(500, 0), first_reports(500, 50)
    assert len(beside) == 450
    assert max(beside.values()) <= max(without.values()) + 0.1
    assert max(without.values()) < 11.0


def test_probe_concurrency_follows_rate_and_timeout_within_bounds() -> None:
    assert at_once(50.0, 5.0) == 250
    assert at_once(0.1, 5.0) == 1
    assert at_once(1000.0, 60.0) == 512
