"""Accepts connections, authenticates them by TLS or peer credentials, and proxies them to gRPC.

The acceptor exists because gRPC for Python cannot read peer credentials or restrict the TLS version.
"""

import asyncio
import errno
import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial

import grpc
import msgspec

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.peer_credentials import peer_credentials, peer_uid
from milo_discoveryd.identity.review_budget import TokenOrigin
from milo_discoveryd.logger import log
from milo_discoveryd.server.calls.grpc_errors import UnauthenticatedError
from milo_discoveryd.server.calls.rpc_context import RpcContext
from milo_discoveryd.server.connections.call_queue import CallQueue
from milo_discoveryd.server.connections.connection_budget import (
    CONNECTION_REFUSED,
    TAKEN,
    ConnectionLimitError,
    ConnectionSlots,
)
from milo_discoveryd.server.connections.connection_rates import (
    CANCELED_CALL_COST,
    CONNECT_RATE,
    EXCESS,
    LOCAL_CONNECT_RATE,
    CallRateLimiter,
    ConnectRateLimiter,
    PausedError,
    RefusedCallLimiter,
    network,
    peer_address,
)
from milo_discoveryd.server.connections.header_blocks import MOST_BYTES, MOST_CONTINUATIONS, HeaderBlocks
from milo_discoveryd.server.connections.inner_socket import InnerSocket
from milo_discoveryd.server.connections.listener import Listener
from milo_discoveryd.server.connections.proxy import ProxySide, proxy
from milo_discoveryd.server.connections.unread import UnreadLimit
from milo_discoveryd.server.paced_audit import PacedAudit

HANDSHAKE_S = 10.0
HTTP2_FAILURE_S = 1.0
"""If gRPC closes a connection within this time, the client is assumed not to speak HTTP/2."""
DESCRIPTORS_RETRY_S = 0.5
_CLOSED_AT_ONCE = 100
"""How many connections that are closed at once are accepted without a pause."""
ENDED_KEPT_S = 1.0
"""How long the peer of a closed connection is kept: gRPC still dispatches calls that it received before the close."""
_EXCESS = "TOO_MANY_REFUSED_CALLS"
UNREAD = "its client did not read an answer or a stream for too long, or while too many others were sent"
_DESCRIPTORS_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Origin(msgspec.Struct, frozen=True):
    """Where a connection comes from, as far as it is known before it is authenticated."""

    address: str
    counts_as: str
    """Whose connections it counts as: those of the user at a Unix socket, and of the network with TLS. Without either,
    nobody knows, and it counts for itself: any process may use any address of loopback."""


class _Peer(msgspec.Struct, frozen=True):
    """The authenticated peer of a connection."""

    caller: Caller
    owners: tuple[str, ...]
    """The owners against whose shares of the connection limit the connection counts."""
    connection: "asyncio.Task[None]"
    """The task that serves the connection."""
    client_ca: bytes = b""
    """Content of the CA file that verified the client certificate."""


class _NotHttp2Error(Exception):
    """gRPC closed the connection at once."""


class Acceptor:
    """The accept loop of one listener, and the authenticator of its calls."""

    def __init__(self, listener: Listener, audit: PacedAudit) -> None:
        self._listener = listener
        self._tls = listener.tls
        self._inner_socket = InnerSocket()
        self._peers: dict[str, _Peer] = {}
        """The peers, by the peer address in gRPC's context."""
        self._slots: ConnectionSlots[asyncio.Task[None]] = ConnectionSlots(listener.connections)
        self._rate_limiter = ConnectRateLimiter(LOCAL_CONNECT_RATE if self._tls is None else CONNECT_RATE)
        self._calls = CallRateLimiter()
        self._queue: CallQueue[_Peer] = CallQueue(self._charge)
        self._refused_calls = RefusedCallLimiter()
        self._tasks: dict[asyncio.Task[None], _Peer | None] = {}
        self._unread = UnreadLimit()
        self._audit = audit
        self._running: asyncio.Task[None] | None = None
        self.is_stopping = False
        """Whether gRPC is being stopped. It then closes connections itself."""

    def bind(self, server: grpc.aio.Server) -> None:
        """Bind gRPC to the inner socket, and check the TLS files. Raises StartError."""
        if self._tls is not None:
            self._tls.context()
        self._inner_socket.bind(server)

    def start(self, listening: Sequence[socket.socket]) -> None:
        """Accept from these sockets, and close them at the end."""
        self._running = asyncio.create_task(self._run(listening), name=f"connections at {self._listener.name}")

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._inner_socket.close()

    def check(self) -> None:
        """Close connections whose client CA was replaced, or whose certificate has expired by the wall clock, which may
        have been set, or have gone on while the machine was suspended.

        Raises the error that ended the accept loop, if there was one.
        """
        if self._running is not None and self._running.done():
            self._running.result()
        if self._tls is not None:
            self._tls.context()
            now = time.time()
            for task, peer in self._tasks.items():
                if peer is None:
                    continue
                expires_at = peer.caller.expires_at
                if peer.client_ca != self._tls.client_ca or (expires_at is not None and expires_at <= now):
                    task.cancel()

    def __len__(self) -> int:
        """Return the number of connections, including unauthenticated ones."""
        return len(self._tasks)

    async def identify(self, context: RpcContext, *, max_age_s: float | None = None) -> Caller:
        peer = self._peers.get(context.peer())
        if peer is None:
            stranger = Caller(listener=self._listener.name, peer=context.peer())
            raise self._unauthenticated(
                stranger,
                "UNKNOWN_CONNECTION",
                "the connection is closed, or was not accepted by this listener; connect again",
            )
        if self._tls is not None and not peer.caller.sans:
            problem = "the client certificate has no subject alternative name (DNS, URI, email or IP)"
            raise self._unauthenticated(peer.caller, "NO_NAME", f"{problem}; its common name is ignored")
        return peer.caller

    def origin(self, context: RpcContext) -> TokenOrigin:
        peer = self._peers.get(context.peer())
        return TokenOrigin(context.peer(), peer.owners if peer is not None and self._listener.knows_owners else ())

    def connected(self, context: RpcContext) -> Caller:
        peer = self._peers.get(context.peer())
        return Caller(listener=self._listener.name, peer=context.peer()) if peer is None else peer.caller

    def refused(self, context: RpcContext) -> None:
        peer = self._peers.get(context.peer())
        if peer is not None:
            self._charge(peer)

    def _charge(self, peer: _Peer, cost: float = 1.0) -> None:
        if self._refused_calls.charge(peer.owners, time.monotonic(), cost):
            peer.connection.cancel(EXCESS)

    def _canceled(self, peer: _Peer, calls: int) -> None:
        self._charge(peer, calls * CANCELED_CALL_COST)

    def _pause_s(self, peer: _Peer, side: ProxySide, calls: int, cost: float) -> float:
        now = time.monotonic()
        wait_s = self._queue.wait_s(side, peer.owners, now) if calls else 0.0
        wait_s = wait_s or self._calls.take(peer.owners, cost, now)
        if calls and not wait_s:
            self._queue.enter(side, peer.owners, peer, calls, now)
        return wait_s

    def taken(self, context: RpcContext) -> None:
        if (peer := self._peers.get(context.peer())) is not None:
            self._queue.taken(peer.owners)

    def close(self, context: RpcContext) -> None:
        if (peer := self._peers.get(context.peer())) is not None:
            peer.connection.cancel(UNREAD)

    def count_call(self, context: RpcContext, change: int) -> None:
        peer = self._peers.get(context.peer())
        if peer is not None:
            self._slots.count_call(peer.connection, change)

    def _unauthenticated(self, caller: Caller, reason: str, problem: str) -> UnauthenticatedError:
        self._audit.refused(caller, "", reason, problem=problem)
        return UnauthenticatedError(reason, problem)

    async def _run(self, sockets: Sequence[socket.socket]) -> None:
        with ExitStack() as closing:
            for listening in sockets:
                listening.setblocking(False)
                closing.enter_context(listening)
            async with asyncio.TaskGroup() as tasks:
                for listening in sockets:
                    tasks.create_task(self._accept(listening, tasks), name=f"accepting at {self._listener.name}")

    async def _accept(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop, closed = asyncio.get_running_loop(), 0
        while True:
            try:
                connected, address = await loop.sock_accept(listening)
            except ConnectionError:  # the client disconnected while in the backlog
                continue
            except OSError as error:
                if error.errno not in _DESCRIPTORS_EXHAUSTED:
                    raise
                self._refused(_Origin("", ""), f"accept failed: {error.strerror}")
                await asyncio.sleep(DESCRIPTORS_RETRY_S)
                continue
            is_served = False
            try:
                is_served = self._admit(connected, peer_address(address), tasks)
            except Exception:
                log.exception("connection failed", listener=self._listener.name)
            if not is_served:
                # A client that connects in a loop would fill the backlog, and lock others out.
                connected.close()
                closed += 1
            if is_served or closed % _CLOSED_AT_ONCE == 0:
                await asyncio.sleep(0)  # accept does not yield to the event loop if a connection is waiting

    def _admit(self, connected: socket.socket, address: str, tasks: asyncio.TaskGroup) -> bool:
        """Serve the connection, or return False if it is to be closed."""
        if _has_hung_up(connected):
            return False
        origin = _Origin(address, self._counts_as(connected, address))
        if not self._rate_limiter.admit(origin.counts_as, time.monotonic()):
            self._refused(origin, f"connection rate limit reached for {origin.counts_as}")
            return False
        task = tasks.create_task(self._serve(connected, origin), name=f"connection at {self._listener.name}")
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        if (evicted := self._slots.admit(task, origin.counts_as)) is not None:
            evicted.cancel("evicted before it was authenticated, for a newer connection")
        return True

    def _counts_as(self, connected: socket.socket, address: str) -> str:
        if self._tls is not None:
            return network(address)
        return f"uid {peer_uid(connected)}" if connected.family == socket.AF_UNIX else address

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._slots.remove(task)

    async def _serve(self, connected: socket.socket, origin: _Origin) -> None:
        side = ProxySide(self._unread)
        side.header_blocks = HeaderBlocks()
        peer: _Peer | None = None
        task = asyncio.current_task()
        assert task is not None
        try:
            peer = await self._authenticated(connected, origin, side, task)
            self._refused_calls.admit(peer.owners, time.monotonic())
            if (evicted := self._slots.authenticate(task, peer.owners)) is not None:
                evicted.cancel(TAKEN)
            self._slots.count_call(task, 0)
            self._tasks[task] = peer
            side.count_resets = partial(self._canceled, peer)
            side.pause_s = partial(self._pause_s, peer, side)
            if self._tls is None:
                await side.adopt(connected)
            await self._proxy(side, peer)
        except (ConnectionLimitError, _NotHttp2Error, ValueError, OSError) as error:
            # After authentication, an OSError is a fault of the daemon and not of the client.
            if peer is None or not isinstance(error, OSError):
                self._rate_limiter.failed(origin.counts_as, time.monotonic())
            self._refused(origin, str(error) or type(error).__name__)
        except PausedError as error:
            assert peer is not None
            self._rate_limiter.failed(origin.counts_as, time.monotonic())
            self._audit.refused(peer.caller, "", _EXCESS, problem=str(error))
        except asyncio.CancelledError as error:
            if peer is not None and error.args:
                reason = _EXCESS if error.args[0] == EXCESS else CONNECTION_REFUSED
                self._audit.refused(peer.caller, "", reason, problem=str(error))
            elif error.args:
                self._rate_limiter.failed(origin.counts_as, time.monotonic())
                self._refused(origin, str(error))
            raise
        except Exception:
            # A defect that one connection triggers must not end other connections.
            log.exception("connection failed", listener=self._listener.name)
        finally:
            if peer is not None:
                self._queue.forget(side, peer.owners)
            side.drop(connected)

    def _refused(self, origin: _Origin, problem: str) -> None:
        caller = Caller(listener=self._listener.name, peer=origin.address)
        self._audit.refused(caller, "", CONNECTION_REFUSED, problem=problem)

    async def _authenticated(
        self, connected: socket.socket, origin: _Origin, side: ProxySide, task: "asyncio.Task[None]"
    ) -> _Peer:
        if self._tls is not None:
            return await self._by_certificate(connected, origin, side, task)
        is_local = connected.family == socket.AF_UNIX
        caller = Caller(listener=self._listener.name, peer=origin.address, over_tcp=not is_local)
        if self._listener.peer_credentials:
            credentials = peer_credentials(connected)
            caller = msgspec.structs.replace(
                caller, uid=credentials.uid, gid=credentials.gid, gids=credentials.gids, pid=credentials.pid
            )
        return _Peer(caller, (origin.counts_as,), task)

    async def _by_certificate(
        self, connected: socket.socket, origin: _Origin, side: ProxySide, task: "asyncio.Task[None]"
    ) -> _Peer:
        from milo_discoveryd.identity.certificate_names import certificate_names  # noqa: PLC0415 - 8 MB of cryptography

        assert self._tls is not None
        context = self._tls.context()
        client_ca = self._tls.client_ca
        await side.adopt(connected, context, handshake_s=HANDSHAKE_S)
        names = certificate_names(side.certificate())
        expires_at = names.expires_at.timestamp()
        caller = Caller(
            listener=self._listener.name, peer=origin.address, over_tcp=True, sans=names.sans, expires_at=expires_at
        )
        owners = tuple(dict.fromkeys(names.sans)) or (origin.counts_as,)
        return _Peer(caller, owners, task, client_ca)

    async def _proxy(self, side: ProxySide, peer: _Peer) -> None:
        inner = ProxySide(self._unread)
        async with asyncio.timeout(HANDSHAKE_S):
            name, connected = await self._inner_socket.connect()
            await inner.connect(connected)
        expires_at = peer.caller.expires_at
        self._peers[name] = peer
        try:
            began = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if expires_at is None else expires_at - time.time()):
                    closed_by_grpc = await proxy(side, inner)
                    if side.is_flooding:
                        most = f"{MOST_CONTINUATIONS} CONTINUATION frames or {MOST_BYTES >> 10} KiB"
                        raise ValueError(f"a header block with more than {most}")
                    at_once = time.monotonic() - began < HTTP2_FAILURE_S
                    if closed_by_grpc and at_once and not self.is_stopping:
                        raise _NotHttp2Error("gRPC closed the connection at once: the client may not speak HTTP/2")
        finally:
            asyncio.get_running_loop().call_later(ENDED_KEPT_S, self._peers.pop, name)


def _has_hung_up(connected: socket.socket) -> bool:
    """Return whether the client of a Unix socket has closed the connection. With TCP, only a read shows it."""
    poll = select.poll()
    poll.register(connected, 0)
    return bool(poll.poll(0))
