"""One fault at a time, each under its number in docs/reliability.md, and what becomes of it."""

import asyncio

import pytest
from msgspec.structs import replace

from milo_discoveryd.daemon_errors import TransportError
from milo_discoveryd.model.source import SourceState
from tests.simulation.properties.api_server import bookmark, line
from tests.simulation.seeded.stage import TRAITS, Stage, play
from tests.simulation.seeded.troubles import TROUBLES, Trouble

ANSWERED = [each for each in TROUBLES if set(each.kinds) == {"list", "open", "look"}]


@pytest.mark.parametrize("trouble", ANSWERED, ids=lambda each: f"{each.row}-{each.name.replace(' ', '-')}")
def test_failed_request_is_repeated_and_disengages_nothing(trouble: Trouble) -> None:
    async def scene(stage: Stage) -> None:
        stage.api.only = trouble
        stage.api.cut()
        await stage.until(lambda: stage.daemon.fleet.status.state is SourceState.STALE)
        stage.api.only = None
        stage.happens("d")
        assert await stage.settled() <= 45.0
        assert stage.told == ["ENGAGED d"]

    play(scene)


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
        pytest.param((line("ERROR", {"code": 504, "reason": "Timeout"}),), 1, id="F13-a-version-of-the-future"),
        pytest.param((line("ERROR", {}),), 0, id="F13-an-error-without-a-word"),
        pytest.param((line("MODIFIED", {"metadata": {"name": "zz", "uid": "u"}}),), 0, id="F26-modified-before-added"),
        pytest.param((line("DELETED", {"metadata": {"name": "zz", "uid": "u"}}),), 0, id="F26-deleted-and-unknown"),
        pytest.param((bookmark(1, ends_list=True),), 0, id="F26-a-bookmark-in-an-odd-place"),
        pytest.param((line("RENAMED", {}),), 0, id="F26-an-unknown-type"),
        pytest.param((b"<html>\n",), 0, id="F28-junk"),
    ],
)
def test_faulty_watch_is_followed_by_next(said: tuple[bytes | TransportError | None, ...], lists: int) -> None:
    async def scene(stage: Stage) -> None:
        stage.api.requests.clear()
        stage.watch.say(*said)
        stage.happens("d")
        assert await stage.settled() <= 5.0
        assert stage.told == ["ENGAGED d"]
        assert stage.api.requests["watch"] + stage.api.requests["list"] <= 1 + 2 * lists

    play(scene)


def test_f4_silent_watch_is_abandoned_by_missing_bookmarks() -> None:
    async def scene(stage: Stage) -> None:
        stage.watch.mute = True
        stage.happens("d")
        assert 60.0 <= await stage.settled() <= 150.0

    play(scene)


def test_f10_lagging_server_never_takes_the_view_back() -> None:
    """Behind a load balancer another server does not know the version yet."""

    async def scene(stage: Stage) -> None:
        (stage.api.only,) = (each for each in TROUBLES if each.row == "F10")
        stage.api.cut()
        await stage.until(lambda: stage.api.injected["F10 a version of the future"])
        stage.api.only = None
        stage.happens("a", content=2)
        await stage.settled(60.0)
        assert stage.told == ["UPDATED a"]

    play(scene)


def test_f11_expired_version_leads_to_one_list_with_differences_only() -> None:
    async def scene(stage: Stage) -> None:
        stage.api.requests.clear()
        stage.put("a", content=2)
        stage.world.delete("b")
        stage.server.compact()
        stage.api.cut()
        await stage.settled(60.0)
        assert sorted(stage.told) == ["DISENGAGED b", "UPDATED a"]
        assert stage.api.requests["watch"] == 2

    play(scene)


def test_f14_list_expired_between_pages_restarts() -> None:
    pages = replace(TRAITS, streaming=False, page_size=1)

    async def scene(stage: Stage) -> None:
        stage.server.version += 1
        stage.server.compact()
        stage.api.cut()
        stage.api.requests.clear()
        for content in range(2, 8):
            await stage.until(lambda: stage.api.requests["list"], 60.0)
            stage.happens("a", content=content)
            await asyncio.sleep(0.01)
        await stage.settled(60.0)
        assert set(stage.told) == {"UPDATED a"}

    play(scene, pages)


@pytest.mark.parametrize("seconds", [5, 30])
def test_f15_overloaded_server_is_followed_again_soon(seconds: int) -> None:
    """So it answers while it builds its watch cache."""

    async def scene(stage: Stage) -> None:
        stage.api.busy_until = stage.loop.time() + seconds
        stage.api.cut()
        stage.happens("d")
        assert await stage.settled() <= seconds + 5.0
        assert stage.api.requests["watch"] <= 2 * seconds

    play(scene)


def test_f20_empty_list_by_mistake_disengages_nothing() -> None:
    async def scene(stage: Stage) -> None:
        (stage.api.only,) = (each for each in TROUBLES if each.name == "an empty list")
        stage.server.version += 1
        stage.server.compact()
        stage.api.cut()
        await stage.until(lambda: stage.daemon.holds_removals)
        stage.api.only = None
        await stage.settled(60.0)
        assert stage.told == []

    play(scene)


def test_f20_true_empty_list_is_applied_after_second_list() -> None:
    async def scene(stage: Stage) -> None:
        for name in "abc":
            stage.world.delete(name)
        stage.server.compact()
        stage.api.cut()
        assert 30.0 <= await stage.settled() <= 60.0
        assert sorted(stage.told) == ["DISENGAGED a", "DISENGAGED b", "DISENGAGED c"]

    play(scene)


def test_f22_restored_server_disengages_nothing() -> None:
    async def scene(stage: Stage) -> None:
        stage.server.back_up()
        stage.happens("d")
        await stage.until(lambda: stage.told == ["ENGAGED d"])
        stage.world.restore()
        stage.api.cut()
        await stage.until(lambda: stage.daemon.holds_for_good)
        await asyncio.sleep(1000.0)
        assert stage.told == ["ENGAGED d"]
        stage.happens("d", uid="uid-e")
        await stage.settled(60.0)
        assert stage.told == ["ENGAGED d", "DISENGAGED d", "ENGAGED d"]

    play(scene)


def test_f24_stale_events_are_ignored() -> None:
    async def scene(stage: Stage) -> None:
        stage.happens("a", content=2)
        stage.happens("a", ready=False)
        await stage.until(lambda: len(stage.told) == 1)
        stage.happens("b", content=2)
        await stage.until(lambda: len(stage.told) == 2)
        stage.watch.say(*stage.watch.sent, *stage.watch.sent[::-1])
        await stage.settled()
        assert stage.told == ["DISENGAGED a", "UPDATED b"]

    play(scene)


def test_f25_false_deletion_is_refuted() -> None:
    async def scene(stage: Stage) -> None:
        stage.watch.say(line("DELETED", stage.server.things["a"].encoded("a")))
        await stage.until(lambda: stage.api.requests["look"])
        await stage.settled()
        assert stage.told == []

    play(scene)


def test_f25_missed_deletion_is_found_by_next_list() -> None:
    async def scene(stage: Stage) -> None:
        stage.world.delete("a")
        assert stage.watch.watch is not None
        stage.watch.watch.position = stage.server.version
        await asyncio.sleep(1000.0)
        assert stage.told == []
        stage.server.version += 1
        stage.server.compact()
        stage.api.cut()
        await stage.settled(60.0)
        assert stage.told == ["DISENGAGED a"]

    play(scene)


def test_f31_endless_streaming_list_falls_back_to_pages() -> None:
    async def scene(stage: Stage) -> None:
        (stage.api.only,) = (each for each in TROUBLES if each.name == "a list without an end")
        stage.put("a", content=2)
        stage.server.compact()
        stage.api.cut()
        assert await stage.until(lambda: stage.told == ["UPDATED a"]) <= 30.0
        stage.api.only = None
        await stage.settled()

    play(scene)


def test_f32_short_watches_are_not_reopened_in_a_loop() -> None:
    async def scene(stage: Stage) -> None:
        (stage.api.only,) = (each for each in TROUBLES if each.row == "F32")
        stage.api.cut()
        await asyncio.sleep(120.0)
        stage.api.requests.clear()
        await asyncio.sleep(600.0)
        assert stage.api.requests["watch"] <= 30, "three a minute"
        stage.api.only = None
        await stage.settled(60.0)

    play(scene)


def test_f60_flapping_condition_is_hidden_by_grace() -> None:
    patient = replace(TRAITS, grace_s=10.0)

    async def scene(stage: Stage) -> None:
        for turn in range(300):
            for name in "abc":
                stage.put(name, ready=turn % 2 == 1)
            stage.api.ring()
            await asyncio.sleep(0.1)
        await stage.settled()
        assert stage.told == []

    play(scene, patient)


def test_f60_flapping_condition_without_grace_is_sent_once_per_change() -> None:
    async def scene(stage: Stage) -> None:
        for turn in range(200):
            stage.happens("a", ready=turn % 2 == 1)
            await asyncio.sleep(0.1)
        await stage.settled()
        assert len(stage.told) <= 200
        assert set(stage.told) == {"ENGAGED a", "DISENGAGED a"}

    play(scene)


def test_f61_burst_is_complete_and_ordered() -> None:
    many = [f"p-{number}" for number in range(1000)]

    async def scene(stage: Stage) -> None:
        for place, name in enumerate(many):
            stage.put(name)
            if place % 20 == 19:
                stage.api.ring()
                await asyncio.sleep(0.1)
        await stage.settled(15.0)
        assert stage.told == [f"ENGAGED {name}" for name in many]

    play(scene)


def test_f5_dripping_event_is_abandoned() -> None:
    async def scene(stage: Stage) -> None:
        opened = stage.watch
        whole = line("MODIFIED", stage.server.things["a"].encoded("a"))
        stage.happens("d")
        await stage.settled()
        stage.happens("e")
        stage.watch.drips_s = 1.0
        stage.watch.say(*(whole[place : place + 1] for place in range(len(whole))))
        assert await stage.until(lambda: opened not in stage.api.open) <= 35.0
        await stage.settled(60.0)
        assert stage.told == ["ENGAGED d", "ENGAGED e"]

    play(scene)


def test_f30_list_may_take_minutes() -> None:
    async def scene(stage: Stage) -> None:
        for number in range(30):
            stage.put(f"p-{number}")
        stage.server.compact()
        stage.api.list_drips_s = 10.0
        stage.api.cut()
        assert 300.0 <= await stage.settled() <= 400.0
        assert stage.api.requests["list"] == 0

    play(scene)
