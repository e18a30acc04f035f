"""Service accounts as callers of the daemon, identified by TokenReviews of a real server."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from milo_discovery import ClientCredentials, DiscoveryClient, Unauthenticated, Unavailable
from tests.end_to_end.real.rights import Rights, shipped_role_of_reviews, user, withheld
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.steps import Mode
from tests.integration.kubeconfigs.daemon import a_daemon
from tests.support.logs import capture_logs

INFRASTRUCTURE: list[Mode] = ["project-control-plane"]
pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("mode", INFRASTRUCTURE),  # Milo's API server has no service accounts
]

ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
AUDIENCE = "milo-discovery"
SHORTEST_S = 600
"""The shortest lifetime of a token that a server issues."""
LEEWAY_S = 90
"""Longer than a server accepts an expired token."""

OURS = [
    {"name": "operators", "who": {"user": "system:serviceaccount:default:operators"}, "clusters": {"names": ["alpha"]}},
    {"name": "neighbours", "who": {"group": "system:serviceaccounts:default"}, "clusters": {"names": ["beta"]}},
    {"name": "local", "who": {"listener": "local"}, "clusters": "all"},
]


class Callers:
    """Calls to a daemon with a listener for tokens."""

    def __init__(self, server: RealApi, directory: Path) -> None:
        self.server = server
        self._address = f"unix://{directory}/t.sock"
        self._token = directory / "token"
        self._audit = directory / "audit.jsonl"
        self.shown: list[str] = []

    async def sees(self, token: str) -> list[str]:
        """Return the names of visible clusters for a token.

        Raises the call's error.
        """
        self.shown.append(token)
        self._token.write_text(token)
        async with DiscoveryClient(self._address, credentials=ClientCredentials(token_file=self._token)) as client:
            while True:
                try:
                    return [cluster.name for cluster in (await client.list()).clusters]
                except Unavailable as error:
                    if error.reason != "NOT_SYNCED":  # the daemon has just started
                        raise
                    await asyncio.sleep(0.05)

    async def rejection_of(self, token: str) -> str:
        """Return the message with which a token is rejected."""
        with pytest.raises(Unauthenticated) as refusal:
            await self.sees(token)
        assert refusal.value.reason == "TOKEN_REJECTED"
        return refusal.value.message

    def refused(self) -> list[str]:
        """Return the reasons of rejections in the audit log, which must not contain the token."""
        written = self._audit.read_text()
        assert not [token for token in self.shown if token in written or token.rpartition(".")[2] in written]
        return [line["reason"] for line in map(json.loads, written.splitlines()) if line["event"] == "refused"]


@asynccontextmanager
async def token_daemon(server: RealApi, directory: Path) -> AsyncIterator[Callers]:
    """Run a daemon with a listener for tokens, whose kubeconfig is that of `reviewer`."""
    config = {
        "mode": server.mode,
        "discovery_kubeconfig": str(server.kubeconfig),
        "connectivity": {"interval": "off"},
        "listen": [
            {"name": "local", "address": f"unix://{directory}/d.sock"},
            {"name": "tokens", "address": f"unix://{directory}/t.sock", "tokens": True},
        ],
        "token_review": {"kubeconfig": str(server.kubeconfig_as("reviewer")), "audiences": [AUDIENCE]},
        "rights": OURS,
        "audit": {"file": str(directory / "audit.jsonl")},
    }
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    async with a_daemon(directory, file, listen=()):
        yield Callers(server, directory)


@pytest_asyncio.fixture(loop_scope="session")
async def rights(server: RealApi) -> Rights:
    """Grant the shipped rights for TokenReviews, and no others."""
    rights = Rights(server, user("reviewer"))
    await rights.give(shipped_role_of_reviews())
    return rights


@pytest_asyncio.fixture(loop_scope="session")
async def accounts(server: RealApi) -> None:
    async with server.api() as api:
        for name in ("operators", "others"):
            await api.forget(f"{ACCOUNTS}/{name}")
            await api.call("POST", ACCOUNTS, {"metadata": {"name": name}})
    await create_ready(server, "alpha", "beta", "gamma")


pytestmark.append(pytest.mark.usefixtures("accounts", "rights"))


async def token_of(server: RealApi, account: str, *, audience: str = AUDIENCE) -> str:
    wanted = {"spec": {"audiences": [audience], "expirationSeconds": SHORTEST_S}}
    async with server.api() as api:
        response = await api.call("POST", f"{ACCOUNTS}/{account}/token", wanted)
    token: str = response["status"]["token"]
    return token


async def is_good(server: RealApi, token: str) -> bool:
    """Return whether the server itself accepts the token."""
    spec = {"token": token, "audiences": [AUDIENCE]}
    async with server.api() as api:
        response = await api.call("POST", REVIEWS, {"spec": spec})
    return bool(response["status"].get("authenticated"))


async def test_service_account_is_authenticated_with_shipped_cluster_role(server: RealApi, directory: Path) -> None:
    async with token_daemon(server, directory) as callers:
        assert await callers.sees(await token_of(server, "operators")) == ["alpha"]
        assert await callers.sees(await token_of(server, "others")) == ["beta"]
        assert callers.refused() == []
    async with server.client_as("reviewer") as api:
        assert await api.refusal("POST", REVIEWS, {"spec": {"token": "x"}}) is None
        for method, path, body in (
            ("GET", ACCOUNTS, None),
            ("GET", server.collection, None),
            ("POST", f"{ACCOUNTS}/operators/token", {"spec": {}}),
            ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": {"user": "x"}}),
        ):
            assert await api.refusal(method, path, body) == 403


async def test_forged_expired_and_wrong_audience_tokens_are_rejected(server: RealApi, directory: Path) -> None:
    good = await token_of(server, "operators")
    key = server.signing_key()
    now = int(time.time())
    wrong = [
        (await token_of(server, "operators", audience="https://others.test"), "must be for milo-discovery"),
        (signed(claims_of(good) | {"exp": now - LEEWAY_S, "iat": now - 700, "nbf": now - 700}, key), "expired"),
        ("made-up.by.somebody", "the API server rejected the token"),
        (with_invalid_signature(good), "the API server rejected the token"),
        (signed(claims_of(good), ec.generate_private_key(ec.SECP256R1())), "the API server rejected the token"),
        (signed(claims_of(good) | of_account("nobody"), key), "the API server rejected the token"),
    ]
    async with token_daemon(server, directory) as callers:
        for token, why in wrong:
            assert not await is_good(server, token)
            assert why in await callers.rejection_of(token)
        assert callers.refused() == ["TOKEN_REJECTED"] * len(wrong)
        assert await callers.sees(signed(claims_of(good), key)) == ["alpha"], (
            "tokens with the test's signature are rejected in any case"
        )


async def test_tokens_of_a_deleted_service_account_are_rejected(server: RealApi, directory: Path) -> None:
    shown, kept = [await token_of(server, "operators") for _ in range(2)]
    async with token_daemon(server, directory) as callers:
        assert await callers.sees(shown) == ["alpha"]

        async with server.api() as api:
            await api.call("DELETE", f"{ACCOUNTS}/operators")
        # A server caches the result of a review for some seconds.
        for number in count():
            if not await is_good(server, signed(claims_of(kept) | {"jti": str(number)}, server.signing_key())):
                break

        assert "the API server rejected the token" in await callers.rejection_of(kept)
        assert callers.refused() == ["TOKEN_REJECTED"]


async def test_missing_permission_to_review_tokens_denies_callers_and_is_logged(
    server: RealApi, directory: Path, rights: Rights
) -> None:
    await rights.give(withheld(shipped_role_of_reviews(), "tokenreviews", "create"))
    token = await token_of(server, "operators")
    async with token_daemon(server, directory) as callers:
        with capture_logs() as logs, pytest.raises(Unavailable) as refusal:
            await callers.sees(token)
        assert refusal.value.reason == "TOKEN_NOT_REVIEWED"
        assert server.url not in refusal.value.message, "an unauthenticated caller received the API server's address"
        [problem] = [line["problem"] for line in logs if line["event"] == "token reviews failing"]
        assert "tokenreviews.authentication.k8s.io" in problem

        await rights.give(shipped_role_of_reviews())
        assert await until_seen(callers, token) == ["alpha"]


async def until_seen(callers: Callers, token: str) -> list[str]:
    """Return the visible clusters, with retries: for a second after a failure the daemon sends no TokenReview."""
    while True:
        try:
            return await callers.sees(token)
        except Unavailable as refusal:
            await asyncio.sleep((refusal.retry_after or timedelta()).total_seconds())


def of_account(name: str) -> dict[str, Any]:
    account = {"name": name, "uid": "00000000-0000-0000-0000-000000000000"}
    return {
        "sub": f"system:serviceaccount:default:{name}",
        "kubernetes.io": {"namespace": "default", "serviceaccount": account},
    }


def with_invalid_signature(token: str) -> str:
    """Return the token with one bit of its signature changed."""
    begin, _, signature = token.rpartition(".")
    content = bytearray(from_text(signature))
    content[0] ^= 1
    return f"{begin}.{to_text(bytes(content))}"


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(from_text(token.split(".")[1]))
    return claims


def signed(claims: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
    what = f"{to_text(json.dumps({'alg': 'ES256', 'typ': 'JWT'}).encode())}.{to_text(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(what.encode(), ec.ECDSA(SHA256())))
    return f"{what}.{to_text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def to_text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def from_text(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
