"""States and changes of scopes are values, which are written as JSON as others read them."""

from datetime import UTC, datetime

import msgspec
import pytest

from milo_objects.scope import FleetCluster, Forbidden, NotServed, OverBudget, Pending, ScopeState, Stale, Synced

SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "written"),
    [
        (Pending(SINCE), b'{"state":"PENDING","since":"2026-01-02T03:04:05Z"}'),
        (Synced(SINCE), b'{"state":"SYNCED","since":"2026-01-02T03:04:05Z"}'),
        (Stale(SINCE, "x"), b'{"state":"STALE","since":"2026-01-02T03:04:05Z","problem":"x"}'),
        (Forbidden(SINCE, "x"), b'{"state":"FORBIDDEN","since":"2026-01-02T03:04:05Z","problem":"x"}'),
        (NotServed(SINCE, "x"), b'{"state":"NOT_SERVED","since":"2026-01-02T03:04:05Z","problem":"x"}'),
        (OverBudget(SINCE, "x"), b'{"state":"OVER_BUDGET","since":"2026-01-02T03:04:05Z","problem":"x"}'),
    ],
)
def test_state_is_read_from_its_json(state: ScopeState, written: bytes) -> None:
    assert msgspec.json.encode(state) == written
    assert bool(state.problem) is not isinstance(state, Synced)
    assert msgspec.json.Decoder(ScopeState).decode(written) == state


def test_cluster_is_known_by_its_engagement() -> None:
    cluster = FleetCluster(name="shop", incarnation="i1", uid="u", labels={"team": "a"})

    assert {cluster: 1}[FleetCluster(name="shop", incarnation="i1", uid="u", labels={"team": "a"})] == 1
    assert cluster != FleetCluster(name="shop", incarnation="i2", uid="u", labels={"team": "a"})
