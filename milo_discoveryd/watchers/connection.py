"""The kubernetes package's async client, fitted out as a connection to one API server under one TLS identity.

Its defaults are made for short calls: it follows redirects with credentials, reads ~/.netrc, ends each response after
five minutes, and leaves a dead peer to the kernel's two hours. This is the only importer of that package, and a late
one, of a part of it: all of it would take a third of a second and 40 MB.
"""

import base64
import socket
import ssl
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp

from milo_discoveryd import __version__
from milo_discoveryd.credentials.authentication.tls import TlsIdentity
from milo_discoveryd.imports import lazily

if TYPE_CHECKING:
    from types import SimpleNamespace

    from aiohttp.client_reqrep import ClientResponse

# The package imports each of its parts, with a second HTTP client for those that are not asynchronous.
_UNUSED = (
    *("client", "config", "dynamic", "informer", "leaderelection", "stream", "utils", "watch"),
    *("aio.config", "aio.dynamic", "aio.leaderelection", "aio.stream", "aio.watch"),
)

CONCURRENT_REQUESTS = 32  # short ones; watches have a pool of their own, so that neither can keep the other waiting

# A peer that has vanished without a word is noticed after 15 + 3 * 5 s of silence, unacknowledged data after 30 s.
_SOCKET_OPTIONS = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 15),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 30_000),
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    )
    if hasattr(socket, name)
)


REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _RedirectError(Exception):
    """Stops aiohttp from following a redirect: raising is all that a trace can do about it."""

    def __init__(self, response: "ClientResponse") -> None:
        self.response = response


class Connection:
    """Two pools to one server. `users` counts the exchanges under way: once replaced, it is closed after the last."""

    def __init__(self, host: str, identity: TlsIdentity, *, tls_server_name: str | None, proxy: str | None) -> None:
        self.identity = identity
        self.users = 0
        context = identity.context()
        self._pools = tuple(
            _Pool(host, context, identity.pem, tls_server_name=tls_server_name, proxy=proxy, limit=limit)
            for limit in (CONCURRENT_REQUESTS, 0)
        )

    @property
    def requests(self) -> "_Pool":
        return self._pools[0]

    @property
    def watches(self) -> "_Pool":
        return self._pools[1]

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()


class _Pool:
    def __init__(
        self,
        host: str,
        context: ssl.SSLContext,
        authorities: str | None,
        *,
        tls_server_name: str | None,
        proxy: str | None,
        limit: int,
    ) -> None:
        with lazily(*(f"kubernetes.{part}" for part in _UNUSED)):
            from kubernetes.aio.client import ApiClient, Configuration  # noqa: PLC0415 - see the module's docstring

        self._connector = aiohttp.TCPConnector(
            ssl=context,
            limit=limit,
            use_dns_cache=False,  # a restarted server may have moved
            socket_factory=watchful_socket,
        )
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_refuse_redirect)
        proxy_url, proxy_headers = _proxy(proxy)
        configuration = Configuration(
            host=host,
            ca_cert_data=authorities,  # for a context that it makes and we don't use
            tls_server_name=tls_server_name,
            proxy=proxy_url,
            proxy_headers=proxy_headers,
            trace_configs=[trace],
            client_session_kwargs={
                "connector": self._connector,
                "trust_env": False,  # neither ~/.netrc nor its idea of NO_PROXY
                "cookie_jar": aiohttp.DummyCookieJar(),
            },
        )
        self._client = ApiClient(configuration)
        self._client.user_agent = f"milo-discoveryd/{__version__}"

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: tuple[tuple[str, str], ...],
        headers: dict[str, str],
        body: object,
        timeout: aiohttp.ClientTimeout,
    ) -> "ClientResponse":
        method, url, headers, content, _ = await self._client.param_serialize(
            method, path, query_params=list(query), header_params=headers, body=body
        )
        try:
            answer = await self._client.call_api(method, url, headers, body=content, _request_timeout=timeout)
        except _RedirectError as redirect:
            return redirect.response  # closed; its status and headers are an answer
        response: ClientResponse = answer.response
        return response

    async def aclose(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]
        await self._connector.close()


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: "SimpleNamespace", redirect: aiohttp.TraceRequestRedirectParams
) -> NoReturn:
    # An API server never redirects its clients; who does is not it, and aiohttp would send it what it sent the server.
    raise _RedirectError(redirect.response)


def watchful_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices when its peer has gone without a word."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    try:
        for level, option, value in _SOCKET_OPTIONS:
            made.setsockopt(level, option, value)
    except OSError:
        made.close()
        raise
    return made


def _proxy(proxy: str | None) -> tuple[str | None, dict[str, str] | None]:
    """A proxy's URL without its user, and the header that says who the user is."""
    if proxy is None:
        return None, None
    parts = urlsplit(proxy)
    if parts.username is None:
        return proxy, None
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()}
