"""Client TLS for API servers: trusted CAs, the client certificate, and when a certificate expires."""

import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self
from weakref import WeakValueDictionary

import msgspec

from milo_kube import key_sizes
from milo_kube.credential import ClientCertificate, CredentialError, ascii_pem

_SOON = timedelta(days=1)
_UNMATCHED = "the client certificate and its key do not match, or are not PEM"


class CertificateExpiry(msgspec.Struct, frozen=True):
    """The expiry of a certificate, compared with one point in time."""

    at: datetime
    is_expired: bool
    is_soon: bool
    """Whether at most a day is left or, for a lifetime of less than five days, at most a fifth of the lifetime."""

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} UTC"


def expiry_of(chain: bytes, now: datetime) -> CertificateExpiry:
    """Return the expiry of the first certificate in the PEM text. Raises ValueError if it can't be parsed."""
    from cryptography import x509  # noqa: PLC0415 - 8 MB, which only daemons with certificates need

    try:
        leaf = x509.load_pem_x509_certificate(chain)
    except x509.InvalidVersion as error:  # InvalidVersion is not a ValueError
        raise ValueError(str(error)) from error
    left, life = leaf.not_valid_after_utc - now, leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return CertificateExpiry(leaf.not_valid_after_utc, left <= timedelta(), left <= min(_SOON, life / 5))


class TlsIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a TLS context: connections with equal identities can share one context."""

    authorities: bytes | None  # PEM; None stands for the system's CAs
    certificate: ClientCertificate | None
    server_name: str | None = None
    """The name that the server's certificate must have, if it is not the hostname."""

    @property
    def pem(self) -> str | None:
        return None if self.authorities is None else ascii_pem(self.authorities)

    def context(self) -> ssl.SSLContext:
        return ClientContexts().context(self)()


def check_authorities(pem: bytes) -> None:
    """Raise CredentialError unless these are CAs in PEM."""
    _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ascii_pem(pem))


class _Pair(NamedTuple):
    """A client certificate and its key, as all that OpenSSL reads of them.

    OpenSSL selects what it loads from other blocks and encodings in its own way: it would load another certificate or
    key than the one whose algorithm is known here.
    """

    algorithm: str
    pem: bytes

    @classmethod
    def of(cls, certificate: ClientCertificate) -> Self:
        """Raises CredentialError. As in Go, and so in kubectl: only the certificates of the chain count, and the key of
        the text of the key, so both may be in one file."""
        try:
            in_chain = key_sizes.check(certificate.chain, key_sizes.OWN_BITS)
            in_key = key_sizes.check(certificate.key.reveal().encode(errors="replace"), key_sizes.OWN_BITS)
        except key_sizes.KeySizeError as error:
            raise CredentialError(f"the client certificate or its key {error}") from None
        chain = [block for block in in_chain if block.label == b"CERTIFICATE"]
        keys = [block for block in in_key if block.label.endswith(b"PRIVATE KEY")]
        if not chain or len(keys) != 1 or chain[0].algorithm != keys[0].algorithm:
            raise CredentialError(_UNMATCHED)
        return cls(chain[0].algorithm, b"".join(block.pem for block in chain + keys))

    def load_into(self, context: ssl.SSLContext) -> None:
        """Raises CredentialError."""
        try:
            with as_file(self.pem) as path:
                # Without a password callback, an encrypted key would prompt on the terminal.
                context.load_cert_chain(path, password=lambda: b"")
        except (ssl.SSLError, ValueError):
            raise CredentialError(_UNMATCHED) from None


class _SharedContext:
    """A context, and the client certificate that it has now."""

    __slots__ = ("__weakref__", "certificate", "context")

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.certificate: ClientCertificate | None = None

    def present(self, certificate: ClientCertificate) -> None:
        """Present the certificate in the connections that are made next. Raises CredentialError."""
        if self.certificate != certificate:
            self.certificate = None
            _Pair.of(certificate).load_into(self.context)
            self.certificate = certificate


class ClientContexts:
    """TLS contexts by their CAs. The system's CAs take 25 to 80 ms to load, and a megabyte.

    Identities with the same CAs share a context while any of them is in use, although each has its own client
    certificate: OpenSSL copies the certificate of the context into each connection when it is made. A context holds a
    certificate for each algorithm, of which the server's preferences select one, so a context is for one algorithm.
    """

    def __init__(self) -> None:
        self._contexts: WeakValueDictionary[tuple[bytes | None, str], _SharedContext] = WeakValueDictionary()

    def context(self, identity: TlsIdentity) -> Callable[[], ssl.SSLContext]:
        """Return a function that returns a context with the identity. A connection must be made with the context before
        the next await. Raises CredentialError."""
        certificate = identity.certificate
        key = identity.authorities, "" if certificate is None else _Pair.of(certificate).algorithm
        shared = self._contexts.get(key)
        if shared is None:
            shared = self._contexts[key] = _SharedContext(_context(identity.pem))

        def context() -> ssl.SSLContext:
            if certificate is not None:
                shared.present(certificate)
            return shared.context

        context()  # reports a certificate that cannot be loaded
        return context


def check_pair(certificate: ClientCertificate) -> None:
    """Raise CredentialError if the key does not match the certificate, or one of them cannot be used."""
    _Pair.of(certificate).load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def bound_handshakes(context: ssl.SSLContext) -> None:
    """Prevent handshakes of unbounded cost to a client. As in Go, and so in kubectl: elliptic curves alone, and no
    renegotiation. With finite fields, the server chooses the size: 10,000 bits take a second."""
    context.set_ciphers(":".join(cipher["name"] for cipher in context.get_ciphers() if cipher["kea"] == "kx-ecdhe"))
    context.options |= ssl.OP_NO_RENEGOTIATION


def _context(authorities: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    bound_handshakes(context)
    # As in Go, and so in kubectl: any certificate of the bundle is a trust anchor, including an intermediate one.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Since 3.13, Python requires extensions that private CAs often lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if authorities is None:
        _load_default_authorities(context)
    else:
        _load_authorities(context, authorities)
    return context


def _load_default_authorities(context: ssl.SSLContext) -> None:
    """Load the system's CAs. OpenSSL ignores a bundle that cannot be opened, for example because no file descriptor is
    left, and the context would trust nobody for as long as it is used."""
    context.load_default_certs()
    bundle = ssl.get_default_verify_paths().cafile
    if bundle and not context.cert_store_stats()["x509"] and b"BEGIN CERTIFICATE" in Path(bundle).read_bytes():
        raise CredentialError(f"the system's CAs in {bundle} could not be loaded")


def _load_authorities(context: ssl.SSLContext, pem: str) -> None:
    try:
        context.load_verify_locations(cadata=pem)
    except (ValueError, ssl.SSLError):
        raise CredentialError("the certificate authority is not a list of PEM certificates") from None


@contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """Provide the content as a file, in memory if possible: SSLContext.load_cert_chain accepts only paths."""
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
