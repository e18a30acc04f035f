"""One subscriber's stream: waits for its waiter, takes what its cursor gives, and sends it."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import msgspec

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.source import SourceState
from milo_discoveryd.registry.change_notifier import Waiter
from milo_discoveryd.registry.cursor import Batch, Cursor
from milo_discoveryd.registry.events import Frames
from milo_discoveryd.registry.filter import Filter
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.reusable_timeout import Deadline, deadline
from milo_discoveryd.rights.scope import scoped
from milo_discoveryd.server.calls import convert, frames, visibility
from milo_discoveryd.server.calls.access import CallContext
from milo_discoveryd.server.calls.grpc_errors import StalledError, UnavailableError
from milo_discoveryd.server.calls.kubeconfig_rotation import KUBECONFIG_BYTES, KubeconfigRotation
from milo_discoveryd.server.calls.requests import WatchRequest
from milo_discoveryd.server.calls.revision import Position, TokenSigner, parse

Send = Callable[[bytes], Awaitable[None]]
RETRY_S = 1.0
LARGE = 1 / 4
"""Of a batch, by its bytes: there is more to come, as a rule, and sending takes long enough to find that out."""


class StreamMetrics(Protocol):
    """What streams count."""

    def batch_sent(self, latency_s: float | None) -> None:
        """`latency_s`: from the oldest bytes behind the batch to gRPC; None for what isn't live."""

    def reset_sent(self) -> None: ...


class Stream:
    def __init__(
        self,
        fleet: Fleet,
        epoch: str,
        asked: WatchRequest,
        *,
        call: CallContext,
        seal: TokenSigner,
        send: Send,
        tally: StreamMetrics,
        stalled_s: float,
        draining: asyncio.Event,
        rotation: KubeconfigRotation | None = None,
    ) -> None:
        """`rotation`: of the kubeconfigs, where the subscriber asked for them."""
        self._fleet = fleet
        self._epoch = epoch
        self._asked = asked
        self._call = call
        self._grant = call.grant
        self._shown = scoped(asked.wanted, call.scope)
        """What was asked for, as far as the caller may see it."""
        self._seal = seal
        self._send = send
        self._tally = tally
        self._stalled_s = stalled_s
        self._draining = draining
        self._rotation = rotation
        self._clock = asyncio.get_running_loop().time
        self._sent_at = 0.0
        self._parts = 0
        """Of the snapshot that is being sent."""
        self._said = ""
        """The revision of the last batch, or what the subscriber resumes from."""
        self._source: tuple[SourceState, str] | None = None
        """What the subscriber was last told of it."""
        position = parse(asked.resume_revision)
        self._knew_another_run = bool(asked.resume_revision) and (position is None or position.epoch != epoch)
        self._patience: Deadline
        """With the subscriber, while something is sent to it."""
        self.cursor: Cursor | None = None
        self.opened_at = time.time()

    @property
    def wanted(self) -> Filter:
        return self._asked.wanted

    @property
    def lag(self) -> int:
        """How many revisions the subscriber has not taken yet."""
        return 0 if self.cursor is None else self.cursor.lag

    async def run(self) -> None:
        """Ends by an error only: the caller's leaving, a reader that doesn't read, or the daemon's end."""
        try:
            async with deadline() as self._patience:
                with self._fleet.notifier.waiter() as waiter, self._rotating(waiter):
                    await self._follow(waiter)
        except TimeoutError:
            raise StalledError(
                "STALLED", f"nothing was read from the stream for {self._stalled_s:g} s; resume when ready"
            ) from None

    async def _follow(self, waiter: Waiter) -> None:
        while self._must_wait():
            await self._tell(Batch(Frames(), 0, synced=False))
            await self._wait(waiter)
        self._follow_rights()
        resume = await self._resume_from()
        overhead = KUBECONFIG_BYTES if self._rotation else 0
        self.cursor = cursor = Cursor(self._fleet.log, self._shown, resume, overhead=overhead)
        if cursor.resumed:
            self._said = self._asked.resume_revision
            await self._tell_changes(cursor.take() or Batch(Frames(), cursor.revision))
            if self._rotation:
                self._rotation.catch_up()
        while True:
            self._follow_rights()
            batch = cursor.take()
            if batch is not None and batch.is_sendable:
                await self._tell_changes(batch)
            elif batch is not None:
                await asyncio.sleep(0)
            elif self._rotation and (renewed := self._rotation.take()):
                await self._tell(Batch(renewed, cursor.revision))
            elif self._source_changed() or self._clock() >= self._sent_at + self._asked.heartbeat_s:
                await self._tell(Batch(Frames(), cursor.revision))
            else:
                await self._wait(waiter)

    def _follow_rights(self) -> None:
        """Before anything is taken, so that nothing is told by rights that are over."""
        before, self._grant = self._grant, self._call.grant
        if self._grant is before:
            return
        shown = scoped(self._asked.wanted, self._call.scope)
        if shown.fingerprint != self._shown.fingerprint:
            self._shown = shown
            if self.cursor is not None:
                self.cursor.change_view(shown)
        if self._rotation is not None:
            self._rotation.turn(shown)

    def _must_wait(self) -> bool:
        """For a complete list. What is remembered of an earlier run may lack some that the subscriber was told of by
        then, and they would seem gone."""
        return not self._fleet.synced or (self._fleet.is_restored and self._knew_another_run)

    def _rotating(self, waiter: Waiter) -> AbstractContextManager[None]:
        return self._rotation.following(waiter.wake) if self._rotation else nullcontext()

    async def _wait(self, waiter: Waiter) -> None:
        """With nothing left to send: until a heartbeat or a kubeconfig is due, or there is something.

        Who has no rights any more is told first what that took away.
        """
        if self._asked.with_kubeconfigs:
            self._call.require_kubeconfigs()
        self._call.admitted()
        if self._draining.is_set():
            raise UnavailableError(
                "SHUTTING_DOWN", "the daemon is shutting down; keep every cluster and resume", retry_after_s=RETRY_S
            )
        heartbeat_in_s = self._sent_at + self._asked.heartbeat_s - self._clock()
        await waiter.wait(max(0.0, min(heartbeat_in_s, self._rotation.due_in_s if self._rotation else math.inf)))

    async def _tell_changes(self, batch: Batch) -> None:
        is_live = self._source is not None and not batch.reset and batch.synced
        if self._rotation:
            await self._tell(msgspec.structs.replace(batch, frames=self._rotation.attach_kubeconfigs(batch.frames)))
        else:
            await self._tell(batch)
        if batch.frames:
            read_at = self._fleet.notifier.read_at(batch.revision) if is_live else None
            self._tally.batch_sent(None if read_at is None else self._sent_at - read_at)

    async def _tell(self, batch: Batch) -> None:
        now = self._clock()
        before, revision = self._said, self._revision(batch)
        data = frames.batch(
            batch.frames,
            revision=revision,
            previous_revision=before,
            synced=batch.synced,
            reset=batch.reset,
            source=self._news(batch, now),
        )
        self._patience.set(now + self._stalled_s)
        if self.cursor is None or len(data) < LARGE * self._fleet.log.batch_bytes:
            await self._send(data)
        else:
            await self._send_looking_ahead(data, self.cursor)
        self._patience.lift()
        self._said = revision
        self._sent_at = self._clock()
        if batch.reset:
            self._tally.reset_sent()

    async def _send_looking_ahead(self, data: bytes, cursor: Cursor) -> None:
        # It is begun in this step, as everything is that is told; what is next is looked for in the step after it.
        looking = asyncio.get_running_loop().call_soon(cursor.prefetch)
        try:
            await self._send(data)
        finally:
            looking.cancel()

    def _revision(self, batch: Batch) -> str:
        if self.cursor is None:
            return ""  # there is nothing to come back to
        # Numbered, so that a part that is missing is missed.
        self._parts = 0 if batch.is_whole else self._parts + 1
        position = Position(self._epoch, batch.revision, self._parts or None)
        return self._seal.put(str(position), self._call.holder(self._shown))

    async def _resume_from(self) -> int | None:
        position = parse(self._asked.resume_revision)
        if position is None or position.epoch != self._epoch:
            return None  # another daemon's, as far as anybody can tell
        if self._seal.holds(self._asked.resume_revision, self._call.holder(self._shown)) is None:
            self._call.refused("REVISION_OF_ANOTHER", call="WatchClusters")
            await self._call.penalize_miss()  # a snapshot is dear
            return None
        return None if position.part is not None else position.revision

    def _source_changed(self) -> bool:
        status = self._fleet.status
        return self._source != (status.state, status.reason)

    def _news(self, batch: Batch, now: float) -> pb.SourceStatus | None:
        if batch.frames and not self._source_changed():
            return None
        status = self._fleet.status
        self._source = (status.state, status.reason)
        return convert.source(visibility.source(status, self._call.scope), Moment(time.time(), now))
