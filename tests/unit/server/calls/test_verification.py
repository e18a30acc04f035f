"""Repeated review of a running stream's token."""

import asyncio

import pytest

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.calls import verification
from milo_discoveryd.server.calls.grpc_errors import CallError, UnauthenticatedError, UnavailableError
from milo_discoveryd.server.calls.verification import GRACE_S, HANDOUT_MAX_AGE_S, StreamVerification
from tests.support.eventually import LIMIT_S

OPERATOR = Caller(listener="api", user="operator", groups=("all",))


class Reviewing:
    def __init__(self) -> None:
        self.now = 0.0
        self.answer: Caller | CallError = OPERATOR
        self.ages: list[float] = []
        self.verification = StreamVerification(OPERATOR, self.authenticate, lambda: self.now)
        self.woken = asyncio.Event()
        self.verification.wake = self.woken.set

    async def authenticate(self, max_age_s: float) -> Caller:
        self.ages.append(max_age_s)
        if isinstance(self.answer, CallError):
            raise self.answer
        return self.answer

    async def until_reviewed(self) -> None:
        self.woken.clear()
        running = asyncio.create_task(self.verification.run())
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.wait((running, asyncio.create_task(self.woken.wait())), return_when="FIRST_COMPLETED")
        finally:
            running.cancel()
        if running.done() and not running.cancelled():
            running.result()


async def test_issuing_a_kubeconfig_requires_a_recent_token_review() -> None:
    there = Reviewing()
    there.now = HANDOUT_MAX_AGE_S
    assert there.verification.is_fresh()
    there.now += 0.1
    assert not there.verification.is_fresh()
    await there.until_reviewed()
    assert there.ages == [HANDOUT_MAX_AGE_S]
    assert there.verification.is_fresh()


async def test_no_kubeconfigs_are_issued_after_the_grace_period_while_token_reviews_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "RETRY_S", 0.0)
    there = Reviewing()
    there.answer = UnavailableError("TOKEN_NOT_REVIEWED", "down", retry_after_s=1)
    there.now = HANDOUT_MAX_AGE_S + 0.1
    assert not there.verification.is_fresh()
    await there.until_reviewed()
    there.now = GRACE_S
    assert there.verification.is_fresh()
    there.now = GRACE_S + 0.1
    assert not there.verification.is_fresh()
    there.answer = OPERATOR
    await there.until_reviewed()
    assert there.verification.is_fresh()


async def test_stream_token_is_reviewed_even_if_no_kubeconfig_is_issued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "STREAM_MAX_AGE_S", 0.0)
    there = Reviewing()
    await there.until_reviewed()
    assert there.ages[0] == HANDOUT_MAX_AGE_S


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (UnauthenticatedError("TOKEN_REJECTED", "revoked"), "IDENTITY_ENDED"),
        (Caller(listener="api", user="another", groups=("all",)), "IDENTITY_CHANGED"),
        (Caller(listener="api", user="operator", groups=("fewer",)), "IDENTITY_CHANGED"),
    ],
)
async def test_rejected_token_or_changed_identity_ends_verification(answer: Caller | CallError, reason: str) -> None:
    there = Reviewing()
    there.answer = answer
    there.now = HANDOUT_MAX_AGE_S + 0.1
    there.verification.is_fresh()
    with pytest.raises(CallError) as caught:
        await there.until_reviewed()
    assert caught.value.reason == reason
