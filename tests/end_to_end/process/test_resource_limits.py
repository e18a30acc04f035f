"""A daemon with too few file descriptors or too little CPU time."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import pytest

from milo_discovery._gen import discovery_pb2 as pb
from tests.end_to_end.process.conftest import Place
from tests.end_to_end.process.streams import Stream

DESCRIPTORS = 64
CROWD = 200
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What each client begins with: whoever has sent it may stay, and be silent."""


async def next_event(stream: Stream) -> str:
    while not (batch := await stream.batch()).events:
        pass
    return " ".join(event.cluster.name for event in batch.events)


async def test_f38_connection_flood_leaves_descriptors_for_the_api_server(place: Place) -> None:
    """O9: who is there is served on, who comes is refused by a code, and is served when there is room."""
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon(descriptors=DESCRIPTORS) as daemon:
        await daemon.start()
        async with place.stream() as first:
            await first.until_synced()
            with crowd(place):
                async with place.stream() as late:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await late.batch()
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                for name in ("beta", "gamma", "delta"):
                    place.sandbox.drop_watches()
                    place.sandbox.projects.create(name, ready=True)
                    assert await daemon.during(next_event(first)) == name
        assert len(await daemon.during(clusters_once_there_is_room(place))) == 4
        assert await daemon.terminate() == 0
    [told] = daemon.events("connection limit lowered: raise the limit of open files (RLIMIT_NOFILE)")
    assert told["level"] == "info", "the number is the default, which nobody configured"
    assert (told["connections"], told["set"], told["limit"]) == (DESCRIPTORS // 2, 1000, DESCRIPTORS)


async def clusters_once_there_is_room(place: Place) -> list[str]:
    while True:
        async with place.stream() as stream:
            try:
                batches = await stream.until_synced()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                continue  # some of the crowd are still being seen off
        return [event.cluster.name for batch in batches for event in batch.events]


@contextmanager
def crowd(place: Place) -> Iterator[None]:
    """More than there is room for; those that got in stay."""
    with ExitStack() as closing:
        for _ in range(CROWD):
            each = closing.enter_context(socket.socket(socket.AF_UNIX))
            each.connect(str(place.socket))
            with suppress(ConnectionError):  # refused already
                each.sendall(HELLO)
        yield


async def test_f43_stopped_daemon_continues_where_it_was(place: Place) -> None:
    """F41 as well: from outside, one that is busy for as long looks no different."""
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon() as daemon:
        await daemon.start()
        async with place.stream(pb.WatchClustersRequest(heartbeat_interval={"seconds": 1})) as stream:
            last = (await stream.until_synced())[-1]
            daemon.signal(signal.SIGSTOP)
            place.sandbox.drop_watches()
            place.sandbox.projects.create("beta", ready=True)
            place.sandbox.projects.delete("alpha")
            await asyncio.sleep(2.5)  # that is the fault
            daemon.signal(signal.SIGCONT)
            told: list[str] = []

            async def follow() -> None:
                nonlocal last
                while len(told) < 2:
                    batch = await stream.batch()
                    assert batch.previous_revision == last.revision, "late, and in order"
                    last = batch
                    told.extend(pb.ClusterEvent.Type.Name(event.type) for event in batch.events)

            await daemon.during(follow())
            assert sorted(told) == ["TYPE_DISENGAGED", "TYPE_ENGAGED"]
        assert await daemon.terminate() == 0
