"""TLS as a client of API servers: whom to trust, and who to say we are."""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from milo_discoveryd.credentials.credential import ClientCertificate
from milo_discoveryd.daemon_errors import CredentialError


@dataclass(frozen=True, kw_only=True)
class TlsIdentity:
    """All that a TLS context is made of: an equal one can be shared, another one means another context."""

    authorities: bytes | None  # PEM; none is the system's
    certificate: ClientCertificate | None

    @property
    def pem(self) -> str | None:
        """The authorities as the ssl module takes them; the comments of a bundle need not be ASCII."""
        return None if self.authorities is None else self.authorities.decode("ascii", "ignore")

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # As Go does, and so as kubectl does: any certificate in the bundle is a trust anchor, an intermediate one as
        # well; and no insistence on extensions that home-made CAs leave out, which Python has begun with in 3.13.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.pem is None:
            context.load_default_certs()
        else:
            _load_authorities(context, self.pem)
        if self.certificate is not None:
            _load_certificate(context, self.certificate)
        return context


def _load_authorities(context: ssl.SSLContext, pem: str) -> None:
    try:
        context.load_verify_locations(cadata=pem)
    except (ValueError, ssl.SSLError):
        raise CredentialError("the certificate authority is not one or more certificates in PEM form") from None


def _load_certificate(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    content = certificate.chain.rstrip() + b"\n" + certificate.key.reveal().encode()
    try:
        with as_file(content) as path:
            # A password callback that gives none, so that an encrypted key is an error rather than a prompt.
            context.load_cert_chain(path, password=lambda: b"")
    except (ssl.SSLError, ValueError):
        raise CredentialError(
            "the client certificate and its key do not fit together, are not in PEM form, or the key is encrypted"
        ) from None


@contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """OpenSSL takes a key pair from a file only: one in memory where the system has such, so that no disk sees it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as stream:
                stream.write(content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "client-certificate")
            path.touch(mode=0o600)
            path.write_bytes(content)
            yield str(path)
