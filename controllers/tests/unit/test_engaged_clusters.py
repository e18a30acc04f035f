"""The failures of clusters whose informers and reconciles cannot begin."""

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from milo_controllers.engaged_clusters import EngagedClusters
from milo_controllers.event_log import EventLog
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.model import Cluster
from milo_kube.cache_budget import CacheBudget, CacheLimits
from milo_kube.failure_log import FailureLog

COUNT = 300


class WithoutCredential(EngagedCluster):
    asked = 0

    @property
    def engaged(self) -> bool:
        WithoutCredential.asked += 1
        return super().engaged

    def credentials(self) -> AbstractAsyncContextManager[Any]:
        @asynccontextmanager
        async def none() -> Any:
            raise OSError("the daemon issues no credential")
            yield

        return none()


def cluster(number: int) -> WithoutCredential:
    api_clients: Any = SimpleNamespace()
    return WithoutCredential(Cluster(name=f"c{number}"), None, api_clients)


async def fail(engaged: EngagedClusters, of: EngagedCluster) -> None:
    with pytest.raises(OSError, match="issues no credential"):
        await engaged.operate(of)


async def test_failures_of_all_clusters_take_linear_time_and_those_of_former_engagements_are_dropped() -> None:
    pools: Any = None
    engaged = EngagedClusters(
        {},
        pools=pools,
        budget=CacheBudget(CacheLimits()),
        events=EventLog("operator", "pod"),
        failures=FailureLog(),
        tracer=None,
    )
    clusters = [cluster(number) for number in range(COUNT)]
    WithoutCredential.asked = 0
    for _ in range(2):
        for each in clusters:
            await fail(engaged, each)
    assert WithoutCredential.asked <= 10 * COUNT
    assert {problem.failures for _, problem in engaged.crashes.values()} == {2}
    for each in clusters:
        each.disengage()
    await fail(engaged, again := cluster(0))
    assert engaged.crashes["c0"][1].failures == 1, "another engagement of the name"
    for number in range(COUNT, 2 * COUNT):
        await fail(engaged, cluster(number))
    assert set(engaged.crashes) == {again.name, *(f"c{number}" for number in range(COUNT, 2 * COUNT))}
