"""Sends connectivity probes to clusters' API servers."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd import USER_AGENT
from milo_discoveryd.connectivity.reachability import ProbeFailed, ProbeOutcome, ProbeReached
from milo_discoveryd.credentials import Credential, Upstream
from milo_discoveryd.credentials.authentication.tls import TlsIdentity
from milo_discoveryd.credentials.credential import for_url
from milo_discoveryd.daemon_errors import CredentialError
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.watchers.transport import no_credential
from milo_kube.http.client import Client
from milo_kube.http.errors import TransportError
from milo_kube.http.proxy import environment_proxy

POOLS = 8
"""Maximum connection pools that are kept, one per client certificate. Clusters with tokens share one."""
IDLE_S = 120.0
"""Longer than the usual interval between probes of a host, so that probes reuse connections."""
BODY_LIMIT = 64 << 10

_REFUSALS = {
    401: "Unauthorized: the API server answered, but rejected the credential",
    403: "Forbidden: the API server answered, but denied the request",
    429: "TooManyRequests: the API server answered, but throttled the request",
}


class Asker:
    """Probes clusters with the credential issued for them, or else the daemon's own; hosts always with the latter."""

    def __init__(
        self,
        upstream: Upstream,
        environ: Mapping[str, str],
        *,
        held: Callable[[Cluster], Credential | None],
        path: str,
        timeout_s: float,
        of_hosts: bool = False,
        authorities_of: Callable[[Cluster], Awaitable[bytes | None]] | None = None,
    ) -> None:
        """With `of_hosts`, probe the host of each endpoint at `path`, without the endpoint's own path.

        `authorities_of` returns the CA certificates of a cluster, where clusters do not share those of the upstream.
        The daemon's own credential is then sent to none of them.
        """
        self._upstream = upstream
        self._environ = environ
        self._held = held
        self._path = path
        self._timeout_s = timeout_s
        self._of_hosts = of_hosts
        self._authorities_of = authorities_of
        self._pools: OrderedDict[TlsIdentity, _Pool] = OrderedDict()

    async def ask(self, cluster: Cluster) -> ProbeOutcome:
        endpoint = cluster.target.endpoint
        if self._of_hosts:
            parts = urlsplit(endpoint)
            endpoint = f"{parts.scheme}://{parts.netloc}"
        try:
            return await self._ask(endpoint, cluster)
        except TimeoutError:
            return ProbeFailed("timeout", f"{endpoint} did not answer in time", is_of_host=True)
        except CredentialError as error:
            return ProbeFailed("credential", str(no_credential(error, endpoint)), is_of_host=False)
        except TransportError as error:
            return ProbeFailed(error.cause, str(error), is_of_host=True)

    async def aclose(self) -> None:
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.client.aclose()

    async def _ask(self, endpoint: str, cluster: Cluster) -> ProbeOutcome:
        authorities = await self._authorities_of(cluster) if self._authorities_of else self._upstream.trusted()
        credential = None if self._of_hosts else self._held(cluster)
        if credential is None:
            credential = Credential() if self._authorities_of else await self._upstream.credentials.credential()
        credential = for_url(credential, endpoint, plain_loopback=self._upstream.plain_loopback)
        headers = {"Authorization": f"Bearer {credential.token.reveal()}"} if credential.token else {}
        named = self._upstream.proxy.reveal() if self._upstream.proxy else None
        identity = TlsIdentity(authorities=authorities, certificate=credential.certificate)
        async with (
            asyncio.timeout(self._timeout_s),
            self._client(identity) as client,
            client.request(
                "GET",
                endpoint + self._path,
                headers=headers,
                proxy=named or environment_proxy(endpoint, self._environ),
                connect_timeout_s=self._timeout_s,
            ) as response,
        ):
            # The connection can be reused only if the body was read.
            read = 0
            while read < BODY_LIMIT and (chunk := await response.read()):
                read += len(chunk)
            return judged(response.status)

    @asynccontextmanager
    async def _client(self, identity: TlsIdentity) -> AsyncIterator[Client]:
        """Yield the client for this TLS identity: those with another CA or certificate cannot be reused."""
        pool = self._pools.get(identity)
        if pool is None:
            made = Client(
                identity.context(),
                user_agent=USER_AGENT,
                tls_server_name=self._upstream.tls_server_name if self._authorities_of is None else None,
                idle_s=IDLE_S,
            )
            self._pools[identity] = pool = _Pool(made)
        self._pools.move_to_end(identity)
        pool.users += 1
        try:
            yield pool.client
        finally:
            pool.users -= 1
            await self._close_oldest()

    async def _close_oldest(self) -> None:
        idle = [identity for identity, pool in self._pools.items() if not pool.users]
        for identity in idle[: max(0, len(self._pools) - POOLS)]:
            await self._pools.pop(identity).client.aclose()


class _Pool(msgspec.Struct):
    client: Client
    users: int = 0


def judged(status: int) -> ProbeOutcome:
    """Return the outcome of a probe that was answered with this status."""
    if status in _REFUSALS:
        return ProbeReached(_REFUSALS[status])
    if status >= 500:
        return ProbeFailed("5xx", f"the API server answered {status}")
    if status >= 300:
        return ProbeFailed(str(status), f"the API server answered {status}; check the probe's path")
    return ProbeReached()
