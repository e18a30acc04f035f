"""Connection pools that clusters share: one per trust root and client certificate, with one pool per host in it.

In mode `project` all clusters are paths under one host, so thousands of them share connections and one SSL context.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Hashable, Mapping

from milo_discovery._connection_credential import certificate_file
from milo_discovery._kubeconfig_access import KubeconfigAccess
from milo_discovery._shared_transports import SharedTransports, transport_key
from milo_discovery.errors import UnusableKubeconfig
from milo_kube.http.client import Client
from milo_kube.http.dialing import Http2
from milo_kube.http.proxy import environment_proxy


class Connections:
    """The pools in use. Each lives until its last user has released it."""

    def __init__(
        self,
        *,
        user_agent: str = "milo-discovery-client",
        idle_s: float = 60.0,
        environ: Mapping[str, str] = os.environ,
        http2: Http2 | None = None,
    ) -> None:
        """`idle_s`: how long an idle connection is kept open. Proxies are those of `environ`.

        `http2` (`Http2Connection`) offers HTTP/2 to servers, unless `DISABLE_HTTP2` is set, as in client-go.
        """
        self._shared: SharedTransports[Client] = SharedTransports()
        self._user_agent = user_agent
        self._idle_s = idle_s
        self._environ = environ
        self._http2 = None if environ.get("DISABLE_HTTP2") else http2

    def proxy(self, server: str) -> str | None:
        """Return the URL of the environment's proxy for an API server; None to connect directly."""
        return environment_proxy(server, self._environ)

    def acquire(self, access: KubeconfigAccess) -> tuple[Hashable, Client]:
        """Return a key to release it by, and the pool for this trust root and client certificate."""
        key = transport_key(access, None)
        return key, self._shared.acquire(key, lambda: self._client(access))

    async def release(self, key: Hashable) -> None:
        unused = self._shared.release(key)
        if unused is not None:
            await unused.aclose()

    def _client(self, access: KubeconfigAccess) -> Client:
        try:
            context = ssl.create_default_context(cadata=access.authorities)
            with certificate_file(access) as certificate:
                if certificate is not None:
                    # Without a password callback, an encrypted key would prompt on the terminal.
                    context.load_cert_chain(certificate, password=lambda: b"")
        except (ssl.SSLError, ValueError):
            raise UnusableKubeconfig(
                f"{access.server}: the CA or the client certificate and its key are not valid PEM"
            ) from None
        return Client(
            context,
            user_agent=self._user_agent,
            tls_server_name=access.tls_server_name,
            idle_s=self._idle_s,
            http2=self._http2,
        )
