"""Where the daemon is: `unix:///path` or `HOST:PORT`."""

from __future__ import annotations

import os
import re

from milo_discovery.errors import InvalidAddress

DEFAULT_ADDRESS = "unix:///run/milo-discovery/discovery.sock"
ADDRESS_VARIABLE = "MILO_DISCOVERY_ADDRESS"

# sun_path of Linux has 108 bytes, the last one a NUL.
_LONGEST_SOCKET_PATH = 107
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A shared subchannel stays in its own back-off after the socket is back.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The daemon is next door; a proxy of the environment is for the world outside.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it gRPC waits a minute for the answer to a ping, whatever keepalive_timeout_ms says.
    ("grpc.http2.ping_timeout_ms", 10_000),
)


def target(address: str | None) -> str:
    """The gRPC target of an address; of the environment's, or the default one, where none is given."""
    if address is None:
        address = os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    if address.startswith("unix://"):
        return _socket(address)
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        raise InvalidAddress(f"address {address!r} is neither unix:///path/to/socket nor HOST:PORT")
    if not 0 < int(match["port"]) <= 65535:
        raise InvalidAddress(f"address {address!r}: a port is a number from 1 to 65535")
    return address


def _socket(address: str) -> str:
    path = address.removeprefix("unix://")
    if not path.startswith("/"):
        raise InvalidAddress(f"address {address!r}: a socket's path is absolute, as in unix:///run/milo/discovery.sock")
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise InvalidAddress(f"address {address!r}: a socket's path has at most {_LONGEST_SOCKET_PATH} bytes")
    return address
