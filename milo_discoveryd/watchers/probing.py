"""Sends connectivity probes to clusters' API servers."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd import USER_AGENT
from milo_discoveryd.connectivity.reachability import ProbeFailed, ProbeOutcome, ProbeReached
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.watchers.transport import no_credential
from milo_kube.credential import Credential, CredentialError, for_url
from milo_kube.http.client import Client
from milo_kube.http.errors import TransportError
from milo_kube.http.proxy import environment_proxy
from milo_kube.tls_identity import TlsIdentity
from milo_kube.upstream import Upstream

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
        trust_of: Callable[[Cluster], Awaitable[ClusterTrust]],
        sends_own_credential: bool = False,
        of_hosts: bool = False,
    ) -> None:
        """With `of_hosts`, probe the host of each endpoint at `path`, without the endpoint's own path.

        `sends_own_credential`: whether the daemon's own credential is sent to clusters that have none, at their
        endpoints.
        """
        self._upstream = upstream
        self._environ = environ
        self._held = held
        self._path = path
        self._timeout_s = timeout_s
        self._of_hosts = of_hosts
        self._trust_of = trust_of
        self._sends_own_credential = sends_own_credential
        self._pools: OrderedDict[tuple[TlsIdentity, str | None], _Pool] = OrderedDict()

    async def ask(self, cluster: Cluster) -> ProbeOutcome:
        endpoint = cluster.target.endpoint
        try:
            trust = await self._trust_of(cluster)
            endpoint = trust.server or endpoint
            if self._of_hosts:
                parts = urlsplit(endpoint)
                endpoint = f"{parts.scheme}://{parts.netloc}"
            return await self._ask(endpoint, cluster, trust)
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

    async def _ask(self, endpoint: str, cluster: Cluster, trust: ClusterTrust) -> ProbeOutcome:
        credential = None if self._of_hosts else self._held(cluster)
        if credential is None:
            sends_own = self._sends_own_credential and not trust.server
            credential = await self._upstream.credentials.credential() if sends_own else Credential()
        credential = for_url(credential, endpoint, plain_loopback=self._upstream.plain_loopback)
        headers = {"Authorization": f"Bearer {credential.token.reveal()}"} if credential.token else {}
        named = self._upstream.proxy.reveal() if self._upstream.proxy else None
        identity = TlsIdentity(authorities=trust.authorities, certificate=credential.certificate)
        async with (
            asyncio.timeout(self._timeout_s),
            self._client(identity, trust.tls_server_name) as client,
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
    async def _client(self, identity: TlsIdentity, server_name: str | None) -> AsyncIterator[Client]:
        """Yield the client for this TLS identity: another CA, certificate or name needs another."""
        pool = self._pools.get((identity, server_name))
        if pool is None:
            made = Client(
                identity.context(),
                user_agent=USER_AGENT,
                tls_server_name=server_name,
                idle_s=IDLE_S,
            )
            self._pools[identity, server_name] = pool = _Pool(made)
        self._pools.move_to_end((identity, server_name))
        pool.users += 1
        try:
            yield pool.client
        finally:
            pool.users -= 1
            await self._close_oldest()

    async def _close_oldest(self) -> None:
        idle = [key for key, pool in self._pools.items() if not pool.users]
        for key in idle[: max(0, len(self._pools) - POOLS)]:
            await self._pools.pop(key).client.aclose()


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
