"""The operator of a pod: it follows the daemon beside it by one stream or several, and renews its ownership."""

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import Protocol

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.server.calls.grpc_errors import CallError
from tests.simulation.seeded.subscriber import Send, Subscriber
from tests.simulation.seeded.worker import Releasing, Worker

RENEWAL_S = 1.0
"""Interval at which the operator renews its ownership."""
DEAD_S = 20.0
"""The time after which the daemon notices a dead connection, at most."""
WHO = "operator"


class Serving(Releasing, Protocol):
    def call(self, request: pb.WatchClustersRequest, who: str, send: Send) -> asyncio.Task[None]: ...

    def ask(self, request: pb.IssueKubeconfigRequest, who: str) -> asyncio.Task[None]: ...

    async def renew(self, request: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse: ...


class Operator:
    def __init__(
        self, daemon: Callable[[], Serving | None], random: Random, note: Callable[..., None], read: Callable[[], None]
    ) -> None:
        self.deadline = 0.0
        """Until when it may work."""
        self.mute_until = 0.0
        """Until when its renewals reach no daemon."""
        self.refused = 0
        """How many renewals the daemon has refused of an operator with clusters."""
        self.late: set[str] = set()
        """Clusters of whose end the daemon has told it, or would have if it had read its streams in time."""
        self._daemon = daemon
        self._random = random
        self._note = note
        self._read = read
        self._selectors: tuple[str, ...] = ("",)
        self._streams: list[Subscriber] = []
        self._tasks: dict[Subscriber, asyncio.Task[None]] = {}
        self._is_hung = self._is_unread = False
        self._now = asyncio.get_running_loop().time

    async def run(self) -> None:
        while True:
            await self._renew()
            left = self.deadline - self._now()
            await asyncio.sleep(min(RENEWAL_S, left) if left > 0 else RENEWAL_S)

    async def _renew(self) -> None:
        if self._now() >= self.deadline and self._streams:
            self._note("lost its ownership")
            self.stop()
        daemon, asked_at = self._daemon(), self._now()
        if daemon is None or asked_at < self.mute_until:
            return
        has_clusters = any(stream.session.view for stream in self._streams)
        try:
            response = await daemon.renew(pb.RenewOwnershipRequest(subscriber=WHO if has_clusters else ""))
        except CallError as error:
            self._note("is refused the renewal:", error.reason)
            return
        if not response.HasField("valid_for"):
            self.refused += has_clusters
            return
        self.deadline = max(self.deadline, asked_at + response.valid_for.ToTimedelta().total_seconds())
        if not self._streams:
            for selector in self._selectors:
                self._open(selector)

    def _open(self, selector: str) -> None:
        worker = Worker(WHO, self._daemon, self._random, self._note)
        stream = Subscriber(WHO, selector, self._daemon, self._random, self._note, self._read, worker=worker)
        self._streams.append(stream)
        self._apply_faults(stream)
        self._tasks[stream] = asyncio.create_task(stream.run(), name=f"a stream of {WHO}")

    def _close(self, stream: Subscriber) -> None:
        self._streams.remove(stream)
        assert stream.worker is not None
        stream.worker.stop()
        self._tasks.pop(stream).cancel()

    def stop(self) -> None:
        """End the work in all clusters, and forget them."""
        for stream in [*self._streams]:
            self._close(stream)

    # --- what it works in ---

    @property
    def reads_late(self) -> bool:
        return any(stream.reads_late for stream in self._streams)

    @property
    def works_in(self) -> set[str]:
        """The clusters in which it works, apart from those whose end it reads late."""
        if self.late and not self.reads_late:
            self.late &= {name for stream in self._streams for name in stream.session.view}
        if self._now() >= self.deadline:
            return set()
        return {name for stream in self._streams for name in _running(stream)} - self.late

    def runs(self, name: str) -> bool:
        """Return whether a handler of the cluster runs, which may be one of another stream."""
        return any(name in stream.worker.handlers for stream in self._streams if stream.worker is not None)

    # --- faults ---

    @property
    def broken(self) -> list[str]:
        """What was wrong with streams, or with what the daemon answered."""
        ended = [task.exception() for task in self._tasks.values() if task.done() and not task.cancelled()]
        return [repr(error) for error in ended] + [problem for stream in self._streams for problem in stream.broken]

    def break_streams(self) -> None:
        for stream in self._streams:
            stream.end()

    def hang(self, *, hangs: bool) -> None:
        """Let connections, also new ones, accept nothing that the daemon sends."""
        self._is_hung = hangs
        for stream in self._streams:
            self._apply_faults(stream)

    def leave_unread(self, *, leaves: bool) -> None:
        self._is_unread = leaves
        for stream in self._streams:
            stream.drop_unread()  # or it would begin to work in what it should have read long ago
            self._apply_faults(stream)

    def _apply_faults(self, stream: Subscriber) -> None:
        stream.limit(-1 if self._is_hung else None)
        (stream.pause if self._is_unread else stream.go_on)()

    def select(self, *selectors: str, is_dead: bool = False) -> None:
        """Reconnect with other filters, as another process if not each stream has another one. `is_dead`: the daemon
        does not notice the end of the former streams yet."""
        self._selectors = selectors
        for stream in self._streams:
            if is_dead and (call := stream.leave()) is not None:
                asyncio.get_running_loop().call_later(self._random.uniform(0.0, DEAD_S), call.cancel)
            else:
                stream.end()
        if len(self._streams) == len(selectors) == 1:
            self._streams[0].history.label_selector = selectors[0]
        elif self._streams:
            self.stop()
            for selector in selectors:
                self._open(selector)


def _running(stream: Subscriber) -> Iterator[str]:
    assert stream.worker is not None
    return (name for name in stream.session.view if name in stream.worker.handlers)


class RunsElsewhereError(CallError):
    """Another stream of the operator still has the cluster."""

    def __init__(self) -> None:
        super().__init__("RUNS_ELSEWHERE", "a handler of another stream has not ended")
