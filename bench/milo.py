"""The API server that the daemon watches: the sandbox in a process of its own, or a real one."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

import aiohttp
import msgspec

from bench import projects
from bench.access import PROJECTS, Access, call
from bench.process import Process

_WRITERS = 32
"""Concurrent writes: about the maximum that a real server on two cores accepts before it returns 429."""
_SOON_S = 120.0

Write = Callable[[aiohttp.ClientSession, int], Awaitable[None]]


class Milo(Protocol):
    """An API server with the projects `projects.name(0)` and following."""

    access: Access

    async def burst(self, first: int, count: int, size: int, mark: str) -> None:
        """Set the label value `mark` on `count` projects, from the one with index `first` on, in bursts of `size`."""


class SandboxMilo:
    def __init__(self, process: Process, access: Access) -> None:
        self._process = process
        self._said = 1
        self.access = access

    async def burst(self, first: int, count: int, size: int, mark: str) -> None:
        await self._done(f"burst {first} {count} {size} {mark}", _SOON_S)

    async def fill(self, count: int) -> None:
        """Create ConfigMaps in each project's control plane."""
        await self._done(f"fill {count}", _SOON_S)

    async def churn(self, per_s: float, seconds: float) -> None:
        """Change projects at an even rate; the label value of each is the time of its change."""
        await self._done(f"churn {per_s} {seconds}", seconds + _SOON_S)

    async def requests(self) -> int:
        """Return the number of requests that the API server has received."""
        return int(await self._done("requests", _SOON_S))

    async def relist(self, mark: str) -> None:
        """Compact the history and set the label value on one project, so that every watch client relists and receives
        it.
        """
        await self._done(f"relist {mark}", _SOON_S)

    async def _done(self, request: str, within_s: float) -> str:
        self._process.tell(request)
        self._said += 1
        return (await self._process.wait_for_lines(self._said, within_s))[self._said - 1]


@asynccontextmanager
async def sandbox_milo(count: int, directory: Path) -> AsyncIterator[SandboxMilo]:
    kubeconfig = directory / f"sandbox-{count}.kubeconfig"
    command = [sys.executable, "-m", "bench.milo_process", str(kubeconfig), str(count)]
    process = Process(command, directory / f"sandbox-{count}.log")
    try:
        await process.wait_for_lines(1)
        yield SandboxMilo(process, Access.of(kubeconfig))
    finally:
        await process.end()


class RealMilo:
    """A real API server, whose concurrent writes limit the size of bursts."""

    def __init__(self, access: Access, authority: tuple[Path, Path], *, has_projects: bool = True) -> None:
        """`has_projects`: whether projects have control planes, as with Milo's own API server alone."""
        self.access = access
        self.has_projects = has_projects
        self.authority = authority
        """Certificate and key of the client CA."""

    async def populate(self, indices: Sequence[int]) -> None:
        """Create the projects with these indices."""
        made, count = itertools.count(1), len(indices)

        async def create(session: aiohttp.ClientSession, index: int) -> None:
            await _create(session, index)
            if (number := next(made)) % max(1, count // 10) == 0:
                sys.stderr.write(f"bench: {number:,} of {count:,} projects created\n")

        await self._each(indices, create)

    async def burst(self, first: int, count: int, size: int, mark: str) -> None:
        await self._each(range(first, first + count), lambda session, index: label(session, project_path(index), mark))

    async def _each(self, indices: Iterable[int], write: Write) -> None:
        rest = iter(indices)

        async def work() -> None:
            for index in rest:
                await write(session, index)

        async with self.access.session() as session, asyncio.TaskGroup() as tasks:
            for _ in range(_WRITERS):
                tasks.create_task(work())


@asynccontextmanager
async def real_milo(count: int, directory: Path) -> AsyncIterator[Milo]:
    """Run Milo's own API server with an etcd, as `./dev real` builds them."""
    from tests.end_to_end.real.builds import say_to_stderr  # noqa: PLC0415 - these modules build programs in Go
    from tests.end_to_end.real.programs import programs  # noqa: PLC0415
    from tests.end_to_end.real.servers import MiloApi  # noqa: PLC0415

    found = await asyncio.to_thread(programs, say_to_stderr)
    api = MiloApi(found, Path(mkdtemp(prefix="real-", dir=directory)), proxied=False)
    await api.start()
    try:
        milo = RealMilo(
            Access.of(api.kubeconfig), (api.authority.file, api.authority.key_file()), has_projects=found.has_milo
        )
        await milo.populate(range(count))
        yield milo
    finally:
        await api.close()


def project_path(index: int) -> str:
    return f"{PROJECTS}/{projects.name(index)}"


async def label(session: aiohttp.ClientSession, path: str, mark: str) -> None:
    """Set the label value of an object."""
    await call(session, "PATCH", path, {"metadata": {"labels": {projects.MARK: mark}}}, patch=True)


async def _create(session: aiohttp.ClientSession, index: int) -> None:
    project = msgspec.json.decode(projects.body(index))
    for field in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
        del project["metadata"][field]
    await call(session, "POST", PROJECTS, project)
    status = {"status": project["status"]}
    await call(session, "PATCH", f"{PROJECTS}/{projects.name(index)}/status", status, patch=True)
