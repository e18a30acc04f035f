"""A blocking client of `kubernetes` whose credential is always fresh. Loaded on use: the package is an extra."""

from __future__ import annotations

from typing import Any

from kubernetes.client import ApiClient, Configuration

from milo_discovery._identity import BEARER, Identity
from milo_discovery._renewal import ThreadAccess

_UNAUTHORIZED = 401


class FreshApiClient(ApiClient):
    """Looks up its credential with each request, and once more where it is refused."""

    def __init__(self, renewal: ThreadAccess, identity: Identity, certificate: str | None, proxy: str | None) -> None:
        access = identity.made_with.access
        configuration = Configuration(
            host=access.server,
            ca_cert_data=access.authorities,
            tls_server_name=access.tls_server_name,
            cert_file=certificate,
        )
        # Set to None, too: without that it is what the environment says.
        configuration.proxy = proxy

        # A function of its own, not a method: configurations are copied deeply, and with a method all that it is bound
        # to would be. It is called only where there is a key to refresh.
        def refresh(target: Configuration) -> None:
            newest = renewal.access()
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

    def call_api(
        self,
        method: str,
        url: str,
        header_params: dict[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: Any = None,
    ) -> Any:
        if not self.configuration.api_key:
            self._identity.authorization(self._renewal.access())  # the hook isn't called for certificates
        headers = dict(header_params or {})
        arguments = {"body": body, "post_params": post_params, "_request_timeout": _request_timeout}
        response = super().call_api(method, url, dict(headers), **arguments)
        used = headers.get("authorization")
        if response.status != _UNAUTHORIZED or used is None:
            return response
        # The package would hand this to the caller as it is. The token may have been revoked: ask once for another.
        newest = self._renewal.after_refusal(used.removeprefix("Bearer "))
        header = self._identity.authorization(newest)
        if header is None or header == used:
            return response
        response.response.release_conn()
        return super().call_api(method, url, {**headers, "authorization": header}, **arguments)
