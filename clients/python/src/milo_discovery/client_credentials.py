"""Authentication between the client and the daemon."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milo_discovery.errors import InvalidCredentials

if TYPE_CHECKING:
    import ssl

    import grpc

TOKEN_VARIABLE = "MILO_DISCOVERY_TOKEN_FILE"  # noqa: S105  (the name of a variable)
CA_VARIABLE = "MILO_DISCOVERY_CA_FILE"
CERTIFICATE_VARIABLE = "MILO_DISCOVERY_CERTIFICATE_FILE"
KEY_VARIABLE = "MILO_DISCOVERY_KEY_FILE"
SERVER_UID_VARIABLE = "MILO_DISCOVERY_SERVER_UID"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredentials:
    """Credentials for the daemon. None are needed on a Unix socket, where the kernel reports the caller's uid.

    Certificates are read for each channel and the token for each call, so both can be renewed in place.
    """

    ca_file: Path | str | None = None
    """CA certificates that the daemon's certificate is verified against. Setting it enables TLS."""
    certificate_file: Path | str | None = None
    """Client certificate for mutual TLS."""
    key_file: Path | str | None = None
    """Private key of the client certificate."""
    token_file: Path | str | None = None
    """Bearer token, such as a projected Kubernetes service account token."""
    server_uid: int | None = None
    """The uid that the server of a Unix socket must run as. Other users must not have write access to its directory."""

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise InvalidCredentials("certificate_file and key_file must be set together")
        if self.certificate_file is not None and self.ca_file is None:
            raise InvalidCredentials("certificate_file needs TLS: set ca_file as well")

    @classmethod
    def from_environment(cls) -> ClientCredentials:
        """Read MILO_DISCOVERY_TOKEN_FILE, _CA_FILE, _CERTIFICATE_FILE, _KEY_FILE and _SERVER_UID."""
        server_uid = os.environ.get(SERVER_UID_VARIABLE) or None
        return cls(
            ca_file=os.environ.get(CA_VARIABLE) or None,
            certificate_file=os.environ.get(CERTIFICATE_VARIABLE) or None,
            key_file=os.environ.get(KEY_VARIABLE) or None,
            token_file=os.environ.get(TOKEN_VARIABLE) or None,
            server_uid=None if server_uid is None else _parse_uid(server_uid),
        )

    def check(self, target: str) -> None:
        """Raise InvalidCredentials if these credentials cannot be used with the gRPC target."""
        if self.server_uid is not None and sys.platform != "linux":
            raise InvalidCredentials("server_uid works only on Linux, where the kernel reports the server's uid")
        if target.startswith("unix:"):
            if self.ca_file is not None:
                raise InvalidCredentials(f"{target} is a Unix socket, which has no TLS: leave out ca_file")
        elif self.server_uid is not None:
            raise InvalidCredentials(f"server_uid is for Unix sockets, but {target} is not one: leave out server_uid")
        elif self.token_file is not None and self.ca_file is None:
            raise InvalidCredentials(f"the token would be sent to {target} unencrypted: set ca_file to use TLS")

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Return the TLS credentials for a new channel, or None without TLS. Raises InvalidCredentials."""
        if self.ca_file is None:
            return None
        import grpc  # noqa: PLC0415  (loaded only where a connection is made)

        self.tls_context()  # Check the files: gRPC would retry indefinitely with files that it cannot use.
        key = None if self.key_file is None else _read(self.key_file)
        certificate = None if self.certificate_file is None else _read(self.certificate_file)
        return grpc.ssl_channel_credentials(_read(self.ca_file), key, certificate)

    def tls_context(self) -> ssl.SSLContext:
        """Return an SSLContext for the CA and the key pair. Raises InvalidCredentials if their files cannot be used."""
        import ssl  # noqa: PLC0415  (as above)

        assert self.ca_file is not None, "TLS is used without a CA"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authorities = _read(self.ca_file)
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise InvalidCredentials(f"{self.ca_file} contains no CA certificate in PEM format") from error
        if self.certificate_file is None or self.key_file is None:
            return context
        _read(self.certificate_file)
        _read(self.key_file)
        try:
            context.load_cert_chain(self.certificate_file, self.key_file, password=_no_passphrase)
        except _EncryptedKeyError:
            raise InvalidCredentials(f"{self.key_file} is encrypted: use a key without a passphrase") from None
        except (ssl.SSLError, ValueError) as error:
            mismatch = getattr(error, "reason", "") == "KEY_VALUES_MISMATCH"
            problem = "are not a certificate and its key in PEM format"
            if mismatch:
                problem = "do not belong to the same key pair"
            raise InvalidCredentials(f"{self.certificate_file} and {self.key_file} {problem}") from error
        return context

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata for a new call, with the current token. Raises InvalidCredentials."""
        if self.token_file is None:
            return ()
        token = _read(self.token_file).strip()
        if not token.isascii() or not token.decode().isprintable():
            raise InvalidCredentials(
                f"{self.token_file} does not contain a token: it must be one line of printable ASCII characters"
            )
        return (("authorization", f"Bearer {token.decode()}"),)


class _EncryptedKeyError(Exception):
    pass


def _no_passphrase() -> str:
    """Raise, since OpenSSL would otherwise ask for the passphrase on the terminal."""
    raise _EncryptedKeyError


def _parse_uid(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidCredentials(f"{SERVER_UID_VARIABLE} must be a numeric uid, not {value!r}")
    return int(value)


def _read(path: Path | str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidCredentials(f"cannot read {path}: {error.strerror}") from error
    if not content.strip():
        raise InvalidCredentials(f"{path} is empty")
    return content
