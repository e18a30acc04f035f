"""Operators that work in a project's control plane for a given time."""

import asyncio
import time

import kubernetes.aio.client as aio
import kubernetes.client
from kubernetes.aio.watch import Watch

from milo_discovery import EngagedCluster, Fleet
from tests.end_to_end.kubeconfigs.reading import Command
from tests.end_to_end.kubeconfigs.workspace import Workspace
from tests.support.eventually import eventually

PAUSE_S = 0.2
"""Pause between two rounds: the test needs time to pass, not load."""


class Operator:
    """An operator in Python that writes ConfigMaps and receives each of them in one watch, which must not end."""

    def __init__(self, name: str, ends_at: float) -> None:
        self.name = name
        self.engagements = 0
        self.written: list[str] = []
        self.seen: list[str] = []
        self.tokens: set[str] = set()
        self._ends_at = ends_at
        self._done = asyncio.Event()

    async def work(self, workspace: Workspace, *, fed: bool) -> None:
        """Work until the time is up.

        With `fed` the kubeconfigs come with the stream; otherwise they are requested.
        """
        async with workspace.client() as client:
            fleet = Fleet(client, on_error="raise", include_kubeconfigs=fed)
            fleet.on_engage(self._operate)
            async with fleet:
                await self._done.wait()

    def require_undisturbed(self) -> None:
        """Check that its cluster was engaged once, and that one watch received everything that it wrote."""
        assert self.engagements == 1
        assert [name for name in self.seen if name.startswith(self.name)] == self.written

    async def _operate(self, cluster: EngagedCluster) -> None:
        self.engagements += 1
        async with cluster.api_client() as api, cluster.sync_api_client() as blocking:
            core = aio.CoreV1Api(api)
            listed = await core.list_namespaced_config_map("default")
            watching = asyncio.create_task(self._watch(core, listed.metadata.resource_version))
            try:
                while time.time() < self._ends_at:
                    self.written.append(f"{self.name}-{len(self.written)}")
                    body = aio.V1ConfigMap(metadata=aio.V1ObjectMeta(name=self.written[-1]))
                    await core.create_namespaced_config_map("default", body)
                    self.tokens.add(api.configuration.api_key["BearerToken"])
                    await asyncio.to_thread(kubernetes.client.CoreV1Api(blocking).list_namespace)
                    await eventually(lambda: self.written[-1] in self.seen or watching.done())
                    assert not watching.done(), watching.result()
                    await asyncio.sleep(PAUSE_S)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
        self._done.set()

    async def _watch(self, core: "aio.CoreV1Api", version: str) -> str:
        # With the server's time limit, this Watch ends with its one stream instead of opening another.
        stream = Watch().stream(
            core.list_namespaced_config_map,
            "default",
            resource_version=version,
            timeout_seconds=600,
        )
        async for event in stream:
            self.seen.append(event["object"].metadata.name)
        return "the watch was cut"


async def operate_in_go(workspace: Workspace, program: Command, *, ends_at: float) -> int:
    """Run an operator in Go, with a kubeconfig without a secret.

    Return how many ConfigMaps it wrote and received in its watch.
    """
    kubeconfig = await workspace.kubeconfig("--exec")
    async with workspace.running(*program, str(kubeconfig), "operate") as process:
        ended = asyncio.create_task(process.wait())
        await asyncio.wait((ended,), timeout=ends_at - time.time())
        out, err = await process.communicate(b"")  # closes stdin
        assert await ended == 0, err.decode()
    written, refused = map(int, out.split())
    assert refused == 0
    return written
