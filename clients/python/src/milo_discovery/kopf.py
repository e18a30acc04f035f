"""Runs a kopf operator in every engaged cluster: a thread and an event loop per cluster.

    fleet = Fleet(client, include_kubeconfigs=True)
    await milo_discovery.kopf.run(fleet, kopf.get_default_registry())

kopf keeps the state of an operator in its event loop, and stops every task of that loop when the operator stops. So
operators cannot share a loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from milo_discovery.credentials import AsyncRenewer
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import ClusterNotFound, DiscoveryError, UnusableKubeconfig
from milo_discovery.extras import needs_extra
from milo_discovery.fleet import Fleet
from milo_discovery.kubeconfig_access import KubeconfigAccess

with needs_extra("kopf"):
    import aiohttp
    import kopf
    from multidict import CIMultiDict

_LOGIN_ID = "milo_discovery"
_CLOSE_TIMEOUT_S = 5.0


async def run(
    fleet: Fleet,
    registry: kopf.OperatorRegistry,
    *,
    namespaces: Collection[str] = (),
    standalone: bool = True,
) -> None:
    """Run the registry's handlers in each engaged cluster of the fleet until canceled.

    The handlers of each cluster run in a thread of their own. Their `memo.cluster` is the EngagedCluster, and
    `memo.api` a blocking client of the kubernetes package for it. Without `namespaces` an operator watches all
    namespaces; `standalone=False` enables kopf's peering.

    An operator that fails is restarted according to the fleet's `on_error`. At disengagement it is stopped, and its
    running handlers are canceled; if its cluster moves, it is started again there.
    """
    kopf.on.login(id=_LOGIN_ID, registry=registry)(_login)

    @fleet.on_engage
    async def operate(cluster: EngagedCluster) -> None:
        async with cluster.credentials() as renewer, cluster.sync_api_client() as api:
            has_moved = True
            while has_moved:
                async with _until_moved(cluster) as limit:
                    if (problem := _problem(await renewer.access())) is not None:
                        raise UnusableKubeconfig(problem)
                    sessions = _Sessions(renewer, asyncio.get_running_loop())
                    memo = kopf.Memo(cluster=cluster, api=api, milo_sessions=sessions)
                    await _Operator(cluster.name, memo, sessions).run(registry, namespaces, standalone=standalone)
                has_moved = limit.expired()

    await fleet.run()


@asynccontextmanager
async def _until_moved(cluster: EngagedCluster) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the block when the cluster moves, and set `expired`. kopf would resume the watches of the former server at
    the present one, where its resource versions mean nothing."""
    limit, known = asyncio.timeout(None), cluster.current

    async def follow() -> None:
        with suppress(ClusterNotFound):
            current = known
            while current.endpoint == known.endpoint:
                current = await cluster.updated(current)
            limit.reschedule(0.0)

    following = asyncio.create_task(follow(), name="kopf endpoint")
    try:
        async with limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def _login(*, memo: Any, **_: Any) -> kopf.AiohttpSession:
    """Return a session with the newest credential of the operator's cluster. kopf calls it again on expiry or a 401."""
    sessions: _Sessions = memo.milo_sessions
    return await sessions.create()


def _problem(access: KubeconfigAccess) -> str | None:
    """Return why kopf cannot use an access: its requests verify the name of the server's URL and no other."""
    if access.tls_server_name is None:
        return None
    return (
        f"the kubeconfig has tls-server-name {access.tls_server_name!r}, which kopf does not support: issue a "
        "certificate for the name or address of the server, or use Fleet without kopf"
    )


def _identity() -> str:
    """Return this process's name in kopf's peering. kopf's default needs the user's name, which containers may lack."""
    return os.environ.get("POD_ID") or f"{socket.gethostname()}/{uuid.uuid4()}"


class _OperatorRequest(aiohttp.ClientRequest):
    """A request that is not sent if the engagement ended, or the cluster moved, since its session was created. kopf
    logs in again if a session is closed."""

    def __init__(self, require_present: Callable[[], None], *given: Any, session: aiohttp.ClientSession, **named: Any):
        super().__init__(*given, session=session, **named)
        self._require_present = require_present
        self._of = session

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        try:
            self._require_present()
        except DiscoveryError as error:
            await self._of.close()
            raise RuntimeError(str(error)) from error
        return await super().send(conn)


@dataclass
class _Sessions:
    """The HTTP sessions of one operator, each with the newest credential at the time of its creation.

    The credentials are renewed on an event loop other than the operator's.
    """

    renewer: AsyncRenewer
    loop: asyncio.AbstractEventLoop
    last: KubeconfigAccess | None = field(default=None, repr=False)
    _open: list[aiohttp.ClientSession] = field(default_factory=list, repr=False)
    _sockets: list[socket.socket] = field(default_factory=list, repr=False)

    async def create(self) -> kopf.AiohttpSession:
        renewal = asyncio.run_coroutine_threadsafe(self._renewed(), self.loop)
        access, expires_at = await asyncio.wrap_future(renewal)
        if (problem := _problem(access)) is not None:
            raise kopf.PermanentError(problem)
        info = kopf.ConnectionInfo(
            server=access.server,
            ca_data=access.authorities,
            token=access.token,
            certificate_data=access.certificate,
            private_key_data=access.key,
        )
        headers = CIMultiDict(info.as_http_headers())
        if access.act_as is not None:
            headers.extend(access.act_as.headers())
        connector = aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context(), socket_factory=self._socket)
        request_class = partial(_OperatorRequest, partial(self.renewer.require_present, access.server))
        session = aiohttp.ClientSession(connector=connector, headers=headers, request_class=request_class)  # type: ignore[arg-type]
        self._open = [*(opened for opened in self._open if not opened.closed), session]
        return kopf.AiohttpSession(server=access.server, aiohttp_session=session, expiration=expires_at)

    async def close(self) -> None:
        """Close all connections. kopf does not wait until the connections of watches are closed, and closes none at
        all if its startup failed."""
        for session in self._open:
            await session.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                while unclosed := self._unclosed():
                    for connection in unclosed:
                        with suppress(OSError):  # The server may have closed the connection.
                            connection.shutdown(socket.SHUT_RDWR)  # The connection's transport reads EOF, and closes.
                    await asyncio.sleep(0.01)

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        self._sockets = [*self._unclosed(), made]
        return made

    def _unclosed(self) -> list[socket.socket]:
        return [connection for connection in self._sockets if connection.fileno() != -1]

    async def _renewed(self) -> tuple[KubeconfigAccess, datetime | None]:
        access = await self.renewer.access()
        if access == self.last:
            # kopf does not accept a refused or expired credential a second time.
            access = await self.renewer.access_after_401(access.token)
        self.last = access
        return access, self.renewer.cache.current.expires_at


class _Operator:
    """A kopf operator that runs in its own thread."""

    def __init__(self, name: str, memo: kopf.Memo, sessions: _Sessions) -> None:
        self._name = name
        self._memo = memo
        self._sessions = sessions
        self._ended = asyncio.get_running_loop().create_future()
        self._lock = threading.Lock()
        self._is_stopped = False
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def run(self, registry: kopf.OperatorRegistry, namespaces: Collection[str], *, standalone: bool) -> None:
        """Run until the operator fails, or until canceled; return after the thread has ended."""
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {
            "registry": registry,
            "namespaces": list(namespaces),
            "clusterwide": not namespaces,
            "standalone": standalone,
            "identity": _identity(),
        }

        def work() -> None:
            error: BaseException | None = None
            try:
                asyncio.run(self._operate(options))
            except BaseException as raised:  # noqa: BLE001  (the top of a thread: passed to the loop that waits)
                error = raised
            with suppress(RuntimeError):  # the loop that waits for the operator was closed
                loop.call_soon_threadsafe(self._end, error)

        thread = threading.Thread(target=work, name=f"kopf {self._name}", daemon=True)
        thread.start()
        try:
            await asyncio.shield(self._ended)
        finally:
            self._request_stop()
            while not self._ended.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([self._ended])
            thread.join()
        error = self._ended.result()
        if isinstance(error, Exception):
            raise error
        if error is not None:  # such as SystemExit, which would end the process and so all other operators
            raise RuntimeError(f"the kopf operator ended with {error!r}") from error

    async def _operate(self, options: dict[str, Any]) -> None:
        stop_flag = asyncio.Event()
        with self._lock:
            self._stop = asyncio.get_running_loop(), stop_flag
            if self._is_stopped:
                return
        try:
            await kopf.operator(memo=self._memo, stop_flag=stop_flag, **options)
        finally:
            await self._sessions.close()

    def _request_stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            stop = self._stop
        if stop is not None:
            loop, flag = stop
            with suppress(RuntimeError):  # the operator has ended by itself
                loop.call_soon_threadsafe(flag.set)

    def _end(self, error: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(error)
