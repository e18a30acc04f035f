"""Requests of the daemon to one API server."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from milo_discoveryd import USER_AGENT
from milo_discoveryd.logger import log
from milo_kube.api_request import Access, Answer, ApiRequest
from milo_kube.api_server import CONNECT_TIMEOUT_S, ApiServer, OpenResponse, Pools, ResponseBounds
from milo_kube.credential import ClientCertificate, Credential
from milo_kube.http.errors import TransportError
from milo_kube.tls_identity import expiry_of
from milo_kube.upstream import Upstream

RESPONSE_LIMIT = 32 << 20
LIVENESS_RESPONSE_LIMIT = 1 << 20
CLOCK_TOLERANCE_S = 60.0
"""Differences between this machine's clock and an API server's are reported only if they are larger than this."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Transport(ApiServer):
    """Requests to one API server, over connections that nothing else uses."""

    host: str

    def __init__(
        self,
        upstream: Upstream,
        *,
        environ: Mapping[str, str] = os.environ,
        response_limit: int = RESPONSE_LIMIT,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Create the transport. The first request opens a connection."""
        super().__init__(
            upstream,
            Pools(user_agent=USER_AGENT, environ=environ),
            proxy=upstream.proxy.reveal() if upstream.proxy else None,
            response_limit=response_limit,
            connect_timeout_s=connect_timeout_s,
        )
        self.host = upstream.server
        self._upstream = upstream

    async def get_at_once(self, path: str, *, timeout_s: float) -> Answer:
        """Send a GET with the newest credential or without one, and never wait for another. Raises TransportError."""
        until = asyncio.get_running_loop().time() + timeout_s
        bounds = ResponseBounds(until, timeout_s, LIVENESS_RESPONSE_LIMIT)
        return await self._answered(ApiRequest("GET", path), self._upstream.access_now(), bounds)

    async def drop(self) -> None:
        """Close every connection. Requests in flight fail; the next request opens a connection."""
        await self._pools.aclose()

    async def aclose(self) -> None:
        await self._pools.aclose()


class ExpiringAccess:
    """The access to an API server, with the expiry of the client certificate that is in use."""

    def __init__(self, upstream: Upstream, wall: Callable[[], float]) -> None:
        self._upstream = upstream
        self._wall = wall
        self._certificate: ClientCertificate | None = None
        self.expires_at: float | None = None
        """When the client certificate expires, in seconds since the epoch; None without one."""

    async def access(self, *, within_s: float, refused: Credential | None = None) -> Access:
        access = await self._upstream.access(within_s=within_s, refused=refused)
        if access.credential.certificate != self._certificate:
            self._certificate = access.credential.certificate
            self._note_expiry()
        # The expiry counts only after the server refused the certificate, because this machine's clock may be wrong.
        if refused == access.credential and self.expires_at is not None and self.expires_at <= self._wall():
            expired_at = f"{datetime.fromtimestamp(self.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
            message = f"{access.server} refused the client certificate of {self._upstream.origin}, which expired at "
            raise TransportError("credential", f"{message}{expired_at}: renew it")
        return access

    def _note_expiry(self) -> None:
        self.expires_at = None
        if self._certificate is None:
            return
        try:
            expiry = expiry_of(self._certificate.chain, datetime.fromtimestamp(self._wall(), UTC))
        except ValueError:
            return  # loading the TLS context reports the error
        self.expires_at = expiry.at.timestamp()
        if expiry.is_expired:
            log.warning("client certificate has expired", origin=self._upstream.origin, expired_at=str(expiry))
        elif expiry.is_soon:
            log.warning("client certificate expires soon", origin=self._upstream.origin, expires_at=str(expiry))


class MonitoredTransport(Transport):
    """Warns of a client certificate that expires, and of a clock that differs from the server's."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        environ: Mapping[str, str] = os.environ,
        response_limit: int,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(upstream, environ=environ, response_limit=response_limit, connect_timeout_s=connect_timeout_s)
        self._provider = self._expiring = ExpiringAccess(upstream, wall)
        self._wall = wall
        self._is_clock_wrong = False

    @property
    def certificate_expires_at(self) -> float | None:
        return self._expiring.expires_at

    async def _opened(
        self, request: ApiRequest, access: Access, connect_timeout_s: float, silence_s: float | None
    ) -> OpenResponse:
        sent_at = self._wall()
        response = await super()._opened(request, access, connect_timeout_s, silence_s)
        self._compare_clocks(seconds_ahead(response.headers.get("Date"), sent_at, self._wall()))
        return response

    def _compare_clocks(self, ahead_s: float) -> None:
        is_wrong = abs(ahead_s) > CLOCK_TOLERANCE_S
        if is_wrong and not self._is_clock_wrong:
            log.warning(
                "clock differs from the API server's",
                server=self.host,
                server_is_ahead_s=round(ahead_s),
                effect="credentials expire earlier or later than this daemon and its clients assume",
            )
        elif self._is_clock_wrong and not is_wrong:
            log.info("clock agrees with the API server's again", server=self.host)
        self._is_clock_wrong = is_wrong


def seconds_ahead(date: str | None, sent_at: float, received_at: float) -> float:
    """Return how far the server's clock is ahead of this machine's, negative if it is behind; 0 without a valid date.

    The server wrote the date between `sent_at` and `received_at`, which are in seconds since the epoch.
    """
    try:
        _, day, month, year, time, zone = (date or "").split()
        hour, minute, second = map(int, time.split(":"))
        stated = datetime(int(year), _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    if zone != "GMT":
        return 0.0
    return max(0.0, stated - received_at) + min(0.0, stated - sent_at)
