"""Ends of the daemon: by signal, by SIGKILL, and its own exit once its socket is removed."""

import asyncio
import signal

import grpc
import pytest

from milo_discovery import EventType
from tests.end_to_end.process.conftest import Place
from tests.end_to_end.process.daemon import DaemonEndedError
from tests.support.eventually import eventually


async def test_sigterm_ends_streams_as_unavailable_and_disengages_nothing(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon() as daemon:
        await daemon.start()
        async with place.stream() as stream:
            await stream.until_synced()
            ended = asyncio.create_task(daemon.terminate())

            assert [event for batch in await stream.rest() for event in batch.events] == []
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
            assert await stream.retry_after_ms() == 1000
            assert await ended == 0
            assert not place.socket.exists()


async def test_sigterm_flushes_pending_events_first(place: Place) -> None:
    for number in range(2000):
        place.sandbox.projects.create(f"p-{number}", ready=True)
    async with place.daemon() as daemon:
        await daemon.start()
        await daemon.until_said('"synced"')
        async with place.stream() as stream:
            batches = [await stream.batch()]
            assert not batches[0].synced
            ended = asyncio.create_task(daemon.terminate())

            batches += await stream.rest()

            assert sum(len(batch.events) for batch in batches) == 2000
            assert batches[-1].synced
            assert await ended == 0


async def test_sigint_ends_the_daemon_like_sigterm(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.start()
        daemon.signal(signal.SIGINT)
        assert await daemon.ended() == 0
        assert "Traceback" not in daemon.said


async def test_stop_is_logged_with_reason_and_durations(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.start()
        await daemon.until_said('"synced"')
        assert await daemon.terminate() == 0
        [stopped] = daemon.events("stopped")
    assert (stopped["level"], stopped["reason"]) == ("info", "SIGTERM")
    assert 0 <= float(str(stopped["shutdown_seconds"])) <= float(str(stopped["ran_seconds"]))


async def test_sigterm_is_not_delayed_by_stalled_subscriber(place: Place) -> None:
    for number in range(300):
        place.sandbox.projects.create(f"p-{number}", ready=True, annotations={"example.com/big": "x" * 30_000})
    async with place.daemon(annotation_prefixes=["example.com/"]) as daemon:
        await daemon.start()
        await daemon.until_said('"synced"')
        async with place.stream() as stream:
            await stream.batch()
            async with asyncio.timeout(15):
                assert await daemon.terminate() == 0


async def test_daemon_waiting_for_first_list_can_be_terminated(place: Place) -> None:
    await place.sandbox.stop()
    async with place.daemon() as daemon:
        await daemon.start()
        assert await daemon.terminate() == 0


async def test_second_daemon_on_same_socket_is_rejected(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon() as first, place.daemon() as second, place.client() as client:
        await first.start()
        await first.until_said('"synced"')
        await second.spawn()

        assert await second.ended() == 1
        assert second.said == (
            f"milo-discoveryd: {place.socket} is in use by another daemon (process {first.pid}): "
            "stop it, or listen on another path"
        )
        assert [cluster.name for cluster in await client.list()] == ["alpha"]
        assert place.socket.exists()


async def test_daemon_starts_on_leftover_socket_after_sigkill(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon() as daemon, place.client() as client:
        await daemon.start()
        assert await daemon.kill() == -signal.SIGKILL
        assert place.socket.exists()
        await daemon.start()
        await daemon.until_said('"synced"')
        await eventually(lambda: daemon.said.count('"synced"') == 1)
        assert [cluster.name for cluster in await client.list()] == ["alpha"]


async def test_changes_during_restart_are_sent_afterwards(place: Place) -> None:
    projects = place.sandbox.projects
    for name in ("kept", "deleted", "replaced", "blocked"):
        projects.create(name, ready=True)
    async with place.daemon() as daemon, place.client() as client:
        await daemon.start()
        watch = client.watch()
        await watch.synced()
        before = {(await anext(watch)).cluster.name for _ in range(4)}
        assert before == {"kept", "deleted", "replaced", "blocked"}

        await daemon.kill()
        projects.delete("deleted")
        projects.delete("replaced")
        projects.create("replaced", ready=True)
        projects.set_condition("blocked", "False")
        projects.create("new", ready=True)
        await daemon.start()

        told = [await anext(watch) for _ in range(5)]
        assert sorted((event.type.name, event.cluster.name) for event in told) == [
            ("DISENGAGED", "blocked"),
            ("DISENGAGED", "deleted"),
            ("DISENGAGED", "replaced"),
            ("ENGAGED", "new"),
            ("ENGAGED", "replaced"),
        ]
        of_replaced = [event.type for event in told if event.cluster.name == "replaced"]
        assert of_replaced == [EventType.DISENGAGED, EventType.ENGAGED]
        assert set(watch.clusters) == {"kept", "replaced", "new"}


@pytest.mark.parametrize(("harm", "words"), [("remove", "was removed"), ("replace", "was replaced by another file")])
async def test_daemon_exits_if_its_socket_is_removed(place: Place, harm: str, words: str) -> None:
    async with place.daemon() as daemon:
        await daemon.start()
        place.socket.unlink()
        if harm == "replace":
            place.socket.write_text("")

        assert await daemon.ended() == 1
        message = f"milo-discoveryd: {place.socket} {words}: clients can't reach this daemon any more"
        assert message in daemon.tail(2).splitlines()
        assert place.socket.exists() == (harm == "replace")
        assert "Traceback" not in daemon.said


async def test_daemon_that_cannot_start_exits_with_an_error(place: Place) -> None:
    async with place.daemon(mode="projects") as daemon:
        with pytest.raises(DaemonEndedError, match='mode: "projects" must be one of'):
            await daemon.start()
