"""The settings of one place to listen at: an address, or a mapping that says more about it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from milo_discoveryd import addresses
from milo_discoveryd.config import values
from milo_discoveryd.config.fields import Group, Text, Whole

_RequiredFile = Annotated[Path, values.required_file]


class Tls(Group, frozen=True, kw_only=True):
    """1.3, and only for clients with a certificate."""

    certificate: _RequiredFile
    """The daemon's, for this address."""
    key: _RequiredFile
    """Of that certificate."""
    client_ca: _RequiredFile
    """Which verifies callers."""


_Account = Annotated[str, Text(most=32)]


class Listener(Group, frozen=True, kw_only=True):
    address: Annotated[values.ListenAddress, values.listen_address]
    """`unix:///path`, `HOST:PORT` (an empty host is all interfaces) or `insecure://HOST:PORT` on loopback."""
    name: Annotated[str, values.cluster_name] | None = None
    """What rights, the audit and the log call it. None is its address."""
    mode: Annotated[int, values.permissions] | None = None
    """Permissions of a Unix socket. None is `socket.mode`."""
    group: _Account | None = None
    """Of a Unix socket: name or number of the group that may connect. None is `socket.group`."""
    owner: _Account | None = None
    """Of a Unix socket: name or number of a user; only root gives sockets away. None is the daemon's own."""
    peer_credentials: bool = False
    """On a Unix socket, have the kernel say which user's process connects. It costs a copy of each byte."""
    tls: Tls | None = None
    """Of TCP, and needed there."""
    tokens: bool = False
    """Take `authorization: Bearer` from callers, and have the cluster of `token_review` say whose it is."""
    connections: Annotated[int, Whole(1, 100_000)] = 1000
    """At once, or as many as there are descriptors for. With `tls` or `peer_credentials`, nobody has more than half."""

    def __post_init__(self) -> None:
        if isinstance(self.address, values.UnixAddress):
            if self.tls is not None:
                raise ValueError("has tls, which is for TCP: on a Unix socket, peer_credentials tell who calls")
            return
        for setting in ("mode", "owner", "group", "peer_credentials"):
            if getattr(self, setting):
                raise ValueError(f"has {setting}, which is for Unix sockets")
        if isinstance(self.address, values.InsecureAddress):
            if self.tls is not None:
                raise ValueError(f"has tls, and says insecure: write {self.address.host}:{self.address.port}")
        elif self.tls is None:
            host, port = self.address.host, self.address.port
            local = values.InsecureAddress(host if addresses.is_loopback(host) else "127.0.0.1", port)
            raise ValueError(
                "is TCP, and needs tls with certificate, key and client_ca, which only the configuration file can "
                f'have; or use a Unix socket; or, for everybody on this machine, "{local}"'
            )

    @property
    def title(self) -> str:
        return self.name or str(self.address)


def listener(value: object) -> object:
    """An address stands for a listener with nothing else said about it."""
    return value if isinstance(value, Mapping | Listener) else {"address": value}


def distinct(listeners: tuple[Listener, ...]) -> None:
    if not listeners:
        raise ValueError("must name at least one address")
    if len({str(each.address) for each in listeners}) < len(listeners):
        raise ValueError("must name each address once")
    if len({each.title for each in listeners}) < len(listeners):
        raise ValueError("must give each of its listeners another name")
