"""What the messages of the stream mean for a store: snapshots, resumption, and the ends of scopes. Pure.

The stream has the last message of each subject, so that reading from a sequence gives each subject's present state that
is newer. A reader that was away for longer than messages of ends live, reads all of them, and then removes what it has
not seen. A stream that is another one by now may lack what its publisher has yet to write again: objects that it lacks
are removed when their scope is SYNCED there, and clusters when publishers have written no more of them for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec.structs import replace

from milo_objects.kinds import Kind
from milo_objects.messages import ObjectMessage, ScopeIsOver, ScopeMessage, StoredMessage
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
from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject, parse

RESUMABLE_S: Final = GONE_TTL_S - 300.0
"""How long a reader can be away and resume."""
REWRITTEN_S: Final = 300.0
"""How long clusters that another stream lacks are kept after a publisher has last written one of them. Publishers write
a lost stream again within seconds, and nothing ends before the first of them has begun to."""


SETTLED_S: Final = 1.0
"""How long after it has read all, a reader that removes what it has not seen waits: a message that was written again
while it read is delivered once more, and may not have been counted yet."""
SILENT_S: Final = 30.0
"""How long publishers may not be heard. Each of them writes every 10 s."""


class StreamPosition(msgspec.Struct, frozen=True):
    """How far a stream was read."""

    lineage: str
    """Which stream it is, and since when it certainly has lost nothing."""
    sequence: int
    at: float
    """When all messages that the stream then had were received, in seconds of the wall clock."""


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
        """Objects of a scope whose own message comes later: perhaps after all others, if it was written again."""
        self.seen: set[ObjectSubject] | None = None
        """The objects that the stream has shown since it is read from the beginning; None if it has shown all."""

    def drop(self) -> None:
        """Forget what has ended."""
        self.scope = self.state = self.seen = None


class _Publishers:
    """When a publisher was last heard."""

    __slots__ = ("_listens_since", "are_silent", "heard_at")

    def __init__(self) -> None:
        self.are_silent = False
        self.heard_at = 0.0
        """Before one was heard, when the stream was first read."""
        self._listens_since = 0.0
        """Since when one that runs would have been heard; 0 if the stream has said when it last was."""

    def listen(self, now: float) -> None:
        """A connection begins."""
        self._listens_since = now
        self.heard_at = self.heard_at or now

    def hear(self, at: float) -> None:
        self.heard_at, self._listens_since = at, 0.0

    def has_changed(self, now: float) -> bool:
        """Return whether they are silent now and were not before, or the other way round."""
        were_silent = self.are_silent
        # The clock may have been set back.
        self.heard_at, self._listens_since = min(self.heard_at, now), min(self._listens_since, now)
        self.are_silent = now - max(self.heard_at, self._listens_since) > SILENT_S
        return were_silent != self.are_silent


class StreamReader:
    """Turns messages of the stream into changes of a store. Raises ValueError for two versions of a kind."""

    def __init__(self, kinds: Iterable[Kind], store: ObjectStore) -> None:
        self.position: StreamPosition | None = None
        self._kinds: dict[tuple[str, str], Kind] = {}
        for kind in kinds:
            other = self._kinds.setdefault((kind.paths.group, kind.paths.plural), kind)
            if other is not kind:
                raise ValueError(f"{other.resource} and {kind.resource}: the stream has one version of a kind")
        self._store = store
        self._scopes: dict[ScopeSubject, _Scope] = {}
        self._clusters: dict[str, FleetCluster] = {}
        """The clusters as the store has them, under the incarnation that was theirs when they were first seen."""
        self._is_snapshot = False
        self._is_behind = True
        self._read_at: float | None = None
        """When all messages of a snapshot were first received."""
        self._is_other_stream = False
        """Whether something is known from another stream, and is not proven to be gone by what this one lacks."""
        self._is_fleet_known = False
        self._missing: set[ScopeSubject] = set()
        """The scopes that are known, and that another stream has not shown."""
        self._missing_since = 0.0
        self._rewritten_at = 0.0
        self._publishers = _Publishers()

    # --- the connection ---

    def attach(self, lineage: str, last_sequence: int, now: float) -> int:
        """Begin to read a stream. Returns the sequence from which on to read."""
        before, self._is_behind, self._read_at = self.position, True, None
        is_same = before is not None and before.lineage == lineage and before.sequence <= last_sequence
        is_recent = before is not None and 0 <= now - before.at <= RESUMABLE_S
        self._is_snapshot = self._is_snapshot or not is_same or not is_recent  # one that was cut off begins again
        is_unproven = bool(self._missing) or any(scope.seen is not None for scope in self._scopes.values())
        self._is_other_stream = not is_same or (self._is_other_stream and is_unproven)
        for scope in self._scopes.values():
            if self._is_snapshot:
                scope.seen = set() if scope.scope is not None else None
                scope.buffered.clear()
            scope.state = None
            if not is_same:
                scope.epoch = None
        self._publishers.listen(now)
        if before is not None and not self._is_snapshot:
            return before.sequence + 1
        self.position = StreamPosition(lineage, 0, now if before is None else before.at)
        return 1

    def detach(self, problem: str) -> None:
        """The server cannot be reached. What is known stays."""
        if self.position is not None and self._is_fleet_known:
            self._stale(self.position.at, problem)

    # --- messages ---

    def heard(self, at: float, now: float) -> None:
        """A publisher ran at a time, which is the last one that the stream knows."""
        self._publishers.hear(at)
        self._note_silence(now)

    def _note_silence(self, now: float) -> None:
        if self._publishers.has_changed(now) and not self._is_behind:
            self._report_fleet(now)

    def receive(self, stored: StoredMessage, now: float) -> None:
        """Apply a message. Raises ValueError for one that is not of milo-objects; the next ones can be applied."""
        assert self.position is not None
        self.position = replace(self.position, sequence=stored.sequence)
        subject = parse(stored.subject)
        if isinstance(subject, ClusterSubject):
            return
        scope_subject = subject.scope if isinstance(subject, ObjectSubject) else subject
        kind = self._kinds.get((scope_subject.group, scope_subject.resource))
        if kind is None:
            return
        scope = self._scopes.setdefault(scope_subject, _Scope())
        if isinstance(subject, ObjectSubject):
            self._receive_object(scope, subject, ObjectMessage.decode_kept(stored, kind))
        else:
            was_known = self._is_fleet_known and not self._missing
            self._receive_scope(scope_subject, scope, ScopeMessage.decode(stored))
            if scope_subject in self._missing:
                self._missing.remove(scope_subject)
                self._rewritten_at = now
            if not was_known and not self._is_behind:
                self._report_fleet(now)

    def caught_up(self, now: float) -> None:
        """All messages that the stream has were received."""
        assert self.position is not None
        self.position = replace(self.position, at=now)
        self._note_silence(now)
        if self._missing and now - self._rewritten_at > REWRITTEN_S and self._is_rewritten:
            self._end_missing()
            self._report_fleet(now)
        if not self._is_behind:
            return
        if self._is_snapshot:
            self._read_at = now if self._read_at is None else self._read_at
            was_known = any(scope.seen is not None for scope in self._scopes.values())
            if was_known and now - self._read_at < SETTLED_S:
                return
            self._sweep(now)
        self._is_behind = self._is_snapshot = False
        for scope in self._scopes.values():
            if scope.scope is not None and scope.state is not None:
                if not self._is_other_stream or isinstance(scope.state, Synced):
                    self._remove_unseen(scope)
                self._store.apply(ScopeChanged(scope.scope, scope.state))
            scope.state = None
        self._report_fleet(now)

    def _report_fleet(self, now: float) -> None:
        """Report whether all clusters are known. A stream without any is one that nobody has written yet."""
        self._is_fleet_known = self._is_fleet_known or bool(self._clusters)
        if self._missing:
            problem = (
                "the stream was lost, and lacks clusters that it had: they stay until publishers have written it again"
            )
            self._stale(self._missing_since, problem)
        elif self._publishers.are_silent and self._is_fleet_known:
            self._stale(now, f"no publisher has been heard since {_time(self._publishers.heard_at):%Y-%m-%dT%H:%M:%SZ}")
        elif self._is_fleet_known:
            self._store.apply(FleetChanged(Synced(_time(now))))

    def _stale(self, since: float, problem: str) -> None:
        if self._publishers.are_silent:
            since = min(since, self._publishers.heard_at)
        self._store.apply(FleetChanged(Stale(_time(since), problem)))

    def _receive_object(self, scope: _Scope, subject: ObjectSubject, message: ObjectMessage) -> None:
        if scope.scope is not None and message.epoch == scope.epoch:
            self._apply(scope, scope.scope, subject, message)
        elif scope.epoch is None or message.epoch > scope.epoch:
            scope.buffered.append((subject, message))

    def _apply(self, scope: _Scope, known: Scope, subject: ObjectSubject, message: ObjectMessage) -> None:
        held = self._store.objects(known).get((subject.namespace, subject.name))
        if not message.gone:
            if scope.seen is not None:
                scope.seen.add(subject)
                if self._is_other_stream and held is not None and held.uid != message.object.uid:
                    # Not proven to be deleted: what writes the stream again may know less than the lost one had.
                    self._store.apply(ObjectGone(known, held, Gone.MISSING))
            self._store.apply(ObjectChanged(known, message.object))
            return
        if scope.seen is not None:
            scope.seen.discard(subject)
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
            resource = self._kinds[subject.group, subject.resource].resource
            scope.scope = Scope(cluster.name, incarnation, resource)
            self._store.apply(ScopeChanged(scope.scope, Pending(message.state.since)))
        for place, found in scope.buffered:
            if found.epoch == message.epoch:
                self._apply(scope, scope.scope, place, found)
        scope.buffered.clear()
        if self._is_behind:
            scope.state = message.state
        else:
            if isinstance(message.state, Synced):
                self._remove_unseen(scope)
            self._store.apply(ScopeChanged(scope.scope, message.state))

    # --- ends ---

    def _end(self, subject: ScopeSubject, scope: _Scope, reason: str) -> None:
        if scope.scope is None:
            return
        if reason == Gone.WITHDRAWN.value:
            self._store.apply(ScopeEnded(scope.scope, ScopeEnd.WITHDRAWN))
            scope.drop()
            self._missing.discard(subject)
        elif subject.cluster in self._clusters:
            self._end_cluster(self._clusters[subject.cluster], reason)

    def _end_cluster(self, cluster: FleetCluster, reason: str) -> None:
        self._store.apply(ClusterEnded(cluster, reason))
        del self._clusters[cluster.name]
        for subject, scope in self._scopes.items():
            if subject.cluster == cluster.name:
                scope.drop()
                self._missing.discard(subject)

    def _sweep(self, now: float) -> None:
        """End what the snapshot did not have; if it is of another stream, later."""
        shown = {subject for subject, scope in self._scopes.items() if scope.state is not None}
        if not self._missing:
            self._missing_since = self._rewritten_at = now
        self._missing = {subject for subject, scope in self._scopes.items() if scope.scope is not None} - shown
        if not self._is_other_stream:
            self._end_missing()
        self._scopes = {
            subject: scope for subject, scope in self._scopes.items() if scope.scope is not None or scope.buffered
        }

    @property
    def _is_rewritten(self) -> bool:
        """Whether the stream has some of the scopes."""
        return any(scope.scope is not None and key not in self._missing for key, scope in self._scopes.items())

    def _end_missing(self) -> None:
        """End the scopes that the stream does not show, and the clusters of which it shows none."""
        shown = {
            subject.cluster
            for subject, scope in self._scopes.items()
            if scope.scope is not None and subject not in self._missing
        }
        for cluster in [*self._clusters.values()]:
            if cluster.name not in shown:
                self._end_cluster(cluster, "UNSPECIFIED")
        for subject in [*self._missing]:
            self._end(subject, self._scopes[subject], Gone.WITHDRAWN.value)

    def _remove_unseen(self, scope: _Scope) -> None:
        seen, scope.seen = scope.seen, None
        if seen is None or scope.scope is None:
            return
        places = {(place.namespace, place.name) for place in seen}
        for place, held in [*self._store.objects(scope.scope).items()]:
            if place not in places:
                self._store.apply(ObjectGone(scope.scope, held, Gone.MISSING))


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _reason(text: str) -> Gone:
    """Return why an object is gone. A newer publisher may know a reason that this reader does not."""
    try:
        return Gone(text)
    except ValueError:
        return Gone.MISSING
