"""Accepts connections itself, so that what the kernel or TLS says of who connects is known; gRPC serves them behind it.

gRPC for Python reads no peer credentials, and can't be told which versions of TLS to take.
"""

import asyncio
import errno
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import msgspec
import structlog

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.peer_credentials import peer
from milo_discoveryd.server.calls.grpc_errors import UnauthenticatedError
from milo_discoveryd.server.calls.service import RpcContext
from milo_discoveryd.server.connections.connect_rate import ConnectRateLimiter
from milo_discoveryd.server.connections.inner_socket import InnerSocket
from milo_discoveryd.server.connections.proxy import ProxySide, proxy
from milo_discoveryd.server.connections.rejection_log import RejectionLog
from milo_discoveryd.server.connections.tls_certificates import ServerTls

log = structlog.get_logger()

HANDSHAKE_S = 10.0
HUNG_UP_S = 1.0
"""gRPC hangs up on a connection this young for nothing but what it was told on it."""
NONE_LEFT_S = 0.5
"""Until we try again to accept a connection when there is no descriptor left for it."""
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Proved(msgspec.Struct, frozen=True):
    """What a connection has shown before its first call."""

    caller: Caller
    client_ca: bytes = b""
    """By which its certificate was verified."""

    @property
    def owner(self) -> str:
        """Whose share of the connections it takes from."""
        return f"user {self.caller.uid}" if self.caller.uid is not None else " ".join(self.caller.sans)


class _RefusedError(Exception):
    """A connection is not let in. The message is for our log: who connects is told nothing."""


class Acceptor:
    def __init__(self, name: str, rejections: RejectionLog, *, tls: ServerTls | None, connections: int) -> None:
        """Without `tls` it is for Unix sockets."""
        self._name = name
        self._tls = tls
        self._most = connections
        self._backstage = InnerSocket()
        self._known: dict[str, _Proved] = {}
        self._shares: Counter[str] = Counter()
        self._arrivals = ConnectRateLimiter()
        self._serving: dict[asyncio.Task[None], _Proved | None] = {}
        self._rejections = rejections
        self._running: asyncio.Task[None] | None = None

    def bind(self, server: grpc.aio.Server) -> None:
        """Raises StartError."""
        if self._tls is not None:
            self._tls.context()
        self._backstage.bind(server)

    def start(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._running = asyncio.create_task(self._run(listening), name=f"connections at {self._name}")

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._backstage.close()

    def check(self) -> None:
        """Ends connections that would not be let in any more. Raises what ended us, if anything did."""
        if self._running is not None and self._running.done():
            self._running.result()
        if self._tls is not None:
            self._tls.context()
            for task, proved in self._serving.items():
                if proved is not None and proved.client_ca != self._tls.client_ca:
                    task.cancel()

    def __len__(self) -> int:
        """Connections, with those that have shown nothing yet."""
        return len(self._serving)

    async def identify(self, context: RpcContext) -> Caller:
        proved = self._known.get(context.peer())
        if proved is None:
            nobody = Caller(listener=self._name, peer=context.peer())
            raise self._turned_away(
                nobody, "UNKNOWN_CONNECTION", "nobody is known to be at the other end of this connection"
            )
        if self._tls is not None and not proved.caller.sans:
            problem = "your certificate has no subject alternative name (DNS, URI, email or IP) to know you by"
            raise self._turned_away(proved.caller, "NO_NAME", f"{problem}; its common name does not count")
        return proved.caller

    def _turned_away(self, caller: Caller, reason: str, problem: str) -> UnauthenticatedError:
        self._rejections.tell(caller, reason, problem)
        return UnauthenticatedError(reason, problem)

    async def _run(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    try:
                        connected, address = await loop.sock_accept(listening)
                    except ConnectionError:  # gone before we came to it
                        continue
                    except OSError as error:
                        if error.errno not in _NONE_LEFT:
                            raise
                        self._refuse("", f"none can be accepted: {error.strerror}")
                        await asyncio.sleep(NONE_LEFT_S)
                        continue
                    where = _where(address)
                    if self._tls is not None and not self._arrivals.admit(_host(where), time.monotonic()):
                        self._refuse(where, "connections come too often from there")
                        connected.close()
                        continue
                    if len(self._serving) >= self._most:
                        self._refuse(where, f"there are {self._most} connections already")
                        connected.close()
                        continue
                    task = tasks.create_task(self._serve(connected, where), name=f"connection at {self._name}")
                    self._serving[task] = None
                    task.add_done_callback(self._serving.pop)

    async def _serve(self, connected: socket.socket, where: str) -> None:
        leg = ProxySide()
        proved: _Proved | None = None
        try:
            proved = await (
                self._by_kernel(connected, leg) if self._tls is None else self._by_tls(connected, where, leg)
            )
            with self._share(proved.owner):
                await self._pass_on(leg, proved)
        except (_RefusedError, ValueError, OSError) as error:
            if proved is None or isinstance(error, _RefusedError):  # not where it is us who could not go on
                self._arrivals.failed(_host(where), time.monotonic())
            self._refuse(where, str(error) or type(error).__name__)
        except Exception:
            # Ours, and this connection's end: whoever brings it about must not end those of others with it.
            log.exception("connection failed", listener=self._name)
        finally:
            leg.drop(connected)

    def _refuse(self, where: str, problem: str) -> None:
        self._rejections.tell(Caller(listener=self._name, peer=where), "CONNECTION_REFUSED", problem)

    async def _by_kernel(self, connected: socket.socket, leg: ProxySide) -> _Proved:
        who = peer(connected)
        await leg.take(connected)
        return _Proved(Caller(listener=self._name, peer="unix:", uid=who.uid, gid=who.gid, gids=who.gids, pid=who.pid))

    async def _by_tls(self, connected: socket.socket, where: str, leg: ProxySide) -> _Proved:
        from milo_discoveryd.identity.certificate_names import certificate_names  # noqa: PLC0415 - it brings the cryptography package, 8 MB

        assert self._tls is not None
        context = self._tls.context()
        client_ca = self._tls.client_ca
        with self._share(_host(where)):
            await leg.take(connected, context, handshake_s=HANDSHAKE_S)
        found = certificate_names(leg.certificate())
        caller = Caller(listener=self._name, peer=where, sans=found.sans, until=found.until.timestamp())
        return _Proved(caller, client_ca)

    async def _pass_on(self, leg: ProxySide, proved: _Proved) -> None:
        inner = ProxySide()
        async with asyncio.timeout(HANDSHAKE_S):
            name, behind = await self._backstage.connect()
            await asyncio.get_running_loop().create_unix_connection(lambda: inner, sock=behind)
        task, until = asyncio.current_task(), proved.caller.until
        assert task is not None
        self._serving[task] = self._known[name] = proved
        try:
            began = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if until is None else until - time.time()):
                    hung_up = await proxy(leg, inner)
                    if hung_up and time.monotonic() - began < HUNG_UP_S:
                        raise _RefusedError("gRPC hung up on it at once: what it says is something else")
        finally:
            del self._known[name]

    @contextmanager
    def _share(self, owner: str) -> Iterator[None]:
        """Nobody has more than half of the connections, so that there are some for others."""
        if self._shares[owner] >= max(1, self._most // 2):
            raise _RefusedError(f"{owner} has {self._shares[owner]} connections already")
        self._shares[owner] += 1
        try:
            yield
        finally:
            self._shares[owner] -= 1
            if not self._shares[owner]:
                del self._shares[owner]


def _host(where: str) -> str:
    return where.rpartition(":")[0]


def _where(address: object) -> str:
    """As gRPC would write it; a Unix socket that connects has no address."""
    if not isinstance(address, tuple):
        return "unix:"
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
