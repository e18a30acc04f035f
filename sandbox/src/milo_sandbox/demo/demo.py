"""Starts the sandbox, unless there is an API, the daemon and a subscriber, and shows what the subscriber is told."""

import asyncio
import shlex
import signal
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
from milo_discoveryd.daemon_errors import DiscoveryError
from milo_discoveryd.telemetry import logging
from milo_sandbox import churn
from milo_sandbox.demo.scene import Scene
from milo_sandbox.demo.screen import Screen, opened
from milo_sandbox.milo import PROJECT_FINALIZER
from milo_sandbox.sandbox import Sandbox

FRAMES_PER_S = 8
PROJECTS = 12
EXPECTED = (DiscoveryError,)
"""Errors of the daemon that are reported as a line each."""


async def demo(seconds: float | None, changes_per_s: float, existing: Path | None = None) -> None:
    """Until the time is up, or a signal comes. `existing` is the kubeconfig of an API that has a life of its own."""
    with TemporaryDirectory(prefix="milo-demo-") as name:
        folder = Path(name)
        # What the daemon says goes where it doesn't disturb the picture, and can be read.
        with (folder / "daemon.log").open("w") as log:
            logging.configure("info", "json", log)
            if existing is not None:
                await _show(folder, seconds, existing)
                return
            async with Sandbox() as sandbox:
                sandbox.populate(PROJECTS, finalizers=[PROJECT_FINALIZER])
                kubeconfig = sandbox.write_kubeconfig(folder / "kubeconfig")
                await _show(folder, seconds, kubeconfig, churn.run(sandbox.churn(), changes_per_s))


async def _show(
    folder: Path, seconds: float | None, kubeconfig: Path, life: Coroutine[Any, Any, None] | None = None
) -> None:
    scene = Scene()
    async with AsyncExitStack() as stack:
        socket = f"unix://{folder}/discovery.sock"
        flags = {"discovery_kubeconfig": str(kubeconfig), "listen": (socket,), "http_listen": "127.0.0.1:0"}
        daemon = Daemon(load(flags, {}, None))
        client = await stack.enter_async_context(DiscoveryClient(socket))
        ending = stack.enter_context(_ending(seconds))
        async with asyncio.TaskGroup() as tasks:
            playing = [tasks.create_task(daemon.serve(), name="daemon")]
            if life is not None:
                playing.append(tasks.create_task(life, name="life"))
            await daemon.started.wait()
            watch = client.watch()
            introduction = _introduction(folder, socket, kubeconfig, str(daemon.http_address))
            with opened(scene, introduction) as screen:
                playing.append(tasks.create_task(_follow(watch, scene, screen), name="subscriber"))
                playing.append(tasks.create_task(_draw(watch, screen), name="screen"))
                await ending.wait()
                for task in playing:
                    task.cancel()
    counts = ", ".join(
        f"{scene.counts[kind]} {kind.name}" for kind in (EventType.ENGAGED, EventType.UPDATED, EventType.DISENGAGED)
    )
    sys.stdout.write(f"The subscriber was told: {counts}. {scene.engaged} clusters were engaged at the end.\n")


async def _follow(watch: Watch, scene: Scene, screen: Screen) -> None:
    async for event in watch:
        scene.happened(event, time.monotonic())
        screen.happened(event)


async def _draw(watch: Watch, screen: Screen) -> None:
    while True:
        screen.draw(watch.source)
        await asyncio.sleep(1 / FRAMES_PER_S)


@contextmanager
def _ending(seconds: float | None) -> Iterator[asyncio.Event]:
    """Set when the time is up, or a signal comes."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, ending.set)
    timer = None if seconds is None else loop.call_later(seconds, ending.set)
    try:
        yield ending
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        if timer is not None:
            timer.cancel()


def _introduction(folder: Path, socket: str, kubeconfig: Path, http: str) -> str:
    client = shlex.quote(str(Path(sys.executable).with_name("milo-discovery")))
    return f"""In a second terminal:
  export MILO_DISCOVERY_ADDRESS={socket}
  {client} watch
  {client} explain NAME
  kubectl --kubeconfig {kubeconfig} get projects -w
  kubectl --kubeconfig {kubeconfig} delete project NAME
  curl {http}/metrics
  tail -f {folder}/daemon.log
Ctrl-C ends the demo.
"""
