"""Issued credentials while the token API fails and clusters change: never expired, never another cluster's."""

import asyncio

import pytest
from msgspec.structs import replace

from tests.end_to_end.process.issued_credentials import mark
from tests.simulation.seeded.harness import TRAITS, Harness, run_steps
from tests.simulation.seeded.tokens import TOKEN_FAULTS

FOR_EVER = next(fault for fault in TOKEN_FAULTS if fault.name == "a token that does not expire")
SHORT = replace(TRAITS, token_life_s=60.0)


def tokens_of(harness: Harness, cluster: str) -> list[str]:
    return [credential.token.text for credential in harness.handed if credential.cluster == cluster]


async def holds_all(harness: Harness) -> None:
    await harness.until(lambda: harness.subscriber.session.view and harness.subscriber.can_work)


def test_subscriber_always_has_valid_kubeconfigs() -> None:
    async def steps(harness: Harness) -> None:
        await holds_all(harness)
        for _ in range(300):
            await asyncio.sleep(1.0)
            assert harness.subscriber.can_work
        assert 5 <= len(tokens_of(harness, "a")) <= 15

    run_steps(steps, SHORT, with_kubeconfigs=True)


def test_f50_token_api_outage_of_a_third_of_token_lifetime_leaves_no_credential_expired() -> None:
    async def steps(harness: Harness) -> None:
        await holds_all(harness)
        harness.tokens.down_until = harness.loop.time() + 20.0
        for _ in range(60):
            await asyncio.sleep(1.0)
            assert harness.subscriber.can_work

    run_steps(steps, SHORT, with_kubeconfigs=True)


def test_f50_expired_credential_is_never_issued_and_soon_replaced() -> None:
    async def steps(harness: Harness) -> None:
        await holds_all(harness)
        ends_at = harness.loop.time() + 200.0
        harness.tokens.down_until = ends_at
        while harness.loop.time() < ends_at:
            harness.subscriber.ask("a", None)
            await asyncio.sleep(5.0)
        assert not harness.subscriber.can_work
        assert await harness.until(lambda: harness.subscriber.can_work) <= 30.0

    run_steps(steps, SHORT, with_kubeconfigs=True)


def test_f57_credential_is_not_issued_after_disengagement() -> None:
    async def steps(harness: Harness) -> None:
        harness.tokens.pause_s = 3.0
        harness.subscriber.ask("b", None)
        await asyncio.sleep(1.0)
        harness.world.delete("b")
        harness.api.ring()
        await asyncio.sleep(60.0)
        assert tokens_of(harness, "b") == []
        assert not harness.tokens.has_secret_of(mark("uid-b")), "credentials in flight were revoked"

    run_steps(steps)


def test_f57_recreated_cluster_gets_its_own_credential() -> None:
    async def steps(harness: Harness) -> None:
        harness.tokens.pause_s = 3.0
        harness.subscriber.ask("b", None)
        await asyncio.sleep(1.0)
        harness.world.delete("b")
        harness.change("b", uid="uid-other")
        await asyncio.sleep(60.0)
        assert tokens_of(harness, "b") == []
        harness.subscriber.ask("b", None)
        await harness.until(lambda: tokens_of(harness, "b"))
        assert not harness.tokens.has_secret_of(mark("uid-b"))

    run_steps(steps)


def test_f35_credentials_issued_by_a_killed_daemon_are_revoked_by_the_next_one() -> None:
    async def steps(harness: Harness) -> None:
        harness.subscriber.ask("b", None)
        await harness.until(lambda: tokens_of(harness, "b"))
        await harness.restart_daemon()
        await harness.settled()
        harness.world.delete("b")
        harness.api.ring()
        await harness.until(lambda: not harness.tokens.has_secret_of(mark("uid-b")), within_s=5.0)

    run_steps(steps)


def test_f54_deleted_bound_secret_is_created_again() -> None:
    async def steps(harness: Harness) -> None:
        await holds_all(harness)
        for _ in range(3):
            harness.tokens.withdraw()
        await harness.until(lambda: all(harness.tokens.has_secret_of(mark(f"uid-{name}")) for name in "abc"))
        assert harness.subscriber.can_work

    run_steps(steps, SHORT, with_kubeconfigs=True)


def test_f51_issuer_of_tokens_without_expiry_is_retried_for_other_clusters() -> None:
    """Deleted clusters request nothing, so only a request for another cluster can show that the issuer recovered."""

    async def steps(harness: Harness) -> None:
        harness.tokens.only = FOR_EVER
        harness.change("d")
        await asyncio.sleep(10.0)
        for name in "abcd":
            harness.world.delete(name)
        harness.api.ring()
        await asyncio.sleep(120.0)
        harness.tokens.only = None
        harness.subscriber.cut()
        harness.change("e")
        assert await harness.until(lambda: tokens_of(harness, "e")) <= 60.0

    run_steps(steps, with_kubeconfigs=True)


HOURS_S = 8 * 3600.0
YEARS_S = 10 * 365 * 86400.0


def test_f40_expired_credential_is_not_issued_after_the_machine_was_suspended() -> None:
    async def steps(harness: Harness) -> None:
        await holds_all(harness)
        given = len(harness.handed)
        harness.loop.slept_s = HOURS_S
        for name in "abc":
            harness.subscriber.ask(name, None)
        assert not harness.subscriber.can_work
        assert await harness.until(lambda: harness.subscriber.can_work) <= 30.0
        assert len(harness.handed) >= given + 3

    run_steps(steps, with_kubeconfigs=True)


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0, YEARS_S, -YEARS_S])
def test_f40_daemon_with_wrong_clock_issues_nothing_expired_and_sends_few_requests(
    ahead_s: float,
) -> None:
    async def steps(harness: Harness) -> None:
        await holds_all(harness)
        harness.loop.wall_ahead_s = ahead_s
        harness.tokens.requests = 0
        for _ in range(100):
            harness.subscriber.ask("a", None)
            await asyncio.sleep(10.0)
        assert harness.tokens.requests <= 1000
        harness.loop.wall_ahead_s = 0.0
        assert await harness.until(lambda: harness.subscriber.can_work) <= 60.0
        assert harness.received == []

    run_steps(steps, with_kubeconfigs=True)
