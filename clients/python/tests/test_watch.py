"""What the user of a watch sees, whatever becomes of the connection."""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from milo_discovery import (
    Event,
    Watch,
)

from .messages import engaged, following, snapshot
from .scripted import Refusal, ScriptedDaemon

GOODBYE = Refusal(grpc.StatusCode.UNAVAILABLE, "shutting down", (RetryInfo(retry_delay=Duration(nanos=1_000_000)),))


async def take(watch: Watch, count: int) -> list[str]:
    return [told(await anext(watch)) for _ in range(count)]


def told(event: Event) -> str:
    return f"{event.type.name} {event.cluster.name}"


async def test_the_fleet_arrives_as_engaged_events(client, daemon):
    watch = client.watch()
    await asyncio.gather(take(watch, 0), _serve_snapshot(daemon, watch))
    assert await take(watch, 2) == ["ENGAGED a", "ENGAGED b"]


async def _serve_snapshot(daemon: ScriptedDaemon, watch: Watch):
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.synced())
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a"), engaged("b")))
    return stream


async def test_a_broken_stream_is_resumed_and_nothing_repeated(client, daemon):
    async with client.watch() as watch:
        stream = await _serve_snapshot(daemon, watch)
        await take(watch, 2)
        stream.end(GOODBYE)
        again = await daemon.stream()
        assert again.request.resume_revision == "1"
        again.send(following("1", "2", engaged("c")))
        assert await take(watch, 1) == ["ENGAGED c"]
