"""The daemon as a process."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.process import Process


class Daemon(Process):
    def __init__(
        self,
        kubeconfig: Path,
        directory: Path,
        *,
        probed: bool = False,
        config: Path | None = None,
        listens: bool = True,
        program: str = "milo_discoveryd",
        http_listen: str = "off",
        cgroup: Path | None = None,
    ) -> None:
        """Start the daemon. `probed` enables connectivity probes.

        With `listens`, it listens on `address`; otherwise only on the listeners in `config`. `program` is a module that
        runs the daemon. `cgroup` is the file cgroup.procs of the cgroup to run in.
        """
        self._socket = directory / "daemon.sock"
        self.address = f"unix://{self._socket}"
        arguments = ["--discovery-kubeconfig", str(kubeconfig)]
        arguments += ["--http-listen", http_listen]
        if listens:
            arguments += ["--listen", self.address]
        if config is not None:
            arguments += ["--config", str(config)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILO_DISCOVERY")}
        # Avoids a log line per cluster.
        clean["MILO_DISCOVERYD_LOG__LEVEL"] = "warning"
        clean["MILO_DISCOVERYD_WATCH__OBJECTS_LIMIT"] = "1GiB"  # beyond the default, which the largest fleet exceeds
        if probed:
            clean["MILO_DISCOVERYD_CONNECTIVITY__PER"] = "cluster"
        else:
            clean["MILO_DISCOVERYD_CONNECTIVITY__INTERVAL"] = "off"
        command = [sys.executable, "-m", program, "run", *arguments]
        if cgroup is not None:
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cgroup), *command]
        super().__init__(command, directory / "daemon.log", environ=clean)

    async def listens(self) -> None:
        """Return once the daemon's socket exists."""
        while not self._socket.exists():
            self.check()
            await asyncio.sleep(0.001)


@asynccontextmanager
async def daemon(kubeconfig: Path, directory: Path, **options: Any) -> AsyncIterator[Daemon]:
    """Run a daemon, with the options of `Daemon`."""
    running = Daemon(kubeconfig, directory, **options)
    try:
        await running.listens()
        yield running
    finally:
        await running.end()
