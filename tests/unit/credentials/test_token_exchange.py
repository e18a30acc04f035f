"""Token exchange: access tokens for a token in a file, from real HTTPS endpoints: the sandbox's, and faulty ones."""

import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from milo_discoveryd.credentials import jwt as claims_of
from milo_discoveryd.credentials.issuers.issuer import MintRequest
from milo_discoveryd.credentials.issuers.token_endpoint import TokenEndpoint, TokenEndpointSettings
from milo_discoveryd.credentials.issuers.token_exchange import (
    ASSERTION,
    CLIENT_ASSERTION,
    EXCHANGE,
    ClientKey,
    ClientSecret,
    ExchangeRequest,
    PublicClient,
    RenewedToken,
    TokenExchangeIssuer,
)
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_sandbox import Sandbox
from tests.integration.watchers.api_server import ApiServer, Handler, answering
from tests.support.renamed_file import replace
from tests.unit.credentials.tokens import CANARY, jwt

WANTED = MintRequest(ttl_s=600)
JWT = "urn:ietf:params:oauth:token-type:jwt"


def written(path: Path, content: str | bytes) -> FileContent:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return FileContent(path)


def an_issuer(directory: Path, url: str, ca: bytes, token: str, /, **differing: Any) -> TokenExchangeIssuer:
    request = ExchangeRequest(url=url, **differing.pop("request", {}))
    subject = RenewedToken(written(directory / "subject", token), JWT)
    endpoint = TokenEndpoint(written(directory / "ca.pem", ca), lambda _: None)
    return TokenExchangeIssuer("workload", endpoint, request, subject=subject, **differing)


def sandbox_issuer(directory: Path, sandbox: Sandbox, token: str, **differing: Any) -> TokenExchangeIssuer:
    return an_issuer(directory, f"{sandbox.url}/oauth/v2/token", sandbox.ca_pem, token, **differing)


async def complaint(issuer: TokenExchangeIssuer) -> CredentialError:
    with pytest.raises(CredentialError) as raised:
        await issuer.mint(WANTED)
    assert CANARY not in str(raised.value)
    return raised.value


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[ApiServer, list[tuple[Mapping[str, list[str]], str]]]]:
    """Run an endpoint that issues a token to every client; yield it with the forms and Authorization headers."""
    received: list[tuple[Mapping[str, list[str]], str]] = []

    async def answer(request: web.Request) -> web.Response:
        form = await request.post()
        fields = {name: [str(value) for value in form.getall(name)] for name in form}
        received.append((fields, request.headers.get("Authorization", "")))
        return web.json_response({"access_token": "t", "expires_in": 60, "token_type": "Bearer"})

    async with ApiServer(answer) as server:
        yield server, received


async def test_projected_token_is_exchanged_for_an_access_token(tmp_path: Path) -> None:
    async with Sandbox(token_life=300) as sandbox:
        issuer = sandbox_issuer(tmp_path, sandbox, sandbox.tokens.issue("workload", audiences=[sandbox.url]))
        minted = await issuer.mint(WANTED)
        assert minted.credential.token is not None
        assert sandbox.tokens.subject(minted.credential.token.reveal()) == "workload"
        assert 290 < minted.expires_at - time.time() <= 300


async def test_renewed_subject_token_is_used(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        issuer = sandbox_issuer(tmp_path, sandbox, sandbox.tokens.issue("first", audiences=[sandbox.url]))
        await issuer.mint(WANTED)
        replace(tmp_path / "subject", sandbox.tokens.issue("second, and longer", audiences=[sandbox.url]))
        minted = await issuer.mint(WANTED)
        assert minted.credential.token is not None
        assert sandbox.tokens.subject(minted.credential.token.reveal()) == "second, and longer"


@pytest.mark.parametrize(
    ("audiences", "request_", "expected"),
    [
        (["https://elsewhere.example.com"], {}, "(invalid_request): the endpoint does not accept this subject token"),
        (None, {"audiences": ("unknown",)}, "(invalid_target): the endpoint issues no tokens for this audience"),
        (None, {"grant": ASSERTION}, "(invalid_grant): the endpoint does not accept the subject token"),
        (None, {"grant": "other"}, "(unsupported_grant_type): the endpoint does not support this grant"),
    ],
)
async def test_token_endpoint_error_is_reported_with_the_subject_token_file(
    tmp_path: Path, audiences: list[str] | None, request_: dict[str, Any], expected: str
) -> None:
    async with Sandbox() as sandbox:
        token = sandbox.tokens.issue("workload", audiences=[sandbox.url] if audiences is None else audiences)
        error = await complaint(sandbox_issuer(tmp_path, sandbox, token, request=request_))
        assert isinstance(error, BackendError)
        assert expected in str(error)
        assert f"the token in {tmp_path / 'subject'}" in str(error)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (
            jwt(exp=1_700_000_000),
            "expired at 2023-11-14T22:13:20+00:00: the process that writes the file must renew it",
        ),
        (jwt(exp=time.time() + 7200, nbf=time.time() + 3600), "is not valid yet: check this machine's clock"),
        (jwt(exp="soon"), "is not a valid JWT"),
        (f"{CANARY}\n{CANARY}", "is not a bearer token"),
        (" ", "is empty"),
    ],
)
async def test_unusable_subject_token_is_not_sent(tmp_path: Path, token: str, expected: str) -> None:
    async with recording() as (server, received):
        assert expected in str(await complaint(an_issuer(tmp_path, f"{server.url}/token", server.pem, token)))
        assert not received


async def test_exchange_request_has_all_configured_parameters(tmp_path: Path) -> None:
    async with recording() as (server, received):
        request = {
            "audiences": ("milo", "other"),
            "resources": ("https://milo.example.com",),
            "scope": "projects",
            "requested_token_type": JWT,
            "parameters": (("connector_id", "kubernetes"),),
        }
        actor = RenewedToken(written(tmp_path / "actor", "actor-token"), "urn:example:actor")
        issuer = an_issuer(
            tmp_path, f"{server.url}/token", server.pem, "opaque", request=request, actor=actor,
            client=PublicClient("daemon"),
        )  # fmt: skip
        await issuer.mint(WANTED)
    [(form, authorization)] = received
    assert not authorization
    assert form == {
        "grant_type": [EXCHANGE],
        "subject_token": ["opaque"],
        "subject_token_type": [JWT],
        "actor_token": ["actor-token"],
        "actor_token_type": ["urn:example:actor"],
        "audience": ["milo", "other"],
        "resource": ["https://milo.example.com"],
        "scope": ["projects"],
        "requested_token_type": [JWT],
        "connector_id": ["kubernetes"],
        "client_id": ["daemon"],
    }


async def test_assertion_grant_sends_the_token_as_assertion(tmp_path: Path) -> None:
    async with recording() as (server, received):
        await an_issuer(tmp_path, f"{server.url}/token", server.pem, "svid", request={"grant": ASSERTION}).mint(WANTED)
    assert [form for form, _ in received] == [{"grant_type": [ASSERTION], "assertion": ["svid"]}]


async def test_client_secret_is_sent_as_basic_authentication(tmp_path: Path) -> None:
    async with recording() as (server, received):
        client = ClientSecret("the daemon", written(tmp_path / "secret", "p&ss: word\n"))
        await an_issuer(tmp_path, f"{server.url}/token", server.pem, "opaque", client=client).mint(WANTED)
    [(form, authorization)] = received
    assert "client_id" not in form
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"the%20daemon:p%26ss%3A%20word"


@pytest.mark.parametrize("kind", ["RS256", "ES256"])
async def test_client_key_signs_an_assertion_for_the_endpoint(tmp_path: Path, kind: str) -> None:
    rsa_key, ec_key = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = rsa_key if kind == "RS256" else ec_key
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    async with recording() as (server, received):
        client = ClientKey("daemon", written(tmp_path / "key.pem", pem), "key-1")
        await an_issuer(tmp_path, f"{server.url}/token", server.pem, "opaque", client=client).mint(WANTED)
        url = f"{server.url}/token"
    [(form, _)] = received
    assert form["client_assertion_type"] == [CLIENT_ASSERTION]
    [assertion] = form["client_assertion"]
    found = claims_of.claims(assertion)
    assert found is not None
    assert (found.sub, found.audiences) == ("daemon", frozenset({url}))
    signed, _, signature = assertion.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    if kind == "RS256":
        rsa_key.public_key().verify(raw, signed.encode(), padding.PKCS1v15(), SHA256())
    else:
        halves = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        ec_key.public_key().verify(encode_dss_signature(*halves), signed.encode(), ec.ECDSA(SHA256()))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (CANARY.encode(), "is not an unencrypted PEM key"),
        (
            ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "is neither an RSA key of at least 2048 bits nor an ECDSA key of curve P-256",
        ),
    ],
)
async def test_unusable_client_key_is_reported_and_no_request_is_sent(
    tmp_path: Path, key: bytes, expected: str
) -> None:
    async with recording() as (server, received):
        client = ClientKey("daemon", written(tmp_path / "key.pem", key), "")
        error = await complaint(an_issuer(tmp_path, f"{server.url}/token", server.pem, "opaque", client=client))
        assert expected in str(error)
        assert not received


def responding(**answer: object) -> Handler:
    return answering(json.dumps(answer).encode())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"token_type": "N_A"}, "not a bearer token"),
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "set `requested_token_type`"),
        ({"access_token": jwt(exp=time.time() + 600, aud="theirs")}, "an audience other than ours"),
    ],
)
async def test_token_of_unaccepted_type_or_audience_is_rejected(
    tmp_path: Path, answer: dict[str, object], expected: str
) -> None:
    given = {"access_token": CANARY, "expires_in": 600, "token_type": "Bearer"} | answer
    async with ApiServer(responding(**given)) as server:
        issuer = an_issuer(tmp_path, f"{server.url}/token", server.pem, "opaque", accepted_audiences=["ours"])
        assert expected in str(await complaint(issuer))


async def test_jwt_that_is_not_an_access_token_is_accepted_as_bearer_token(tmp_path: Path) -> None:
    given = {"access_token": jwt(exp=time.time() + 600), "token_type": "N_A", "issued_token_type": JWT}
    async with ApiServer(responding(**given)) as server:
        minted = await an_issuer(tmp_path, f"{server.url}/token", server.pem, "opaque").mint(WANTED)
        assert minted.credential.token is not None


async def test_last_good_ca_of_the_endpoint_is_used_while_anything_else_replaces_it(tmp_path: Path) -> None:
    noted: list[tuple[str, str]] = []
    context: Any = SimpleNamespace(proxy=lambda _: None, note=lambda *problem: noted.append(problem))
    ca = tmp_path / "ca.pem"
    settings = TokenEndpointSettings(name="workload", type="token-exchange", ca_file=ca)
    subject = RenewedToken(written(tmp_path / "subject", "opaque"), JWT)
    async with ApiServer(responding(access_token=jwt(exp=time.time() + 600))) as server:
        ca.write_bytes(server.pem)
        request = ExchangeRequest(url=f"{server.url}/token")
        issuer = TokenExchangeIssuer("workload", settings.endpoint(context), request, subject=subject)
        await issuer.mint(WANTED)
        replace(ca, "-----BEGIN CERTIFICATE-----\nnone")
        await issuer.mint(WANTED)
        assert [(path, "its former content is used" in problem) for path, problem in noted] == [(str(ca), True)]
        replace(ca, server.pem.decode())
        await issuer.mint(WANTED)
        assert noted[1:] == [(str(ca), "")]


async def test_loopback_endpoint_requires_ca(tmp_path: Path) -> None:
    subject = RenewedToken(written(tmp_path / "subject", "opaque"), JWT)
    endpoint = TokenEndpoint(None, lambda _: None)
    issuer = TokenExchangeIssuer("workload", endpoint, ExchangeRequest(url="https://localhost/token"), subject=subject)
    assert isinstance(await complaint(issuer), UnfitError)
