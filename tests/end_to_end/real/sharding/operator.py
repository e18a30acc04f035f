"""An operator that writes to one ConfigMap for each engaged cluster: about every INTERVAL seconds, and at the end.

python -m tests.end_to_end.real.sharding.operator ADDRESS MEMBER RUN KUBECONFIG INTERVAL

Each write has the engagement, has the member as its field manager, and replaces the version that this engagement read
or wrote last.
"""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from random import uniform
from typing import Any

import aiohttp

from bench.access import Access
from milo_discovery import DiscoveryClient, EngagedCluster, Fleet

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
LABEL = "shard-test"
_TIMEOUT_S = 5.0
_RETRY_S = 0.5


class ConflictError(Exception):
    """The object has been modified."""


class Work:
    """The work of one engagement."""

    def __init__(self, session: aiohttp.ClientSession, member: str, engagement: str, project: str) -> None:
        self._session = session
        self._member = member
        self._engagement = engagement
        self._project = project
        self._version: str | None = None
        self._is_read = False
        self._number = 0

    async def write(self) -> None:
        """Write once. Raises ConflictError, and errors after which it is not known whether the write took effect."""
        if not self._is_read:
            self._version = await self._read()
            self._is_read = True
        self._number += 1
        metadata: dict[str, Any] = {"name": self._project, "labels": {LABEL: "write"}}
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"engagement": self._engagement, "number": str(self._number)},
        }
        method, path = "POST", CONFIG_MAPS
        if self._version is not None:
            method, path = "PUT", f"{CONFIG_MAPS}/{self._project}"
            metadata["resourceVersion"] = self._version
        self._is_read = False
        answer = await self._call(method, f"{path}?fieldManager={self._member}", body)
        self._version, self._is_read = answer["metadata"]["resourceVersion"], True

    async def end(self) -> None:
        """Write a last time, unless another writer may have followed."""
        if self._is_read:
            with suppress(ConflictError, aiohttp.ClientError, TimeoutError):
                await self.write()

    async def _read(self) -> str | None:
        async with self._session.get(f"{CONFIG_MAPS}/{self._project}") as answer:
            if answer.status == 404:
                return None
            answer.raise_for_status()
            version: str = (await answer.json())["metadata"]["resourceVersion"]
            return version

    async def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        async with self._session.request(method, path, json=body) as answer:
            if answer.status == 409:
                raise ConflictError(self._project)
            answer.raise_for_status()
            written: dict[str, Any] = await answer.json()
            return written


async def finished(work: Coroutine[Any, Any, None]) -> None:
    """Wait until the work has finished, even if the caller is canceled: a canceled request may still take effect."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    finally:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])


async def main(address: str, member: str, run: str, kubeconfig: str, interval_s: float) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with Access.of(Path(kubeconfig)).session(20) as session, DiscoveryClient(address) as client:
        session._timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        fleet = Fleet(client, subscriber=f"{member}/{run}")

        @fleet.on_engage
        async def work(cluster: EngagedCluster) -> None:
            engagement = f"{member}/{run}/{cluster.current.incarnation}"
            target = Work(session, member, engagement, cluster.name)
            try:
                while True:
                    try:
                        await finished(target.write())
                        await asyncio.sleep(interval_s * uniform(0.8, 1.2))
                    except ConflictError:
                        sys.stdout.write(f"CONFLICT {cluster.name} {engagement}\n")
                        sys.stdout.flush()
                        await asyncio.sleep(_RETRY_S)
                    except (aiohttp.ClientError, TimeoutError):
                        await asyncio.sleep(_RETRY_S)
            finally:
                await finished(target.end())

        async with fleet:
            await stopped.wait()


if __name__ == "__main__":
    _address, _member, _run, _kubeconfig, _interval_s = sys.argv[1:]
    asyncio.run(main(_address, _member, _run, _kubeconfig, float(_interval_s)))
