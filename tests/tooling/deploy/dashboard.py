"""`./dev python -m tests.tooling.deploy.dashboard [FILE]`: draws docs/images/dashboard.svg.

A daemon runs beside a sandbox for two and a half minutes: subscribers connect and disconnect, and the source stops,
returns and is compacted. The exit status is 3 if Prometheus is not available.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import pytest

from milo_sandbox import Sandbox, churn
from tests.end_to_end.process.conftest import Workspace
from tests.tooling.deploy import monitoring
from tests.tooling.deploy.picture import Recorded, Series, drawn, legend
from tests.tooling.deploy.prometheus import Prometheus, prometheus

PICTURE = monitoring.ROOT / "docs" / "images" / "dashboard.svg"

_STEP_S = 1.0
_OWN_IDENTITY = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
_RATE_INTERVAL = "10s"
_SPEED = 20.0
_FLEET = 40
_CHANGES_A_SECOND = 4


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev python -m tests.tooling.deploy.dashboard")
    parser.add_argument("file", type=Path, nargs="?", default=PICTURE, metavar="FILE")
    asked = parser.parse_args(argv)
    try:
        recorded = asyncio.run(_recorded())
    except pytest.skip.Exception as missing:
        click.echo(str(missing), err=True)
        return 3
    asked.file.write_text(drawn(monitoring.dashboard(), recorded))
    click.echo(f"wrote {asked.file}")
    return 0


async def _recorded() -> Recorded:
    # Short intervals and lifetimes, so that the recording shows probes and renewals of tokens.
    probes = {"interval": "5s", "unreachable_after": "5s"}
    async with contextlib.AsyncExitStack() as stack:
        directory, records = (Path(stack.enter_context(TemporaryDirectory(prefix="milo-"))) for _ in range(2))
        sandbox = await stack.enter_async_context(Sandbox(seed=4, token_life=60))
        sandbox.populate(_FLEET)
        workspace = Workspace(directory, sandbox)
        daemon = await stack.enter_async_context(
            workspace.daemon(http_listen="127.0.0.1:0", connectivity=probes, kubeconfigs={"issuers": [_OWN_IDENTITY]})
        )
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        target = str(daemon.events("started")[-1]["http"]).removeprefix("http://")
        server = await stack.enter_async_context(prometheus(records, target, every=f"{_STEP_S:g}s", speed=_SPEED))
        began = time.time()
        moments = await _Play(workspace).play()
        return await _asked(server, began, time.time(), moments)


class _Play:
    """Runs the daemon through the faults."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._began = time.monotonic()
        self._moments: list[tuple[float, str]] = []

    async def play(self) -> list[tuple[float, str]]:
        """Inject the faults; return them with their times."""
        sandbox = self._workspace.sandbox
        async with asyncio.TaskGroup() as tasks:
            lasting = [
                tasks.create_task(churn.run(sandbox.churn(), _CHANGES_A_SECOND), name="churn"),
                tasks.create_task(self._subscribed(), name="subscriber"),
            ]
            await self._at(20, "a second subscriber connects")
            passing = tasks.create_task(self._subscribed(), name="passing subscriber")
            await self._at(35, "a third subscriber connects, and requests kubeconfigs")
            lasting.append(tasks.create_task(self._subscribed(include_kubeconfigs=True), name="with kubeconfigs"))
            await self._at(45, "the source forgets its history, and cuts all watches")
            self._forget()
            await self._at(55, "the second subscriber disconnects")
            passing.cancel()
            await self._at(65, "the source and every control plane stop")
            await sandbox.stop()
            await self._at(85, "the source and the control planes are back")
            await sandbox.start()
            await self._at(135, "the source forgets its history again, and cuts all watches")
            self._forget()
            await self._until(150)
            for task in lasting:
                task.cancel()
        return self._moments

    def _forget(self) -> None:
        self._workspace.sandbox.compact()
        self._workspace.sandbox.drop_watches()

    async def _at(self, second: float, what: str) -> None:
        await self._until(second)
        click.echo(f"{second:3.0f} s: {what}")
        self._moments.append((time.monotonic() - self._began, what))

    async def _until(self, second: float) -> None:
        await asyncio.sleep(self._began + second - time.monotonic())

    async def _subscribed(self, **asked: Any) -> None:
        async with self._workspace.client() as client:
            async for _ in client.watch(**asked):
                pass


async def _asked(server: Prometheus, began: float, ended: float, moments: list[tuple[float, str]]) -> Recorded:
    series: dict[str, list[Series]] = {}
    for panel in monitoring.panels():
        found = series.setdefault(panel["title"], [])
        for target in panel["targets"]:
            expression = monitoring.filled(target["expr"], rate_interval=_RATE_INTERVAL)
            for result in await server.query_range(expression, began, ended, _STEP_S):
                points = [(at - began, float(value)) for at, value in result["values"] if value != "NaN"]
                found.append(Series(legend(target["legendFormat"], result["metric"]), points))
    return Recorded(ended - began, series, moments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
