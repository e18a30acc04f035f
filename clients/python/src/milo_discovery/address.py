"""The daemon's address, `unix:///path` or `HOST:PORT`, and the gRPC channel options for it."""

from __future__ import annotations

import os
import re

from milo_discovery.errors import InvalidAddress

DEFAULT_ADDRESS = "unix:///run/milo-discovery/discovery.sock"
ADDRESS_VARIABLE = "MILO_DISCOVERY_ADDRESS"

# sun_path has 108 bytes on Linux, including the terminating NUL.
_MAX_SOCKET_PATH = 107
_FOREIGN_SCHEME = re.compile(r"(insecure|https?|tcp|grpcs?|unix):(//)?", re.IGNORECASE)
"""A URL scheme that a client's address cannot have. insecure:// is valid only in the daemon's --listen."""
HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A new channel would otherwise share the old one's subchannel, including its reconnect backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The daemon is usually in the same pod; proxies that the environment sets are for remote hosts.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this option gRPC waits a minute for the answer to a ping, regardless of keepalive_timeout_ms.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # gRPC repeats a call without a delay on connections that end before they carry it, and each attempt takes memory.
    # This package repeats calls itself, with backoff.
    ("grpc.enable_retries", 0),
    # A message with many labels or long annotations can exceed gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", 64 << 20),
)


def grpc_target(address: str | None) -> str:
    """Validate an address and return its gRPC target; None means MILO_DISCOVERY_ADDRESS or the default."""
    if address is None:
        address = os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    if address.startswith("unix://"):
        return _socket(address)
    match = HOST_AND_PORT.fullmatch(address)
    if match is None:
        raise InvalidAddress(f"address {address!r} is neither unix:///path/to/socket nor HOST:PORT{_hint(address)}")
    if not 0 < int(match["port"]) <= 65535:
        raise InvalidAddress(f"address {address!r}: the port must be between 1 and 65535")
    return address


def _hint(address: str) -> str:
    """Return a suggestion of a valid address, to append to an error; empty if there is none."""
    scheme = _FOREIGN_SCHEME.match(address)
    rest = address[scheme.end() :] if scheme else address
    if rest.startswith("/"):
        return f"; did you mean unix://{rest}?"
    rest = rest.rstrip("/")
    return f"; did you mean {rest}?" if HOST_AND_PORT.fullmatch(rest) else ""


def _socket(address: str) -> str:
    path = address.removeprefix("unix://")
    if not path.startswith("/"):
        raise InvalidAddress(
            f"address {address!r}: the socket path must be absolute, as in unix:///run/milo/discovery.sock"
        )
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidAddress(f"address {address!r}: the socket path must not exceed {_MAX_SOCKET_PATH} bytes")
    return address
