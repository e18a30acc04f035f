"""Whether all engaged clusters are known follows from the connection to the daemon, and from its sources."""

from datetime import UTC, datetime

import pytest

from milo_discovery.fleet import DiscoveryState
from milo_discovery.model import SourceFreshness, SourceState, SourceStatus
from milo_objects.follow import fleet_state, source_problems
from milo_objects.scope import FleetState, Pending, Stale, Synced

T1, T2, T3 = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3))
STREAMING = SourceStatus(name="a", state=SourceState.STREAMING, since=T1)
STALE = SourceStatus(name="b", state=SourceState.STALE, since=T2, message="no answer")
SILENT = SourceStatus(name="b", state=SourceState.STALE, since=T2, message="no answer", last_contact=T1)
UNNAMED = SourceStatus(state=SourceState.STALE, message="refused")


@pytest.mark.parametrize(
    ("connected", "synced", "freshness", "expected"),
    [
        (False, False, SourceFreshness(), Pending(T3)),
        (True, False, SourceFreshness(), Pending(T3)),
        (True, True, SourceFreshness(), Synced(T3)),
        (False, True, SourceFreshness(), Stale(T3, "down")),
        (True, True, SourceFreshness(sources=(STREAMING,), pending_sources=("b",)), Pending(T3)),
        (True, True, SourceFreshness(sources=(STREAMING,)), Synced(T3)),
        (True, True, SourceFreshness(sources=(STREAMING, STALE)), Stale(T2, "b is stale: no answer")),
        (True, True, SourceFreshness(sources=(UNNAMED,)), Stale(T3, "the source is stale: refused")),
        (True, True, SourceFreshness(sources=(SILENT,)), Stale(T1, "b is stale: no answer")),
    ],
)
def test_fleet_is_known_if_the_daemon_follows_all_sources(
    *, connected: bool, synced: bool, freshness: SourceFreshness, expected: FleetState
) -> None:
    problem = "" if connected else "down"
    state = DiscoveryState(connected=connected, synced=synced, since=T3, problem=problem, freshness=freshness)
    assert fleet_state(state) == expected


@pytest.mark.parametrize(
    ("connected", "synced", "freshness", "expected"),
    [
        (True, False, SourceFreshness(), {}),
        (True, True, SourceFreshness(), {"": ""}),
        (False, True, SourceFreshness(), {"": "the daemon cannot be reached"}),
        (
            True,
            True,
            SourceFreshness(sources=(STREAMING,), pending_sources=("c",)),
            {"a": "", "c": "its first list is not complete"},
        ),
        (True, True, SourceFreshness(sources=(STREAMING, STALE)), {"a": "", "b": "the source is stale"}),
        (False, True, SourceFreshness(sources=(STREAMING, STALE)), dict.fromkeys("ab", "the daemon cannot be reached")),
    ],
)
def test_clusters_of_a_source_are_known_if_the_daemon_follows_it(
    *, connected: bool, synced: bool, freshness: SourceFreshness, expected: dict[str, str]
) -> None:
    problem = "" if connected else "down"
    state = DiscoveryState(connected=connected, synced=synced, since=T3, problem=problem, freshness=freshness)
    assert source_problems(state) == expected
