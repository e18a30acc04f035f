"""What a subscriber sees on its stream."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.model.observation import NotReady
from milo_discoveryd.model.source import SourceState
from milo_discoveryd.registry.log import Retention
from tests.integration.grpc_server.conftest import World, a_world, not_ready, ready, told
from tests.support.eventually import eventually


async def test_an_empty_fleet_is_one_batch_that_resets_and_is_synced(world: World) -> None:
    world.listed()
    async with world.subscriber() as subscriber:
        batch = await subscriber.batch()
    assert (list(batch.events), batch.reset, batch.synced, batch.previous_revision) == ([], True, True, "")
    assert batch.source.state == pb.SourceStatus.STATE_CATCHING_UP


async def test_before_the_first_complete_list_there_are_only_unsynced_heartbeats(world: World) -> None:
    async with world.subscriber() as subscriber:
        first = await subscriber.batch()
        assert (list(first.events), first.synced, first.reset, first.revision) == ([], False, False, "")
        world.listed(ready("alpha"))
        second = await subscriber.batch()
    assert (told([second]), second.synced, second.reset) == (["ENGAGED alpha"], True, True)


async def test_the_snapshot_comes_first_and_then_each_change(world: World) -> None:
    world.listed(ready("alpha"), ready("beta"))
    async with world.subscriber() as subscriber:
        assert told(await subscriber.until_synced()) == ["ENGAGED alpha", "ENGAGED beta"]
        world.seen(ready("gamma"))
        assert await subscriber.events() == ["ENGAGED gamma"]
        world.seen(not_ready("alpha"))
        assert await subscriber.events() == ["DISENGAGED alpha NOT_READY"]


async def test_a_fleet_larger_than_a_batch_comes_in_parts_and_only_the_last_is_synced(world: World) -> None:
    world.listed(*(ready(f"p-{number}", note="x" * 60) for number in range(3000)))
    async with world.subscriber() as subscriber:
        batches = await subscriber.until_synced()
    assert len(batches) > 1
    assert [batch.reset for batch in batches] == [True] + [False] * (len(batches) - 1)
    assert len(told(batches)) == len(set(told(batches))) == 3000
    assert max(batch.ByteSize() for batch in batches) < 1024 * 1024


async def test_each_batch_names_the_revision_of_the_one_before(world: World) -> None:
    world.listed(*(ready(f"p-{number}", note="x" * 60) for number in range(3000)))
    async with world.subscriber() as subscriber:
        batches = await subscriber.until_synced()
        world.seen(ready("alpha"))
        batches.append(await subscriber.batch())
    assert [batch.previous_revision for batch in batches] == ["", *(batch.revision for batch in batches[:-1])]


async def test_a_stream_resumed_from_the_last_revision_repeats_nothing_and_misses_nothing(world: World) -> None:
    world.listed(ready("alpha"), ready("beta"))
    async with world.subscriber() as subscriber:
        seen = (await subscriber.until_synced())[-1].revision
    world.seen(not_ready("beta"), ready("gamma"))
    async with world.subscriber(resume_revision=seen) as subscriber:
        batch = await subscriber.batch()
    assert told([batch]) == ["DISENGAGED beta NOT_READY", "ENGAGED gamma"]
    assert (batch.reset, batch.synced, batch.previous_revision) == (False, True, seen)
    assert batch.HasField("source")


async def test_a_resume_with_nothing_new_is_answered_at_once(world: World) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber() as subscriber:
        seen = (await subscriber.until_synced())[-1].revision
    async with world.subscriber(resume_revision=seen) as subscriber:
        batch = await subscriber.batch()
    assert (list(batch.events), batch.reset, batch.synced, batch.revision) == ([], False, True, seen)


@pytest.mark.parametrize(
    "revision",
    [
        "",
        "junk",
        "0123456789abcdef.1.other",
        "0123456789abcdef.999.all",
        "ffffffffffffffff.1.all",
        "0123456789abcdef.1.all.part1",
        "0123456789abcdef.99999999999999999999999999.all",
    ],
)
async def test_a_revision_that_cannot_be_served_is_answered_by_a_snapshot(world: World, revision: str) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber(resume_revision=revision) as subscriber:
        batch = await subscriber.batch()
    assert (told([batch]), batch.reset, batch.previous_revision) == (["ENGAGED alpha"], True, "")


async def test_a_revision_older_than_what_is_remembered_is_answered_by_a_snapshot(tmp_path: Path) -> None:
    async with a_world(tmp_path, retention=Retention(count=1)) as world:
        world.listed(ready("alpha"), ready("beta"), ready("gamma"))
        async with world.subscriber() as subscriber:
            seen = (await subscriber.until_synced())[-1].revision
        world.seen(not_ready("alpha"), not_ready("beta"))
        async with world.subscriber(resume_revision=seen) as subscriber:
            batch = await subscriber.batch()
    assert (told([batch]), batch.reset) == (["ENGAGED gamma"], True)


async def test_what_one_read_of_the_watch_changed_comes_in_one_batch(world: World) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber() as subscriber:
        await subscriber.until_synced()
        world.seen(ready("alpha", uid="another"), ready("beta"))
        assert await subscriber.events() == ["DISENGAGED alpha REPLACED", "ENGAGED alpha", "ENGAGED beta"]


async def test_leaving_the_filter_disengages_and_entering_it_engages(world: World) -> None:
    world.listed(ready("alpha", env="prod"), ready("beta", env="dev"))
    async with world.subscriber(filter=pb.ClusterFilter(label_selector="env=prod")) as subscriber:
        assert told(await subscriber.until_synced()) == ["ENGAGED alpha"]
        world.seen(ready("alpha", version="2", env="dev"), ready("beta", version="2", env="prod"))
        assert await subscriber.events() == ["DISENGAGED alpha LABELS_CHANGED", "ENGAGED beta"]


async def test_a_change_that_only_others_can_see_says_nothing(world: World) -> None:
    world.listed(ready("alpha", env="prod"))
    async with world.subscriber(filter=pb.ClusterFilter(names=["alpha"])) as subscriber:
        await subscriber.until_synced()
        world.seen(ready("beta"))
        world.seen(ready("alpha", version="2", env="dev"))
        assert await subscriber.events() == ["UPDATED alpha"]


async def test_silence_is_broken_by_heartbeats_with_the_state_of_the_source(world: World) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber(heartbeat_interval=Duration(seconds=1)) as subscriber:
        seen = (await subscriber.until_synced())[-1]
        beat = await subscriber.batch()
    assert (list(beat.events), beat.synced, beat.reset) == ([], True, False)
    assert (beat.revision, beat.previous_revision) == (seen.revision, seen.revision)
    assert beat.HasField("source")


async def test_news_of_the_source_does_not_wait_for_a_heartbeat(world: World) -> None:
    world.listed(ready("alpha"))
    world.source(SourceState.STREAMING)
    async with world.subscriber() as subscriber:
        await subscriber.until_synced()
        world.source(SourceState.STALE, "ConnectFailed")
        batch = await subscriber.batch()
    assert (batch.source.state, batch.source.reason) == (pb.SourceStatus.STATE_STALE, "ConnectFailed")


async def test_losing_the_source_disengages_nobody(world: World) -> None:
    world.listed(ready("alpha"))
    world.source(SourceState.STALE, "ConnectFailed")
    async with world.subscriber() as subscriber:
        assert told(await subscriber.until_synced()) == ["ENGAGED alpha"]


async def test_a_slow_reader_is_told_where_things_stand_and_not_how_they_got_there(world: World) -> None:
    world.listed(ready("alpha"), ready("beta"))
    async with world.subscriber() as subscriber:
        seen = (await subscriber.until_synced())[-1].revision
    for number in range(100):
        world.seen(ready("alpha", version=str(number + 2), step=str(number)))
        world.seen(ready("blink", version=str(number)))
        world.seen(NotReady("blink", "uid-blink", str(number), "no more"))
    async with world.subscriber(resume_revision=seen) as subscriber:
        batch = await subscriber.batch()
    assert told([batch]) == ["UPDATED alpha"]
    assert batch.events[0].cluster.labels == {"step": "99"}


async def test_at_the_end_a_stream_gets_what_it_is_owed_then_unavailable_with_a_delay(world: World) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber() as subscriber:
        await subscriber.until_synced()
        # Read from before the end: gRPC's client drops what it has not handed out when the stream ends.
        reading = asyncio.create_task(subscriber.events())
        world.seen(ready("beta"))
        stopping = asyncio.create_task(world.server.stop())
        assert await reading == ["ENGAGED beta"]
        error = await subscriber.error()
        await stopping
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    status = rpc_status.from_call(error)
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0


async def test_a_reader_that_does_not_read_is_ended_with_aborted_and_nobody_else_notices(tmp_path: Path) -> None:
    async with a_world(tmp_path, stalled_s=1.0) as world:
        world.listed(ready("alpha"))
        async with world.subscriber() as stuck, world.subscriber() as other:
            await stuck.until_synced()
            await other.until_synced()
            step = 0
            # Until the stuck one's window is full and its time is up, the other goes on reading.
            while len(world.service.streams) == 2:
                step += 1
                world.seen(*(ready(f"p-{n}", version=str(step), step=str(step), fill="x" * 60) for n in range(2000)))
                await other.events()
            assert (await stuck.error()).code() is grpc.StatusCode.ABORTED
            world.seen(ready("last"))
            async with asyncio.timeout(20):
                while "ENGAGED last" not in await other.events():
                    pass


async def test_a_subscriber_that_leaves_leaves_nothing_behind(world: World) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber() as subscriber:
        await subscriber.until_synced()
        assert len(world.service.streams) == len(world.fleet.notifier) == 1
    await eventually(lambda: not world.service.streams and not len(world.fleet.notifier))


async def test_kubeconfigs_are_refused_while_no_source_of_them_is_configured(world: World) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber(include_kubeconfigs=True) as subscriber:
        assert (await subscriber.error()).code() is grpc.StatusCode.FAILED_PRECONDITION
