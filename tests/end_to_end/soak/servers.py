"""The API server process of a soak test: the sandbox, or a real one."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.end_to_end.real.api import Api
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import MiloApi
from tests.end_to_end.soak.sandbox_process import AUTHORITY, READY, TOKEN
from tests.support.ports import free_port

COLLECTION = MiloApi.collection

User = dict[str, Any]


class Server(Protocol):
    """A server that keeps its objects and its port across restarts."""

    title: str
    is_sandbox: bool

    @property
    def port(self) -> int: ...

    @property
    def authority(self) -> Path: ...

    @property
    def user(self) -> User:
        """Return the user entry for a kubeconfig of this server."""

    async def start(self) -> None: ...

    async def kill(self) -> None: ...

    async def terminate(self) -> None: ...

    def signal(self, number: signal.Signals) -> None: ...

    async def order(self, what: str, **given: object) -> None:
        """Run a command of the sandbox, such as a fault."""

    async def compact(self) -> None: ...

    async def close(self) -> None: ...

    def api(self) -> Api: ...


class SandboxServer:
    is_sandbox = True
    title = "the sandbox"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: Process | None = None
        self.port = free_port()

    @property
    def authority(self) -> Path:
        return self._directory / AUTHORITY

    @property
    def user(self) -> User:
        return {"tokenFile": str(self._directory / TOKEN)}

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.end_to_end.soak.sandbox_process",
            str(self._directory),
            str(self.port),
            stdin=PIPE,
            stdout=PIPE,
        )
        if await self._line() != READY:
            raise RuntimeError("the sandbox did not start")

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self._ended()

    async def terminate(self) -> None:
        self.signal(signal.SIGTERM)
        await self._ended()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def order(self, what: str, **given: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, given]).encode() + b"\n")
        if await self._line() != "":
            raise RuntimeError(f"the sandbox did not complete the command {what}")

    async def compact(self) -> None:
        await self.order("compact")
        await self.order("drop_watches")

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    def api(self) -> Api:
        return Api(f"https://127.0.0.1:{self.port}", self.authority, (self._directory / TOKEN).read_text())

    async def _line(self) -> str | None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return line.decode().rstrip("\n") if line else None

    async def _ended(self) -> None:
        assert self._process is not None
        await self._process.communicate()


class RealServer:
    """Milo's API server, or its replacement, with its etcd."""

    is_sandbox = False

    def __init__(self, programs: Programs, directory: Path) -> None:
        self._api = MiloApi(programs, directory / "milo", proxied=False)
        self.title = self._api.title

    @property
    def port(self) -> int:
        return int(self._api.url.rpartition(":")[2])

    @property
    def authority(self) -> Path:
        return self._api.authority.file

    @property
    def user(self) -> User:
        user: User = yaml.safe_load(self._api.kubeconfig.read_text())["users"][0]["user"]
        return user

    async def start(self) -> None:
        await self._api.start()

    async def kill(self) -> None:
        await self._api.stop()

    async def terminate(self) -> None:
        await self._api.terminate()

    def signal(self, number: signal.Signals) -> None:
        assert self._api.process is not None
        os.kill(self._api.process.pid, number)

    async def order(self, what: str, **given: object) -> None:
        raise RuntimeError(f"a real server has no command {what}")

    async def compact(self) -> None:
        await self._api.compact()

    async def close(self) -> None:
        await self._api.close()

    def api(self) -> Api:
        return self._api.api()
