"""The set of servers that `./dev real up` started and `./dev real down` stops."""

import asyncio
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from tests.end_to_end.real.builds import Say
from tests.end_to_end.real.process import Process, ProcessError
from tests.end_to_end.real.programs import programs
from tests.end_to_end.real.servers import InfrastructureApi, MiloApi, RealApi


class Server(msgspec.Struct, frozen=True, kw_only=True):
    mode: str
    title: str
    kubeconfig: str
    processes: tuple[Process, ...]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    servers: tuple[Server, ...] = ()
    missing: tuple[str, ...] = ()


class Session:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "servers.json"

    @classmethod
    def of_the_user(cls) -> Self:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return cls(state / "milo-discoveryd" / "real")

    def servers(self) -> tuple[Server, ...]:
        return self._record().servers

    def missing(self) -> tuple[str, ...]:
        return self._record().missing

    async def up(self, say: Say) -> None:
        """Start both servers with fresh data, unless they run already."""
        with self._alone():
            if any(process.running() for server in self.servers() for process in server.processes):
                say("servers run already: ./dev real down stops them")
                return
            found = programs(say)
            for missing in found.missing:
                say(f"MISSING: {missing}")
            self._forget()
            apis = [
                MiloApi(found, self._directory / "milo", proxied=False, tied=False),
                InfrastructureApi(found, self._directory / "infrastructure", proxied=False, tied=False),
            ]
            try:
                for api in apis:
                    say(f"starting {api.title}")
                    await api.start()
            except (ProcessError, asyncio.CancelledError):
                for api in apis:
                    await api.close()
                raise
            self._write(_Record(servers=tuple(map(_server, apis)), missing=found.missing))

    async def down(self, say: Say) -> None:
        """Stop what `up` started, and remove its data."""
        with self._alone():
            if not self.servers():
                say("nothing to stop")
                return
            ended = await self._end()
            say(f"stopped {', '.join(ended)}" if ended else "all had exited already")

    async def _end(self) -> list[str]:
        ended = []
        for server in self.servers():
            for process in server.processes:
                if process.running():
                    ended.append(f"{process.name} (pid {process.pid})")
                    await process.end(signal.SIGKILL)  # their data is removed, so a graceful shutdown has no purpose
        self._forget()
        return ended

    def _record(self) -> _Record:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except FileNotFoundError:
            return _Record()

    def _write(self, record: _Record) -> None:
        self._file.write_bytes(msgspec.json.encode(record))

    def _forget(self) -> None:
        self._file.unlink(missing_ok=True)
        for name in ("milo", "infrastructure"):
            shutil.rmtree(self._directory / name, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _server(api: RealApi) -> Server:
    return Server(mode=api.mode, title=api.title, kubeconfig=str(api.kubeconfig), processes=api.processes())
