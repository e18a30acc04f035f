"""Who a client is to the daemon: what it shows, from files that others renew."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milo_discovery.errors import InvalidCredentials

if TYPE_CHECKING:
    import grpc

TOKEN_VARIABLE = "MILO_DISCOVERY_TOKEN_FILE"  # noqa: S105  (the name of a variable)
CA_VARIABLE = "MILO_DISCOVERY_CA_FILE"
CERTIFICATE_VARIABLE = "MILO_DISCOVERY_CERTIFICATE_FILE"
KEY_VARIABLE = "MILO_DISCOVERY_KEY_FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredentials:
    """What a client shows: nothing by default, since on a Unix socket the kernel says who connects.

    The certificate is read for each connection, the token for each call: both may be renewed meanwhile.
    """

    ca_file: Path | str | None = None
    """Who has to vouch for the daemon. Where it is given, there is TLS."""
    certificate_file: Path | str | None = None
    key_file: Path | str | None = None
    token_file: Path | str | None = None
    """A bearer token, as Kubernetes projects a service account's into a pod."""

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise InvalidCredentials("a certificate and its key come together: give both files, or neither")
        if self.certificate_file is not None and self.ca_file is None:
            raise InvalidCredentials("a certificate is for TLS, which needs the CA of the daemon: give ca_file as well")

    @classmethod
    def from_environment(cls) -> ClientCredentials:
        """As the environment names the files: MILO_DISCOVERY_TOKEN_FILE, and so on."""
        return cls(
            ca_file=os.environ.get(CA_VARIABLE) or None,
            certificate_file=os.environ.get(CERTIFICATE_VARIABLE) or None,
            key_file=os.environ.get(KEY_VARIABLE) or None,
            token_file=os.environ.get(TOKEN_VARIABLE) or None,
        )

    def check(self, place: str) -> None:
        """Whether they may be shown at that place. Raises InvalidCredentials."""
        if place.startswith("unix:"):
            if self.ca_file is not None:
                raise InvalidCredentials(f"{place} is a Unix socket, and TLS is for HOST:PORT: leave out ca_file")
        elif self.token_file is not None and self.ca_file is None:
            raise InvalidCredentials(f"a token isn't sent to {place} in the clear: give ca_file as well")

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Of a new connection; None is one without TLS. Raises InvalidCredentials."""
        if self.ca_file is None:
            return None
        import grpc  # noqa: PLC0415  (commands without a connection do without)

        key = None if self.key_file is None else _read(self.key_file)
        certificate = None if self.certificate_file is None else _read(self.certificate_file)
        return grpc.ssl_channel_credentials(_read(self.ca_file), key, certificate)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a new call. Raises InvalidCredentials."""
        if self.token_file is None:
            return ()
        token = _read(self.token_file).strip()
        if not token.isascii() or b"\n" in token or b"\r" in token:
            raise InvalidCredentials(f"{self.token_file} holds no token")
        return (("authorization", f"Bearer {token.decode()}"),)


def _read(path: Path | str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidCredentials(f"{path} can't be read: {error.strerror}") from error
    if not content.strip():
        raise InvalidCredentials(f"{path} is empty")
    return content
