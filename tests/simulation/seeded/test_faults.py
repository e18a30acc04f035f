"""Single faults, by their row in docs/reviewers/reliability.md, and the daemon's reaction to each."""

import asyncio

import pytest
from msgspec.structs import replace

from milo_kube.http.errors import TransportError
from milo_kube.reflect.view_status import ViewState
from tests.simulation.properties.api_server import ApiObject, bookmark, line
from tests.simulation.seeded.harness import TRAITS, VERIFIED_S, Harness, run_steps
from tests.simulation.seeded.request_faults import REQUEST_FAULTS, RequestFault

ANSWERED = [fault for fault in REQUEST_FAULTS if set(fault.kinds) == {"list", "open", "look"}]


@pytest.mark.parametrize("fault", ANSWERED, ids=lambda fault: f"{fault.row}-{fault.name.replace(' ', '-')}")
def test_failed_request_is_repeated_and_disengages_nothing(fault: RequestFault) -> None:
    async def steps(harness: Harness) -> None:
        harness.api.only = fault
        harness.api.cut()
        await harness.until(lambda: harness.daemon.fleet.status.state is ViewState.STALE)
        harness.api.only = None
        harness.change("d")
        assert await harness.settled() <= 45.0
        assert harness.received == ["ENGAGED d"]

    run_steps(steps)


HALF = line("MODIFIED", {"metadata": {"name": "a", "uid": "uid-a", "resourceVersion": "99"}})[:40]
RESET = TransportError("closed", "reset")


@pytest.mark.parametrize(
    ("said", "lists"),
    [
        pytest.param((None,), 0, id="F1-it-ends"),
        pytest.param((HALF, RESET), 0, id="F2-cut-within-a-line"),
        pytest.param((HALF, None), 0, id="F3-ended-within-a-line"),
        pytest.param((line("ERROR", {"code": 410, "reason": "Expired"}), None), 1, id="F12-expired"),
        pytest.param((line("ERROR", {"code": 500, "reason": "InternalError"}),), 0, id="F13-internal-error"),
        pytest.param((line("ERROR", {"code": 504, "reason": "Timeout"}),), 1, id="F13-a-future-version"),
        pytest.param((line("ERROR", {}),), 0, id="F13-an-empty-error"),
        pytest.param((line("MODIFIED", {"metadata": {"name": "zz", "uid": "u"}}),), 0, id="F26-modified-before-added"),
        pytest.param((line("DELETED", {"metadata": {"name": "zz", "uid": "u"}}),), 0, id="F26-deleted-and-unknown"),
        pytest.param((bookmark(1, ends_list=True),), 0, id="F26-an-unexpected-initial-events-end"),
        pytest.param((line("RENAMED", {}),), 0, id="F26-an-unknown-type"),
        pytest.param((b"<html>\n",), 0, id="F28-junk"),
    ],
)
def test_failed_watch_is_resumed_or_relisted_within_seconds(
    said: tuple[bytes | TransportError | None, ...], lists: int
) -> None:
    async def steps(harness: Harness) -> None:
        harness.api.requests.clear()
        harness.watch.say(*said)
        harness.change("d")
        assert await harness.settled() <= 5.0
        assert harness.received == ["ENGAGED d"]
        assert harness.api.requests["watch"] + harness.api.requests["list"] <= 1 + 2 * lists

    run_steps(steps)


def test_f4_watch_without_events_and_bookmarks_is_replaced() -> None:
    async def steps(harness: Harness) -> None:
        await asyncio.sleep(VERIFIED_S)
        harness.watch.mute = True
        harness.change("d")
        assert 60.0 <= await harness.settled() <= 150.0

    run_steps(steps)


def test_f4_source_is_stale_within_a_minute_after_etcd_freezes() -> None:
    async def steps(harness: Harness) -> None:
        await asyncio.sleep(VERIFIED_S)
        harness.api.freeze_etcd(600.0)
        harness.world.delete("b")
        took = await harness.until(lambda: harness.daemon.fleet.status.state is ViewState.STALE)
        assert took <= 60.0
        await asyncio.sleep(300.0)
        assert harness.daemon.fleet.status.state is ViewState.STALE
        assert harness.received == []
        harness.api.frozen_until = 0.0
        harness.api.ring()
        await harness.settled()
        assert harness.received == ["DISENGAGED b"]

    run_steps(steps)


def test_f10_lagging_server_never_reverts_the_view() -> None:
    """Behind a load balancer, another replica may not have the version yet."""

    async def steps(harness: Harness) -> None:
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.row == "F10")
        harness.api.cut()
        await harness.until(lambda: harness.api.injected["F10 a future version"])
        harness.api.only = None
        harness.change("a", content=2)
        await harness.settled(60.0)
        assert harness.received == ["UPDATED a"]

    run_steps(steps)


@pytest.mark.parametrize("streaming", [True, False])
def test_f68_list_of_lagging_replica_changes_nothing(streaming: bool) -> None:
    """The watch showed the latest changes, its resume is refused with 410, and the list comes from another replica."""

    async def steps(harness: Harness) -> None:
        harness.change("a", ready=False)
        harness.world.delete("b")
        harness.change("a")
        harness.change("d")
        await harness.settled()
        before = harness.received
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.row == "F68")
        harness.server.version += 1
        harness.server.compact()
        harness.api.cut()
        await harness.until(lambda: harness.api.injected["F68 a list of a lagging replica"] >= 3)
        harness.api.only = None
        await harness.settled(60.0)
        assert harness.received == before

    run_steps(steps, replace(TRAITS, streaming=streaming))


def test_f72_deletion_refuted_by_lagging_replica_is_sent_once_the_replica_has_caught_up() -> None:
    async def steps(harness: Harness) -> None:
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.row == "F72")
        harness.world.delete("a")
        harness.api.ring()
        await asyncio.sleep(1.0)
        assert harness.received == []
        harness.api.only = None
        assert await harness.until(lambda: harness.received == ["DISENGAGED a"]) <= 30.0

    run_steps(steps)


def test_f72_refuted_deletion_is_checked_again_after_the_source_was_lost() -> None:
    async def steps(harness: Harness) -> None:
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.row == "F72")
        harness.server.past[:] = harness.server.past[-1:]
        harness.world.delete("a")
        harness.api.ring()
        await harness.until(lambda: harness.api.injected["F72 a read from a lagging replica"])
        await asyncio.sleep(0.2)
        harness.api.only = None
        harness.api.down_until = harness.loop.time() + 5.0
        harness.api.cut()
        # The next bookmark proves that the server is the same as before.
        assert await harness.until(lambda: harness.received == ["DISENGAGED a"]) <= 75.0

    run_steps(steps)


def test_f72_deletion_of_the_last_cluster_is_sent_after_a_read_has_refuted_it() -> None:
    async def steps(harness: Harness) -> None:
        for name in "bc":
            harness.world.delete(name)
            harness.api.ring()
            await harness.settled()
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.row == "F72")
        harness.server.past[:] = harness.server.past[-1:]
        harness.world.delete("a")
        harness.api.ring()
        await asyncio.sleep(1.0)
        harness.api.only = None
        assert await harness.until(lambda: harness.received[-1:] == ["DISENGAGED a"]) <= 30.0

    run_steps(steps)


def test_f72_read_that_returns_state_older_than_the_list_engages_nothing() -> None:
    async def steps(harness: Harness) -> None:
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.row == "F72")
        harness.world.delete("a")
        harness.put("a", uid="uid-2")
        harness.server.past[:] = [(harness.server.version, dict(harness.server.objects))]
        harness.world.put("a", ApiObject("uid-2", 0, True, False, True, 1))
        harness.server.compact()
        harness.api.cut()
        await harness.until(lambda: harness.api.injected["F72 a read from a lagging replica"], 60.0)
        await asyncio.sleep(0.5)
        assert harness.received == []
        harness.api.only = None
        assert await harness.until(lambda: harness.received == ["DISENGAGED a"]) <= 30.0

    run_steps(steps)


def test_f11_expired_version_causes_one_list_and_sends_only_differences() -> None:
    async def steps(harness: Harness) -> None:
        harness.api.requests.clear()
        harness.put("a", content=2)
        harness.world.delete("b")
        harness.server.compact()
        harness.api.cut()
        await harness.settled(60.0)
        assert sorted(harness.received) == ["DISENGAGED b", "UPDATED a"]
        assert harness.api.requests["watch"] == 2

    run_steps(steps)


def test_f14_list_expired_between_pages_restarts() -> None:
    pages = replace(TRAITS, streaming=False, page_size=1)

    async def steps(harness: Harness) -> None:
        harness.server.version += 1
        harness.server.compact()
        harness.api.cut()
        harness.api.requests.clear()
        for content in range(2, 8):
            await harness.until(lambda: harness.api.requests["list"], 60.0)
            harness.change("a", content=content)
            await asyncio.sleep(0.01)
        await harness.settled(60.0)
        assert set(harness.received) == {"UPDATED a"}

    run_steps(steps, pages)


@pytest.mark.parametrize("seconds", [5, 30])
def test_f15_changes_are_received_soon_after_server_overload_ends(seconds: int) -> None:
    """A server responds with 429 while it builds its watch cache."""

    async def steps(harness: Harness) -> None:
        harness.api.busy_until = harness.loop.time() + seconds
        harness.api.cut()
        harness.change("d")
        assert await harness.settled() <= seconds + 5.0
        assert harness.api.requests["watch"] <= 2 * seconds

    run_steps(steps)


def test_f20_list_that_is_empty_by_mistake_disengages_nothing() -> None:
    async def steps(harness: Harness) -> None:
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.name == "an empty list")
        harness.server.version += 1
        harness.server.compact()
        harness.api.cut()
        await harness.until(lambda: harness.daemon.holds_removals)
        harness.api.only = None
        await harness.settled(60.0)
        assert harness.received == []

    run_steps(steps)


def test_f20_empty_list_of_deleted_fleet_is_applied_after_second_list() -> None:
    async def steps(harness: Harness) -> None:
        for name in "abc":
            harness.world.delete(name)
        harness.server.compact()
        harness.api.cut()
        assert 30.0 <= await harness.settled() <= 60.0
        assert sorted(harness.received) == ["DISENGAGED a", "DISENGAGED b", "DISENGAGED c"]

    run_steps(steps)


async def restored(harness: Harness) -> None:
    """Restore the server from a backup that lacks a cluster, and wait until the daemon holds its removal."""
    harness.server.back_up()
    harness.change("d")
    await harness.until(lambda: harness.received == ["ENGAGED d"])
    harness.world.restore()
    harness.api.cut()
    await harness.until(lambda: harness.daemon.holds_for_good)


def test_f22_restored_server_disengages_nothing() -> None:
    async def steps(harness: Harness) -> None:
        await restored(harness)
        await asyncio.sleep(1000.0)
        assert harness.received == ["ENGAGED d"]
        harness.change("d", uid="uid-e")
        await harness.settled(60.0)
        assert harness.received == ["ENGAGED d", "DISENGAGED d", "ENGAGED d"]

    run_steps(steps)


def test_f22_administrator_can_accept_the_state_of_a_restored_server() -> None:
    async def steps(harness: Harness) -> None:
        await restored(harness)
        harness.daemon.collection.accept(harness.loop.time())
        assert await harness.settled() <= 70.0
        assert harness.received == ["ENGAGED d", "DISENGAGED d"]

    run_steps(steps)


def test_f22_server_restored_while_a_refuted_deletion_is_checked_again_disengages_nothing() -> None:
    async def steps(harness: Harness) -> None:
        await harness.until(lambda: harness.api.has_bookmarked)
        harness.server.back_up()
        harness.change("d")
        await harness.until(lambda: harness.received == ["ENGAGED d"])
        harness.watch.say(line("DELETED", harness.server.objects["d"].encoded("d")))
        await harness.until(lambda: harness.daemon.collection.pending_deletions.is_doubted("d"))
        await asyncio.sleep(0.5)
        assert harness.api.requests["look"] == 1
        harness.world.restore()
        harness.api.cut()
        await harness.until(lambda: harness.daemon.holds_for_good)
        await asyncio.sleep(1000.0)
        assert harness.received == ["ENGAGED d"]
        harness.change("d", uid="uid-e")
        await harness.settled(60.0)

    run_steps(steps)


def test_f24_stale_events_are_ignored() -> None:
    async def steps(harness: Harness) -> None:
        harness.change("a", content=2)
        harness.change("a", ready=False)
        await harness.until(lambda: len(harness.received) == 1)
        harness.change("b", content=2)
        await harness.until(lambda: len(harness.received) == 2)
        harness.watch.say(*harness.watch.sent, *harness.watch.sent[::-1])
        await harness.settled()
        assert harness.received == ["DISENGAGED a", "UPDATED b"]

    run_steps(steps)


def test_f25_false_deletion_is_refuted() -> None:
    async def steps(harness: Harness) -> None:
        harness.watch.say(line("DELETED", harness.server.objects["a"].encoded("a")))
        await harness.until(lambda: harness.api.requests["look"])
        await harness.settled()
        assert harness.received == []

    run_steps(steps)


def test_f25_missed_deletion_is_found_by_next_list() -> None:
    async def steps(harness: Harness) -> None:
        await asyncio.sleep(VERIFIED_S)
        harness.world.delete("a")
        assert harness.watch.watch is not None
        harness.watch.watch.position = harness.server.version
        await asyncio.sleep(1000.0)
        assert harness.received == []
        harness.server.version += 1
        harness.server.compact()
        harness.api.cut()
        await harness.settled(60.0)
        assert harness.received == ["DISENGAGED a"]

    run_steps(steps)


def test_f31_streaming_list_that_never_ends_is_replaced_by_a_paged_list() -> None:
    async def steps(harness: Harness) -> None:
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.name == "a list without an end")
        harness.put("a", content=2)
        harness.server.compact()
        harness.api.cut()
        assert await harness.until(lambda: harness.received == ["UPDATED a"]) <= 30.0
        harness.api.only = None
        await harness.settled()

    run_steps(steps)


def test_f32_short_watches_are_not_reopened_in_a_loop() -> None:
    async def steps(harness: Harness) -> None:
        (harness.api.only,) = (fault for fault in REQUEST_FAULTS if fault.row == "F32")
        harness.api.cut()
        await asyncio.sleep(120.0)
        harness.api.requests.clear()
        await asyncio.sleep(600.0)
        assert harness.api.requests["watch"] <= 30, "at most three requests a minute"
        harness.api.only = None
        await harness.settled(60.0)

    run_steps(steps)


def test_f60_flapping_condition_sends_no_events_within_grace_period() -> None:
    patient = replace(TRAITS, grace_s=10.0)

    async def steps(harness: Harness) -> None:
        for turn in range(300):
            for name in "abc":
                harness.put(name, ready=turn % 2 == 1)
            harness.api.ring()
            await asyncio.sleep(0.1)
        await harness.settled()
        assert harness.received == []

    run_steps(steps, patient)


def test_f60_flapping_condition_without_grace_period_sends_at_most_one_event_per_change() -> None:
    async def steps(harness: Harness) -> None:
        for turn in range(200):
            harness.change("a", ready=turn % 2 == 1)
            await asyncio.sleep(0.1)
        await harness.settled()
        assert len(harness.received) <= 200
        assert set(harness.received) == {"ENGAGED a", "DISENGAGED a"}

    run_steps(steps)


def test_f61_burst_of_events_is_received_completely_and_in_order() -> None:
    many = [f"p-{number}" for number in range(1000)]

    async def steps(harness: Harness) -> None:
        for place, name in enumerate(many):
            harness.put(name)
            if place % 20 == 19:
                harness.api.ring()
                await asyncio.sleep(0.1)
        await harness.settled(15.0)
        assert harness.received == [f"ENGAGED {name}" for name in many]

    run_steps(steps)


def test_f5_watch_that_sends_an_event_byte_by_byte_is_abandoned() -> None:
    async def steps(harness: Harness) -> None:
        opened = harness.watch
        whole = line("MODIFIED", harness.server.objects["a"].encoded("a"))
        harness.change("d")
        await harness.settled()
        harness.change("e")
        harness.watch.drips_s = 1.0
        harness.watch.say(*(whole[place : place + 1] for place in range(len(whole))))
        assert await harness.until(lambda: opened not in harness.api.open) <= 35.0
        await harness.settled(60.0)
        assert harness.received == ["ENGAGED d", "ENGAGED e"]

    run_steps(steps)


def test_f30_list_that_takes_minutes_completes() -> None:
    async def steps(harness: Harness) -> None:
        for number in range(30):
            harness.put(f"p-{number}")
        harness.server.compact()
        harness.api.list_drips_s = 10.0
        harness.api.cut()
        assert 300.0 <= await harness.settled() <= 400.0
        assert harness.api.requests["list"] == 0

    run_steps(steps)
