"""The publication of all clusters: what is to be done next, within limits. No I/O; time is an argument.

Changes of the source and answers of the stream change the cluster that they are about, and no other.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeAlias

import msgspec

from milo_kube.cache_budget import CacheBudget, CacheLimits
from milo_kube.tenants import Tenant, TenantTurns
from milo_objects.cluster_publication import ClusterPublication, ReadingStream, WritingStream
from milo_objects.kinds import Kind
from milo_objects.messages import ClusterMessage, ScopeIsOver, ScopeMessage, Stored
from milo_objects.scope import (
    Change,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    Gone,
    ObjectChanged,
    ObjectGone,
    Scope,
    ScopeChanged,
    ScopeEnded,
)
from milo_objects.scope_publication import disowned
from milo_objects.stream_commands import Command, Purge, ReadCluster, Relist, WriteMessage
from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject, Subject, source_of

MOST_WRITES: Final = 512
"""Maximum number of writes, and of purges, without an acknowledgment."""
MOST_BYTES: Final = 16 << 20
"""Maximum bytes of the bodies of these writes, unless it is one: beside each, its object may have changed."""
MOST_READS: Final = 8


class StreamConnected(msgspec.Struct, frozen=True):
    """The stream is usable."""

    limit: int
    """Maximum bytes of a message."""


class StreamAway(msgspec.Struct, frozen=True):
    """NATS cannot be reached, or its stream cannot be used. What changes is kept: the last value of each subject."""

    since: float
    problem: str


Connection: TypeAlias = StreamConnected | StreamAway


class _ReadySubjects:
    """What is to be written. Tenants take turns, and so do the clusters of each: one in which much changes delays no
    other."""

    def __init__(self, tenant: Callable[[str], Tenant]) -> None:
        """`tenant` returns that of a cluster, which may change."""
        self._turns = TenantTurns(tenant)
        self._subjects: dict[str, deque[Subject]] = {}
        """By cluster."""

    def __bool__(self) -> bool:
        return bool(self._subjects)

    def add(self, subject: Subject) -> None:
        key = _cluster_of(subject)
        self._subjects.setdefault(key, deque()).append(subject)
        self._turns.add(key)

    def pop(self) -> Subject:
        """Remove the next one, of which there is one."""
        while (waiting := self._subjects.get(key := self._turns.pop())) is None:
            pass  # it had its turns as a cluster of another tenant, too
        subject = waiting.popleft()
        if waiting:
            self._turns.add(key)
        else:
            del self._subjects[key]
        return subject


class StreamPublication:
    """The clusters of one publisher."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        is_followed: Callable[[str], bool],
        now: float,
        gone_bytes: int = CacheLimits().total_bytes // 2,
    ) -> None:
        """`is_followed`: whether the source of a cluster is streaming, so that its view is of the present.
        `gone_bytes`: maximum bytes of the records of gone objects."""
        self.connection: Connection = StreamAway(now, "not connected yet")
        self.clusters: dict[str, ClusterPublication] = {}
        self.publisher: str | None = None
        self._left_by_others: dict[str, set[str]] = {}
        """The clusters whose messages in the stream were not compared with the source yet, by the name of each source
        of which all engaged clusters were known."""
        self.stored: Counter[str] = Counter()
        """Messages that were stored, by what they are about."""
        self.rejected: Counter[str] = Counter()
        """Writes that the stream did not take, by cause."""
        self._plurals = plurals = {kind.resource: (kind.paths.group, kind.paths.plural) for kind in kinds}
        budget = CacheBudget(CacheLimits(total_bytes=gone_bytes))
        self._new: Callable[[str], ClusterPublication] = lambda key: ClusterPublication(
            key, plurals.values(), self, is_followed, budget
        )
        self._ready = _ReadySubjects(self._tenant)
        self._to_read = TenantTurns[str](self._tenant)
        self._wakes: list[tuple[float, int, Subject]] = []
        self._number = 0
        self._sent: dict[int, ReadCluster | WriteMessage | Purge] = {}
        self._sent_bytes = 0

    # --- the source ---

    def apply(self, change: Change, now: float) -> None:
        """Apply a change of the source."""
        match change:
            case ObjectChanged(scope, found):
                self._cluster(scope.cluster).object_changed(self._object(scope, *found.place), found, now)
            case ObjectGone(scope, found, reason):
                subject = self._object(scope, *found.place)
                self._cluster(scope.cluster).object_changed(subject, found, now, reason.value)
            case ScopeChanged(scope, state):
                self._cluster(scope.cluster).scope_changed(self._scope(scope), state, now)
            case ScopeEnded(scope):
                self._cluster(scope.cluster).scope_ended(self._scope(scope), now)
            case ClusterChanged(cluster):
                self._cluster(cluster.name).engage(cluster, now)
            case ClusterEnded(cluster, reason):
                self._cluster(cluster.name).end(reason, now)
                self._forget(cluster.name)
            case FleetChanged():
                pass

    @property
    def engaged(self) -> set[str]:
        """The keys of the engaged clusters."""
        return {key for key, cluster in self.clusters.items() if cluster.is_engaged}

    def published(self, stored: Stored) -> dict[str, FleetCluster]:
        """Return the clusters of the stream that have not ended there, by key.

        `stored`: the messages of all clusters and scopes.
        """
        found: dict[str, FleetCluster] = {}
        for subject, (message, _) in stored.items():
            match message:
                case ClusterMessage(cluster, ""):
                    found[_cluster_of(subject)] = cluster
                case ScopeMessage(cluster, state) if not isinstance(state, ScopeIsOver) or (
                    not message.ends_cluster and self._is_declared(subject)
                ):
                    found.setdefault(_cluster_of(subject), cluster)
        return found

    def orphans(self, stored: Stored) -> dict[str, FleetCluster]:
        """Return those that are not engaged here: at most another cluster of the name is. Another publisher may have
        such a cluster."""
        return {
            key: cluster
            for key, cluster in self.published(stored).items()
            if key not in self.clusters or self.clusters[key].is_other(cluster)
        }

    def ended_orphans(self, stored: Stored, since: int) -> list[str]:
        """Return the keys of the clusters that ended as missing after a sequence of the stream, perhaps by a former
        publisher or another member of the shard group."""
        return [
            subject.cluster
            for subject, (message, sequence) in stored.items()
            if isinstance(subject, ClusterSubject)
            and isinstance(message, ClusterMessage)
            and message.ended == Gone.MISSING.value
            and sequence > since
            and subject.cluster not in self.clusters
        ]

    def review(self, stored: Stored, last_sequence: int, now: float) -> list[Purge]:
        """Read again the clusters of which, or of a scope, another publisher has written, or which the stream has lost.
        `stored`: the messages of all clusters and scopes. `last_sequence`: that of the stream before they were read.

        Returns the purges that follow the ends of scopes: a publisher may have been killed before its own, and a write
        may have been stored late.
        """
        purges: list[Purge] = []
        for subject, (message, sequence) in stored.items():
            if isinstance(subject, ObjectSubject) or message is None:
                continue
            is_over = isinstance(message, ScopeMessage) and isinstance(message.state, ScopeIsOver)
            if isinstance(subject, ScopeSubject) and is_over:
                purges.append(Purge(subject, max(sequence, last_sequence + 1), 0))
            elif (found := self.clusters.get(subject.cluster)) and not found.publishes(subject, sequence):
                found.reread(now)
        for cluster in self.clusters.values():
            if cluster.is_lost(stored, last_sequence):
                cluster.reread(now)
        return purges

    def end_orphan(self, cluster: FleetCluster, now: float) -> None:
        """Publish the end of a cluster that went while nobody published it."""
        self._cluster(cluster.name).end_orphan(cluster, now)

    def is_displaced(self, key: str) -> bool:
        """Return whether another publisher has an engaged cluster, or one of its name."""
        return key in self.clusters and self.clusters[key].is_displaced

    def is_ending(self, key: str) -> bool:
        """Return whether the end of a cluster is to be published."""
        return key in self.clusters and self.clusters[key].is_ending

    def disown(self, stored: Stored, keys: Collection[str]) -> list[WriteMessage]:
        """Return the writes that mark as STALE what the stream has of clusters that this publisher does not follow, and
        readers believe because it runs. They need not be answered."""
        others, writes = self.orphans(stored).keys() & keys, list[WriteMessage]()
        for subject, (message, sequence) in stored.items():
            if isinstance(subject, ScopeSubject) and isinstance(message, ScopeMessage) and subject.cluster in others:
                found = disowned(message, self.publisher)
                if found is not None:
                    writes.append(WriteMessage(subject, found, found.encode(), sequence, None, self.ticket()))
        return writes

    def rename(self, publisher: str, now: float) -> None:
        if self.publisher != publisher:
            self.publisher = publisher
            for cluster in self.clusters.values():
                cluster.renamed(now)

    def is_current(self, source: str, now: float) -> bool:
        """Return whether readers may believe the stream about the clusters of a source, which are all known: what
        former publishers have left of them was compared with the source, or is marked as STALE."""
        if source not in self._left_by_others:
            self._left_by_others[source] = {key for key in self.clusters if source_of(key) == source}
        left = self._left_by_others[source] = {
            key
            for key in self._left_by_others[source]
            if key in self.clusters and not self.clusters[key].is_taken_over(now)
        }
        return not left

    # --- the connection ---

    def connected(self, limit: int, now: float, *, is_same: bool) -> None:
        """The stream is usable. `is_same`: whether it certainly has lost nothing since the last connection."""
        self.connection = StreamConnected(limit)
        if not is_same:
            self._left_by_others.clear()
        for cluster in self.clusters.values():
            if not is_same:
                cluster.reread(now)
            elif isinstance(cluster.phase, ReadingStream):
                self.wake(cluster.record.subject, cluster.phase.at)

    def disconnected(self, problem: str, now: float) -> None:
        """NATS cannot be reached. The outcome of what was sent is unknown."""
        if isinstance(self.connection, StreamConnected):
            self.connection = StreamAway(now, problem)
        else:
            self.connection = StreamAway(self.connection.since, problem)
        for command in [*self._sent.values()]:
            self.failed(command, problem, now)
        self.relists_lost(now)

    # --- what is due ---

    def due(self, now: float) -> list[Command]:
        """Return what to do now. Each but a Relist is answered."""
        commands: list[Command] = []
        while self._wakes and self._wakes[0][0] <= now:
            _, _, subject = heapq.heappop(self._wakes)
            cluster = self.clusters.get(_cluster_of(subject))
            if cluster is not None and (relist := cluster.wake(subject, now)) is not None:
                commands.append(relist)
        if not isinstance(self.connection, StreamConnected):
            return commands
        while self._ready and len(self._sent) < MOST_WRITES and self._sent_bytes < MOST_BYTES:
            subject = self._ready.pop()
            cluster = self.clusters.get(_cluster_of(subject))
            if cluster is not None and isinstance(cluster.phase, ReadingStream):
                self._to_read.add(cluster.key)
            elif cluster is not None:
                self._take(cluster, subject, self.connection.limit, now, commands)
        reads = sum(isinstance(command, ReadCluster) for command in self._sent.values()) if self._to_read else 0
        while self._to_read and reads < MOST_READS:
            cluster, others = self.clusters.get(self._to_read.pop()), len(commands)
            if cluster is not None:
                self._take(cluster, cluster.record.subject, self.connection.limit, now, commands)
                reads += len(commands) - others
        return commands

    def _take(
        self, cluster: ClusterPublication, subject: Subject, limit: int, now: float, commands: list[Command]
    ) -> None:
        command = cluster.take(subject, now, limit)
        if command is not None:
            self._sent[command.ticket] = command
            self._sent_bytes += _bytes(command)
            commands.append(command)

    @property
    def next_at(self) -> float:
        """When `due` may return something, if nothing happens before."""
        return self._wakes[0][0] if self._wakes else math.inf

    def is_sent(self, ticket: int) -> bool:
        """Return whether a write waits for its acknowledgment."""
        return ticket in self._sent

    def is_subject(self, scope: Scope, subject: ScopeSubject) -> bool:
        """Return whether a subject is that of a scope of the source."""
        return self._scope(scope) == subject

    # --- answers ---

    def read(self, command: ReadCluster, stored: Stored, last_sequence: int, now: float) -> None:
        self._answer(command, lambda cluster: cluster.read(command.ticket, stored, last_sequence, now))

    def written(self, command: WriteMessage, sequence: int, now: float) -> None:
        if self._answer(command, lambda cluster: cluster.written(command, sequence, now)):
            self.stored[type(command.message).__name__.removesuffix("Message").lower()] += 1

    def conflicted(self, command: WriteMessage, now: float) -> None:
        """The subject's last message has another sequence than expected."""
        if self._answer(command, lambda cluster: cluster.conflicted(command, now)):
            self.rejected["conflict"] += 1

    def full(self, command: WriteMessage, problem: str, now: float) -> None:
        if self._answer(command, lambda cluster: cluster.rejected(command, problem, now)):
            self.rejected["full"] += 1

    def purged(self, command: Purge, now: float) -> None:
        self._answer(command, lambda cluster: cluster.purged(command, now))

    def failed(self, command: ReadCluster | WriteMessage | Purge, problem: str, now: float) -> None:
        """Whether a command has had its effect is not known."""
        match command:
            case ReadCluster():
                self._answer(command, lambda cluster: cluster.failed_to_read(command.ticket, problem, now))
            case WriteMessage():
                if self._answer(command, lambda cluster: cluster.lost(command, now)):
                    self.rejected["unanswered"] += 1
            case Purge():
                self._answer(command, lambda cluster: cluster.purge_lost(command, now))

    def relisted(self, command: Relist, now: float) -> None:
        if command.scope.cluster in self.clusters:
            self.clusters[command.scope.cluster].relisted(command.scope, now)

    def relists_lost(self, now: float) -> None:
        """Lists that were asked for may not have been reported."""
        for cluster in self.clusters.values():
            cluster.relist_lost(now)

    # --- figures ---

    @property
    def is_settled(self) -> bool:
        """Whether all that is known is in the stream."""
        return not (self._sent or self._ready) and all(
            isinstance(cluster.phase, WritingStream) and not cluster.record.is_pending and not scope.pending
            for cluster in self.clusters.values()
            for scope in cluster.scopes.values()
        )

    @property
    def pending(self) -> int:
        """Objects whose last change is not stored yet."""
        return sum(len(scope.pending) for cluster in self.clusters.values() for scope in cluster.scopes.values())

    @property
    def refused(self) -> int:
        """Objects that the stream does not take."""
        return sum(len(scope.refused) for cluster in self.clusters.values() for scope in cluster.scopes.values())

    def states(self) -> Counter[str]:
        """Return the number of published scopes by state."""
        return Counter(
            str(scope.published.state.__struct_config__.tag)
            for cluster in self.clusters.values()
            for scope in cluster.scopes.values()
            if isinstance(scope.published, ScopeMessage)
        )

    # --- for the clusters ---

    def ready(self, subject: Subject) -> None:
        self._ready.add(subject)

    def wake(self, subject: Subject, at: float) -> None:
        self._number += 1
        heapq.heappush(self._wakes, (at, self._number, subject))

    def ticket(self) -> int:
        self._number += 1
        return self._number

    # --- helpers ---

    def _tenant(self, key: str) -> Tenant:
        return self.clusters[key].tenant if key in self.clusters else (key,)

    def _answer(
        self, command: ReadCluster | WriteMessage | Purge, answered: Callable[[ClusterPublication], None]
    ) -> bool:
        """Answer a command to its cluster, which may have ended since. Returns whether it was not answered before."""
        if self._sent.pop(command.ticket, None) is None:
            return False
        self._sent_bytes -= _bytes(command)
        if isinstance(command, ReadCluster):
            key = command.cluster
        else:
            key = _cluster_of(command.scope if isinstance(command, Purge) else command.subject)
        cluster = self.clusters.get(key)
        if cluster is None:
            return False
        answered(cluster)
        self._forget(key)
        return True

    def _cluster(self, key: str) -> ClusterPublication:
        if key not in self.clusters:
            self.clusters[key] = self._new(key)
        return self.clusters[key]

    def _forget(self, key: str) -> None:
        cluster = self.clusters.get(key)
        if cluster is not None and cluster.is_finished:
            cluster.clear()
            del self.clusters[key]

    def _scope(self, scope: Scope) -> ScopeSubject:
        return ScopeSubject(scope.cluster, *self._plurals[scope.resource])

    def _is_declared(self, subject: Subject) -> bool:
        return isinstance(subject, ScopeSubject) and (subject.group, subject.resource) in self._plurals.values()

    def _object(self, scope: Scope, namespace: str, name: str) -> ObjectSubject:
        return ObjectSubject(self._scope(scope), namespace, name)


def _bytes(command: ReadCluster | WriteMessage | Purge) -> int:
    return len(command.encoded.body) if isinstance(command, WriteMessage) else 0


def _cluster_of(subject: Subject) -> str:
    return subject.scope.cluster if isinstance(subject, ObjectSubject) else subject.cluster
