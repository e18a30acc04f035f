"""Opens connections: TCP with keepalive, optionally through a proxy, and TLS."""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from typing import Any, Self, TypeAlias, cast
from urllib.parse import unquote, urlsplit

import msgspec

from milo_kube import addresses
from milo_kube.costly_steps import Turns
from milo_kube.http import errors
from milo_kube.http.connection import Connection
from milo_kube.http.connection_memory import ConnectionMemory, CountedTls
from milo_kube.http.errors import TransportError
from milo_kube.http.http1 import Http1Connection
from milo_kube.http.name_lookup import name_lookup

HTTP1, HTTP2 = "http/1.1", "h2"
"""Names of the protocols in ALPN."""
Http2: TypeAlias = Callable[[str], asyncio.Protocol]
"""Makes the HTTP/2 connection to an origin: `Http2Connection`, if the library h2 is installed."""
ContextProvider: TypeAlias = Callable[[], ssl.SSLContext]
"""Returns the context for one connection, which is made before the next await."""
DEFAULT_PORTS = {"http": 80, "https": 443}
_ADDRESS_TIMEOUT_S = 2.0
"""Timeout for connecting to each address of a host, except the last one, which may use all the remaining time."""
_PROXY_ANSWERS_WITHIN_S = 30.0
_PHRASE_QUOTED = 100

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


class ClientTls(msgspec.Struct, frozen=True):
    """What connections with one TLS identity have in common."""

    context: ContextProvider
    turns: Callable[[str], Turns]
    """Returns the turns of a handshake with the server, which is HOST:PORT."""
    memory: ConnectionMemory


class Origin(msgspec.Struct, frozen=True):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """Raises TransportError for a hostname that is no ASCII and cannot be encoded."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not host.isascii():
            host = _encoded(host, parts.scheme)
        return cls(parts.scheme, host, parts.port or DEFAULT_PORTS[parts.scheme])

    @property
    def authority(self) -> str:
        """Host and port, as in a CONNECT request."""
        return addresses.host_port(self.host, self.port)

    @property
    def host_header(self) -> str:
        return addresses.bracketed(self.host) if self.port == DEFAULT_PORTS[self.scheme] else self.authority

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}"


def _encoded(host: str, scheme: str) -> str:
    """Return an international hostname as headers and name servers have it."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        problem = "cannot be resolved: it is not a valid hostname"
        raise TransportError("dns", f"the hostname of {scheme}://{host} {problem}") from None


class Dialing(msgspec.Struct):
    """How far an attempt to connect has come."""

    is_begun: bool = False
    has_reached: bool = False
    """Whether there is a TCP connection to the server, or a tunnel of a proxy."""

    @property
    def is_unreached(self) -> bool:
        return self.is_begun and not self.has_reached


class Proxy(msgspec.Struct, frozen=True):
    origin: Origin
    authorization: str | None

    @classmethod
    def of(cls, url: str) -> Self:
        """Raises ValueError if the URL is not that of an HTTP proxy."""
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ValueError("not the URL of an HTTP proxy")
        authorization = None
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(user.encode()).decode()
        return cls(Origin.of(url), authorization)


async def dial(
    origin: Origin,
    tls: ClientTls,
    *,
    server_name: str | None,
    proxy: Proxy | None,
    http2: Http2 | None,
    dialing: Dialing,
) -> Connection:
    """Connect to `origin`, and note in `dialing` how far that has come. Raises TransportError. With `http2`, the server
    may select HTTP/2."""
    dialing.is_begun = True
    connection = await _dialed(origin, tls, server_name or origin.host, proxy, http2, dialing=dialing)
    try:
        await connection.ready()
    except BaseException:
        connection.abort()
        raise
    return connection


async def _dialed(
    origin: Origin, tls: ClientTls, server_name: str, proxy: Proxy | None, http2: Http2 | None, *, dialing: Dialing
) -> Connection:
    if proxy is None:
        try:
            return await _opened(origin, str(origin), tls, server_name, http2, dialing=dialing)
        except OSError as error:
            raise errors.from_connecting(error, str(origin), is_unreached=dialing.is_unreached) from error
    _encoded(origin.host, origin.scheme)  # the proxy resolves the name, which nothing else here has checked
    try:
        through = await _opened(proxy.origin, str(origin), tls, proxy.origin.host, None, dialing=Dialing())
    except OSError as error:
        raise errors.from_proxy(error, str(origin)) from error
    assert isinstance(through, Http1Connection)
    if origin.scheme != "https":
        return through
    try:
        await _open_tunnel(through, origin, proxy)
        dialing.has_reached = True
        secured = _secured(origin, str(origin), tls, server_name, http2)
        through.transport.set_protocol(secured)
        secured.connection_made(through.transport)
        await secured.handshake()
    except BaseException as error:
        through.abort()
        if isinstance(error, OSError):
            raise errors.from_connecting(error, str(origin)) from error
        raise
    return cast(Connection, secured.get_protocol())


async def _opened(
    to: Origin, named: str, tls: ClientTls, server_name: str, http2: Http2 | None, *, dialing: Dialing
) -> Connection:
    made = await _open_socket(to.host, to.port)
    dialing.has_reached = True
    loop = asyncio.get_running_loop()
    if to.scheme != "https":
        connection = Http1Connection(named)
        await loop.create_connection(lambda: connection, sock=made)
        return connection
    secured = _secured(to, named, tls, server_name, http2)
    await loop.create_connection(lambda: secured, sock=made)
    await secured.handshake()
    return cast(Connection, secured.get_protocol())


def _secured(to: Origin, named: str, tls: ClientTls, server_name: str, http2: Http2 | None) -> CountedTls:
    def made(selected: str | None) -> asyncio.Protocol:
        return http2(named) if http2 is not None and selected == HTTP2 else Http1Connection(named)

    alpn = (HTTP2, HTTP1) if http2 is not None else (HTTP1,)
    server_name = server_name.removesuffix(".")  # certificates lack the dot of an absolute name
    return CountedTls(made, tls.context(), server_name, tls.memory, alpn=alpn, turns=tls.turns(to.authority))


async def _open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is connected to the first address of the host that accepts the connection. Raises
    OSError."""
    *others, last = await _addresses(host, port)
    for address in others:
        try:
            async with asyncio.timeout(_ADDRESS_TIMEOUT_S):
                return await _connected_socket(address)
        except OSError:  # includes TimeoutError
            pass
    return await _connected_socket(last)


async def _addresses(host: str, port: int) -> list[Any]:
    try:
        # An IP address needs no resolver, and so no thread.
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await name_lookup().addresses(host, port)
    except UnicodeError:  # a label is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "it is not a valid hostname") from None


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


async def _open_tunnel(through: Http1Connection, origin: Origin, proxy: Proxy) -> None:
    headers = {"Host": origin.authority}
    if proxy.authorization is not None:
        headers["Proxy-Authorization"] = proxy.authorization
    response = through.send("CONNECT", origin.authority, headers)
    await response.head(_PROXY_ANSWERS_WITHIN_S)
    if response.status != 200:
        answer = f"{response.status} {response.phrase[:_PHRASE_QUOTED]}".rstrip()
        raise TransportError("connect", f"the proxy for {origin} answered {answer}", is_unreached=True)


def keep_alive(made: socket.socket) -> None:
    """Enable TCP keepalive, so that the kernel detects a dead peer."""
    for level, option, value in _SOCKET_OPTIONS:
        made.setsockopt(level, option, value)
