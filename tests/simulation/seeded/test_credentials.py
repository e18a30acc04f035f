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


def test_subscriber_always_has_valid_kubeconfigs() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        for _ in range(300):
            await asyncio.sleep(1.0)
            assert stage.subscriber.can_work
        assert 5 <= len(tokens_of(stage, "a")) <= 15

    play(scene, SHORT, with_kubeconfigs=True)


def test_f50_outage_of_a_third_of_a_lifetime_is_unnoticed() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        stage.tokens.down_until = stage.loop.time() + 20.0
        for _ in range(60):
            await asyncio.sleep(1.0)
            assert stage.subscriber.can_work

    play(scene, SHORT, with_kubeconfigs=True)


def test_f50_expired_credential_is_never_issued_and_soon_replaced() -> None:
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


def test_f57_credential_is_not_issued_after_disengagement() -> None:
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


def test_f57_recreated_cluster_gets_its_own_credential() -> None:
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


def test_f35_credentials_of_killed_run_are_revoked_by_next() -> None:
    async def scene(stage: Stage) -> None:
        stage.subscriber.ask("b", None)
        await stage.until(lambda: tokens_of(stage, "b"))
        await stage.start_anew()
        await stage.settled()
        stage.world.delete("b")
        stage.api.ring()
        await stage.until(lambda: not stage.tokens.has_secret_of(mark("uid-b")), within_s=5.0)

    play(scene)


def test_f54_deleted_bound_secret_is_created_again() -> None:
    async def scene(stage: Stage) -> None:
        await holds_all(stage)
        for _ in range(3):
            stage.tokens.withdraw()
        await stage.until(lambda: all(stage.tokens.has_secret_of(mark(f"uid-{name}")) for name in "abc"))
        assert stage.subscriber.can_work

    play(scene, SHORT, with_kubeconfigs=True)


def test_f51_unfit_source_is_retried_for_other_clusters() -> None:
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


def test_f40_expired_credential_is_not_issued_after_suspend() -> None:
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
def test_f40_wrong_clock_issues_nothing_expired_and_causes_no_request_storm(
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
