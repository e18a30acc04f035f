"""Asks an API server whether it is there, as the identity that leads to the projects."""

from collections.abc import Mapping

import aiohttp

from milo_discoveryd import __version__
from milo_discoveryd.connectivity.schedule import Failed, Outcome, Reached
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.credentials.tls import TlsIdentity
from milo_discoveryd.errors import TransportError
from milo_discoveryd.watchers.proxy import environment_proxy
from milo_discoveryd.watchers.transport import translated

_REFUSALS = {
    401: "Unauthorized: it answers, and does not know our credential",
    403: "Forbidden: it answers, and we may not ask for this",
    429: "TooManyRequests: it answers, and has too much to do",
}
_OF_HOST = frozenset({"dns", "connect", "tls", "timeout", "closed"})


class Asker:
    """Keeps a few connections, made anew when the CA or our certificate was renewed."""

    def __init__(
        self, upstream: Upstream, environ: Mapping[str, str], *, path: str, timeout_s: float, at_once: int
    ) -> None:
        self._upstream = upstream
        self._environ = environ
        self._path = path
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._at_once = at_once
        self._identity: TlsIdentity | None = None
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, endpoint: str) -> Outcome:
        try:
            with translated(endpoint):
                return await self._ask(endpoint)
        except TransportError as error:
            return Failed(error.cause, str(error), is_of_host=error.cause in _OF_HOST)

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, endpoint: str) -> Outcome:
        credential = await self._upstream.credentials.credential()
        session = await self._connected(
            TlsIdentity(authorities=self._upstream.trusted(), certificate=credential.certificate)
        )
        headers = {"Authorization": f"Bearer {credential.token.reveal()}"} if credential.token else {}
        named = self._upstream.proxy.reveal() if self._upstream.proxy else None
        async with session.get(
            endpoint + self._path,
            headers=headers,
            allow_redirects=False,
            proxy=named or environment_proxy(endpoint, self._environ),
            server_hostname=self._upstream.tls_server_name,
        ) as answer:
            return judged(answer.status)

    async def _connected(self, identity: TlsIdentity) -> aiohttp.ClientSession:
        if self._session is None or self._identity != identity:
            await self.aclose()
            self._identity = identity
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=identity.context(), limit=self._at_once, keepalive_timeout=120.0),
                timeout=self._timeout,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"milo-discoveryd/{__version__}"},
            )
        return self._session


def judged(status: int) -> Outcome:
    if status in _REFUSALS:
        return Reached(_REFUSALS[status])
    if status >= 500:
        return Failed("5xx", f"it answers {status}")
    if status >= 300:
        return Failed(str(status), f"it answers {status}: nobody is ready there")
    return Reached()
