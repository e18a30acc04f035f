"""A one-member etcd on loopback, controlled over its JSON gateway."""

import asyncio
import base64
import contextlib
import shutil
import signal
from pathlib import Path
from typing import Any

import aiohttp

from tests.end_to_end.real import process
from tests.support.ports import free_port

_STARTED_WITHIN_S = 60
# A key outside every API server's prefix: writing it increments the revision and changes no object.
_TICK = base64.b64encode(b"/tests/tick").decode()


class Etcd:
    def __init__(self, binary: Path, directory: Path, *, tied: bool) -> None:
        self._binary = binary
        self._directory = directory
        self._data = directory / "etcd"
        self._tied = tied
        self.url = f"http://127.0.0.1:{free_port()}"
        self._peers = f"http://127.0.0.1:{free_port()}"  # unused, but etcd requires one
        self.process: process.Process | None = None

    async def start(self) -> None:
        self.process = process.start(
            "etcd",
            [
                str(self._binary),
                f"--data-dir={self._data}",
                f"--listen-client-urls={self.url}",
                f"--advertise-client-urls={self.url}",
                f"--listen-peer-urls={self._peers}",
                f"--initial-advertise-peer-urls={self._peers}",
                f"--initial-cluster=default={self._peers}",
                "--unsafe-no-fsync=true",  # fsync matters only if the host crashes
                "--log-level=warn",
            ],
            log=self._directory / "etcd.log",
            tied=self._tied,
        )
        async with asyncio.timeout(_STARTED_WITHIN_S):
            while not await self._healthy():
                if not self.process.running():
                    raise process.ProcessError(f"etcd exited during its start:\n{self.process.last_words()}")
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.end(signal.SIGKILL)
            self.process = None

    async def tick(self) -> int:
        """Increment the revision, and return it."""
        answer = await self._call("/v3/kv/put", {"key": _TICK, "value": ""})
        return int(answer["header"]["revision"])

    async def compact(self) -> int:
        """Create a revision, compact all earlier ones, and return it."""
        revision = await self.tick()
        await self._call("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def copy(self, destination: Path) -> None:
        """Copy the data while etcd is paused, as a disk snapshot does."""
        if self.process is None:
            shutil.copytree(self._data, destination)
            return
        self.process.pause()
        try:
            shutil.copytree(self._data, destination)
        finally:
            self.process.resume()

    def replace(self, backup: Path | None) -> None:
        """Replace the data of a stopped etcd with a backup, or with nothing."""
        if self.process is not None:
            raise process.ProcessError("etcd runs: stop it before its data is replaced")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._data)
        if backup is not None:
            shutil.copytree(backup, self._data)

    async def _healthy(self) -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.post(self.url + path, json=body) as answer:
            content: dict[str, Any] = await answer.json()
            if answer.status != 200:
                raise process.ProcessError(f"etcd answered {answer.status} to {path}: {content}")
            return content
