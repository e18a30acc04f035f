"""Server TLS: version 1.3, with client certificates. Its files may be renewed at any time."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.logger import log
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_kube.http.tls import server_context
from milo_kube.tls_identity import CertificateExpiry, as_file, expiry_of


class UnfitFileError(Exception):
    """A file that cannot be used, with its path and what is wrong with it."""


class LoadedTls(NamedTuple):
    context: ssl.SSLContext
    expiry: CertificateExpiry
    problem: str
    """Why no client can connect although the files match; empty if clients can."""


class ServerTls:
    def __init__(self, *, certificate: Path, key: Path, client_ca: Path) -> None:
        self._files = tuple(FileContent(path) for path in (certificate, key, client_ca))
        self._content: tuple[bytes, ...] = ()
        self._rejected: tuple[bytes, ...] = ()
        self._loaded: LoadedTls | None = None

    @property
    def client_ca(self) -> bytes:
        """The CA file that currently verifies clients."""
        return self._content[2]

    @property
    def expires_at(self) -> float | None:
        """When the certificate in use expires, in seconds since the epoch; None before the first context is made."""
        return None if self._loaded is None else self._loaded.expiry.at.timestamp()

    def load(self) -> LoadedTls:
        """Load the files, without an effect on later contexts. Raises UnfitFileError and CredentialError."""
        return self._load(*(file.read() for file in self._files))

    def context(self) -> ssl.SSLContext:
        """Return a context for the current files or, while they do not match (for example during a renewal), the last
        valid one.

        Raises StartError if the files were never valid.
        """
        try:
            content = tuple(file.read() for file in self._files)
            if self._loaded is not None and content in (self._content, self._rejected):
                return self._loaded.context
            self._loaded, self._content = self._load(*content), content
            self._report(self._loaded)
        except (CredentialError, UnfitFileError) as error:
            if self._loaded is None:
                raise StartError(f"tls: {error}") from error
            self._rejected = content
            log.warning("renewed certificate rejected", problem=str(error))
        return self._loaded.context

    def _report(self, loaded: LoadedTls) -> None:
        file = str(self._files[0].path)
        if loaded.problem:
            log.warning("no client can connect", file=file, problem=loaded.problem)
        elif loaded.expiry.is_soon:
            log.warning("server certificate expires soon", file=file, expires_at=str(loaded.expiry))

    def _load(self, certificate: bytes, key: bytes, client_ca: bytes) -> LoadedTls:
        """Build a context from the files. Raises UnfitFileError."""
        now = datetime.now(UTC)
        try:
            context = _context(certificate, key, client_ca)
            return LoadedTls(context, expiry_of(certificate, now), _problem(context, certificate, now))
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


def _problem(context: ssl.SSLContext, certificate: bytes, now: datetime) -> str:
    """Return why no client can connect; empty if clients can."""
    from cryptography import x509  # noqa: PLC0415 - 8 MB, which only daemons with certificates need
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    leaf = x509.load_pem_x509_certificate(certificate)
    if outside := _outside_validity(leaf.not_valid_before_utc, leaf.not_valid_after_utc, now):
        return f"the certificate {outside}, so clients refuse it"
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.DuplicateExtension, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType):
        usage = None
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        return "the certificate has an extended key usage without serverAuth, so clients refuse it"
    outsides = [
        _outside_validity(_time(str(authority["notBefore"])), _time(str(authority["notAfter"])), now)
        for authority in context.get_ca_certs()
    ]
    return f"the client_ca {outsides[0]}, so it verifies no client" if outsides and all(outsides) else ""


def _outside_validity(begin: datetime, end: datetime, now: datetime) -> str:
    if now >= end:
        return f"expired at {end:%Y-%m-%d %H:%M} UTC"
    return f"is not valid before {begin:%Y-%m-%d %H:%M} UTC" if now < begin else ""


def _time(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def _is_trust_store(pem: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        return False
    return True


def _context(certificate: bytes, key: bytes, client_ca: bytes) -> ssl.SSLContext:
    context = server_context()
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
