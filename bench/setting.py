"""The context of a measurement: its size, a directory, and API servers."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from bench import daemon as daemons
from bench.daemon import Daemon
from bench.milo import Milo, real_milo
from bench.scale import Scale

Open = Callable[[int, Path], AbstractAsyncContextManager[Milo]]
Samples = dict[str, list[float]]
"""The value of each round by key; empty if it could not be measured."""


class Setting:
    def __init__(self, scale: Scale, directory: Path, open_milo: Open) -> None:
        self.scale = scale
        self.directory = directory
        self._open_milo = open_milo
        self.is_real = open_milo is real_milo
        """Whether API servers are real ones."""

    def milo(self, count: int) -> AbstractAsyncContextManager[Milo]:
        return self._open_milo(count, self.directory)

    @asynccontextmanager
    async def daemon(self, count: int, **options: Any) -> AsyncIterator[tuple[Milo, Daemon]]:
        """Run a daemon on an API server with `count` projects; `options` are those of `Daemon`."""
        async with (
            self.milo(count) as milo,
            daemons.daemon(milo.access.kubeconfig, self.directory, **options) as daemon,
        ):
            yield milo, daemon
