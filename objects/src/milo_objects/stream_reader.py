"""What the messages of the stream mean for a store: snapshots, resumption, and the ends of scopes. Pure.

The stream has the last message of each subject, so that reading from a sequence gives each subject's present state that
is newer. A reader that was away for longer than messages of ends live, or whose stream is another one by now, reads all
of them, and then removes what it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec
from msgspec.structs import replace

from milo_objects.kinds import Kind
from milo_objects.messages import ObjectMessage, ScopeIsOver, ScopeMessage, StoredMessage, decode
from milo_objects.publication_records import GONE_TTL_S
from milo_objects.scope import (
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    Gone,
    ObjectChanged,
    ObjectGone,
    ObjectStore,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    ScopeState,
    Stale,
    Synced,
)
from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject

RESUMABLE_S: Final = GONE_TTL_S - 300.0
"""How long a reader can be away and resume."""


class StreamPosition(msgspec.Struct, frozen=True):
    """How far a stream was read."""

    lineage: str
    """Which stream it is, and since when it certainly has lost nothing."""
    sequence: int
    at: float
    """When the server was last heard, in seconds of the wall clock."""


class _Scope:
    """A scope as the reader knows it."""

    __slots__ = ("buffered", "epoch", "scope", "seen", "state")

    def __init__(self) -> None:
        self.epoch: int | None = -1
        """Messages of objects with a lower one are ignored. None if the stream is another one by now."""
        self.scope: Scope | None = None
        """What the store calls it; None if it has not begun, or has ended."""
        self.state: ScopeState | None = None
        """The state that the store gets once the reader has caught up."""
        self.buffered: list[tuple[ObjectSubject, ObjectMessage]] = []
        """Objects of a scope whose own message comes later."""
        self.seen: set[ObjectSubject] = set()
        """The objects that a snapshot has contained."""


class StreamReader:
    """Turns messages of the stream into changes of a store."""

    def __init__(self, kinds: Iterable[Kind], store: ObjectStore) -> None:
        self.position: StreamPosition | None = None
        self._resources = {(kind.paths.group, kind.paths.plural): kind.resource for kind in kinds}
        self._store = store
        self._scopes: dict[ScopeSubject, _Scope] = {}
        self._clusters: dict[str, FleetCluster] = {}
        """The clusters as the store has them, under the incarnation that was theirs when they were first seen."""
        self._is_snapshot = False
        self._is_behind = True

    # --- the connection ---

    def attach(self, lineage: str, last_sequence: int, now: float) -> int:
        """Begin to read a stream. Returns the sequence from which on to read."""
        before, self._is_behind = self.position, True
        is_same = before is not None and before.lineage == lineage and before.sequence <= last_sequence
        is_recent = before is not None and 0 <= now - before.at <= RESUMABLE_S
        self._is_snapshot = self._is_snapshot or not is_same or not is_recent  # one that was cut off begins again
        for scope in self._scopes.values():
            scope.seen.clear()
            scope.buffered.clear()
            scope.state = None
            if not is_same:
                scope.epoch = None
        if before is not None and not self._is_snapshot:
            return before.sequence + 1
        self.position = StreamPosition(lineage, 0, now)
        return 1

    def heard(self, now: float) -> None:
        """The server is there, and has nothing that was not received."""
        if self.position is not None:
            self.position = replace(self.position, at=now)

    def detach(self, problem: str, now: datetime) -> None:
        """The server cannot be reached. What is known stays."""
        self._store.apply(FleetChanged(Stale(now, problem)))

    # --- messages ---

    def receive(self, stored: StoredMessage, now: float) -> None:
        """Apply a message. Raises ValueError for one that is not of milo-objects; the next ones can be applied."""
        assert self.position is not None
        self.position = StreamPosition(self.position.lineage, stored.sequence, now)
        subject, message = decode(stored)
        if isinstance(subject, ClusterSubject):
            return
        scope_subject = subject.scope if isinstance(subject, ObjectSubject) else subject
        if (scope_subject.group, scope_subject.resource) not in self._resources:
            return
        scope = self._scopes.setdefault(scope_subject, _Scope())
        if isinstance(subject, ObjectSubject) and isinstance(message, ObjectMessage):
            self._receive_object(scope, subject, message)
        elif isinstance(message, ScopeMessage):
            self._receive_scope(scope_subject, scope, message)

    def caught_up(self, now: datetime) -> None:
        """All messages that the stream had when the reader attached were received."""
        if not self._is_behind:
            return
        if self._is_snapshot:
            self._sweep()
        self._is_behind = self._is_snapshot = False
        for scope in self._scopes.values():
            scope.seen.clear()
            scope.buffered.clear()
            if scope.scope is not None and scope.state is not None:
                self._store.apply(ScopeChanged(scope.scope, scope.state))
            scope.state = None
        self._store.apply(FleetChanged(Synced(now)))

    def _receive_object(self, scope: _Scope, subject: ObjectSubject, message: ObjectMessage) -> None:
        if scope.scope is not None and message.epoch == scope.epoch:
            self._apply(scope, scope.scope, subject, message)
        elif scope.epoch is None or message.epoch > scope.epoch:
            scope.buffered.append((subject, message))

    def _apply(self, scope: _Scope, known: Scope, subject: ObjectSubject, message: ObjectMessage) -> None:
        if not message.gone:
            if self._is_snapshot:
                scope.seen.add(subject)
            self._store.apply(ObjectChanged(known, message.object))
            return
        scope.seen.discard(subject)
        held = self._store.objects(known).get((subject.namespace, subject.name))
        if held is not None:  # perhaps with another UID than the one that is gone
            self._store.apply(ObjectGone(known, held, _reason(message.gone)))

    def _receive_scope(self, subject: ScopeSubject, scope: _Scope, message: ScopeMessage) -> None:
        if scope.epoch is not None and message.epoch < scope.epoch:
            return
        if isinstance(message.state, ScopeIsOver):
            self._end(subject, scope, message.state.reason)
            scope.epoch = message.epoch
            scope.buffered.clear()
            return
        cluster = self._clusters.get(subject.cluster)
        if cluster is not None and cluster.uid != message.cluster.uid:
            self._end_cluster(cluster, "REPLACED")
            cluster = None
        elif scope.scope is not None and scope.epoch is not None and message.epoch > scope.epoch:
            self._end(subject, scope, Gone.WITHDRAWN.value)
        incarnation = message.cluster.incarnation if cluster is None else cluster.incarnation
        cluster = self._clusters[subject.cluster] = replace(message.cluster, incarnation=incarnation)
        self._store.apply(ClusterChanged(cluster))
        scope.epoch = message.epoch
        if scope.scope is None:
            resource = self._resources[subject.group, subject.resource]
            scope.scope = Scope(cluster.name, incarnation, resource)
            self._store.apply(ScopeChanged(scope.scope, Pending(message.state.since)))
        for place, found in scope.buffered:
            if found.epoch == message.epoch:
                self._apply(scope, scope.scope, place, found)
        scope.buffered.clear()
        if self._is_behind:
            scope.state = message.state
        else:
            self._store.apply(ScopeChanged(scope.scope, message.state))

    # --- ends ---

    def _end(self, subject: ScopeSubject, scope: _Scope, reason: str) -> None:
        if scope.scope is None:
            return
        if reason == Gone.WITHDRAWN.value:
            self._store.apply(ScopeEnded(scope.scope, ScopeEnd.WITHDRAWN))
            scope.scope = scope.state = None
        elif subject.cluster in self._clusters:
            self._end_cluster(self._clusters[subject.cluster], reason)

    def _end_cluster(self, cluster: FleetCluster, reason: str) -> None:
        self._store.apply(ClusterEnded(cluster, reason))
        del self._clusters[cluster.name]
        for subject, scope in self._scopes.items():
            if subject.cluster == cluster.name:
                scope.scope = scope.state = None

    def _sweep(self) -> None:
        """End and remove what the snapshot did not have."""
        for cluster in [*self._clusters.values()]:
            scopes = [scope for subject, scope in self._scopes.items() if subject.cluster == cluster.name]
            if not any(scope.state is not None for scope in scopes):
                self._end_cluster(cluster, "UNSPECIFIED")
        for subject, scope in [*self._scopes.items()]:
            if scope.scope is None:
                continue
            if scope.state is None:
                self._end(subject, scope, Gone.WITHDRAWN.value)
                continue
            seen = {(place.namespace, place.name) for place in scope.seen}
            for place, held in [*self._store.objects(scope.scope).items()]:
                if place not in seen:
                    self._store.apply(ObjectGone(scope.scope, held, Gone.MISSING))
        self._scopes = {subject: scope for subject, scope in self._scopes.items() if scope.scope is not None}


def _reason(text: str) -> Gone:
    """Return why an object is gone. A newer publisher may know a reason that this reader does not."""
    try:
        return Gone(text)
    except ValueError:
        return Gone.MISSING
