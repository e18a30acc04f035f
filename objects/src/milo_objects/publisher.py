"""Publishes the objects of a source to the stream: performs the commands of the publication."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final, Protocol, Unpack

import msgspec

from milo_discovery.errors import ClusterNotFound, DiscoveryError, StatusError, Unavailable, Unimplemented
from milo_discovery.model import ClusterReport, EngagementReason, Listing, ServerInfo, SourceState
from milo_discovery.options import FilterOptions
from milo_discovery.removals import SECOND_LOOK_S, Removal, Removals
from milo_kube.cache_budget import CacheLimits
from milo_kube.task_groups import in_own_task, unwrap_single_error
from milo_objects.jetstream import (
    CALL_TIMEOUT_S,
    NatsOptions,
    NatsSession,
    NewStream,
    StreamFull,
    StreamInfo,
    StreamLost,
    WriteConflict,
    open_session,
)
from milo_objects.kinds import Kind
from milo_objects.messages import ClusterMessage, Heartbeat, Message, ScopeMessage, Stored, StoredMessage, decoded
from milo_objects.nats_source import RECONNECT
from milo_objects.publication import StreamConnected, StreamPublication
from milo_objects.scope import Change, ClusterChanged, ClusterEnded, FleetCluster, ObjectSource, Scope
from milo_objects.store import Store
from milo_objects.stream_commands import Purge, ReadCluster, Relist, WriteMessage
from milo_objects.stream_reader import SILENT_S
from milo_objects.subjects import PUBLISHER, STREAM_SUBJECTS, ClusterSubject, Subject, source_of

log = logging.getLogger("milo_objects")

LOOK_EVERY_S: Final = 300.0
"""How often clusters are looked for that ended while nobody published them."""
BEAT_EVERY_S: Final = 10.0
"""How often readers are told that a publisher follows the clusters."""
_RETRY_S: Final = 1.0
_HEALTHY_S: Final = 30.0
_HEARD: Final = 64
_AT_ONCE: Final = 1000
_LOOKUPS: Final = 8
"""How many clusters, such as those of other members of a shard group, the daemon is asked about at a time: before the
last answer, readers believe nothing of a source."""
_STATES: Final = "milo.objects.*.*.*.*.state"


class ClusterDirectory(Protocol):
    """What is asked of the daemon."""

    async def list(self, **options: Unpack[FilterOptions]) -> Listing: ...
    async def get(self, name: str) -> ClusterReport: ...
    async def server_info(self) -> ServerInfo: ...


class ListingSource(ObjectSource, Protocol):
    """A source that says of which sources of clusters it knows all, and lists a scope again when asked to."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Why not all engaged clusters of a source are known, by the name of the source; empty if they are."""

    async def relist(self, scope: Scope) -> None:
        """List a scope again, and apply the complete list. Returns at once if the scope is not followed."""


class _Orphan(Enum):
    """What the daemon says of a cluster of the stream that is not engaged here."""

    UNKNOWN = auto()
    """Nothing: its source is not followed."""
    ENGAGED = auto()
    UNASSIGNED = auto()
    ELSEWHERE = auto()
    """Only another member of the shard group can say whether it is engaged; or it cannot be looked up."""
    MISSING = auto()


class _Looks(msgspec.Struct):
    """The looks for clusters of the stream that ended while nobody published them, or that nobody follows."""

    compared: set[str] = msgspec.field(default_factory=set)
    """The sources of which the stream has no such cluster, unless it says so."""
    next_at: float = 0.0
    sequence: int = 0
    """That of the stream at the last one."""
    published: set[str] | None = None
    """The keys of the clusters that the stream had before this publisher wrote to it, or at the last look. None if it
    lacked none then: what was published since counts."""
    listens_since: float = math.inf
    """Since when heartbeats are received."""
    heard: deque[tuple[int, float, Heartbeat | None]] = msgspec.field(default_factory=lambda: deque(maxlen=_HEARD))
    """Those of publishers without a name, of which this one may be one: their sequences, and when they were received.
    None for those of an earlier version, which stand for everything."""
    own: deque[int] = msgspec.field(default_factory=lambda: deque(maxlen=_HEARD))
    """The sequences of its own."""

    def may_be_followed(self, scope: ScopeMessage, now: float) -> bool:
        """Return whether another publisher follows a scope, for example during a rollout, or may not be heard yet. The
        clusters of one with a name are its own."""
        since, source = now - SILENT_S, source_of(scope.cluster.name)
        return not scope.publisher and (
            self.listens_since > since
            or any(
                at > since and sequence not in self.own and (heartbeat is None or heartbeat.sources.get(source) == "")
                for sequence, at, heartbeat in self.heard
            )
        )


class ObjectPublisher:
    """A publisher of the objects of some kinds in the clusters of one daemon."""

    def __init__(
        self,
        source: ListingSource,
        daemon: ClusterDirectory,
        kinds: Sequence[Kind],
        options: NatsOptions,
        new: NewStream | None = None,
        *,
        accepts_removals: bool = False,
        gone_bytes: int = CacheLimits().total_bytes // 2,
        report: Callable[[str], None] = log.warning,
    ) -> None:
        """`gone_bytes`: maximum bytes of the records of gone objects."""
        self._source = source
        self._daemon = daemon
        self._kinds = kinds
        self._options = options
        self._new = new
        self._report = report
        self._removals = Removals(
            accepts=accepts_removals, remedy="give each fleet a stream of its own, in another account of NATS"
        )
        self._changed = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._unanswered: deque[tuple[float, int]] = deque()
        self._seen: StreamInfo | None = None
        self._looks = _Looks()
        self._store = Store([kind.resource for kind in kinds], {}, datetime.now(UTC), changed=self._apply)
        self.publication = StreamPublication(
            kinds, lambda key: source_of(key) in self._known, self._clock(), gone_bytes
        )

    async def run(self) -> None:
        """Publish until canceled. Raises errors of the daemon that a retry cannot fix."""
        with unwrap_single_error():
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(self._source.run(self._kinds, self._store), name="follow")
                others = [
                    tasks.create_task(self._connect(), name="connect"),
                    tasks.create_task(self._identify(), name="identify"),
                ]
                await following
                for task in others:
                    task.cancel()

    async def _identify(self) -> None:
        """Name the publisher as its daemon is named in a shard group; a name that is known stays while it cannot be
        asked for."""
        failures = 0
        while True:
            try:
                sharding = (await self._daemon.server_info()).sharding
            except Unimplemented:
                sharding = None
            except DiscoveryError as error:
                failures += 1
                log.info("the daemon's shard group cannot be asked for; retrying: %s", error)
                await asyncio.sleep(RECONNECT.delay(failures, random.random))
                continue
            failures = 0
            name = "" if sharding is None else sharding.member
            if name != self.publication.publisher:
                # For what the stream says under this name.
                self._looks = msgspec.structs.replace(self._looks, compared=set(), next_at=0.0)
            self.publication.rename(name, self._clock())
            self._changed.set()
            await asyncio.sleep(LOOK_EVERY_S)

    @property
    def _known(self) -> set[str]:
        """The sources of which all engaged clusters are known."""
        return {source for source, problem in self._source.problems.items() if not problem}

    def _apply(self, change: Change) -> None:
        if isinstance(change, ClusterChanged):
            self._removals.engaged(change.cluster.name, change.cluster.uid + change.cluster.incarnation)
        self.publication.apply(change, self._clock())
        if isinstance(change, ClusterEnded) and not self.publication.is_ending(change.cluster.name):
            self._looks.next_at = min(self._looks.next_at, self._clock() + SECOND_LOOK_S)  # others may have it by then
        self._changed.set()

    # --- the connection ---

    async def _connect(self) -> None:
        failures, reported = 0, ""
        while True:
            began = self._clock()
            try:
                await in_own_task(self._publish(was_interrupted=bool(reported)))
            except StreamLost as error:
                problem = str(error)
                if isinstance(self.publication.connection, StreamConnected):
                    reported = ""
                self.publication.disconnected(problem, self._clock())
                self._unanswered.clear()
                if problem != reported:
                    self._report(f"publishing is interrupted: {problem}; retrying")
                    reported = problem
            failures = 1 if self._clock() - began > _HEALTHY_S else failures + 1
            await asyncio.sleep(RECONNECT.delay(failures, random.random))

    async def _publish(self, *, was_interrupted: bool) -> None:
        async with open_session(self._options, "milo-objects publish") as session:
            info = await session.stream(self._new)
            if was_interrupted:
                self._report("publishing continues")
            await self._serve(session, info)

    async def _serve(self, session: NatsSession, info: StreamInfo) -> None:
        """Perform what is due until the connection is lost. Raises StreamLost."""
        seen, self._seen = self._seen, info
        is_same = (
            seen is not None
            and seen.lineage == info.lineage
            and seen.last_sequence <= info.last_sequence
            and seen.limit >= info.limit  # otherwise what was too large may be written
        )
        if not is_same:
            self._looks.compared.clear()
            self._looks.sequence = 0
        self.publication.connected(info.limit, self._clock(), is_same=is_same)
        if not is_same:
            stored, _ = await _last_messages(session, [STREAM_SUBJECTS[0], _STATES])
            self._looks.published = {*self.publication.published(stored)}
        with unwrap_single_error():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(session.lost(), name="connection")
                tasks.create_task(self._listen(session, info.last_sequence + 1), name="other publishers")
                tasks.create_task(self._beat(session), name="heartbeat")
                tasks.create_task(self._look(session), name="look for ended clusters")
                await self._work(session, tasks)

    async def _beat(self, session: NatsSession) -> None:
        last, beat_at = None, -BEAT_EVERY_S
        while True:
            heartbeat, now = self._heartbeat(), self._clock()
            if heartbeat.is_useful and (heartbeat != last or now >= beat_at + BEAT_EVERY_S):
                self._looks.own.append(await session.beat(heartbeat))
                last, beat_at = heartbeat, now
            await asyncio.sleep(min(_RETRY_S, BEAT_EVERY_S))

    async def _listen(self, session: NatsSession, first: int) -> None:
        def hear(stored: StoredMessage, _: int) -> None:
            with suppress(ValueError):
                heartbeat = Heartbeat.decode(stored)
                if heartbeat is None or not heartbeat.publisher:
                    self._looks.heard.append((stored.sequence, self._clock(), heartbeat))

        self._looks.listens_since = self._clock()
        try:
            await session.follow([PUBLISHER], first, hear, lambda: None)
        except StreamLost as error:
            session.lose(str(error))

    def _heartbeat(self) -> Heartbeat:
        publisher = self.publication.publisher
        if publisher is None:
            return Heartbeat("", {})
        problems = dict(self._source.problems)
        for source, problem in problems.items():
            if not problem and not (
                source in self._looks.compared and self.publication.is_current(source, self._clock())
            ):
                problems[source] = "what former publishers have written is not compared yet"
        return Heartbeat(publisher, problems)

    async def _work(self, session: NatsSession, tasks: asyncio.TaskGroup) -> None:
        publication = self.publication
        while True:
            commands = publication.due(self._clock())
            for command in commands:
                if isinstance(command, WriteMessage):
                    self._unanswered.append((self._clock() + CALL_TIMEOUT_S, command.ticket))
                    await session.write(command, functools.partial(self._answered, command))
                else:
                    tasks.create_task(self._perform(session, command), name=f"{command}")
            if commands:
                await asyncio.sleep(0)
                continue
            while self._unanswered and not publication.is_sent(self._unanswered[0][1]):
                self._unanswered.popleft()
            until = publication.next_at
            if self._unanswered:
                until = min(until, self._unanswered[0][0])
                if self._unanswered[0][0] <= self._clock():
                    session.lose(f"a message was not acknowledged for {CALL_TIMEOUT_S:g} s")
            await self._wait(until)

    async def _perform(self, session: NatsSession, command: ReadCluster | Purge | Relist) -> None:
        try:
            match command:
                case ReadCluster(cluster):
                    filters = [str(ClusterSubject(cluster)), ClusterSubject(cluster).contents]
                    stored, last = await _last_messages(session, filters)
                    self.publication.read(command, stored, last, self._clock())
                    if self.publication.is_displaced(cluster):  # perhaps by one of its name that has ended
                        self._looks.next_at = min(self._looks.next_at, self._clock() + SECOND_LOOK_S)
                case Purge(scope, below):
                    await session.purge(scope.objects, below)
                    self.publication.purged(command, self._clock())
                case Relist(subject):
                    for followed in self._store.scopes(subject.cluster):
                        if self.publication.is_subject(followed, subject):
                            await self._source.relist(followed)
                            self.publication.relisted(command, self._clock())
        except StreamLost as error:
            session.lose(str(error))
        except Exception as error:  # it is of one cluster, and must not end or delay the others
            log.exception("%s failed; the messages of the cluster are read again", type(command).__name__)
            if isinstance(command, Relist):
                self.publication.relists_lost(self._clock())
            else:
                self.publication.failed(command, repr(error), self._clock())
        self._changed.set()

    async def _wait(self, until: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(until - self._clock(), 3600.0))):
                await self._changed.wait()
        self._changed.clear()

    def _answered(self, command: WriteMessage, result: int | Exception) -> None:
        publication, now = self.publication, self._clock()
        match result:
            case WriteConflict():
                publication.conflicted(command, now)
            case StreamFull():
                if isinstance(command.message, ClusterMessage) and command.message.ended:
                    self._report(f"the end of {command.message.cluster.name} is not published yet: {result}")
                publication.full(command, str(result), now)
            case int():
                publication.written(command, result, now)
                if self._seen is not None and result > self._seen.last_sequence:
                    self._seen = StreamInfo(self._seen.lineage, result, self._seen.limit)
        self._changed.set()

    # --- clusters that ended while nobody published them ---

    async def _look(self, session: NatsSession) -> None:
        looked: set[str] = set()
        self._looks.next_at = self._clock()
        while True:
            known = self._known
            if known and (self._clock() >= self._looks.next_at or not known <= looked):
                wait_s, looked, self._looks.next_at = SECOND_LOOK_S, known, math.inf
                try:
                    wait_s = await self._end_orphans(session, known)
                except StreamLost as error:
                    session.lose(str(error))
                except DiscoveryError as error:
                    log.info("ended clusters cannot be looked for; retrying: %s", error)
                self._looks.next_at = min(self._looks.next_at, self._clock() + wait_s)
            await asyncio.sleep(_RETRY_S)

    async def _end_orphans(self, session: NatsSession, known_sources: set[str]) -> float:
        """End the clusters of the stream that the daemon confirms to have disengaged, and mark what this publisher has
        said of those that others may follow, or whose ends are held. Returns when to look again."""
        looks = self._looks
        stored, last = await _last_messages(session, [STREAM_SUBJECTS[0], _STATES])
        for purge in self.publication.review(stored, last, self._clock()):
            await session.purge(purge.scope.objects, purge.below)
        if not self._removals.accepts:
            for key in self.publication.ended_orphans(stored, looks.sequence):
                self._removals.removed_by_another(key, self._clock())
        looks.sequence = last
        orphans = self.publication.orphans(stored)
        verdicts = await self._judge(orphans, known_sources) if orphans else {}
        # They tell a cluster that another publisher has written again from one that is not ended yet.
        sequences = {subject.cluster: it for subject, (_, it) in stored.items() if isinstance(subject, ClusterSubject)}
        missing = {
            Removal(key, key, cluster.uid + cluster.incarnation, f"{sequences.get(key)}"): cluster
            for key, cluster in orphans.items()
            if verdicts[key] is _Orphan.MISSING
        }
        is_lacking = not {_Orphan.UNKNOWN, _Orphan.MISSING}.isdisjoint(verdicts.values())
        self._removals.note_lacking(is_lacking)
        published = self.publication.engaged | orphans.keys()
        for key in published - (published if looks.published is None else looks.published):
            self._removals.created(key)
        looks.published = published if is_lacking else None
        others = [key for key, verdict in verdicts.items() if verdict in {_Orphan.UNKNOWN, _Orphan.ELSEWHERE}]
        are_all_known, was_problem = len(missing) == len(orphans), self._removals.problem
        for removal in self._removals.review(
            missing, published, self._clock(), others=others, are_all_known=are_all_known
        ):
            self.publication.end_orphan(missing[removal], self._clock())
        if self._removals.problem != was_problem:
            self._report(self._removals.problem or "removals are no longer held")
        unfollowed = {_Orphan.UNASSIGNED, _Orphan.ELSEWHERE}
        if self._removals.problem and not self._removals.is_foreign:
            unfollowed.add(_Orphan.MISSING)
        open_sources = {
            source_of(key) for key in orphans if verdicts[key] in {_Orphan.UNKNOWN, _Orphan.MISSING} - unfollowed
        }
        is_followed = False
        for write in self.publication.disown(stored, {key for key in orphans if verdicts[key] in unfollowed}):
            assert isinstance(write.message, ScopeMessage)
            key = write.message.cluster.name
            if verdicts[key] is _Orphan.MISSING:
                open_sources.add(source_of(key))  # until the stream says that nobody follows it
            if looks.may_be_followed(write.message, self._clock()):
                is_followed = True
            else:
                await session.write(write, lambda _: None)
        looks.compared = known_sources - open_sources
        self._changed.set()
        return SECOND_LOOK_S if missing or is_followed or open_sources & known_sources else LOOK_EVERY_S

    async def _judge(self, orphans: Mapping[str, FleetCluster], known_sources: set[str]) -> dict[str, _Orphan]:
        """Return what the daemon says of each. Raises DiscoveryError if perhaps none can be looked up at present."""
        listing = await self._daemon.list()
        streaming = {source.name for source in listing.sources if source.state is SourceState.STREAMING}
        if not listing.sources and listing.source.state is SourceState.STREAMING:
            streaming.add("")
        verdicts = dict.fromkeys(orphans, _Orphan.UNKNOWN)
        asked = [key for key in orphans if source_of(key) in streaming & known_sources]
        for first in range(0, len(asked), _LOOKUPS):
            keys = asked[first : first + _LOOKUPS]
            found = await asyncio.gather(*(self._look_up(key, orphans[key].uid) for key in keys))
            verdicts.update(zip(keys, found, strict=True))
        return verdicts

    async def _look_up(self, key: str, uid: str) -> _Orphan:
        """Return what the daemon says of a cluster. One that cannot be looked up delays no other."""
        try:
            report = await self._daemon.get(key)
        except ClusterNotFound as error:
            return _Orphan.ELSEWHERE if error.assigned_elsewhere else _Orphan.MISSING
        except StatusError as error:
            if isinstance(error, Unavailable) or error.retry_after is not None:
                raise
            log.warning("cluster %s cannot be looked up, and stays published: %s", key, error)
            return _Orphan.ELSEWHERE
        found, cluster = report.engagement, report.cluster
        if found.engaged:
            return _Orphan.MISSING if cluster is not None and uid not in ("", cluster.uid) else _Orphan.ENGAGED
        if found.reason is EngagementReason.UNASSIGNED:
            return _Orphan.UNASSIGNED
        return _Orphan.ELSEWHERE if found.assigned_elsewhere else _Orphan.MISSING


async def _last_messages(session: NatsSession, filters: Sequence[str]) -> tuple[Stored, int]:
    """Return what the stream has, as `NatsSession.last_messages` does. Raises StreamLost."""
    messages, last = await session.last_messages(filters)
    stored: dict[Subject, tuple[Message | None, int]] = {}
    for first in range(0, len(messages), _AT_ONCE):
        stored.update(decoded(messages[first : first + _AT_ONCE]))
        await asyncio.sleep(0)  # there can be hundreds of thousands
    return stored, last
