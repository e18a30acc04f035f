"""Runs the demo: a sandbox or an existing API, the daemon, and a subscriber whose events are shown."""

import asyncio
import shlex
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from milo_discovery import DiscoveryClient, EventType, Watch
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_discoveryd.daemon_errors import DaemonError
from milo_discoveryd.telemetry import logging
from milo_sandbox import churn
from milo_sandbox.demo.scene import Scene
from milo_sandbox.demo.screen import Screen, open_screen
from milo_sandbox.errors import write
from milo_sandbox.kubeconfigs import write_daemon_config
from milo_sandbox.milo import PROJECT_FINALIZER
from milo_sandbox.sandbox import Sandbox
from milo_sandbox.signals import stop_signals

FRAMES_PER_S = 8
EXPECTED = (DaemonError,)
"""Errors of the daemon that are reported in one line each, without a traceback."""


async def demo(
    seconds: float | None,
    projects: int,
    changes_per_s: float,
    existing: Path | None = None,
    *,
    publishes_objects: bool = False,
) -> None:
    """Run until the time is up or a signal arrives. `existing` is the kubeconfig of an API to use without a sandbox.

    `publishes_objects`: whether to also start a NATS server, and to publish the namespaces of all projects.
    """
    # Signals must not terminate the process before the directory, which has a token, is removed.
    with _stop_after(seconds) as stopping, TemporaryDirectory(prefix="milo-demo-") as name:
        directory = Path(name)
        # The daemon logs to a file, since log lines would disturb the screen.
        with (directory / "daemon.log").open("w") as log:
            logging.configure("info", "json", log)
            if existing is not None:
                await _show(directory, stopping, existing)
                return
            # Churn does what the controllers do, and simulates their faults.
            async with Sandbox(controllers=not changes_per_s) as sandbox:
                sandbox.populate(projects, finalizers=[PROJECT_FINALIZER])
                kubeconfig = sandbox.write_kubeconfig(directory / "kubeconfig")
                config = directory / "daemon.yaml"
                write_daemon_config(config, kubeconfig)
                changes = churn.run(sandbox.churn(), changes_per_s) if changes_per_s else None
                await _show(directory, stopping, kubeconfig, changes, config, publishes_objects=publishes_objects)


async def _show(
    directory: Path,
    stopping: asyncio.Event,
    kubeconfig: Path,
    changes: Coroutine[Any, Any, None] | None = None,
    config: Path | None = None,
    *,
    publishes_objects: bool = False,
) -> None:
    scene = Scene()
    async with AsyncExitStack() as stack:
        socket = f"unix://{directory}/discovery.sock"
        flags = {"discovery_kubeconfig": str(kubeconfig), "listen": (socket,), "http_listen": "127.0.0.1:0"}
        daemon = Daemon(load(flags, {}, config))
        client = await stack.enter_async_context(DiscoveryClient(socket))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(daemon.serve(), name="daemon")]
            if changes is not None:
                running.append(tasks.create_task(changes, name="changes"))
            await daemon.started.wait()
            watch = client.watch()
            introduction = _introduction(directory, socket, kubeconfig, str(daemon.http_address))
            async with AsyncExitStack() as published:
                if publishes_objects:
                    # Imported here because it needs the packages of the extra `nats`.
                    from milo_sandbox.demo.published_objects import publishing  # noqa: PLC0415

                    introduction = await published.enter_async_context(publishing(client, directory, socket))
                with open_screen(scene, introduction) as screen:
                    showing = [
                        tasks.create_task(_follow(watch, scene, screen), name="subscriber"),
                        tasks.create_task(_draw(watch, screen), name="screen"),
                    ]
                    await stopping.wait()
                    for task in showing:
                        task.cancel()
            for task in running:
                task.cancel()
    counts = ", ".join(
        f"{scene.counts[kind]} {kind.name}" for kind in (EventType.ENGAGED, EventType.UPDATED, EventType.DISENGAGED)
    )
    write(f"Events shown: {counts}. Clusters engaged at the end: {scene.engaged}.\n")


async def _follow(watch: Watch, scene: Scene, screen: Screen) -> None:
    async for event in watch:
        if scene.add(event, time.monotonic()):
            screen.show(event)


async def _draw(watch: Watch, screen: Screen) -> None:
    while True:
        screen.draw(watch.source)
        await asyncio.sleep(1 / FRAMES_PER_S)


@contextmanager
def _stop_after(seconds: float | None) -> Iterator[asyncio.Event]:
    """Yield an event that is set by a signal, or when the time is up."""
    with stop_signals() as stopping:
        timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, stopping.set)
        try:
            yield stopping
        finally:
            if timer is not None:
                timer.cancel()


def _introduction(directory: Path, socket: str, kubeconfig: Path, http: str) -> str:
    client = shlex.quote(str(Path(sys.executable).with_name("milo-discovery")))
    return f"""\
Status page: {http}/
In a second terminal:
export MILO_DISCOVERY_ADDRESS={socket}
export KUBECONFIG={shlex.quote(str(kubeconfig))}
{client} watch
{client} explain NAME
kubectl get projects -w
kubectl delete project NAME
tail -f {directory}/daemon.log
Ctrl-C ends the demo.
"""
