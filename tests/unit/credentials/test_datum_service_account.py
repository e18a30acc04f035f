"""Tokens of a service account from a real HTTPS endpoint: the sandbox's, and faulty ones."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers import service_account_key
from milo_discoveryd.credentials.issuers.datum_service_account import DatumServiceAccountIssuer
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.token_endpoint import MAX_ANSWER, TokenEndpoint
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_sandbox import Sandbox
from tests.integration.watchers.api_server import ApiServer, Handler, answering
from tests.unit.credentials.tokens import CANARY, jwt

WANTED = MintRequest(ttl_s=600)


def a_source(directory: Path, key_file: Path, ca: bytes | None, **differing: object) -> DatumServiceAccountIssuer:
    authorities = None
    if ca is not None:
        (directory / "ca.pem").write_bytes(ca)
        authorities = FileContent(directory / "ca.pem")
    endpoint = TokenEndpoint(authorities, lambda _: None)
    return DatumServiceAccountIssuer("datum", FileContent(key_file), endpoint, **differing)  # type: ignore[arg-type]


@asynccontextmanager
async def endpoint_and_source(
    directory: Path, answer: Handler
) -> AsyncIterator[tuple[ApiServer, DatumServiceAccountIssuer]]:
    """Run a token endpoint, and yield it with an issuer whose key file contains its URL."""
    async with Sandbox() as sandbox, ApiServer(answer) as server:
        key_file = sandbox.write_service_account_key(directory / "key.json")
        key = json.loads(key_file.read_text()) | {"token_uri": f"{server.url}/token"}
        key_file.write_text(json.dumps(key))
        yield server, a_source(directory, key_file, server.pem)


async def complaint(source: DatumServiceAccountIssuer) -> CredentialError:
    with pytest.raises(CredentialError) as raised:
        await source.mint(WANTED)
    assert CANARY not in str(raised.value)
    return raised.value


def test_datum_service_account_issuer_has_identity_scope_and_accepts_no_ttl() -> None:
    assert (DatumServiceAccountIssuer.scope, DatumServiceAccountIssuer.takes_ttl) == (Scope.IDENTITY, False)


async def test_key_file_is_exchanged_for_a_token(tmp_path: Path) -> None:
    async with Sandbox(token_life=300) as sandbox:
        source = a_source(tmp_path, sandbox.write_service_account_key(tmp_path / "key.json"), sandbox.ca_pem)
        minted = await source.mint(WANTED)
        assert minted.credential.token is not None
        assert sandbox.tokens.subject(minted.credential.token.reveal()) == "sandbox-admin"
        assert 290 < minted.expires_at - time.time() <= 300
        assert (await source.mint(WANTED)).credential != minted.credential
        assert sandbox.token_endpoint.answered == ["ok", "ok"]


async def test_revoked_key_is_reported_with_its_account_until_key_file_is_replaced(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        path = sandbox.write_service_account_key(tmp_path / "key.json")
        source = a_source(tmp_path, path, sandbox.ca_pem)
        sandbox.token_endpoint.revoke_keys()
        error = await complaint(source)
        assert isinstance(error, BackendError)
        assert "invalid_grant" in str(error)
        assert "the key has expired" in str(error)
        assert "sandbox-admin@sandbox.local" in str(error)
        sandbox.write_service_account_key(path)
        assert isinstance(await source.mint(WANTED), IssuedCredential)


async def test_assertion_signed_with_wrong_clock_time_is_rejected(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        path = sandbox.write_service_account_key(tmp_path / "key.json")
        for now in (time.time() - 120, time.time() + 120):
            source = a_source(tmp_path, path, sandbox.ca_pem, clock=lambda now=now: now)
            assert "the clock is wrong" in str(await complaint(source))


async def test_redirect_of_token_endpoint_is_not_followed(tmp_path: Path) -> None:
    async with ApiServer(answering()) as elsewhere:
        async with endpoint_and_source(tmp_path, answering(status=307, headers={"Location": elsewhere.url})) as (
            _,
            source,
        ):
            assert "answered with a redirect" in str(await complaint(source))
        assert not elsewhere.requests


async def test_loopback_token_endpoint_requires_ca(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        source = a_source(tmp_path, sandbox.write_service_account_key(tmp_path / "key.json"), None)
        assert isinstance(await complaint(source), UnfitError)


async def test_token_endpoint_with_untrusted_certificate_receives_no_request(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        source = a_source(
            tmp_path, sandbox.write_service_account_key(tmp_path / "key.json"), trustme.CA().cert_pem.bytes()
        )
        assert "the server's certificate is not valid or not trusted" in str(await complaint(source))
        assert not sandbox.token_endpoint.answered


async def test_unreachable_token_endpoint_is_reported(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        source = a_source(tmp_path, sandbox.write_service_account_key(tmp_path / "key.json"), sandbox.ca_pem)
        await sandbox.stop()
        assert "failed: " in str(await complaint(source))


def responding(value: object, status: int = 200, **headers: str) -> Handler:
    return answering(json.dumps(value).encode(), status, headers)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (answering(f"<html>{CANARY}</html>".encode()), "without an OAuth 2 token response"),
        (answering(b""), "without an OAuth 2 token response"),
        (responding({"access_token": 5, "expires_in": 60}), "without an OAuth 2 token response"),
        (responding({"access_token": CANARY, "expires_in": "60"}), "without an OAuth 2 token response"),
        (responding({"access_token": CANARY + "\n" + CANARY, "expires_in": 60}), "not a bearer token"),
        (responding({"access_token": CANARY + "\0", "expires_in": 60}), "not a bearer token"),
        (responding({"access_token": "", "expires_in": 60}), "is empty"),
        (responding({"access_token": CANARY, "expires_in": 60, "token_type": "mac"}), "not a bearer token"),
        (responding({"access_token": CANARY}), "without an expiry"),
        (responding({"access_token": CANARY, "expires_in": -1}), "an expired credential"),
        (responding({"access_token": CANARY, "expires_in": 600_000}), "are issued"),
        (responding({"access_token": CANARY, "expires_in": 3600e3}), "are issued"),
        (responding({"access_token": jwt(exp=253_402_300_799)}), "are issued"),
        (responding({"access_token": jwt(exp=time.time() + 7200, nbf=time.time() + 3600)}), "not valid yet"),
        (answering(b"[" * 50_000), "without an OAuth 2 token response"),
        (answering(b" " * 10 * 1024 * 1024), f"more than {MAX_ANSWER} bytes"),
        (responding({"error": "invalid_scope", "error_description": CANARY}, 400), "invalid_scope"),
        (responding({"error": CANARY}, 400), "answered 400"),
        (answering(CANARY.encode(), 500), "answered 500"),
    ],
)
async def test_invalid_token_response_is_rejected_and_not_quoted(
    tmp_path: Path, answer: Handler, expected: str
) -> None:
    async with endpoint_and_source(tmp_path, answer) as (_, source):
        assert expected in str(await complaint(source))


async def test_overloaded_token_endpoint_sets_retry_after(tmp_path: Path) -> None:
    async with endpoint_and_source(tmp_path, responding({}, 503, **{"Retry-After": "7"})) as (_, source):
        error = await complaint(source)
    assert isinstance(error, BackendError)
    assert error.retry_after_s == 7


async def test_token_for_unexpected_audience_is_rejected(tmp_path: Path) -> None:
    given = {"access_token": jwt(exp=time.time() + 600, aud="theirs"), "expires_in": 600}
    async with endpoint_and_source(tmp_path, responding(given)) as (server, _):
        source = a_source(tmp_path, tmp_path / "key.json", server.pem, audiences=["ours"])
        assert "an audience other than ours" in str(await complaint(source))


async def test_token_request_is_a_form_with_grant_type_assertion_and_scope(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        form.update(dict(await request.post()))
        return web.json_response({"access_token": "t", "expires_in": 60})

    form: dict[str, object] = {}
    async with endpoint_and_source(tmp_path, answer) as (_, source):
        await source.mint(WANTED)
    assert form.pop("assertion")
    assert form == {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "scope": "openid"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"type": "service_account"}, "whose type is not datum_service_account"),
        ({"token_uri": "http://auth.example.com/token"}, "is not of the form https"),
        ({"token_uri": "https://user:pass@auth.example.com"}, "is not of the form https"),
        ({"token_uri": "https://["}, "is not of the form https"),
        ({"private_key": CANARY}, "not an unencrypted PEM key"),
        ({"private_key": 5}, "Expected `str`, got `int`"),
        ({"client_id": None}, "Expected `str`, got `null`"),
    ],
)
async def test_invalid_key_file_field_is_reported_without_quoting_its_value(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    async with Sandbox() as sandbox:
        path = sandbox.write_service_account_key(tmp_path / "key.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CredentialError) as raised:
        service_account_key.parse(path.read_bytes(), str(path))
    assert expected in str(raised.value)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{", CANARY.encode()])
def test_invalid_key_file_content_is_rejected(content: bytes) -> None:
    with pytest.raises(CredentialError, match="not the key file of a Datum service account"):
        service_account_key.parse(content, "key.json")
