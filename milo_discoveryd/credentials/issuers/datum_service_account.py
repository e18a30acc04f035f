"""Access tokens for a Datum service account, exchanged for a signed assertion at the key file's token endpoint.

One token is valid for every project of the account, so one mint serves the whole fleet.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Collection
from contextlib import aclosing
from datetime import UTC, datetime
from urllib.parse import urlencode

import msgspec

from milo_discoveryd import USER_AGENT
from milo_discoveryd.credentials.authentication.tls import TlsIdentity
from milo_discoveryd.credentials.credential import Credential, token_of
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, validate
from milo_discoveryd.credentials.issuers import service_account_key
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.service_account_key import ServiceAccountKey
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_kube import retry_after
from milo_kube.http.client import Client
from milo_kube.http.connection import Response
from milo_kube.http.errors import TransportError

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
MAX_ANSWER = 64 * 1024
TIMEOUT_S = 15.0

# The error codes of RFC 6749. Nothing else of an endpoint's response is repeated.
_REFUSALS = {
    "invalid_grant": "the key has expired or was removed (put a new one into the key file), or the clock is wrong",
    "invalid_client": "the account is unknown; it may have been deleted",
    "invalid_request": "the endpoint expects another request; check token_uri",
    "invalid_scope": "the scope in the key file is not available",
    "unauthorized_client": "the account may not use this grant type",
    "unsupported_grant_type": "the endpoint does not support signed assertions; check token_uri",
}


class _Answer(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float | None = None
    token_type: str = "Bearer"  # noqa: S105 - the name of a type


_ANSWER = msgspec.json.Decoder(_Answer)


class _Refusal(msgspec.Struct, frozen=True):
    error: str = ""


_REFUSAL = msgspec.json.Decoder(_Refusal)


class DatumServiceAccountIssuer:
    type = "datum-service-account"
    scope = Scope.IDENTITY
    takes_ttl = False

    def __init__(
        self,
        name: str,
        key: FileContent,
        *,
        authorities: FileContent | None = None,
        audiences: Collection[str] = (),
        proxy: Callable[[str], str | None] = lambda url: None,
        longest_s: float = LONGEST_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`authorities`: PEM; None stands for the system's CAs. `proxy` returns the proxy for a URL."""
        self.name = name
        self._key = key
        self._authorities = authorities
        self._audiences = audiences
        self._proxy = proxy
        self._longest_s = longest_s
        self._clock = clock

    async def mint(self, request: MintRequest) -> IssuedCredential:
        key = service_account_key.parse(self._key.read(), str(self._key.path))
        if key.is_local and self._authorities is None:
            raise UnfitError(f"the token_uri of {self._key.path} is on this machine: set ca_file to the endpoint's CA")
        now = self._clock()
        answer = await self._ask(key, key.assertion(now))
        if answer.token_type.lower() != "bearer":
            raise BackendError(f"{key.token_uri} returned a token that is not a bearer token")
        origin = f"{key.token_uri} (for {key.account})"
        return validate(
            Credential(token=token_of(answer.access_token, f"the token of {origin}")),
            now,
            origin=origin,
            expires_at=None if answer.expires_in is None else now + answer.expires_in,
            audiences=self._audiences,
            longest_s=self._longest_s,
        )

    async def _ask(self, key: ServiceAccountKey, assertion: str) -> _Answer:
        authorities = None if self._authorities is None else self._authorities.read()
        context = TlsIdentity(authorities=authorities, certificate=None).context()
        form = {"grant_type": GRANT, "assertion": assertion} | ({"scope": key.scope} if key.scope else {})
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                aclosing(Client(context, user_agent=USER_AGENT)) as client,
                client.request(
                    "POST",
                    key.token_uri,
                    headers={"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
                    body=urlencode(form).encode(),
                    proxy=self._proxy(key.token_uri),
                    connect_timeout_s=TIMEOUT_S,
                ) as response,
            ):
                body = await _read(response, key.token_uri)
        except TimeoutError:
            raise BackendError(f"{key.token_uri} did not answer within {TIMEOUT_S:g} s") from None
        except TransportError as error:
            raise BackendError(f"the request to {key.token_uri} failed: {_reason(error)}") from None
        if response.status != 200:
            raise _refused(key, response, body)
        try:
            return _ANSWER.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BackendError(f"{key.token_uri} answered 200 without an OAuth 2 token response") from None


async def _read(response: Response, url: str) -> bytes:
    body = bytearray()
    while chunk := await response.read():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise BackendError(f"{url} answered with more than {MAX_ANSWER} bytes")
    return bytes(body)


def _refused(key: ServiceAccountKey, response: Response, body: bytes) -> BackendError:
    try:
        word = _REFUSAL.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        word = ""
    about = f"key {key.key_id[:40]!r} of {key.account[:80]!r}"
    if word in _REFUSALS:
        message = f"{key.token_uri} rejected {about} ({word}): {_REFUSALS[word]}"
    elif 300 <= response.status < 400:
        message = f"{key.token_uri} answered with a redirect ({response.status}): correct token_uri"
    else:
        message = f"{key.token_uri} answered {response.status} for {about}"
    return BackendError(
        message, retry_after_s=retry_after.seconds(response.headers.get("Retry-After", ""), datetime.now(UTC))
    )


def _reason(error: TransportError) -> str:
    """Return the reason of a transport error, without any received data."""
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return "its certificate is not trusted; set ca_file to its CA"
    return str(error)
