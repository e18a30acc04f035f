"""A credential that is fit to be handed out, and the judgement which is: pure, with the time as an argument.

Whatever a backend answers is judged here before anybody is given it. No message holds anything of it.
"""

import hashlib
from collections.abc import Collection

import msgspec

from milo_discoveryd.credentials import jwt
from milo_discoveryd.credentials.credential import Credential
from milo_discoveryd.daemon_errors import BackendError, UnfitError

SKEW_S = 30.0
"""How far two well-kept clocks may be apart."""
LONGEST_S = 24 * 3600.0
"""What lives for longer is not short-lived, by anybody's reading."""


class IssuedCredential(msgspec.Struct, frozen=True, kw_only=True):
    credential: Credential
    issued_at: float
    expires_at: float
    """As its backend said, never later: wall time, like `issued_at`."""

    @property
    def life_s(self) -> float:
        return self.expires_at - self.issued_at

    @property
    def fingerprint(self) -> str:
        """Tells two credentials apart in a log, and tells nothing of either."""
        token, certificate = self.credential.token, self.credential.certificate
        material = (token.reveal().encode() if token else b"") + (certificate.chain if certificate else b"")
        return hashlib.sha256(material).hexdigest()[:8]


def judge(
    credential: Credential,
    now: float,
    *,
    origin: str,
    expires_at: float | None = None,
    longest_s: float = LONGEST_S,
    audiences: Collection[str] = (),
    subject: str = "",
) -> IssuedCredential:
    """The credential with its life, which is the shortest of what the backend (`expires_at`), the token and the
    certificate say. Raises BackendError for one that is no good, UnfitError for one that isn't to be handed out."""
    ends = [] if expires_at is None else [expires_at]
    begins: list[float] = []
    issued_at = now
    if credential.token is not None:
        if len(credential.token.reveal()) > jwt.MAX_LENGTH:
            raise BackendError(f"{origin} gave a token of more than {jwt.MAX_LENGTH} characters")
        found = _claims(credential.token.reveal(), origin)
        if found is not None:
            _require_meant_for(found, audiences, subject, origin)
            ends += [] if found.exp is None else [found.exp]
            begins += [each for each in (found.nbf, found.iat) if each is not None]
            issued_at = min(now, found.iat) if found.iat is not None and found.iat > 0 else now
    if credential.certificate is not None:
        begin, end = _validity(credential.certificate.chain, origin)
        begins.append(begin)
        ends.append(end)
    if credential == Credential():
        raise UnfitError(f"{origin} has no credential at all")
    if not ends:
        raise UnfitError(f"{origin} gave a credential that does not say when it ends, so it may be good for ever")
    end = min(ends)
    if not end > now:  # so that NaN is refused as well
        raise BackendError(f"{origin} gave a credential that has ended already (is our clock right?)")
    if max(begins, default=now) > now + SKEW_S:
        raise BackendError(f"{origin} gave a credential that is not valid yet (is our clock right?)")
    if end - now > longest_s:
        raise UnfitError(
            f"{origin} gave a credential that lives for {_span(end - now)}, and more than {_span(longest_s)} "
            "is not short-lived"
        )
    return IssuedCredential(credential=credential, issued_at=issued_at, expires_at=end)


def _claims(token: str, origin: str) -> jwt.Claims | None:
    try:
        return jwt.claims(token)
    except ValueError as error:
        raise BackendError(f"{origin} gave a JWT that is no good: {error}") from None


def _require_meant_for(found: jwt.Claims, audiences: Collection[str], subject: str, origin: str) -> None:
    if audiences and found.audiences.isdisjoint(audiences):
        raise BackendError(f"{origin} gave a token for another audience than {', '.join(sorted(audiences))}")
    if subject and found.sub != subject:
        raise BackendError(f"{origin} gave a token of somebody else than {subject}")


def _validity(chain: bytes, origin: str) -> tuple[float, float]:
    """Of the first certificate, which is the holder's."""
    from cryptography import x509  # noqa: PLC0415 - 8 MB that a daemon without certificates does without

    try:
        certificate = x509.load_pem_x509_certificate(chain)
        return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    except ValueError:
        raise BackendError(f"{origin} gave a client certificate that is not in PEM form") from None


def _span(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / 3600:.0f} hours" if seconds >= 2 * 3600 else f"{seconds / 60:.0f} minutes"
