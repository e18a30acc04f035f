"""Server TLS: version 1.3, with client certificates. Its files may be renewed at any time."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.logger import log
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_kube.tls_identity import as_file, expiry_of


class UnfitFileError(Exception):
    """A file that cannot be used, with its path and what is wrong with it."""


class ServerTls:
    def __init__(self, *, certificate: Path, key: Path, client_ca: Path) -> None:
        self._files = tuple(FileContent(path) for path in (certificate, key, client_ca))
        self._content: tuple[bytes, ...] = ()
        self._rejected: tuple[bytes, ...] = ()
        self._context: ssl.SSLContext | None = None
        self.expires_at: float | None = None
        """When the certificate in use expires, in seconds since the epoch; None before the first context."""

    @property
    def client_ca(self) -> bytes:
        """The CA file that currently verifies clients."""
        return self._content[2]

    def context(self) -> ssl.SSLContext:
        """Return a context for the current files, or the last valid one while they do not match, as during a renewal.

        Raises StartError if the files were never valid.
        """
        try:
            content = tuple(file.read() for file in self._files)
            if self._context is not None and content in (self._content, self._rejected):
                return self._context
            self._context, self._content = self._built(*content), content
            self._note_expiry()
        except (CredentialError, UnfitFileError) as error:
            if self._context is None:
                raise StartError(f"tls: {error}") from error
            self._rejected = content
            log.warning("renewed certificate rejected", problem=str(error))
        return self._context

    def _note_expiry(self) -> None:
        expiry = expiry_of(self._content[0], datetime.now(UTC))
        self.expires_at = expiry.at.timestamp()
        if expiry.is_expired:
            log.warning("server certificate has expired", file=str(self._files[0].path), expired_at=str(expiry))
        elif expiry.is_soon:
            log.warning("server certificate expires soon", file=str(self._files[0].path), expires_at=str(expiry))

    def _built(self, certificate: bytes, key: bytes, client_ca: bytes) -> ssl.SSLContext:
        """Build a context from the files. Raises UnfitFileError."""
        try:
            return _context(certificate, key, client_ca)
        except (ssl.SSLError, ValueError) as error:
            certificate_file, key_file, ca_file = (str(file.path) for file in self._files)
            if not _is_trust_store(client_ca):
                problem = f"client_ca {ca_file} has no certificate in PEM"
            elif not _is_trust_store(certificate):
                problem = f"certificate {certificate_file} has no certificate in PEM"
            elif b"PRIVATE KEY-----" not in key:
                problem = f"key {key_file} has no private key in PEM"
            elif b"ENCRYPTED" in key:
                problem = f"key {key_file} is encrypted: store it without a passphrase"
            elif "KEY_VALUES_MISMATCH" in str(error) or "KEY_TYPE_MISMATCH" in str(error):
                problem = f"key {key_file} does not belong to certificate {certificate_file}"
            else:
                problem = f"can't use certificate {certificate_file} and key {key_file}: {error}"
            raise UnfitFileError(problem) from error


def _is_trust_store(pem: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        return False
    return True


def _context(certificate: bytes, key: bytes, client_ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would reuse an earlier verification of the certificate, perhaps with another CA.
    context.num_tickets = 0
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
    with as_file(certificate.rstrip() + b"\n" + key) as path:
        # The empty password makes an encrypted key an error instead of a prompt.
        context.load_cert_chain(path, password=lambda: b"")
    return context
