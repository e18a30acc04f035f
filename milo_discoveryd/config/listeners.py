"""Settings of a listener, given as an address or as a mapping with more settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Group, Text, Whole
from milo_kube import addresses

_RequiredFile = Annotated[Path, values.required_file]


class Tls(Group, frozen=True, kw_only=True):
    """TLS 1.3 with client certificates."""

    certificate: _RequiredFile
    """Server certificate of the listener."""
    key: _RequiredFile
    """Private key of the server certificate."""
    client_ca: _RequiredFile
    """CA certificates that verify client certificates."""


_Account = Annotated[str, Text(most=32)]


class ListenerSettings(Group, frozen=True, kw_only=True):
    address: Annotated[values.ListenAddress, values.listen_address]
    """`unix:///path`, `HOST:PORT` (an empty host means all interfaces) or `insecure://HOST:PORT` on loopback."""
    name: Annotated[str, values.cluster_name] | None = None
    """Name of the listener in authorization rules, audit events and the log. Default: the listener's address."""
    mode: Annotated[int, values.permissions] | None = None
    """Permissions of a Unix socket. Default: `socket.mode`."""
    group: _Account | None = None
    """Name or number of the group that may connect to a Unix socket. Default: `socket.group`."""
    owner: _Account | None = None
    """Name or number of the owner of a Unix socket; only root can change it. Default: the daemon's own user."""
    peer_credentials: bool = False
    """Identify callers of a Unix socket by the credentials that the kernel reports (SO_PEERCRED)."""
    tls: Tls | None = None
    """TLS 1.3 with client certificates. Required for TCP."""
    tokens: bool = False
    """Accept bearer tokens (`authorization: Bearer`) from callers. The API server of `token_review` reviews them."""
    connections: Annotated[int, Whole(1, 100_000)] | None = None
    """Maximum open connections; lower if the limit of open files requires it. At the maximum, a new connection replaces
    a connection of the user (at a Unix socket) or certificate name that has the most connections, provided that the
    user or name of the new connection has at least two fewer. Default: 1000, divided equally among the listeners
    without this setting."""

    def __post_init__(self) -> None:
        if isinstance(self.address, values.UnixAddress):
            if self.tls is not None:
                raise ValueError("has `tls`, which is only for TCP: use `peer_credentials` on a Unix socket")
            return
        for setting in ("mode", "owner", "group", "peer_credentials"):
            if getattr(self, setting):
                raise ValueError(f"has {setting}, which is only for Unix sockets")
        if isinstance(self.address, values.InsecureAddress):
            if self.tls is not None:
                address = values.TcpAddress(self.address.host, self.address.port)
                raise ValueError(f"has `tls`, but its address begins with insecure://: use {address}")
        elif self.tls is None:
            host, port = self.address.host, self.address.port
            local = values.InsecureAddress(host if addresses.is_loopback(host) else "127.0.0.1", port)
            raise ValueError(
                "is a TCP address without `tls`: use a Unix socket, or set certificate, key and client_ca under `tls` "
                f'in the configuration file. To allow every local process to connect, use "{local}"'
            )

    @property
    def title(self) -> str:
        return self.name or str(self.address)


def listener(value: object) -> object:
    """Return the mapping for a listener that is given as an address."""
    return value if isinstance(value, Mapping | ListenerSettings) else {"address": value}


def distinct(listeners: tuple[ListenerSettings, ...]) -> None:
    if not listeners:
        raise ValueError("must have at least one address")
    if (address := values.repeated(str(listener.address) for listener in listeners)) is not None:
        raise ValueError(f"has several listeners with the address {address}")
    if (name := values.repeated(listener.title for listener in listeners)) is not None:
        raise ValueError(f"has several listeners with the name {name!r}")
