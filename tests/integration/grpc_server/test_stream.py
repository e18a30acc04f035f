"""What a subscriber receives on its stream."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.log.filter import RECORDS_PER_STEP
from milo_discoveryd.model.observation import NotReady
from milo_kube.reflect.view_status import ViewState
from tests.integration.grpc_server.conftest import Harness, a_harness, event_texts, not_ready, ready
from tests.support.eventually import LIMIT_S, eventually


async def test_stream_sends_only_heartbeats_before_sync(harness: Harness) -> None:
    async with harness.subscriber() as subscriber:
        first = await subscriber.batch()
        assert (list(first.events), first.synced, first.reset, first.revision) == ([], False, False, "")
        harness.listed(ready("alpha"))
        second = await subscriber.batch()
    assert (event_texts([second]), second.synced, second.reset) == (["ENGAGED alpha"], True, True)


async def test_stream_sends_snapshot_then_changes(harness: Harness) -> None:
    harness.listed(ready("alpha"), ready("beta"))
    async with harness.subscriber() as subscriber:
        assert event_texts(await subscriber.until_synced()) == ["ENGAGED alpha", "ENGAGED beta"]
        harness.seen(ready("gamma"))
        assert await subscriber.events() == ["ENGAGED gamma"]
        harness.seen(not_ready("alpha"))
        assert await subscriber.events() == ["DISENGAGED alpha NOT_READY"]


async def test_batch_contains_the_previous_revision(harness: Harness) -> None:
    harness.listed(*(ready(f"p-{number}", note="x" * 60) for number in range(3000)))
    async with harness.subscriber() as subscriber:
        batches = await subscriber.until_synced()
        harness.seen(ready("alpha"))
        batches.append(await subscriber.batch())
    assert [batch.previous_revision for batch in batches] == ["", *(batch.revision for batch in batches[:-1])]


async def test_resume_without_changes_is_answered_at_once(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber() as subscriber:
        seen = (await subscriber.until_synced())[-1].revision
    async with harness.subscriber(resume_revision=seen) as subscriber:
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
async def test_unknown_revision_gets_snapshot(harness: Harness, revision: str) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber(resume_revision=revision) as subscriber:
        batch = await subscriber.batch()
    assert (event_texts([batch]), batch.reset, batch.previous_revision) == (["ENGAGED alpha"], True, "")


async def test_heartbeats_carry_source_status(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber(heartbeat_interval=Duration(seconds=1)) as subscriber:
        seen = (await subscriber.until_synced())[-1]
        beat = await subscriber.batch()
    assert (list(beat.events), beat.synced, beat.reset) == ([], True, False)
    assert (beat.revision, beat.previous_revision) == (seen.revision, seen.revision)
    assert beat.HasField("source")


async def test_source_status_change_is_sent_in_the_next_batch(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    harness.source(ViewState.STREAMING)
    async with harness.subscriber() as subscriber:
        await subscriber.until_synced()
        harness.source(ViewState.STALE, "ConnectFailed")
        batch = await subscriber.batch()
    assert (batch.source.state, batch.source.reason) == (pb.SourceStatus.STATE_STALE, "ConnectFailed")


async def test_resumed_stream_gets_coalesced_changes(harness: Harness) -> None:
    harness.listed(ready("alpha"), ready("beta"))
    async with harness.subscriber() as subscriber:
        seen = (await subscriber.until_synced())[-1].revision
    for number in range(100):
        harness.seen(ready("alpha", version=str(number + 2), step=str(number)))
        harness.seen(ready("flapping", version=str(number)))
        harness.seen(NotReady("flapping", "uid-flapping", str(number), "no more"))
    async with harness.subscriber(resume_revision=seen) as subscriber:
        batch = await subscriber.batch()
    assert event_texts([batch]) == ["UPDATED alpha"]
    assert batch.events[0].cluster.labels == {"step": "99"}


async def test_resumed_stream_begins_with_a_revision_to_resume_from(harness: Harness) -> None:
    """The changes since the resume revision are more than one step reads, and none matches the filter."""
    asked = pb.ClusterFilter(label_selector="env=prod")
    harness.listed(ready("alpha", env="prod"))
    async with harness.subscriber(filter=asked) as subscriber:
        seen = (await subscriber.until_synced())[-1].revision
    for number in range(RECORDS_PER_STEP + 1):
        harness.seen(ready(f"other-{number}"))
    async with harness.subscriber(filter=asked, resume_revision=seen) as subscriber:
        first = await subscriber.batch()
    async with harness.subscriber(filter=asked, resume_revision=first.revision) as subscriber:
        assert not (await subscriber.batch()).reset


async def test_stream_of_stopping_server_ends_with_unavailable_and_retry_info(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber() as subscriber:
        await subscriber.until_synced()
        # Reading starts before the end: gRPC's client drops unread messages when the stream ends.
        reading = asyncio.create_task(subscriber.events())
        harness.seen(ready("beta"))
        stopping = asyncio.create_task(harness.server.stop())
        assert await reading == ["ENGAGED beta"]
        error = await subscriber.error()
        await stopping
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    status = rpc_status.from_call(error)
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0


async def test_stream_of_stalled_reader_is_aborted_without_effect_on_other_streams(tmp_path: Path) -> None:
    async with a_harness(tmp_path, stalled_s=1.0) as harness:
        harness.listed(ready("alpha"))
        async with harness.subscriber() as stuck, harness.subscriber() as other:
            await stuck.until_synced()
            await other.until_synced()
            step = 0
            # The other stream continues to read until the stalled one has timed out.
            while len(harness.service.streams) == 2:
                step += 1
                harness.seen(*(ready(f"p-{n}", version=str(step), step=str(step), fill="x" * 60) for n in range(2000)))
                await other.events()
            assert (await stuck.error()).code() is grpc.StatusCode.ABORTED
            harness.seen(ready("last"))
            async with asyncio.timeout(LIMIT_S):
                while "ENGAGED last" not in await other.events():
                    pass


async def test_closed_stream_is_removed_from_service_and_notifier(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber() as subscriber:
        await subscriber.until_synced()
        assert len(harness.service.streams) == len(harness.fleet.notifier) == 1
    await eventually(lambda: not harness.service.streams and not len(harness.fleet.notifier))


async def test_stream_with_kubeconfigs_requires_an_issuer(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber(include_kubeconfigs=True) as subscriber:
        assert (await subscriber.error()).code() is grpc.StatusCode.FAILED_PRECONDITION
