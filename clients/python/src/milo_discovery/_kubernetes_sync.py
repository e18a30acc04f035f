"""A blocking `kubernetes` client with renewed credentials. Imported on use, because the package is an extra."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, NamedTuple

import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.stream import ws_client
from urllib3.connection import HTTPSConnection
from websocket import WebSocket

from milo_discovery._connection_credential import BEARER, ConnectionCredential, RequestUrls
from milo_discovery.credentials import LoopBridge
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_kube.tls_identity import bound_handshakes

_UNAUTHORIZED = 401
_MAX_IDLE_CONNECTIONS = 256


_TARGET: ContextVar[tuple[LoopBridge, str] | None] = ContextVar("_TARGET", default=None)
"""The renewer of the API client whose request is sent, and the server."""


class _ClusterConnection(HTTPSConnection):
    """A connection over which no request is sent if the engagement ended, or the cluster moved, while it was opened."""

    def request(self, *given: Any, **named: Any) -> None:
        if (target := _TARGET.get()) is not None:
            renewer, server = target
            renewer.require_present(server)
        super().request(*given, **named)


class _ClusterConnections(urllib3.HTTPSConnectionPool):
    ConnectionCls = _ClusterConnection


def create_pool(access: KubeconfigAccess, certificate: str | None, proxy: str | None) -> urllib3.PoolManager:
    """Create the connection pools for the API clients with one `transport_key`; they share one SSL context.

    By default, urllib3 creates a context for each connection.
    """
    context = ssl.create_default_context(cadata=access.authorities)
    bound_handshakes(context)
    if certificate is not None:
        context.load_cert_chain(certificate)
    configuration = Configuration(host=access.server, tls_server_name=access.tls_server_name)
    configuration.proxy = proxy
    pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
    for name in ("ca_certs", "ca_cert_data", "cert_file", "key_file"):
        pool.connection_pool_kw.pop(name, None)
    # Idle connections kept per host. urllib3 logs a warning for each one that it discards.
    pool.connection_pool_kw |= {"ssl_context": context, "maxsize": _MAX_IDLE_CONNECTIONS}
    pool.pool_classes_by_scheme = {**pool.pool_classes_by_scheme, "https": _ClusterConnections}
    send = pool.urlopen

    def send_to_this_server(method: str, url: str, redirect: bool = True, **options: Any) -> Any:
        return send(method, url, redirect=False, **options)

    pool.urlopen = send_to_this_server  # type: ignore[method-assign]
    return pool


class _SharedRestClient(RESTClientObject):
    """A REST client on a shared connection pool, which stays open when the client is closed."""

    def __init__(self, configuration: Configuration, pool: urllib3.PoolManager) -> None:
        super().__init__(configuration)
        self.pool_manager = pool

    def close(self) -> None:
        pass


class _Handshake(NamedTuple):
    """What an API client of this module adds to a stream that it opens."""

    headers: Sequence[str]
    """The impersonation headers."""
    require_present: Callable[[], None]


_HANDSHAKE: ContextVar[_Handshake | None] = ContextVar("_HANDSHAKE", default=None)
"""That of the stream which is being opened; None for other API clients."""


class _HandshakeHeaders(list[str]):
    """Headers that are not sent if the engagement ended, or the cluster moved, while the connection was opened."""

    def __init__(self, headers: Iterable[str], require_present: Callable[[], None]) -> None:
        super().__init__(headers)
        self._require_present = require_present

    def __iter__(self) -> Iterator[str]:
        """Called when the connection is open, to compose the request."""
        self._require_present()
        return super().__iter__()


class _WebSocket(WebSocket):
    """A WebSocket that follows no redirect, sends impersonation headers, and checks the endpoint, if an API client of
    this module opens it."""

    def connect(self, url: str, **options: Any) -> None:
        if (handshake := _HANDSHAKE.get()) is not None:
            headers = (*options.get("header", ()), *handshake.headers)
            options |= {"redirect_limit": 0, "header": _HandshakeHeaders(headers, handshake.require_present)}
        super().connect(url, **options)  # type: ignore[no-untyped-call]


# `kubernetes.stream` has no other hook: it creates the WebSocket itself, and drops all headers but Authorization.
ws_client.WebSocket = _WebSocket  # type: ignore[attr-defined]


class RenewingSyncApiClient(ApiClient):
    """An API client that uses the newest credential for each request, and retries once with a newer one after a 401."""

    def __init__(
        self,
        renewer: LoopBridge,
        credential: ConnectionCredential,
        pool: urllib3.PoolManager,
        certificate: str | None,
        proxy: str | None,
    ) -> None:
        access = credential.made_with.access
        configuration = Configuration(
            host=access.server,
            ca_cert_data=access.authorities,
            tls_server_name=access.tls_server_name,
            cert_file=certificate,
        )
        configuration.proxy = proxy  # Set even if None, since the constructor reads the proxy from the environment.
        urls = RequestUrls(access.server)

        # A function rather than a method: a deep copy of the configuration would copy the object that a method is bound
        # to. The `kubernetes` package calls it only if there is an API key.
        def refresh(target: Configuration) -> None:
            newest = renewer.access()
            header = credential.authorization(newest)
            if header is not None:
                target.api_key[BEARER] = header
            urls.add(newest.server)
            target.host = newest.server

        header = credential.authorization(access)
        configuration.api_key = {} if header is None else {BEARER: header}
        configuration.refresh_api_key_hook = refresh  # type: ignore[assignment]  # typed by its default value
        super().__init__(configuration)
        self.rest_client = _SharedRestClient(configuration, pool)
        self.user_agent = "milo-discovery-client"
        self._renewer = renewer
        self._credential = credential
        self._urls = urls

    def __setattr__(self, name: str, value: Any) -> None:
        """Wrap the function with which `kubernetes.stream` replaces `call_api` for one call.

        The call then follows no redirect, sends the impersonation headers, and checks the endpoint.
        """
        if name != "call_api":
            super().__setattr__(name, value)
        elif value == RenewingSyncApiClient.call_api.__get__(self):
            vars(self).pop(name, None)
        else:
            super().__setattr__(name, self._limited(value))

    def _limited(self, open_stream: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(open_stream)
        def limited(
            method: str, url: str, header_params: dict[str, str] | None = None, *given: Any, **named: Any
        ) -> Any:
            access = self._renewer.access()
            headers = [] if access.act_as is None else [f"{name}: {value}" for name, value in access.act_as.headers()]
            token = _HANDSHAKE.set(_Handshake(headers, partial(self._renewer.require_present, access.server)))
            try:
                moved, authorized = self._urls.moved(url, access.server), self._headers(access, header_params or {})
                return open_stream(method, moved, authorized, *given, **named)
            finally:
                _HANDSHAKE.reset(token)

        return limited

    def call_api(
        self,
        method: str,
        url: str,
        header_params: dict[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: Any = None,
    ) -> Any:
        access = self._renewer.access()
        headers = self._headers(access, header_params or {})
        arguments = {"body": body, "post_params": post_params, "_request_timeout": _request_timeout}
        response = self._sent(method, url, access.server, headers.copy(), arguments)
        used = headers.get("authorization")
        if response.status != _UNAUTHORIZED or used is None:
            return response
        # The token may have been revoked. The `kubernetes` package would return the 401 to the caller.
        newest = self._renewer.access_after_401(used.removeprefix("Bearer "))
        headers = self._headers(newest, header_params or {})
        if headers.get("authorization") in {None, used}:
            return response
        _finish(response)
        return self._sent(method, url, newest.server, headers, arguments)

    def _sent(
        self, method: str, url: str, server: str, headers: urllib3.HTTPHeaderDict, arguments: dict[str, Any]
    ) -> Any:
        """Send a request. Raises ApiException for a redirect: no other server may receive the credential."""
        _TARGET.set((self._renewer, server))
        response = super().call_api(method, self._urls.moved(url, server), headers, **arguments)
        if 300 <= response.status < 400:
            _finish(response)
            raise ApiException(status=response.status, reason=f"{response.reason}: a redirect, which is not followed")
        return response

    def _headers(self, access: KubeconfigAccess, given: dict[str, str]) -> urllib3.HTTPHeaderDict:
        """Return the headers of a request, with one credential's token and impersonated user."""
        headers = urllib3.HTTPHeaderDict(given)
        authorization = self._credential.authorization(access)
        if authorization is not None and "authorization" in headers:
            headers["authorization"] = authorization
        if access.act_as is not None:
            for name, value in access.act_as.headers():
                headers.add(name, value)
        return headers


def _finish(response: Any) -> None:
    """Read a response to its end.

    Otherwise, the next request on its connection would fail after it was sent, and urllib3 would retry it only if it is
    idempotent.
    """
    response.response.drain_conn()
    response.response.release_conn()
