"""Asks a cluster's API server whether it is there."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from milo_discoveryd import __version__
from milo_discoveryd.connectivity.schedule import ProbeFailed, ProbeOutcome, ProbeReached
from milo_discoveryd.credentials import Credential, Upstream
from milo_discoveryd.credentials.authentication.tls import TlsIdentity
from milo_discoveryd.daemon_errors import TransportError
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.watchers.proxy import environment_proxy
from milo_discoveryd.watchers.transport import translated

POOLS = 8
"""Of connections, each with a client certificate of its own. Tokens need none."""

_REFUSALS = {
    401: "Unauthorized: it answers, and does not know our credential",
    403: "Forbidden: it answers, and we may not ask for this",
    429: "TooManyRequests: it answers, and has too much to do",
}
_OF_HOST = frozenset({"dns", "connect", "tls", "timeout", "closed"})


class Asker:
    """Asks as the cluster's operators do, with the credential that they have; where they have none, with our own."""

    def __init__(
        self,
        upstream: Upstream,
        environ: Mapping[str, str],
        *,
        held: Callable[[Cluster], Credential | None],
        path: str,
        timeout_s: float,
        at_once: int,
    ) -> None:
        self._upstream = upstream
        self._environ = environ
        self._held = held
        self._path = path
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._at_once = at_once
        self._pools: OrderedDict[TlsIdentity, _Pool] = OrderedDict()

    async def ask(self, cluster: Cluster) -> ProbeOutcome:
        endpoint = cluster.target.endpoint
        try:
            with translated(endpoint):
                return await self._ask(endpoint, self._held(cluster))
        except TransportError as error:
            return ProbeFailed(error.cause, str(error), is_of_host=error.cause in _OF_HOST)

    async def aclose(self) -> None:
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.session.close()

    async def _ask(self, endpoint: str, held: Credential | None) -> ProbeOutcome:
        credential = held or await self._upstream.credentials.credential()
        headers = {"Authorization": f"Bearer {credential.token.reveal()}"} if credential.token else {}
        named = self._upstream.proxy.reveal() if self._upstream.proxy else None
        identity = TlsIdentity(authorities=self._upstream.trusted(), certificate=credential.certificate)
        async with (
            self._session(identity) as session,
            session.get(
                endpoint + self._path,
                headers=headers,
                allow_redirects=False,
                proxy=named or environment_proxy(endpoint, self._environ),
                server_hostname=self._upstream.tls_server_name,
            ) as answer,
        ):
            return judged(answer.status)

    @asynccontextmanager
    async def _session(self, identity: TlsIdentity) -> AsyncIterator[aiohttp.ClientSession]:
        """Of a CA and a client certificate: another one of either means other connections."""
        pool = self._pools.get(identity)
        if pool is None:
            self._pools[identity] = pool = _Pool(self._opened(identity))
        self._pools.move_to_end(identity)
        pool.users += 1
        try:
            yield pool.session
        finally:
            pool.users -= 1
            await self._close_oldest()

    async def _close_oldest(self) -> None:
        idle = [identity for identity, pool in self._pools.items() if not pool.users]
        for identity in idle[: max(0, len(self._pools) - POOLS)]:
            await self._pools.pop(identity).session.close()

    def _opened(self, identity: TlsIdentity) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=identity.context(), limit=self._at_once, keepalive_timeout=120.0),
            timeout=self._timeout,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"milo-discoveryd/{__version__}"},
        )


@dataclass
class _Pool:
    session: aiohttp.ClientSession
    users: int = 0


def judged(status: int) -> ProbeOutcome:
    if status in _REFUSALS:
        return ProbeReached(_REFUSALS[status])
    if status >= 500:
        return ProbeFailed("5xx", f"it answers {status}")
    if status >= 300:
        return ProbeFailed(str(status), f"it answers {status}: nobody is ready there")
    return ProbeReached()
