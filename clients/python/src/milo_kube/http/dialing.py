"""Opens connections: TCP with keepalive, optionally through a proxy, and TLS."""

import asyncio
import base64
import socket
import ssl
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import msgspec

from milo_kube import addresses
from milo_kube.http import errors
from milo_kube.http.connection import Connection
from milo_kube.http.errors import TransportError
from milo_kube.http.tls import TlsTransport

DEFAULT_PORTS = {"http": 80, "https": 443}
_ADDRESS_TIMEOUT_S = 2.0
"""Timeout of each address of a host but the last, which may use all the remaining time."""
_PROXY_ANSWERS_WITHIN_S = 30.0

# An idle connection to a dead peer breaks after 15 + 3 * 5 s, and one with unacknowledged data after 30 s.
_SOCKET_OPTIONS = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 15),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 30_000),
    )
    if hasattr(socket, name)
)


class Origin(msgspec.Struct, frozen=True):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(parts.scheme, parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme])

    @property
    def authority(self) -> str:
        """Host and port, as in a CONNECT request."""
        return addresses.host_port(self.host, self.port)

    @property
    def host_header(self) -> str:
        return addresses.bracketed(self.host) if self.port == DEFAULT_PORTS[self.scheme] else self.authority

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}"


class Proxy(msgspec.Struct, frozen=True):
    origin: Origin
    authorization: str | None

    @classmethod
    def of(cls, url: str) -> Self:
        parts = urlsplit(url)
        authorization = None
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(user.encode()).decode()
        return cls(Origin.of(url), authorization)


async def dial(origin: Origin, context: ssl.SSLContext, *, server_name: str | None, proxy: Proxy | None) -> Connection:
    """Connect to `origin`. Raises TransportError."""
    name = server_name or origin.host
    if proxy is None:
        return await _connected(origin, context, name)
    through = await _proxied(origin, context, proxy)
    if origin.scheme != "https":
        return through
    try:
        await _ask_for_tunnel(through, origin, proxy)
        connection = Connection(str(origin))
        secured = TlsTransport(connection, context, name)
        through.transport.set_protocol(secured)
        secured.connection_made(through.transport)
        await secured.handshake()
    except OSError as error:
        raise errors.from_connecting(error, str(origin)) from error
    except BaseException:
        through.abort()
        raise
    connection.connection_made(secured)
    return connection


async def _connected(origin: Origin, context: ssl.SSLContext, server_name: str) -> Connection:
    try:
        return await _opened(origin, str(origin), context, server_name)
    except OSError as error:
        raise errors.from_connecting(error, str(origin)) from error


async def _proxied(origin: Origin, context: ssl.SSLContext, proxy: Proxy) -> Connection:
    try:
        return await _opened(proxy.origin, str(origin), context, proxy.origin.host)
    except OSError as error:
        raise errors.from_proxy(error, str(origin)) from error


async def _opened(to: Origin, named: str, context: ssl.SSLContext, server_name: str) -> Connection:
    connection = Connection(named)
    made = await _open_socket(to.host, to.port)
    loop = asyncio.get_running_loop()
    if to.scheme != "https":
        await loop.create_connection(lambda: connection, sock=made)
        return connection
    secured = TlsTransport(connection, context, server_name)
    await loop.create_connection(lambda: secured, sock=made)
    await secured.handshake()
    connection.connection_made(secured)
    return connection


async def _open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is connected to the first address of the host that accepts. Raises OSError."""
    *others, last = await _addresses(host, port)
    for address in others:
        try:
            async with asyncio.timeout(_ADDRESS_TIMEOUT_S):
                return await _connected_socket(address)
        except OSError:  # TimeoutError is one
            pass
    return await _connected_socket(last)


async def _addresses(host: str, port: int) -> list[Any]:
    name = addresses.encoded(host)
    try:
        # An IP address needs no resolver, and so no thread.
        return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)


async def _connected_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, at = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        keep_alive(made)
        await asyncio.get_running_loop().sock_connect(made, at)
    except BaseException:
        made.close()
        raise
    return made


async def _ask_for_tunnel(through: Connection, origin: Origin, proxy: Proxy) -> None:
    headers = {"Host": origin.authority}
    if proxy.authorization is not None:
        headers["Proxy-Authorization"] = proxy.authorization
    response = through.send("CONNECT", origin.authority, headers)
    await response.head(_PROXY_ANSWERS_WITHIN_S)
    if response.status != 200:
        raise TransportError(
            "connect", f"the proxy on the way to {origin} answered {response.status} {response.phrase}".rstrip()
        )


def keep_alive(made: socket.socket) -> None:
    """Enable TCP keepalive, so that the kernel detects a dead peer."""
    for level, option, value in _SOCKET_OPTIONS:
        made.setsockopt(level, option, value)
