"""A watch of a daemon, and functions that wait for its events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from milo_discovery import DiscoveryClient, EventType, Watch
from milo_discovery.events import Event
from tests.end_to_end.process.daemon import DaemonProcess

_DEFINITIONS = Path(__file__).parents[3] / "deploy" / "sources"
_WITHIN_S = 90.0


@asynccontextmanager
async def following(daemon: DaemonProcess) -> AsyncIterator[tuple[DiscoveryClient, Watch]]:
    """Start a daemon, and watch it from its first complete lists on."""
    async with daemon:
        await daemon.start()
        async with DiscoveryClient(daemon.address) as client, client.watch() as watch:
            async with asyncio.timeout(_WITHIN_S):
                await watch.synced()
            yield client, watch


async def until(watch: Watch, holds: Callable[[Watch], object]) -> None:
    async with asyncio.timeout(_WITHIN_S):
        while not holds(watch):
            await anext(watch)


async def next_event(watch: Watch, type_: EventType) -> Event:
    async with asyncio.timeout(_WITHIN_S):
        while (event := await anext(watch)).type is not type_:
            pass
    return event


def is_reachable(watch: Watch, name: str) -> bool:
    return name in watch.clusters and watch.clusters[name].connectivity.state.name == "REACHABLE"


def adapted(definition: str, **changes: Any) -> dict[str, Any]:
    """Return a shipped definition, adapted where it says `yours`; two underscores join the keys of nested settings."""
    config: dict[str, Any] = yaml.safe_load((_DEFINITIONS / f"{definition}.yaml").read_text())
    for path, value in changes.items():
        *around, last = path.split("__")
        inside: Any = config
        for step in around:
            inside = inside[int(step) if step.isdecimal() else step]
        inside[last] = value
    return config
