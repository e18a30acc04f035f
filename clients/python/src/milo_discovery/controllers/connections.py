"""Connection pools that clusters share: one per trust root and client certificate, with one pool per host in it.

In mode `project` all clusters are paths under one host, so thousands of them share connections and one SSL context.
"""

from __future__ import annotations

import ssl
from collections.abc import Hashable

from milo_discovery._connection_credential import certificate_file
from milo_discovery._kubeconfig_access import KubeconfigAccess
from milo_discovery._shared_transports import SharedTransports, transport_key
from milo_kube.http.client import Client

USER_AGENT = "milo-discovery-client"
IDLE_S = 60.0


class Connections:
    """The pools in use. Each lives until its last user has released it."""

    def __init__(self) -> None:
        self._shared: SharedTransports[Client] = SharedTransports()

    def acquire(self, access: KubeconfigAccess) -> tuple[Hashable, Client]:
        """Return a key to release it by, and the pool for this trust root and client certificate."""
        key = transport_key(access, None)
        return key, self._shared.acquire(key, lambda: _client(access))

    async def release(self, key: Hashable) -> None:
        unused = self._shared.release(key)
        if unused is not None:
            await unused.aclose()


def _client(access: KubeconfigAccess) -> Client:
    context = ssl.create_default_context(cadata=access.authorities)
    with certificate_file(access) as certificate:
        if certificate is not None:
            context.load_cert_chain(certificate)
    return Client(context, user_agent=USER_AGENT, tls_server_name=access.tls_server_name, idle_s=IDLE_S)
