"""A machine that gives the daemon too little: descriptors, or time."""

import asyncio
import resource
import signal
import socket
from pathlib import Path

from milo_discovery._gen import discovery_pb2 as pb
from tests.process.conftest import Place
from tests.process.streams import Stream

CROWD = 40


async def next_event(stream: Stream) -> str:
    while not (batch := await stream.batch()).events:
        pass
    return " ".join(event.cluster.name for event in batch.events)


async def test_f38_without_descriptors_who_is_there_is_served_on_and_others_are_when_there_are_some(
    place: Place,
) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon() as daemon:
        await daemon.start()
        async with place.stream() as first:
            await first.until_synced()
            taken = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
            _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (taken + CROWD // 2, hard))
            crowd = [socket.socket(socket.AF_UNIX) for _ in range(CROWD)]
            try:
                for each in crowd:
                    each.setblocking(False)
                    each.connect(str(place.socket))
                place.sandbox.projects.create("beta", ready=True)
                assert await daemon.during(next_event(first)) == "beta"
                place.sandbox.drop_watches()
                place.sandbox.projects.create("gamma", ready=True)
                assert await daemon.during(next_event(first)) == "gamma"
            finally:
                for each in crowd:
                    each.close()
            async with place.stream() as second:
                assert len((await daemon.during(second.until_synced()))[-1].events) == 3
        assert await daemon.terminate() == 0


async def test_f43_a_daemon_that_is_stopped_for_a_while_goes_on_where_it_was(place: Place) -> None:
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
