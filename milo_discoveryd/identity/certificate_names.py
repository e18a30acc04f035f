"""Subject alternative names of client certificates. The common name is ignored: CAs need not verify it."""

from datetime import datetime

import msgspec
from cryptography import x509

MAX_NAMES = 100
"""Maximum number of names of a certificate: each has quotas and budgets of its own."""


class CertificateNames(msgspec.Struct, frozen=True, kw_only=True):
    sans: tuple[str, ...]
    expires_at: datetime


def certificate_names(der: bytes) -> CertificateNames:
    """Read a DER certificate. Raises ValueError if it can't be parsed, or has too many names."""
    certificate = x509.load_der_x509_certificate(der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from error
    if len(names) > MAX_NAMES:
        raise ValueError(f"the client certificate has {len(names)} names: at most {MAX_NAMES} are accepted")
    return CertificateNames(
        sans=tuple(text for name in names if (text := _text(name)) is not None),
        expires_at=certificate.not_valid_after_utc,
    )


def _text(name: x509.GeneralName) -> str | None:
    """Return the name prefixed with its kind, so that a DNS name can't pass for a URI; None for other kinds."""
    match name:
        case x509.DNSName():
            return f"dns:{name.value.lower()}"
        case x509.UniformResourceIdentifier():
            return f"uri:{name.value}"
        case x509.RFC822Name():
            return f"email:{name.value}"
        case x509.IPAddress():
            return f"ip:{name.value}"
        case _:
            return None
