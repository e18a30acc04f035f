"""Token reviews: results, failures and rate limits."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from milo_discoveryd.identity import review_budget
from milo_discoveryd.identity.review_budget import ReviewBudget, TokenOrigin
from milo_discoveryd.identity.token_review import (
    PATH,
    TokenRejectedError,
    TokenReviewer,
    TokenReviewLimitError,
    TokenReviewUnavailableError,
)
from milo_discoveryd.identity.token_review_cache import TokenUser
from milo_kube.http.errors import TransportError
from milo_kube.rate_limit import Rate
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.unit.credentials.backend import Answer, ScriptedApi, answering
from tests.unit.credentials.tokens import CANARY, jwt

NOW = 1_000_000.0
OPERATOR = "system:serviceaccount:milo:operator"


def reviewed(**status: Any) -> Answer:
    user = {"username": OPERATOR, "groups": ["system:authenticated"], "uid": "1", "extra": {}}
    return answering(201, {"status": {"authenticated": True, "user": user, "audiences": ["milo-discovery"], **status}})


def token(**claims: object) -> str:
    return jwt(**{"aud": ["milo-discovery"], "exp": NOW + 3600, **claims})


class Reviewing:
    """A reviewer with a scripted API server and a manual clock."""

    def __init__(self, *answers: Answer | TransportError, audiences: tuple[str, ...] = ("milo-discovery",)) -> None:
        self.api = ScriptedApi(*answers)
        self.passed = 0.0
        self.reviews = TokenReviewer(
            self.api,
            origin="the cluster",
            audiences=audiences,
            clock=lambda: self.passed,
            wall=lambda: NOW + self.passed,
            budget=ReviewBudget(0, total=Rate(20, 15)),
        )

    async def why_not(self, shown: str) -> str:
        with pytest.raises(TokenRejectedError) as caught:
            await self.reviews.authenticate(shown)
        return str(caught.value)

    async def trouble(self, shown: str) -> TokenReviewUnavailableError:
        with pytest.raises(TokenReviewUnavailableError) as caught:
            await self.reviews.authenticate(shown)
        return caught.value


async def test_token_review_returns_user_of_token() -> None:
    there = Reviewing(reviewed())
    user = await there.reviews.authenticate(token())
    assert user == TokenUser(name=OPERATOR, groups=("system:authenticated",), expires_at=NOW + 3600)
    assert there.api.asked == [("POST", PATH)]
    assert json.loads(there.api.bodies[0])["spec"] == {"token": token(), "audiences": ["milo-discovery"]}


async def test_token_review_is_shared_and_cached() -> None:
    there = Reviewing(reviewed(), reviewed())
    users = await asyncio.gather(*(there.reviews.authenticate(token()) for _ in range(20)))
    assert len(set(users)) == len(there.api.asked) == 1
    there.passed = 59
    await there.reviews.authenticate(token())
    assert len(there.api.asked) == 1
    there.passed = 61
    await there.reviews.authenticate(token())
    assert len(there.api.asked) == 2
    assert not there.reviews._in_flight


async def test_token_review_result_expires_with_the_token() -> None:
    there = Reviewing(reviewed())
    await there.reviews.authenticate(token(exp=NOW + 10))
    there.passed = 10
    assert await there.why_not(token(exp=NOW + 10)) == "the token has expired"


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False},
        {"user": {}},
        {"audiences": []},
        {"audiences": ["https://kubernetes.default.svc"]},
    ],
    ids=["not authenticated", "no username", "no audiences", "another audience"],
)
async def test_token_review_rejection_is_returned_and_cached(status: dict[str, Any]) -> None:
    there = Reviewing(reviewed(**status))
    why = await there.why_not(token())
    assert CANARY not in why
    assert await there.why_not(token()) == why
    assert len(there.api.asked) == 1


@pytest.mark.parametrize(
    "shown",
    [token(aud=["https://kubernetes.default.svc"]), token(aud=[]), token(exp=NOW), token(exp="x"), "ä", "x" * 40_000],
    ids=["another audience", "no audience", "expired", "invalid expiry", "not ASCII", "too long"],
)
async def test_token_with_invalid_claims_is_rejected_without_review(shown: str) -> None:
    there = Reviewing()
    await there.why_not(shown)
    assert there.api.asked == []


async def test_opaque_token_is_reviewed_and_has_no_expiry() -> None:
    there = Reviewing(reviewed())
    assert (await there.reviews.authenticate("opaque")).expires_at is None


async def test_token_review_without_configured_audiences_accepts_token_for_api_server() -> None:
    there = Reviewing(reviewed(audiences=[]), audiences=())
    assert (await there.reviews.authenticate(token(aud=[]))).name == OPERATOR
    assert "audiences" not in json.loads(there.api.bodies[0])["spec"]


@pytest.mark.parametrize(
    "answer",
    [
        TransportError("connect", "nobody there"),
        answering(403, {}),
        answering(401, {}),
        answering(500, {}),
        Answer(201, b"<html>"),
        answering(200, {"status": {"authenticated": True, "user": {"username": "x"}, "audiences": ["milo-discovery"]}}),
    ],
    ids=["unreachable", "forbidden", "unauthorized", "failing", "no JSON", "another status"],
)
async def test_failed_token_review_accepts_no_token_and_pauses_reviews_for_a_second(
    answer: Answer | TransportError,
) -> None:
    there = Reviewing(answer, reviewed())
    error = await there.trouble(token())
    assert error.retry_after_s == 1.0
    assert CANARY not in str(error)
    await there.trouble(token(sub="another"))
    assert len(there.api.asked) == 1, "a call soon after a failure sends no review"
    there.passed = 1.1
    assert (await there.reviews.authenticate(token())).name == OPERATOR


@pytest.mark.parametrize(("stated", "passed_on"), [("7", 7.0), ("999999999", 300.0)])
async def test_token_review_error_carries_retry_after(stated: str, passed_on: float) -> None:
    there = Reviewing(answering(429, {}, **{"Retry-After": stated}))
    assert (await there.trouble(token())).retry_after_s == passed_on


async def test_token_reviews_are_rate_limited() -> None:
    there = Reviewing(*[reviewed(authenticated=False)] * 3)
    for number in range(3):
        await there.why_not(token(sub=str(number)))
    error = await there.trouble(token(sub="one more"))
    assert 0 < error.retry_after_s < 1
    assert len(there.api.asked) == 3


async def test_canceled_caller_does_not_cancel_shared_review() -> None:
    there = Reviewing(reviewed())
    going_on = asyncio.Event()
    post = there.api.post

    async def slowly(path: str, body: bytes, *, timeout_s: float) -> Answer:
        await going_on.wait()
        return await post(path, body, timeout_s=timeout_s)

    there.api.post = slowly  # type: ignore[method-assign]
    first, second = (asyncio.create_task(there.reviews.authenticate(token())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    going_on.set()
    assert (await second).name == OPERATOR
    assert first.cancelled()


class Hanging(ScriptedApi):
    """An API server that answers about one user's tokens only once they may fail."""

    def __init__(self) -> None:
        super().__init__(*[reviewed()] * 4)
        self.hanging = 0
        self.fails = asyncio.Event()

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        if b"mallory" not in body:
            return await super().post(path, body, timeout_s=timeout_s)
        self.hanging += 1
        await self.fails.wait()
        raise TransportError("timeout", "the server did not answer")


async def test_tokens_that_an_api_server_does_not_answer_about_delay_no_review_of_another_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(review_budget, "MAX_IN_FLIGHT", 8)
    api, now = Hanging(), 0.0
    reviewer = TokenReviewer(api, origin="the cluster", audiences=(), clock=lambda: now)
    mallory, alice = TokenOrigin("m", ("mallory",)), TokenOrigin("a", ("alice",))
    await reviewer.authenticate("token of alice", alice)
    reviewing = [asyncio.create_task(reviewer.authenticate(f"mallory {number}", mallory)) for number in range(4)]
    await eventually(lambda: api.hanging == 4)
    with pytest.raises(TokenReviewLimitError, match="too many token reviews in flight"):
        await reviewer.authenticate("mallory 5", mallory)
    now = 61.0
    await reviewer.authenticate("token of alice", alice)
    await reviewer.authenticate("first token of bob", TokenOrigin("b", ("bob",)))
    api.fails.set()
    for each in reviewing:
        with pytest.raises(TokenReviewUnavailableError):
            await each
    await reviewer.authenticate("another token of alice", alice)
    with pytest.raises(TokenReviewUnavailableError, match="can't be reviewed"):
        await reviewer.authenticate("mallory 6", mallory)
    assert api.hanging == 4


async def test_token_review_failure_is_logged_once_until_recovery() -> None:
    there = Reviewing(answering(403, {}), answering(403, {}), reviewed(), answering(403, {}))
    with capture_logs() as logs:
        for number in range(4):
            with suppress(TokenReviewUnavailableError):
                await there.reviews.authenticate(token(sub=str(number)))
            there.passed += 2
    refused = (
        "the cluster denied the request to review a token (403): add to the daemon's role: "
        "create on tokenreviews.authentication.k8s.io"
    )
    assert [(line["event"], line.get("problem")) for line in logs] == [
        ("token reviews failing", refused),
        ("token reviews recovered", None),
        ("token reviews failing", refused),
    ]
