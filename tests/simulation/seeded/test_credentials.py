"""What is handed out while the token API fails, and clusters come and go: never what is over, or another's."""

import asyncio

import pytest
from msgspec.structs import replace

from tests.end_to_end.process.handing_out import mark
from tests.simulation.seeded.stage import TRAITS, Stage, play
from tests.simulation.seeded.tokens import TOKEN_TROUBLES

FOR_EVER = next(each for each in TOKEN_TROUBLES if each.name == "a token for ever")
SHORT = replace(TRAITS, token_life_s=60.0)


def tokens_of(stage: Stage, cluster: str) -> list[str]:
    return [each.token.text for each in stage.handed if each.cluster == cluster]


async def holds_all(stage: Stage) -> None:
    await stage.until(lambda: stage.subscriber.session.view and stage.subscriber.can_work)


def test_whoever_asks_for_them_has_a_good_one_for_each_cluster_all_the_time() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        for _ in range(300):
            await asyncio.sleep(1.0)
            assert stage.subscriber.can_work
        assert 5 <= len(tokens_of(stage, "a")) <= 15

    play(scene, SHORT, with_kubeconfigs=True)


def test_f50_an_outage_of_a_third_of_their_lives_is_noticed_by_nobody() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        stage.tokens.down_until = stage.loop.time() + 20.0
        for _ in range(60):
            await asyncio.sleep(1.0)
            assert stage.subscriber.can_work

    play(scene, SHORT, with_kubeconfigs=True)


def test_f50_what_has_ended_is_handed_out_to_nobody_and_soon_after_an_outage_there_is_another() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        ends_at = stage.loop.time() + 200.0
        stage.tokens.down_until = ends_at
        while stage.loop.time() < ends_at:
            stage.subscriber.ask("a", None)
            await asyncio.sleep(5.0)
        assert not stage.subscriber.can_work
        assert await stage.until(lambda: stage.subscriber.can_work) <= 30.0

    play(scene, SHORT, with_kubeconfigs=True)


def test_f57_what_was_asked_for_is_not_handed_out_once_its_cluster_is_disengaged() -> None:
    async def scene(stage: Stage) -> None:
        stage.tokens.pause_s = 3.0
        stage.subscriber.ask("b", None)
        await asyncio.sleep(1.0)
        stage.world.delete("b")
        stage.api.ring()
        await asyncio.sleep(60.0)
        assert tokens_of(stage, "b") == []
        assert not stage.tokens.has_secret_of(mark("uid-b")), "what was on its way was revoked"

    play(scene)


def test_f57_another_cluster_of_that_name_is_given_its_own() -> None:
    async def scene(stage: Stage) -> None:
        stage.tokens.pause_s = 3.0
        stage.subscriber.ask("b", None)
        await asyncio.sleep(1.0)
        stage.world.delete("b")
        stage.happens("b", uid="uid-other")
        await asyncio.sleep(60.0)
        assert tokens_of(stage, "b") == []
        stage.subscriber.ask("b", None)
        await stage.until(lambda: tokens_of(stage, "b"))
        assert not stage.tokens.has_secret_of(mark("uid-b"))

    play(scene)


def test_f35_what_a_run_that_was_killed_had_minted_is_revoked_by_the_next() -> None:
    async def scene(stage: Stage) -> None:
        stage.subscriber.ask("b", None)
        await stage.until(lambda: tokens_of(stage, "b"))
        await stage.start_anew()
        await stage.settled()
        stage.world.delete("b")
        stage.api.ring()
        await stage.until(lambda: not stage.tokens.has_secret_of(mark("uid-b")), within_s=5.0)

    play(scene)


def test_f54_what_tokens_are_bound_to_is_made_again_when_somebody_has_deleted_it() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        for _ in range(3):
            stage.tokens.withdraw()
        await stage.until(lambda: all(stage.tokens.has_secret_of(mark(f"uid-{name}")) for name in "abc"))
        assert stage.subscriber.can_work

    play(scene, SHORT, with_kubeconfigs=True)


def test_f51_a_source_that_was_unfit_for_clusters_that_are_gone_is_tried_again_for_others() -> None:
    """Nobody asks for what is gone, so nothing else would find out that it is fit by now."""

    async def scene(stage: Stage) -> None:
        stage.tokens.only = FOR_EVER
        stage.happens("d")
        await asyncio.sleep(10.0)
        for name in "abcd":
            stage.world.delete(name)
        stage.api.ring()
        await asyncio.sleep(120.0)
        stage.tokens.only = None
        stage.subscriber.cut()
        stage.happens("e")
        assert await stage.until(lambda: tokens_of(stage, "e")) <= 60.0

    play(scene, with_kubeconfigs=True)


HOURS_S = 8 * 3600.0
YEARS_S = 10 * 365 * 86400.0


def test_f40_after_a_machine_has_slept_nothing_is_handed_out_that_ended_meanwhile() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        given = len(stage.handed)
        stage.loop.slept_s = HOURS_S
        for name in "abc":
            stage.subscriber.ask(name, None)
        assert not stage.subscriber.can_work
        assert await stage.until(lambda: stage.subscriber.can_work) <= 30.0
        assert len(stage.handed) >= given + 3

    play(scene, with_kubeconfigs=True)


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0, YEARS_S, -YEARS_S])
def test_f40_while_a_clock_is_set_wrong_nothing_ended_is_handed_out_and_nobody_is_asked_in_a_loop(
    ahead_s: float,
) -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        stage.loop.wall_ahead_s = ahead_s
        stage.tokens.requests = 0
        for _ in range(100):
            stage.subscriber.ask("a", None)
            await asyncio.sleep(10.0)
        assert stage.tokens.requests <= 1000
        stage.loop.wall_ahead_s = 0.0
        assert await stage.until(lambda: stage.subscriber.can_work) <= 60.0
        assert stage.told == []

    play(scene, with_kubeconfigs=True)
