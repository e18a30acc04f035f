"""When a certificate expires, and whether that is soon."""

from datetime import datetime, timedelta

import msgspec

_SOON = timedelta(days=1)


class CertificateExpiry(msgspec.Struct, frozen=True):
    """The end of a certificate's validity, judged at one moment."""

    at: datetime
    is_expired: bool
    is_soon: bool
    """Less than a day is left. One that is issued for minutes or hours expires soon in its last fifth only."""

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} UTC"


def expiry_of(chain: bytes, now: datetime) -> CertificateExpiry:
    """Return the expiry of the first certificate in the PEM text."""
    from cryptography import x509  # noqa: PLC0415 - 8 MB, which only daemons with certificates need

    leaf = x509.load_pem_x509_certificate(chain)
    left, life = leaf.not_valid_after_utc - now, leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return CertificateExpiry(leaf.not_valid_after_utc, left <= timedelta(), left <= min(_SOON, life / 5))
