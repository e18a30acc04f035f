"""A program that prints what a Python client reports, `asyncio` or `blocking`, in the form of the other examples."""

import asyncio
import os
import sys
from datetime import timedelta

import click

from milo_discovery import (
    Cluster,
    Disconnected,
    DiscoveryClient,
    DiscoveryError,
    DisengageReason,
    Event,
    EventType,
    StreamNotice,
    SyncDiscoveryClient,
)

HEARTBEAT = timedelta(seconds=float(os.environ.get("HEARTBEAT_S", "10")))


def line(item: Event | StreamNotice) -> str:
    match item:
        case Disconnected(error=error):
            return f"stream broken, reconnecting: {error}"
        case Event(type=EventType.DISENGAGED, cluster=cluster):
            reason = "" if item.reason is DisengageReason.UNSPECIFIED else item.reason.name
            return f"DISENGAGED {cluster.name} {reason} {item.message}"
        case Event(type=EventType.ENGAGED | EventType.UPDATED, cluster=cluster):
            return f"{item.type.name} {cluster.name} {cluster.endpoint}"
        case _:
            return ""


def show(item: Event | StreamNotice) -> Cluster | None:
    """Print an event or a notice; return the cluster if it is to be released."""
    if text := line(item):
        click.echo(text)
    if isinstance(item, Event) and item.cluster.draining is not None and item.type is not EventType.DISENGAGED:
        return item.cluster
    return None


async def follow() -> None:
    async with (
        DiscoveryClient() as client,
        client.watch(confirm_releases=True, heartbeat_interval=HEARTBEAT) as watch,
    ):
        async for item in watch.feed():
            if (draining := show(item)) is not None:
                await watch.release(draining)


def follow_blocking() -> None:
    with SyncDiscoveryClient() as client, client.watch(confirm_releases=True, heartbeat_interval=HEARTBEAT) as watch:
        for item in watch.feed():
            if (draining := show(item)) is not None:
                watch.release(draining)


def main() -> int:
    try:
        if sys.argv[1] == "asyncio":
            asyncio.run(follow())
        else:
            follow_blocking()
    except DiscoveryError as error:
        click.echo(f"refused: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
