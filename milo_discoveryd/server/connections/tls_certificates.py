"""TLS as a server: 1.3, and nobody without a certificate. Its files may be renewed while it runs."""

import ssl
from pathlib import Path

import structlog

from milo_discoveryd.credentials.authentication.tls import as_file
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.daemon_errors import CredentialError, StartError

log = structlog.get_logger()


class ServerTls:
    def __init__(self, *, certificate: Path, key: Path, client_ca: Path) -> None:
        self._files = tuple(FileContent(path) for path in (certificate, key, client_ca))
        self._made_of: tuple[bytes, ...] = ()
        self._refused: tuple[bytes, ...] = ()
        self._context: ssl.SSLContext | None = None

    @property
    def client_ca(self) -> bytes:
        """By which clients are verified now."""
        return self._made_of[2]

    def context(self) -> ssl.SSLContext:
        """Of what is in the files; while that doesn't fit together, as in the middle of a renewal, what there was.

        Raises StartError where there never was anything.
        """
        try:
            content = tuple(file.read() for file in self._files)
            if self._context is not None and content in (self._made_of, self._refused):
                return self._context
            self._context, self._made_of = _context(*content), content
        except (CredentialError, ssl.SSLError, ValueError) as error:
            where = ", ".join(str(file.path) for file in self._files)
            if self._context is None:
                raise StartError(
                    f"the certificate, its key and the CA of clients ({where}) can't be used: {error}"
                ) from error
            self._refused = content
            log.warning("renewed certificate refused", files=where, problem=str(error))
        return self._context


def _context(certificate: bytes, key: bytes, client_ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would bring back a certificate that was verified long ago, perhaps by another CA.
    context.num_tickets = 0
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
    with as_file(certificate.rstrip() + b"\n" + key) as path:
        # A password callback that gives none, so that an encrypted key is an error rather than a prompt.
        context.load_cert_chain(path, password=lambda: b"")
    return context
