"""A subscriber that uses the client library's session over a connection with small buffers, which may be cut."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Protocol

from milo_discovery import Event
from milo_discovery._session import Session
from milo_discovery.errors import StreamBroken
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.server.calls.grpc_errors import CallError
from milo_kube.label_selector import parse
from tests.end_to_end.process.history import History, Labels, Stream, noted
from tests.simulation.seeded.worker import Worker

CAPACITY = 500
"""The buffer size of the connection, beyond which writes wait."""


class Serving(Protocol):
    def call(self, request: pb.WatchClustersRequest, who: str, send: "Send") -> asyncio.Task[None]: ...

    def ask(self, request: pb.IssueKubeconfigRequest, who: str) -> asyncio.Task[None]: ...


class Send(Protocol):
    async def __call__(self, message: bytes, /) -> None: ...


class Pipe:
    def __init__(self, capacity: int) -> None:
        self.waiting: deque[bytes] = deque()
        self.blocked = 0
        """How many sends wait."""
        self._capacity = capacity
        self._size = 0
        self._room = asyncio.Event()
        self.something = asyncio.Event()

    async def send(self, message: bytes, /) -> None:
        self.blocked += 1
        try:
            while self._size > self._capacity:
                self._room.clear()
                await self._room.wait()
        finally:
            self.blocked -= 1
        self.waiting.append(message)
        self._size += len(message)
        self.something.set()

    def limit(self, capacity: int) -> None:
        self._capacity = capacity
        self._room.set()

    def take(self) -> bytes:
        message = self.waiting.popleft()
        self._size -= len(message)
        self._room.set()
        return message


class Subscriber:
    def __init__(
        self,
        who: str,
        label_selector: str,
        daemon: Callable[[], Serving | None],
        random: Random,
        note: Callable[..., None],
        read: Callable[[], None],
        *,
        with_kubeconfigs: bool = False,
        worker: Worker | None = None,
    ) -> None:
        """`read` is called after each batch; a subscriber with a `worker` confirms releases."""
        self.history = History(who, label_selector)
        self.session = Session()
        self.given: list[Event] = []
        self.broken: list[str] = []
        self.slow_s = 0.0
        self.worker = worker
        self._with_kubeconfigs = with_kubeconfigs
        self._asking: set[asyncio.Task[None]] = set()
        self._daemon = daemon
        self._random = random
        self._note = note
        self._read = read
        self._reads = asyncio.Event()
        self._reads.set()
        self._call: asyncio.Task[None] | None = None
        self._left: asyncio.Task[None] | None = None
        self._capacity = CAPACITY
        self._pipe = Pipe(CAPACITY)
        self._is_cut = False

    @property
    def view(self) -> dict[str, tuple[str, Labels]]:
        return {
            name: (known.cluster.uid, tuple(sorted(known.cluster.labels.items())))
            for name, known in self.session.view.items()
        }

    @property
    def has_read_all(self) -> bool:
        """Whether the subscriber has received everything from a running daemon."""
        return self._call is not None and not self._call.done() and not self._pipe.waiting

    @property
    def can_work(self) -> bool:
        """Whether the subscriber has a valid credential for each cluster, if it requested credentials."""
        now = datetime.fromtimestamp(time.time(), UTC)
        return not self._with_kubeconfigs or all(
            known.kubeconfig is not None
            and known.kubeconfig.expires_at is not None
            and known.kubeconfig.expires_at > now
            for known in self.session.view.values()
        )

    def selects(self, cluster: Cluster) -> bool:
        return parse(self.history.label_selector).matches(cluster.target.labels)

    def pause(self) -> None:
        self._reads.clear()

    def go_on(self) -> None:
        self.slow_s = 0.0
        self._reads.set()

    def cut(self) -> None:
        """Cut the connection, with everything in flight."""
        if self._call is not None:
            self._is_cut = True
            self._call.cancel()

    def limit(self, capacity: int | None) -> None:
        """Set the buffer size of its connections: of -1, they accept nothing; None restores the default."""
        self._capacity = CAPACITY if capacity is None else capacity
        self._pipe.limit(self._capacity)

    def drop_unread(self) -> None:
        """Drop what a connection that has ended had delivered."""
        if self._call is not None and self._call.done():
            self._pipe.waiting.clear()

    def end(self) -> None:
        """End the connection; what is in flight still arrives."""
        if self._call is not None:
            self._call.cancel()

    def leave(self) -> asyncio.Task[None] | None:
        """Reconnect without the daemon's knowledge, unless something is in flight. Return the call, which hangs."""
        if self._call is None or self._call.done() or self._pipe.waiting:
            return None
        self._left, self._is_cut = self._call, True
        self._pipe.limit(-1)
        self._pipe.something.set()
        return self._left

    @property
    def reads_late(self) -> bool:
        """Whether what the daemon sends now may not arrive, or later: it reads nothing, or the connection is ending."""
        calls = [call for call in (self._left, self._call) if call is not None and not call.done()]
        is_whole = calls == [self._call] and not calls[0].cancelling()
        return not is_whole or not self._reads.is_set() or bool(self._pipe.waiting or self._pipe.blocked)

    def ask(self, cluster: str, ttl_s: int | None) -> None:
        """Request one kubeconfig, by name alone or with the known incarnation."""
        daemon = self._daemon()
        if daemon is None:
            return
        request = pb.IssueKubeconfigRequest(cluster=cluster)
        if ttl_s is not None:
            request.ttl.FromSeconds(ttl_s)
        known = self.session.view.get(cluster)
        if known is not None and self._random.random() < 0.5:
            request.incarnation = known.cluster.incarnation
        asking = daemon.ask(request, self.history.who)
        self._asking.add(asking)
        asking.add_done_callback(self._answered)

    async def run(self) -> None:
        """Run until canceled."""
        while True:
            daemon = self._daemon()
            if daemon is not None:
                await self._subscribe(daemon)
            await asyncio.sleep(0.05 + self._random.random())

    async def _subscribe(self, daemon: Serving) -> None:
        stream = Stream(self.session.open())
        self.history.streams.append(stream)
        request = pb.WatchClustersRequest(
            resume_revision=stream.resumed_from,
            filter=pb.ClusterFilter(label_selector=self.history.label_selector),
            include_kubeconfigs=self._with_kubeconfigs,
            confirm_releases=self.worker is not None,
            subscriber="" if self.worker is None else self.worker.who,
        )
        self._pipe = pipe = Pipe(self._capacity)
        self._is_cut = False
        self._call = call = daemon.call(request, self.history.who, pipe.send)
        call.add_done_callback(lambda _: pipe.something.set())
        try:
            while not self._is_cut:
                await self._reads.wait()
                if self.slow_s:
                    await asyncio.sleep(self.slow_s)
                if self._is_cut:
                    return
                if pipe.waiting:
                    self._take(pipe.take(), stream)
                elif call.done():
                    return
                else:
                    pipe.something.clear()
                    await pipe.something.wait()
        finally:
            if call is not self._left:
                call.cancel()
            self._ended(call)

    def _take(self, data: bytes, stream: Stream) -> None:
        message = pb.WatchClustersResponse.FromString(data)
        batch = noted(message)
        stream.batches.append(batch)
        self._note(self.history.who, "reads", batch)
        try:
            items = self.session.receive(message)
        except StreamBroken as error:
            self.broken.append(f"session: {self.history.who}: {error}")
            raise
        self.given += (event for event in items if isinstance(event, Event))
        if self.worker is not None:
            self.worker.process(items)
        self._read()

    def _ended(self, call: asyncio.Task[None]) -> None:
        if not call.done() or call.cancelled():
            return
        error = call.exception()
        if not isinstance(error, CallError):
            self.broken.append(f"stream: {self.history.who}: it failed with {error!r}")

    def _answered(self, asking: asyncio.Task[None]) -> None:
        self._asking.discard(asking)
        error = None if asking.cancelled() else asking.exception()
        if not isinstance(error, CallError | None):
            self.broken.append(f"call: {self.history.who}: it failed with {error!r}")
