"""Listeners: addresses, and how callers are authenticated at each."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from milo_kube import addresses

if TYPE_CHECKING:
    from milo_discoveryd.server.connections.tls_certificates import ServerTls

CONNECTIONS = 1000
"""The default connection limit of all listeners together, which fits the memory limit of the shipped manifest."""


class UnixSocket(msgspec.Struct, frozen=True):
    path: Path
    mode: int = 0o660
    group: int | None = None
    """The group ID of the socket; None for the group of the process."""
    owner: int | None = None

    def __str__(self) -> str:
        return f"unix://{self.path}"


class TcpEndpoint(msgspec.Struct, frozen=True):
    host: str
    """Hostname or IP address; empty for all interfaces."""
    port: int

    def __str__(self) -> str:
        return addresses.host_port(self.host, self.port)


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One address, served by its own gRPC server."""

    name: str
    address: UnixSocket | TcpEndpoint
    tls: "ServerTls | None" = None
    """TLS of a TCP listener. Without it any local process may call, so the settings then allow only loopback."""
    peer_credentials: bool = False
    """Whether callers of a Unix socket are identified by the process that connected."""
    tokens: bool = False
    """Whether to review the bearer tokens of calls."""
    connections: int = CONNECTIONS
    """The connection limit."""

    @property
    def knows_owners(self) -> bool:
        """Whether the calls of different owners of connections are limited separately. An address on loopback without
        TLS is everyone's."""
        is_local = isinstance(self.address, UnixSocket)
        return self.tls is not None or self.peer_credentials or (self.tokens and is_local)
