"""Requests an access token from an OAuth 2 token endpoint.

Of a response body, only the access token and its lifetime are kept, and only known error codes are quoted in errors,
because the rest may contain secrets.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

import msgspec

from milo_discoveryd import USER_AGENT
from milo_discoveryd.credentials.issuers.settings import IssuerContext, IssuerSettings, OptionalFile, Words
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_kube import addresses, retry_after
from milo_kube.authorities_file import AuthoritiesFile
from milo_kube.credential import Credential, token_of
from milo_kube.file_content import FileContent
from milo_kube.http.client import Client
from milo_kube.http.connection import Response
from milo_kube.http.errors import TransportError
from milo_kube.tls_identity import ClientContexts, TlsIdentity

_BEARER = "Bearer"
_NOT_AN_ACCESS_TOKEN = "N_A"  # noqa: S105 - the name of a type
_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:"  # noqa: S105 - the prefix of type names
_BEARER_TYPES = ("", f"{_TOKEN_TYPE}access_token", f"{_TOKEN_TYPE}jwt", f"{_TOKEN_TYPE}id_token")
"""The types of issued tokens that an API server accepts as bearer tokens."""

MAX_ANSWER = 64 * 1024
TIMEOUT_S = 15.0

Form = Sequence[tuple[str, str]]


class _Answer(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float | None = None
    token_type: str = _BEARER
    issued_token_type: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: str = ""


_ANSWER = msgspec.json.Decoder(_Answer)
_REFUSAL = msgspec.json.Decoder(_Refusal)


class AccessToken(msgspec.Struct, frozen=True):
    credential: Credential
    life_s: float | None
    """`expires_in` of the response, in seconds; None if it is absent."""


class TokenEndpoint:
    def __init__(self, authorities: FileContent | None, proxy: Callable[[str], str | None]) -> None:
        """`authorities`: PEM; None stands for the system's CAs. `proxy` returns the proxy for a URL."""
        self._authorities = authorities
        self._contexts = ClientContexts()
        self._context: Callable[[], ssl.SSLContext] | None = None
        """The last context. It is kept because the CAs take long to load."""
        self._proxy = proxy

    async def ask(
        self, url: str, form: Form, *, about: str, advice: Mapping[str, str], authorization: str = ""
    ) -> AccessToken:
        """Request an access token. `about` describes the sent token or key in errors; `advice` has a fix for each error
        code.

        Raises CredentialError.
        """
        if self._authorities is None and addresses.is_loopback(urlsplit(url).hostname or ""):
            # A certificate that is signed by one of the system's CAs proves nothing about a loopback address.
            raise UnfitError(f"{url} is on this machine: set `ca_file` to the endpoint's CA")
        authorities = None if self._authorities is None else self._authorities.read()
        self._context = self._contexts.context(TlsIdentity(authorities=authorities, certificate=None))
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        if authorization:
            headers["Authorization"] = authorization
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                aclosing(Client(self._context, user_agent=USER_AGENT)) as client,
                client.request(
                    "POST",
                    url,
                    headers=headers,
                    body=urlencode(form).encode(),
                    proxy=self._proxy(url),
                    connect_timeout_s=TIMEOUT_S,
                ) as response,
            ):
                body = await _read(response, url)
        except TimeoutError:
            raise BackendError(f"{url} did not answer within {TIMEOUT_S:g} s") from None
        except TransportError as error:
            raise BackendError(f"the request to {url} failed: {_reason(error)}") from None
        if response.status != 200:
            raise _refused(url, response, body, about, advice)
        try:
            answer = _ANSWER.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BackendError(f"{url} answered 200 without an OAuth 2 token response") from None
        if answer.issued_token_type not in _BEARER_TYPES:
            raise BackendError(f"{url} returned a token that is not an access token; set `requested_token_type`")
        if answer.token_type.lower() != _BEARER.lower() and not (
            answer.issued_token_type and answer.token_type == _NOT_AN_ACCESS_TOKEN
        ):
            raise BackendError(f"{url} returned a token that is not a bearer token")
        token = token_of(answer.access_token, f"the token of {url} (for {about})")
        return AccessToken(Credential(token=token), answer.expires_in)


async def _read(response: Response, url: str) -> bytes:
    body = bytearray()
    while chunk := await response.read():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise BackendError(f"{url} answered with more than {MAX_ANSWER} bytes")
    return bytes(body)


def _refused(url: str, response: Response, body: bytes, about: str, advice: Mapping[str, str]) -> BackendError:
    try:
        code = _REFUSAL.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        code = ""
    if code in advice:
        message = f"{url} rejected {about} ({code}): {advice[code]}"
    elif 300 <= response.status < 400:
        message = f"{url} answered with a redirect ({response.status}): set the URL that it redirects to"
    else:
        message = f"{url} answered {response.status} for {about}"
    return BackendError(message, retry_after_s=retry_after.stated(response.headers, datetime.now(UTC)))


def _reason(error: TransportError) -> str:
    """Return the reason of a transport error, without any received data."""
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return "the server's certificate is not valid or not trusted; renew it, or set `ca_file` to its CA"
    return str(error)


class TokenEndpointSettings(IssuerSettings, frozen=True, kw_only=True):
    """The settings of an issuer that requests access tokens from a token endpoint."""

    ca_file: OptionalFile = None
    """CA certificates of the token endpoint; required for a loopback address. Default: the system's CAs."""
    audiences: Words = ()
    """Accepted audiences: if the issued token is a JWT, it must have one of them. Default: any."""

    def endpoint(self, context: IssuerContext) -> TokenEndpoint:
        authorities = None if self.ca_file is None else AuthoritiesFile(self.ca_file, context.note)
        return TokenEndpoint(authorities, context.proxy)
