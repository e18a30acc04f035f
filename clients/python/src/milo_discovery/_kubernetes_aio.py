"""A `kubernetes.aio` client with renewed credentials. Imported on use, because the package is an extra."""

from __future__ import annotations

import copy
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException, Configuration
from multidict import CIMultiDict

from milo_discovery._connection_credential import BEARER, ConnectionCredential, RequestUrls
from milo_discovery.credentials import AsyncRenewer
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_kube.tls_identity import bound_handshakes

_UNAUTHORIZED = 401
_WATCH_GRACE_S = 30.0
_TARGET: ContextVar[tuple[AsyncRenewer, str] | None] = ContextVar("_TARGET", default=None)
"""The renewer of the API client whose request is sent, and the server; None for API clients with a copy of its
configuration."""


class ClusterRequest(aiohttp.ClientRequest):
    """A request that is not sent if the engagement ended, or the cluster moved, while it waited for a connection."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        if (target := _TARGET.get()) is not None:
            renewer, server = target
            renewer.require_present(server)
        return await super().send(conn)


class ClusterResponse(aiohttp.ClientResponse):
    """A response that raises ApiException for a redirect: no other server may receive the credential."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        await super().start(connection)
        if 300 <= self.status < 400:
            raise ApiException(status=self.status, reason=f"{self.reason}: a redirect, which is not followed")
        return self


class AioTransport:
    """An SSL context and the connections made with it, for the API clients with one `transport_key`."""

    def __init__(self, access: KubeconfigAccess, certificate: str | None, proxy: str | None) -> None:
        configuration = Configuration(ca_cert_data=access.authorities, cert_file=certificate, proxy=proxy)
        configuration.connection_pool_maxsize = 0  # no limit: watches of many clusters hold a connection each
        self.template = ApiClient(configuration)
        bound_handshakes(self.template.rest_client.ssl_context)
        # `_create_connector` is private, but documented as a hook.
        self.connector: aiohttp.TCPConnector = self.template.rest_client._create_connector()

    async def close(self) -> None:
        await self.connector.close()


class RenewingApiClient(ApiClient):
    """An API client that uses the newest credential for each request, and retries once with a newer one after a 401."""

    def __init__(
        self, renewer: AsyncRenewer, credential: ConnectionCredential, transport: AioTransport, proxy: str | None
    ) -> None:
        access = credential.made_with.access
        configuration = Configuration(
            host=access.server,
            ca_cert_data=access.authorities,
            tls_server_name=access.tls_server_name,
            proxy=proxy,
            # Otherwise ~/.netrc would replace the token, and the environment's proxies would be used.
            client_session_kwargs={
                "trust_env": False,
                "connector": transport.connector,
                "request_class": ClusterRequest,
                "response_class": ClusterResponse,
            },
        )
        urls = RequestUrls(access.server)

        # A function rather than a method: a deep copy of the configuration would copy the object that a method is bound
        # to. The `kubernetes` package calls it only if there is an API key.
        async def refresh(target: Configuration) -> None:
            newest = await renewer.access()
            header = credential.authorization(newest)
            if header is not None:
                target.api_key[BEARER] = header
            urls.add(newest.server)
            target.host = newest.server
            _TARGET.set((renewer, newest.server))  # for WebSockets, whose clients call nothing else of this one

        header = credential.authorization(access)
        configuration.api_key = {} if header is None else {BEARER: header}
        configuration.refresh_api_key_hook = refresh  # type: ignore[assignment]  # typed by its default value
        # Copied from the template rather than initialized: ApiClient would load the CA certificates again, which takes
        # 0.8 MiB and 20 ms for the system's trust store.
        self.__dict__.update(transport.template.__dict__)
        self.configuration = configuration
        self.rest_client = copy.copy(transport.template.rest_client)
        self.rest_client.configuration = configuration
        self.default_headers = dict(transport.template.default_headers)
        self.user_agent = "milo-discovery-client"
        self._renewer = renewer
        self._credential = credential
        self._urls = urls

    async def call_api(
        self,
        method: str,
        url: str,
        header_params: dict[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: Any = None,
        _preload_content: Any = True,
    ) -> Any:
        access = await self._renewer.access()
        headers = self._headers(access, header_params or {})
        arguments = {
            "body": body,
            "post_params": post_params,
            "_request_timeout": request_timeout(url, _request_timeout),
        }
        _TARGET.set((self._renewer, access.server))
        response = await super().call_api(method, self._urls.moved(url, access.server), headers.copy(), **arguments)
        used = headers.get("authorization")
        if response.status != _UNAUTHORIZED or used is None:
            return response
        # The token may have been revoked. The `kubernetes` package would return the 401 to the caller.
        newest = await self._renewer.access_after_401(used.removeprefix("Bearer "))
        headers = self._headers(newest, header_params or {})
        if headers.get("authorization") in {None, used}:
            return response
        response.response.close()
        _TARGET.set((self._renewer, newest.server))
        return await super().call_api(method, self._urls.moved(url, newest.server), headers, **arguments)

    def _headers(self, access: KubeconfigAccess, given: dict[str, str]) -> CIMultiDict[str]:
        """Return the headers of a request, with one credential's token and impersonated user."""
        headers = CIMultiDict(given)
        authorization = self._credential.authorization(access)
        if authorization is not None and "authorization" in headers:
            headers["authorization"] = authorization
        if access.act_as is not None:
            headers.extend(access.act_as.headers())
        return headers


def request_timeout(url: str, requested: Any) -> Any:
    """Return the timeout for a request, working around two defects of the `kubernetes` package.

    The package passes (connect, read) pairs to aiohttp, which rejects them. And it cancels every request without a
    timeout after five minutes, including watches with a longer `timeout_seconds`.
    """
    if isinstance(requested, tuple):
        return aiohttp.ClientTimeout(total=None, sock_connect=requested[0], sock_read=requested[1])
    if requested is None:
        query = parse_qs(urlsplit(url).query)
        seconds = query.get("timeoutSeconds", [""])[-1]
        if query.get("watch", [""])[-1].lower() in {"true", "1"} and seconds.isdigit():
            return float(seconds) + _WATCH_GRACE_S
    return requested
