"""The health of controllers."""

from types import SimpleNamespace
from typing import Any

import pytest

from milo_controllers.health_check import HealthCheck


def health_of(**clusters: Any) -> HealthCheck:
    engaged: Any = SimpleNamespace(members={}, controllers=[], crashes={}, now=lambda: 0.0)
    fleet: Any = SimpleNamespace(clusters=clusters, discovery=SimpleNamespace(synced=True))
    return HealthCheck(engaged, fleet)


@pytest.mark.parametrize("drains", [True, False])
def test_cluster_without_caches_delays_readiness_unless_it_drains(drains: bool) -> None:
    health = health_of(alpha=SimpleNamespace(draining=drains or None)).health()
    assert (health.ready, health.synced) == (drains, drains)


def test_cluster_without_caches_delays_readiness_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    check = health_of(alpha=SimpleNamespace(draining=None))
    assert not check.health().ready
    monkeypatch.setattr("milo_controllers.health_check.FIRST_LIST_S", -1.0)
    assert check.health().ready
    assert not check.health().synced
