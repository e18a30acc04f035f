"""A client of `kubernetes.aio` whose credential is always fresh. Loaded on use: the package is an extra."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from milo_discovery._identity import BEARER, Identity
from milo_discovery._renewal import LoopRenewal

_UNAUTHORIZED = 401
_GRACE_S = 30.0


class FreshApiClient(ApiClient):
    """Looks up its credential with each request, and once more where it is refused."""

    def __init__(self, renewal: LoopRenewal, identity: Identity, certificate: str | None, proxy: str | None) -> None:
        access = identity.made_with.access
        configuration = Configuration(
            host=access.server,
            ca_cert_data=access.authorities,
            tls_server_name=access.tls_server_name,
            cert_file=certificate,
            proxy=proxy,
            # The environment's ~/.netrc would replace the token, and its proxies aren't meant for control planes.
            client_session_kwargs={"trust_env": False},
        )

        # A function of its own, not a method: configurations are copied deeply, and with a method all that it is bound
        # to would be. It is called only where there is a key to refresh.
        async def refresh(target: Configuration) -> None:
            newest = await renewal.access()
            header = identity.authorization(newest)
            if header is not None:
                target.api_key[BEARER] = header
            target.host = newest.server

        header = identity.authorization(access)
        configuration.api_key = {} if header is None else {BEARER: header}
        configuration.refresh_api_key_hook = refresh  # type: ignore[assignment]  # declared by its default
        super().__init__(configuration)
        self.user_agent = "milo-discovery-client"
        self._renewal = renewal
        self._identity = identity

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
        if not self.configuration.api_key:
            self._identity.authorization(await self._renewal.access())  # the hook isn't called for certificates
        headers = dict(header_params or {})
        arguments = {"body": body, "post_params": post_params, "_request_timeout": limit(url, _request_timeout)}
        response = await super().call_api(method, url, dict(headers), **arguments)
        used = headers.get("authorization")
        if response.status != _UNAUTHORIZED or used is None:
            return response
        # The package would hand this to the caller as it is. The token may have been revoked: ask once for another.
        newest = await self._renewal.after_refusal(used.removeprefix("Bearer "))
        header = self._identity.authorization(newest)
        if header is None or header == used:
            return response
        response.response.close()
        return await super().call_api(method, url, {**headers, "authorization": header}, **arguments)


def limit(url: str, given: Any) -> Any:
    """How long a request may take, where the package's own understanding of that is a trap.

    Its pair of times for connecting and for reading is refused by what it hands it to; and without any, all requests
    end after five minutes, watches too. One that asks for more by `timeout_seconds` gets it here.
    """
    if isinstance(given, tuple):
        return aiohttp.ClientTimeout(total=None, sock_connect=given[0], sock_read=given[1])
    if given is None:
        query = parse_qs(urlsplit(url).query)
        seconds = query.get("timeoutSeconds", [""])[-1]
        if query.get("watch", [""])[-1].lower() in {"true", "1"} and seconds.isdigit():
            return float(seconds) + _GRACE_S
    return given
