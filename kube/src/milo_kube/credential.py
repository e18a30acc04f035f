"""Credentials for API servers: a bearer token, a client certificate, or both. Secrets are masked when printed."""

import hmac
import re
from typing import NoReturn
from urllib.parse import urlsplit

import msgspec

from milo_kube import addresses

_NON_ASCII = re.compile(rb"[\x80-\xff]+")


class CredentialError(Exception):
    """A credential is not available, or cannot be used."""

    reason: str = "failed"
    """Value of the label `reason` in metrics."""


class Secret:
    """Text that only `reveal` returns. Not picklable, because a pickle would contain the text unmasked."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


class ClientCertificate(msgspec.Struct, frozen=True, kw_only=True):
    chain: bytes  # PEM
    key: Secret  # PEM


class Credential(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """A token, a client certificate, both, or neither (anonymous). Equality ignores the expiry."""

    token: Secret | None = None
    certificate: ClientCertificate | None = None
    expires_at: float | None = None
    """The expiry that the credential's source returned (wall time), or None."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credential):
            return NotImplemented
        return (self.token, self.certificate) == (other.token, other.certificate)

    def __ne__(self, other: object) -> bool:
        return not self == other  # the default `__ne__` of a struct compares identities

    def __hash__(self) -> int:
        return hash((self.token, self.certificate))


def is_confidential(url: str, *, plain_loopback: bool) -> bool:
    """Return whether a credential may be sent to the URL: over TLS or, with `plain_loopback`, to loopback."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (plain_loopback and addresses.is_loopback(parts.hostname or ""))


def for_url(credential: Credential, url: str, *, plain_loopback: bool) -> Credential:
    """Return the credential if it may be sent to the URL. Raises CredentialError."""
    if credential != Credential() and not is_confidential(url, plain_loopback=plain_loopback):
        raise CredentialError(f"{url} does not use TLS, so the credential would be sent unencrypted; use https")
    return credential


def token_of(text: str, origin: str) -> Secret:
    """Return a bearer token that is safe in a header. Errors contain `origin`, never the token."""
    text = text.strip()
    if not text:
        raise CredentialError(f"{origin} is empty")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise CredentialError(f"{origin} is not a bearer token: only printable ASCII without spaces is allowed")
    return Secret(text)


def ascii_pem(pem: bytes) -> str:
    """Return the text without non-ASCII characters, which comments may contain, but the ssl module does not accept.

    They become line breaks: without them, pieces of text could become a certificate that `key_sizes` has not checked.
    """
    return _NON_ASCII.sub(b"\n", pem).decode("ascii")
