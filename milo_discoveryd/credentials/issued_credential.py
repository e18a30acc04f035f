"""Credentials for issued kubeconfigs, and their validation after a backend returned them. Pure.

Error messages contain no part of the credential.
"""

import hashlib
from collections.abc import Collection
from math import inf

import msgspec

from milo_discoveryd.credentials import jwt
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_kube import key_sizes
from milo_kube.credential import ClientCertificate, Credential

SKEW_S = 30.0
"""The clock skew that is tolerated."""
LONGEST_S = 24 * 3600.0
"""The maximum lifetime of an issued credential, unless its issuer allows long-lived ones."""
_LONGEST_PEM = 64 << 10
_LATEST = 253_402_300_800.0
"""The year 10000, which neither protobuf nor RFC 3339 can express."""
UNSTATED_LIFE_S = 3600.0
"""The assumed lifetime of a credential without a stated expiry: holders request a new one after this time."""


class LongLivedError(UnfitError):
    """The credential is valid for longer than the daemon is allowed to issue credentials for, or states no expiry."""

    reason = "long_lived"


class IssuedCredential(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    credential: Credential
    issued_at: float
    expires_at: float
    """Wall time, like `issued_at`; never later than the expiry that the backend returned."""
    authorities: bytes | None = None
    """CA certificates of the cluster's API server as PEM, if the backend returned them with the credential."""
    server: str = ""
    """URL of the cluster's API server, if the backend returned one; `authorities` and `tls_server_name` then verify the
    server. Empty: the cluster's endpoint is used."""
    tls_server_name: str = ""
    is_endless: bool = False
    """Whether the credential has no stated expiry; `expires_at` is then the time at which to request it again."""

    @property
    def life_s(self) -> float:
        return self.expires_at - self.issued_at

    @property
    def fingerprint(self) -> str:
        """Identifies the credential in logs without revealing it."""
        token, certificate = self.credential.token, self.credential.certificate
        material = (token.reveal().encode() if token else b"") + (certificate.chain if certificate else b"")
        return hashlib.sha256(material).hexdigest()[:8]


def validate(
    credential: Credential,
    now: float,
    *,
    origin: str,
    expires_at: float | None = None,
    longest_s: float = LONGEST_S,
    audiences: Collection[str] = (),
    subject: str = "",
) -> IssuedCredential:
    """Return the credential. It expires at the earliest time that the backend (`expires_at`), the token or the
    certificate states.

    Raises BackendError if it is invalid, and UnfitError if it must not be issued.
    """
    ends = [] if expires_at is None else [expires_at]
    begins: list[float] = []
    issued_at = now
    if credential.token is not None:
        if len(credential.token.reveal()) > jwt.MAX_LENGTH:
            raise BackendError(f"{origin} returned a token longer than {jwt.MAX_LENGTH} characters")
        found = _claims(credential.token.reveal(), origin)
        if found is not None:
            _require_audience_and_subject(found, audiences, subject, origin)
            ends += [] if found.exp is None else [found.exp]
            begins += [begin for begin in (found.nbf, found.iat) if begin is not None]
            issued_at = min(now, found.iat) if found.iat is not None and found.iat > 0 else now
    if credential.certificate is not None:
        _check_keys(credential.certificate, origin)
        begin, end = _validity(credential.certificate.chain, origin)
        begins.append(begin)
        ends.append(end)
    if credential == Credential():
        raise UnfitError(f"{origin} has no credential")
    if not ends and longest_s < inf:
        raise LongLivedError(f"{origin} returned a credential without an expiry, which may be valid forever")
    end = min(ends, default=now + UNSTATED_LIFE_S)
    if not end > now:  # also rejects NaN
        raise BackendError(f"{origin} returned an expired credential; renew it, or check this machine's clock")
    if max(begins, default=now) > now + SKEW_S:
        raise BackendError(f"{origin} returned a credential that is not valid yet; check this machine's clock")
    if end - now > longest_s:
        raise LongLivedError(
            f"{origin} returned a credential that is valid for {_span(end - now)}; "
            f"only credentials valid for up to {_span(longest_s)} are issued"
        )
    if end >= _LATEST:
        raise BackendError(f"{origin} returned a credential that expires after the year 9999")
    return IssuedCredential(credential=credential, issued_at=issued_at, expires_at=end, is_endless=not ends)


def _claims(token: str, origin: str) -> jwt.JwtClaims | None:
    try:
        return jwt.claims(token)
    except ValueError as error:
        raise BackendError(f"{origin} returned an invalid JWT: {error}") from None


def _require_audience_and_subject(found: jwt.JwtClaims, audiences: Collection[str], subject: str, origin: str) -> None:
    if audiences and found.audiences.isdisjoint(audiences):
        raise BackendError(f"{origin} returned a token for an audience other than {', '.join(sorted(audiences))}")
    if subject and found.sub != subject:
        raise BackendError(f"{origin} returned a token whose subject is not {subject}")


def _check_keys(certificate: ClientCertificate, origin: str) -> None:
    pems = certificate.chain, certificate.key.reveal().encode(errors="replace")
    if max(map(len, pems)) > _LONGEST_PEM:
        raise BackendError(f"{origin} returned a client certificate or a key longer than {_LONGEST_PEM} bytes")
    try:
        for pem in pems:
            key_sizes.check(pem, key_sizes.RECEIVED_BITS)
    except key_sizes.KeySizeError as error:
        raise BackendError(f"{origin} returned a client certificate that {error}") from None


def _validity(chain: bytes, origin: str) -> tuple[float, float]:
    """Return the validity period of the first certificate of the chain, which is the holder's certificate."""
    from cryptography import x509  # noqa: PLC0415 - 8 MB, which only daemons with certificates need

    try:
        certificate = x509.load_pem_x509_certificate(chain)
        return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    except (ValueError, x509.InvalidVersion):
        raise BackendError(f"{origin} returned a client certificate that is malformed or not PEM") from None


def _span(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / 3600:.0f} hours" if seconds >= 2 * 3600 else f"{seconds / 60:.0f} minutes"
