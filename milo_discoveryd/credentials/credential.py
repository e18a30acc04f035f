"""What one authenticates with."""

from dataclasses import dataclass, field

from milo_discoveryd.credentials.secret import Secret
from milo_discoveryd.daemon_errors import CredentialError


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    chain: bytes  # PEM
    key: Secret  # PEM


@dataclass(frozen=True, kw_only=True)
class Credential:
    """Either, both, or neither: a server may want a certificate for the connection and a token for the request."""

    token: Secret | None = None
    certificate: ClientCertificate | None = None
    expires_at: float | None = field(default=None, compare=False)
    """When its source says that it ends, in wall time; None where it doesn't say."""


def token_of(text: str, origin: str) -> Secret:
    """A bearer token as it may go into a header; `origin` is named in the complaint, the token never."""
    text = text.strip()
    if not text:
        raise CredentialError(f"{origin} is empty")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise CredentialError(
            f"{origin} holds something that is not a bearer token: it has blanks or control characters"
        )
    return Secret(text)
