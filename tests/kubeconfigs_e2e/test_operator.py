"""Operators that work for ten token lifetimes, and notice nothing of it."""

import asyncio
import time

import kubernetes.client
from kubernetes.aio.client import CoreV1Api, V1ConfigMap, V1ObjectMeta
from kubernetes.aio.watch import Watch

from milo_discovery import EngagedCluster, Fleet
from tests.eventually import eventually
from tests.kubeconfigs_e2e.conftest import Place, Start

LIFE_S = 3.0
LIFETIMES = 10
PAUSE_S = 0.2
"""Between two rounds: it is time that is to pass here, not load."""


class Operator:
    """Writes config maps, one after the other, and sees each of them in one watch, which must not end."""

    def __init__(self, name: str, ends_at: float) -> None:
        self.name = name
        self.engagements = 0
        self.written: list[str] = []
        self.seen: list[str] = []
        self.tokens: set[str] = set()
        self._ends_at = ends_at
        self.done = asyncio.Event()

    async def operate(self, cluster: EngagedCluster) -> None:
        self.engagements += 1
        async with cluster.api_client() as api, cluster.sync_api_client() as blocking:
            core = CoreV1Api(api)
            listed = await core.list_namespaced_config_map("default")
            watching = asyncio.create_task(self._watch(core, listed.metadata.resource_version))
            try:
                while time.time() < self._ends_at:
                    self.written.append(f"{self.name}-{len(self.written)}")
                    body = V1ConfigMap(metadata=V1ObjectMeta(name=self.written[-1]))
                    await core.create_namespaced_config_map("default", body)
                    self.tokens.add(api.configuration.api_key["BearerToken"])
                    await asyncio.to_thread(kubernetes.client.CoreV1Api(blocking).list_namespace)
                    await eventually(lambda: self.written[-1] in self.seen or watching.done())
                    assert not watching.done(), watching.result()
                    await asyncio.sleep(PAUSE_S)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
        self.done.set()

    async def _watch(self, core: CoreV1Api, version: str) -> str:
        # With a time limit of the server's, this Watch says when its one stream has ended, and opens no other.
        stream = Watch().stream(
            core.list_namespaced_config_map,
            "default",
            resource_version=version,
            timeout_seconds=600,
        )
        async for event in stream:
            self.seen.append(event["object"].metadata.name)
        return "the watch was cut"


async def operated(place: Place, operator: Operator, *, fed: bool) -> None:
    """`fed`: the kubeconfigs come with the stream; otherwise they are asked for."""
    async with place.client() as client:
        fleet = Fleet(client, on_error="raise", include_kubeconfigs=fed)
        fleet.on_engage(operator.operate)
        async with fleet:
            await operator.done.wait()


async def test_ten_token_lifetimes_pass_without_a_refusal_a_disengagement_or_a_cut(start: Start) -> None:
    async with start(token_life=LIFE_S) as place:
        ends_at = time.time() + LIFETIMES * LIFE_S
        fed, asking = Operator("fed", ends_at), Operator("asking", ends_at)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(operated(place, fed, fed=True))
            tasks.create_task(operated(place, asking, fed=False))
    assert place.refused == []
    for operator in (fed, asking):
        assert operator.engagements == 1
        assert [name for name in operator.seen if name.startswith(operator.name)] == operator.written
        assert len(operator.tokens) >= LIFETIMES, "each token is used for a lifetime at most"
