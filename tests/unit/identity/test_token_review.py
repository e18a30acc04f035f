"""Tokens shown to an API server: whose they are, and what becomes of those that nobody could look at."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from milo_discoveryd.daemon_errors import TransportError
from milo_discoveryd.identity.token_review import PATH, TokenRejectedError, TokenReviewer, TokenReviewUnavailableError
from milo_discoveryd.identity.token_review_cache import TokenReviewCache, TokenUser
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
    """With time standing still until it is moved."""

    def __init__(self, *answers: Answer | TransportError, audiences: tuple[str, ...] = ("milo-discovery",)) -> None:
        self.api = ScriptedApi(*answers)
        self.passed = 0.0
        self.reviews = TokenReviewer(
            self.api,
            origin="the cluster",
            audiences=audiences,
            clock=lambda: self.passed,
            wall=lambda: NOW + self.passed,
            verdicts=TokenReviewCache(0, burst=3),
        )

    async def why_not(self, shown: str) -> str:
        with pytest.raises(TokenRejectedError) as caught:
            await self.reviews.user(shown)
        return str(caught.value)

    async def trouble(self, shown: str) -> TokenReviewUnavailableError:
        with pytest.raises(TokenReviewUnavailableError) as caught:
            await self.reviews.user(shown)
        return caught.value


async def test_a_token_is_of_whom_the_api_server_says() -> None:
    there = Reviewing(reviewed())
    user = await there.reviews.user(token())
    assert user == TokenUser(name=OPERATOR, groups=("system:authenticated",), until=NOW + 3600)
    assert there.api.asked == [("POST", PATH)]
    assert json.loads(there.api.bodies[0])["spec"] == {"token": token(), "audiences": ["milo-discovery"]}


async def test_it_is_asked_once_for_all_who_show_one_token_and_for_a_while() -> None:
    there = Reviewing(reviewed(), reviewed())
    users = await asyncio.gather(*(there.reviews.user(token()) for _ in range(20)))
    assert len(set(users)) == len(there.api.asked) == 1
    there.passed = 59
    await there.reviews.user(token())
    assert len(there.api.asked) == 1
    there.passed = 61
    await there.reviews.user(token())
    assert len(there.api.asked) == 2
    assert not there.reviews._asking


async def test_what_was_said_of_a_token_ends_with_it() -> None:
    there = Reviewing(reviewed())
    await there.reviews.user(token(exp=NOW + 10))
    there.passed = 10
    assert await there.why_not(token(exp=NOW + 10)) == "it has ended"


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False},
        {"user": {}},
        {"audiences": []},
        {"audiences": ["https://kubernetes.default.svc"]},
    ],
    ids=["not known", "without a name", "audiences not looked at", "another audience"],
)
async def test_a_token_that_the_api_server_does_not_take_for_us_is_nobodys(status: dict[str, Any]) -> None:
    there = Reviewing(reviewed(**status))
    why = await there.why_not(token())
    assert CANARY not in why
    assert await there.why_not(token()) == why
    assert len(there.api.asked) == 1


@pytest.mark.parametrize(
    "shown",
    [token(aud=["https://kubernetes.default.svc"]), token(aud=[]), token(exp=NOW), token(exp="x"), "ä", "x" * 40_000],
    ids=["another audience", "no audience", "ended", "nonsense", "not ASCII", "long"],
)
async def test_what_a_token_says_against_itself_needs_no_asking(shown: str) -> None:
    there = Reviewing()
    await there.why_not(shown)
    assert there.api.asked == []


async def test_a_token_that_is_no_jwt_is_asked_for_and_has_no_end_of_its_own() -> None:
    there = Reviewing(reviewed())
    assert (await there.reviews.user("opaque")).until is None


async def test_without_audiences_tokens_of_the_api_server_itself_are_taken() -> None:
    there = Reviewing(reviewed(audiences=[]), audiences=())
    assert (await there.reviews.user(token(aud=[]))).name == OPERATOR
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
async def test_a_token_that_could_not_be_reviewed_is_never_let_through(answer: Answer | TransportError) -> None:
    there = Reviewing(answer, reviewed())
    error = await there.trouble(token())
    assert error.retry_after_s == 1.0
    assert CANARY not in str(error)
    await there.trouble(token(sub="another"))
    assert len(there.api.asked) == 1, "nobody waits for what has just failed"
    there.passed = 1.1
    assert (await there.reviews.user(token())).name == OPERATOR


async def test_when_to_come_again_is_as_the_api_server_says() -> None:
    there = Reviewing(answering(429, {}, **{"Retry-After": "7"}))
    assert (await there.trouble(token())).retry_after_s == 7.0


async def test_a_flood_of_tokens_is_not_handed_on() -> None:
    there = Reviewing(*[reviewed(authenticated=False)] * 3)
    for number in range(3):
        await there.why_not(token(sub=str(number)))
    error = await there.trouble(token(sub="one more"))
    assert 0 < error.retry_after_s < 1
    assert len(there.api.asked) == 3


async def test_who_stops_waiting_stops_nobody_else() -> None:
    there = Reviewing(reviewed())
    going_on = asyncio.Event()
    post = there.api.post

    async def slowly(path: str, body: bytes, *, timeout_s: float) -> Answer:
        await going_on.wait()
        return await post(path, body, timeout_s=timeout_s)

    there.api.post = slowly  # type: ignore[method-assign]
    first, second = (asyncio.create_task(there.reviews.user(token())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    going_on.set()
    assert (await second).name == OPERATOR
    assert first.cancelled()


async def test_why_tokens_cannot_be_reviewed_is_for_the_log_alone_and_said_once() -> None:
    there = Reviewing(answering(403, {}), answering(403, {}), reviewed(), answering(403, {}))
    with capture_logs() as logs:
        for number in range(4):
            with suppress(TokenReviewUnavailableError):
                await there.reviews.user(token(sub=str(number)))
            there.passed += 2
    refused = (
        "the cluster denied the request to review a token (403): grant the daemon's role "
        "create on tokenreviews.authentication.k8s.io"
    )
    assert [(line["event"], line.get("problem")) for line in logs] == [
        ("tokens not reviewed", refused),
        ("tokens reviewed again", None),
        ("tokens not reviewed", refused),
    ]
