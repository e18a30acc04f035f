"""What to listen on, and what whoever calls there has proved."""

from pathlib import Path

import msgspec

from milo_discoveryd.server.connections.tls_certificates import ServerTls

CONNECTIONS = 1000


class UnixAddress(msgspec.Struct, frozen=True):
    path: Path
    mode: int = 0o660
    group: int | None = None
    """A group id that the socket is given to; None: the process' own."""
    owner: int | None = None

    def __str__(self) -> str:
        return f"unix://{self.path}"


class TcpAddress(msgspec.Struct, frozen=True):
    host: str
    """Empty: all interfaces."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One place to call at. Each has a gRPC server of its own."""

    name: str
    address: UnixAddress | TcpAddress
    tls: ServerTls | None = None
    """Of TCP. Without one everybody who gets there may call: the settings see to it that it is loopback."""
    peer_credentials: bool = False
    """Of Unix sockets: ask the kernel whose process connects."""
    tokens: bool = False
    """Have the bearer tokens of calls reviewed."""
    connections: int = CONNECTIONS
    """At once."""

    @property
    def has_acceptor(self) -> bool:
        """Whether we accept connections ourselves, and pass them on to gRPC."""
        return self.tls is not None or self.peer_credentials

    @property
    def descriptors(self) -> int:
        """What a connection takes: its own, and two of the one behind it."""
        return 3 if self.has_acceptor else 1
