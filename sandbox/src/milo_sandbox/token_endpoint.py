"""The token endpoint of service accounts.

It issues an access token in exchange for an assertion that is signed with a registered key, or for a token that was
issued for this endpoint.
"""

import secrets
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from milo_sandbox import answers, refusals
from milo_sandbox.resources import Document
from milo_sandbox.tokens import Tokens, decoded

PATH = ("oauth", "v2", "token")
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - the name of a type
_LONGEST_ASSERTION_S = 3600
_SKEW_S = 30


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    sub: str
    aud: str
    iat: int
    exp: int
    jti: str


class _Account(msgspec.Struct, frozen=True):
    subject: str
    key: rsa.RSAPublicKey


class _Refused(Exception):  # noqa: N818 - named after the response
    """A request was refused. The argument is an OAuth error code."""


class AssertionEndpoint:
    """The token endpoint. `answered` has the result of each request: an OAuth error code, or "ok"."""

    def __init__(self, tokens: Tokens, clock: Callable[[], float]) -> None:
        self._tokens = tokens
        self._clock = clock
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._used: set[str] = set()
        self.answered: list[str] = []

    def register(self, subject: str, url: str) -> Document:
        """Register an account for a subject; return the contents of its key file."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        client_id, key_id = secrets.token_hex(9), secrets.token_hex(9)
        self._accounts[(client_id, key_id)] = _Account(subject, key.public_key())
        return {
            "type": "datum_service_account",
            "api_endpoint": url,
            "token_uri": f"{url}/{'/'.join(PATH)}",
            "scope": "openid",
            "project_id": "sandbox",
            "client_email": f"{subject}@sandbox.local",
            "client_id": client_id,
            "private_key_id": key_id,
            "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        }

    def revoke_keys(self) -> None:
        """Revoke all registered keys."""
        self._accounts.clear()

    async def answer(self, request: web.BaseRequest, url: str) -> web.StreamResponse:
        """Answer a request; its assertion or token must have the server's `url` as an audience."""
        form = dict(parse_qsl((await request.read()).decode("ascii", "replace")))
        answer: Document = {"token_type": "Bearer", "expires_in": self._tokens.life}
        try:
            if form.get("grant_type") == EXCHANGE:
                subject = self._exchanged(form, url)
                answer["issued_token_type"] = ACCESS_TOKEN
            else:
                subject = self._subject(form, url)
        except _Refused as refused:
            self.answered.append(str(refused))
            return answers.document({"error": str(refused), "error_description": "refused by the sandbox"}, 400)
        self.answered.append("ok")
        return answers.document(answer | {"access_token": self._tokens.issue(subject)})

    def _exchanged(self, form: Mapping[str, str], url: str) -> str:
        """Return the subject of the token to exchange. Raises _Refused unless it was issued for this endpoint."""
        token = form.get("subject_token", "")
        try:
            subject = self._tokens.subject(token)
        except refusals.RefusalError:
            raise _Refused("invalid_request") from None
        if url not in self._tokens.claims(token).aud:
            raise _Refused("invalid_request")
        if form.get("audience", url) != url:
            raise _Refused("invalid_target")
        return subject

    def _subject(self, form: Mapping[str, str], url: str) -> str:
        if form.get("grant_type") != GRANT:
            raise _Refused("unsupported_grant_type")
        signed, _, signature = form.get("assertion", "").rpartition(".")
        try:
            head, body = signed.split(".")
            header = msgspec.json.decode(decoded(head), type=_Header)
            claims = msgspec.json.decode(decoded(body), type=_Claims)
            account = self._accounts[(claims.iss, header.kid)]
            account.key.verify(decoded(signature), signed.encode(), padding.PKCS1v15(), SHA256())
        except (ValueError, KeyError, msgspec.MsgspecError, Base64Error, InvalidSignature):
            raise _Refused("invalid_grant") from None
        now = self._clock()
        if (
            header.alg != "RS256"
            or claims.sub != claims.iss
            or claims.aud != url
            or not claims.iat - _SKEW_S <= now < claims.exp <= now + _LONGEST_ASSERTION_S
            or claims.jti in self._used
        ):
            raise _Refused("invalid_grant")
        self._used.add(claims.jti)
        return account.subject
