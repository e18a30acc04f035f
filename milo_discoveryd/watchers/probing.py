"""Sends connectivity probes to clusters' API servers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd import USER_AGENT
from milo_discoveryd.connectivity.reachability import ProbeFailed, ProbeOutcome, ProbeReached
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import Cluster
from milo_kube.api_request import Access, ApiRequest
from milo_kube.api_server import Pools, no_credential
from milo_kube.credential import Credential, CredentialError, for_url
from milo_kube.http.connection_memory import ConnectionMemory
from milo_kube.http.errors import TransportError
from milo_kube.http.name_lookup import are_tenants_names
from milo_kube.upstream import Upstream

POOLS = 8
"""Maximum connection pools that are kept, one per CA and client certificate."""
IDLE_S = 120.0
"""Idle timeout of connections, longer than the usual interval between probes of a host, so that probes reuse them."""
MEMORY = 64 << 20
"""Maximum memory of connections: tenants choose the servers, and so the certificates that connections keep."""
SHARE = 192 << 10
"""Memory that each connection may take, and the CAs of each cluster as much: certificates of 3.5 KB, and CAs of 5 KB.
The 250 probes in flight take 94 MiB so. An honest cluster with more fails only while others take all of `MEMORY`."""
BODY_LIMIT = 64 << 10
CONNECTION_SHARE = 0.9
"""The part of a probe's timeout in which it must have a connection. Without one, the host is down."""

_REFUSALS = {
    401: "Unauthorized: the API server answered, but rejected the credential",
    403: "Forbidden: the API server answered, but denied the request",
    429: "TooManyRequests: the API server answered, but throttled the request",
}


class ClusterAccess(msgspec.Struct, frozen=True, kw_only=True):
    """The credentials and CAs for probes of clusters, and a callback that learns which credentials were rejected."""

    held: Callable[[Cluster], Credential | None]
    """Returns the credential that was issued for a cluster, if one is held."""
    trust_of: Callable[[Cluster], Awaitable[ClusterTrust]]
    rejected: Callable[[Cluster, bool], None] = lambda *_: None
    """Called after each response to an issued credential; the second argument is whether it was rejected (401)."""


class ProbeSender:
    """Probes clusters with the credential that was issued for them, or else with the daemon's own credential or without
    one.

    Hosts are probed without an issued credential. Then the credential issued for the cluster that represents the host
    is tried at the cluster's endpoint: a rejection counts as a failure of the issuer, not of the host.
    """

    def __init__(
        self,
        upstream: Upstream,
        environ: Mapping[str, str],
        access: ClusterAccess,
        *,
        path: str,
        timeout_s: float,
        sends_own_credential: bool = False,
        of_hosts: bool = False,
    ) -> None:
        """With `of_hosts`, probe the host of each endpoint at `path`, without the endpoint's own path.

        `sends_own_credential`: whether the daemon's own credential is sent to the endpoints of clusters for which no
        credential was issued.
        """
        self._upstream = upstream
        self._access = access
        self._request = ApiRequest("GET", path)
        self._timeout_s = timeout_s
        self._of_hosts = of_hosts
        self._sends_own_credential = sends_own_credential
        memory = ConnectionMemory(MEMORY, SHARE)
        self._pools = Pools(user_agent=USER_AGENT, idle_s=IDLE_S, memory=memory, kept=POOLS, environ=environ)

    async def send(self, cluster: Cluster) -> ProbeOutcome:
        endpoint = cluster.target.endpoint
        try:
            trust = await self._access.trust_of(cluster)
            endpoint = trust.server or endpoint
            if not self._of_hosts:
                return outcome_of(
                    await self._send_issued(endpoint, cluster, trust) or await self._send_own(endpoint, trust)
                )
            outcome = outcome_of(await self._send_own(_host(endpoint), trust))
        except TimeoutError:
            message = f"{endpoint} did not answer within {self._timeout_s:g} s"
            return ProbeFailed("timeout", message, is_of_host=_is_at_host(endpoint, cluster))
        except CredentialError as error:
            return ProbeFailed("credential", str(no_credential(error, endpoint)), is_of_host=False)
        except TransportError as error:
            is_unreached = error.is_unreached and endpoint == cluster.target.endpoint
            is_of_host = is_unreached or _is_at_host(endpoint, cluster)
            return ProbeFailed(error.cause, str(error), is_of_host=is_of_host and error.cause != "credential")
        if isinstance(outcome, ProbeReached):
            with suppress(TimeoutError, CredentialError, TransportError):  # the host was reached
                await self._send_issued(endpoint, cluster, trust)
        return outcome

    async def aclose(self) -> None:
        await self._pools.aclose()

    async def _send_issued(self, endpoint: str, cluster: Cluster, trust: ClusterTrust) -> int | None:
        """Probe with the credential issued for the cluster, and report whether it was rejected. Return the status, or
        None if none was issued."""
        if (issued := self._access.held(cluster)) is None:
            return None
        status = await self._send(endpoint, trust, issued)
        self._access.rejected(cluster, status == 401)
        return status

    async def _send_own(self, endpoint: str, trust: ClusterTrust) -> int:
        sends_own = self._sends_own_credential and not trust.server
        credential = (
            await self._upstream.credentials.credential(within_s=self._timeout_s) if sends_own else Credential()
        )
        return await self._send(endpoint, trust, credential)

    async def _send(self, endpoint: str, trust: ClusterTrust, credential: Credential) -> int:
        access = Access(
            server=endpoint,
            authorities=trust.authorities,
            tls_server_name=trust.tls_server_name,
            credential=for_url(credential, endpoint, plain_loopback=self._upstream.plain_loopback),
        )
        are_tenants_names.set(True)  # each probe is a task
        async with asyncio.timeout(self._timeout_s):
            response = await self._pools.open_response(
                self._request,
                access,
                proxy=self._upstream.proxy.reveal() if self._upstream.proxy else None,
                connect_timeout_s=CONNECTION_SHARE * self._timeout_s,
            )
            try:
                await response.read_error(BODY_LIMIT)  # the connection can be reused only if the body was read
                return response.status
            finally:
                await response.aclose()


def _is_at_host(endpoint: str, cluster: Cluster) -> bool:
    """Return whether a request that was sent is one that others at the cluster's host would send too.

    Who declares a cluster chooses its CA and the path at its host, and who writes its Secret may choose another server.
    """
    return endpoint == cluster.target.endpoint and not cluster.target.states_address


def _host(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc}"


def outcome_of(status: int) -> ProbeOutcome:
    """Return the outcome of a probe by the status of its response."""
    if status in _REFUSALS:
        return ProbeReached(_REFUSALS[status])
    if status >= 500:
        return ProbeFailed("5xx", f"the API server answered {status}")
    if status >= 300:
        return ProbeFailed(str(status), f"the API server answered {status}; check `connectivity.path`")
    return ProbeReached()
