"""The publication of one cluster: its records, and which of them may be written. Pure.

Before anything is written, the last messages of the cluster's subjects are read from the stream. A write that another
publisher has forestalled, and one with an unknown outcome, have them read again: so a restart, a takeover, a conflict
and a lost stream are one case. Writes are in this order: the cluster, its scopes, their objects, and a scope is SYNCED
when all objects of its first list are stored. An end comes when no write is on its way, and what it ends is purged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Iterable
from typing import Final, Protocol, TypeAlias

import msgspec
from msgspec.structs import replace

from milo_discovery.removals import ENDS, SECOND_LOOK_S, is_mass
from milo_kube.cache_budget import CacheBudget
from milo_kube.tenants import Tenant, tenant_of
from milo_objects.gone_objects import GoneObjects
from milo_objects.messages import (
    ClusterMessage,
    ObjectMessage,
    ScopeIsOver,
    ScopeMessage,
    Stored,
)
from milo_objects.projection import ProjectedObject
from milo_objects.publication_records import (
    GONE_TTL_S,
    IDLE,
    QUEUED,
    Deferred,
    InFlight,
    RefusedMessage,
    SubjectRecord,
    is_gone,
    is_sent,
)
from milo_objects.scope import (
    FleetCluster,
    Gone,
    OverBudget,
    ScopeState,
    Synced,
)
from milo_objects.scope_publication import ScopePublication
from milo_objects.stream_commands import Purge, ReadCluster, Relist, WriteMessage, problem_of, ttl_s
from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject, Subject

BEHIND_S: Final = 60.0
"""How long a newer state in the stream is believed to reach this publisher's watch too. A restored API server has older
states than the stream."""
RETRY_S: Final = 15.0
"""When a full stream is asked again, at first; the delay doubles."""
LONGEST_RETRY_S: Final = 120.0
DISPLACED_S: Final = 60.0
"""When a publisher that another one has replaced looks again, if its daemon still has the cluster."""
REREAD_S: Final = 1.0
TAKEOVER_S: Final = 30.0
"""How long what a former publisher has said of a scope is believed before this one has read the scope."""
_ENDS: Final = frozenset(reason.name for reason in ENDS)
"""Reasons that are published. After any other, such as MOVED, another publisher may have the cluster; a rule that no
longer covers many, REVOKED, may be a mistake. It is ended as an orphan, if the daemon confirms that it is missing."""


# --- what the cluster is doing ---


class Schedule(Protocol):
    """Where a cluster says what it has to do."""

    publisher: str | None
    """The name of this publisher in its shard group; empty outside of one, None if it is not known yet."""

    def ready(self, subject: Subject) -> None:
        """Have `ClusterPublication.take` called with the subject."""

    def wake(self, subject: Subject, at: float) -> None:
        """Have `ClusterPublication.wake` called with the subject at a time."""

    def ticket(self) -> int: ...


class ReadingStream(msgspec.Struct, frozen=True):
    """The last messages of the cluster's subjects are read, or are to be."""

    at: float
    ticket: int = 0
    problem: str = ""


class WritingStream(msgspec.Struct, frozen=True):
    """The stream's messages are known, and differences are written."""


class DisplacedByAnother(msgspec.Struct, frozen=True):
    """Another publisher has engaged the cluster since, or the stream has another cluster of its name, perhaps one of
    another fleet: that is ended first, as an orphan."""

    until: float


class EndingCluster(msgspec.Struct, frozen=True):
    """The end of the cluster is written, and then its scopes are purged."""

    message: ClusterMessage
    is_refused: bool = False
    """Whether the stream did not take it, being full: the scopes end and are purged first, which makes room."""


class NothingToPublish(msgspec.Struct, frozen=True):
    """Nothing is to be published of the cluster."""


Phase: TypeAlias = ReadingStream | WritingStream | DisplacedByAnother | EndingCluster | NothingToPublish


class ClusterPublication:
    """The publication of one cluster."""

    def __init__(
        self,
        key: str,
        kinds: Iterable[tuple[str, str]],
        schedule: Schedule,
        is_followed: Callable[[str], bool],
        budget: CacheBudget,
    ) -> None:
        """`budget`: that of the records of gone objects of all clusters."""
        self.key = key
        self.phase: Phase = NothingToPublish()
        self.record = SubjectRecord(ClusterSubject(key))
        self.scopes: dict[ScopeSubject, ScopePublication] = {}
        self.in_flight = 0
        self._kinds = [ScopeSubject(key, *kind) for kind in kinds]
        self._schedule = schedule
        self._is_followed = is_followed
        self._budget = budget
        self._wanted: FleetCluster | None = None
        self._ending: ClusterMessage | None = None
        """An end that is to be published, when the stream is read."""
        self._claimed = ""
        """The incarnation under which this publisher has written to the stream."""
        self._full_until = -LONGEST_RETRY_S
        """When what a full stream did not take is written again."""
        self._retry_s = RETRY_S

    # --- the source ---

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do for the cluster."""
        return isinstance(self.phase, NothingToPublish) and self._wanted is None and not self.in_flight

    @property
    def is_engaged(self) -> bool:
        return self._wanted is not None

    @property
    def is_ending(self) -> bool:
        """Whether the end of the cluster is to be published."""
        return self._ending is not None

    @property
    def is_displaced(self) -> bool:
        """Whether another publisher has the cluster, or one of its name."""
        return isinstance(self.phase, DisplacedByAnother)

    def is_other(self, cluster: FleetCluster) -> bool:
        """Return whether a cluster that the stream has is another one than the engaged one of its name."""
        wanted = self._wanted
        return wanted is not None and not self.is_ending and bool(cluster.uid) and cluster.uid != wanted.uid

    @property
    def tenant(self) -> Tenant:
        published = self.record.published
        known = self._wanted or (published.cluster if isinstance(published, ClusterMessage) else None)
        return (self.key,) if known is None else tenant_of(known)

    def is_taken_over(self, now: float) -> bool:
        """Return whether the stream has what the source knows of the cluster, or another publisher does, or that is not
        to be waited for."""
        match self.phase:
            case ReadingStream(problem=problem):
                return bool(problem)
            case WritingStream():
                return all(self.scopes[kind].is_taken_over(now) for kind in self._kinds if kind in self.scopes)
        return True

    def engage(self, cluster: FleetCluster, now: float) -> None:
        """Publish a cluster, or what has changed of it."""
        before, self._wanted = self._wanted, cluster
        if before is None:
            for scope in self.scopes.values():
                self._forget(scope)
        match self.phase:
            case NothingToPublish():
                self._read(now)
            case DisplacedByAnother() if before is None or before.incarnation != cluster.incarnation:
                self._read(now)
            case WritingStream():
                self._desire_cluster(now)
            case _:
                pass

    def end(self, reason: str, now: float) -> None:
        """Publish the end of the cluster, if the reason is one of the cluster's own."""
        ended, self._wanted = self._wanted, None
        if ended is None:
            return
        is_own = self._claimed == ended.incarnation and not isinstance(self.phase, DisplacedByAnother)
        if reason in _ENDS and is_own:
            self._ending = ClusterMessage(ended, reason)
            if isinstance(self.phase, WritingStream):
                self._begin_end(self._ending, now)
        elif not isinstance(self.phase, EndingCluster) and self._ending is None:
            self.phase = NothingToPublish()

    def renamed(self, now: float) -> None:
        """This publisher has another name."""
        for scope in self.scopes.values():
            self._desire_scope(scope, now)

    def publishes(self, subject: ClusterSubject | ScopeSubject, sequence: int) -> bool:
        """Return whether the cluster or a scope of the stream is as this publisher believes. `sequence`: that of its
        message."""
        if not isinstance(self.phase, WritingStream):
            return True
        record = self._find(subject)
        return record is not None and (sequence <= record.sequence or is_sent(record.attempt))

    def is_lost(self, subjects: Container[Subject], last_sequence: int) -> bool:
        """Return whether somebody has purged the stream of what it had of the cluster. `subjects`: those of clusters
        and scopes that the stream has, which are read after the sequence."""
        if not isinstance(self.phase, WritingStream) or not self._has_claimed:
            return False
        alive = [self.record, *(scope.record for scope in self.scopes.values() if scope.published is not None)]
        return any(
            record.sequence <= last_sequence and not is_sent(record.attempt) and record.subject not in subjects
            for record in alive
        )

    def end_orphan(self, cluster: FleetCluster, now: float) -> None:
        """Publish the end of a cluster that the daemon has disengaged while nobody published it."""
        is_unknown = self._wanted is None and isinstance(self.phase, NothingToPublish)
        if is_unknown or (self.is_displaced and self.is_other(cluster)):
            self._ending = ClusterMessage(cluster, Gone.MISSING.value)
            self._read(now)

    def scope_changed(self, subject: ScopeSubject, state: ScopeState, now: float) -> None:
        scope = self._scope(subject)
        if scope.is_dropped and not isinstance(state, OverBudget) and isinstance(self.phase, WritingStream):
            self._read(now)  # what was dropped
        was_synced, scope.source = isinstance(scope.source, Synced), state
        if scope.is_read:
            scope.unread_at = None
        if isinstance(state, Synced) and not was_synced:
            scope.awaiting = None
            scope.sweep_at = None
            self._prove(scope, now)
        elif not isinstance(state, Synced):
            scope.sweep_at = None
        self._desire_scope(scope, now)

    def scope_ended(self, subject: ScopeSubject, now: float) -> None:
        """The source has dropped the objects of a scope, and will list them again."""
        if subject in self.scopes:
            self._forget(self.scopes[subject])
            self.scopes[subject].drop()
            self._desire_scope(self.scopes[subject], now)

    def object_changed(self, subject: ObjectSubject, found: ProjectedObject, now: float, gone: str = "") -> None:
        scope = self._scope(subject.scope)
        record = scope.objects.get(subject) or SubjectRecord(subject)
        attempt = IDLE if isinstance(record.attempt, Deferred | RefusedMessage) else record.attempt
        self._put(scope, replace(record, desired=ObjectMessage(found, scope.epoch, gone), attempt=attempt), now)

    def _forget(self, scope: ScopePublication) -> None:
        """Forget what the source has said of a scope."""
        scope.source, scope.sweep_at, scope.awaiting, scope.known, scope.held = None, None, None, None, ""
        scope.unread_at = None
        scope.refused.clear()
        for subject, record in [*scope.objects.items()]:
            attempt = record.attempt if is_sent(record.attempt) else IDLE
            scope.objects[subject] = replace(record, desired=None, attempt=attempt)
            scope.put(scope.objects[subject])

    # --- reading the stream ---

    def _read(self, now: float, *, after_s: float = 0.0, problem: str = "") -> None:
        """Have the last messages read again, when no write is on its way."""
        if not isinstance(self.phase, NothingToPublish) or self._wanted or self._ending:
            self.phase = ReadingStream(now + after_s, problem=problem)
            self._schedule.wake(self.record.subject, now + after_s)

    def reread(self, now: float) -> None:
        """Forget what is known of the stream: it may have lost something."""
        if not isinstance(self.phase, NothingToPublish):
            self._read(now)

    def read(self, ticket: int, found: Stored, last_sequence: int, now: float) -> None:
        """Receive the last messages of the cluster's subjects, and the last sequence of the stream."""
        if not isinstance(self.phase, ReadingStream) or self.phase.ticket != ticket:
            return
        self.phase = WritingStream()
        self.record = self._observed(self.record, found)
        in_stream: dict[ScopeSubject, dict[ObjectSubject, None]] = {}
        for subject in found:
            match subject:
                case ObjectSubject(scope_subject):
                    in_stream.setdefault(scope_subject, {})[subject] = None
                    self._scope(scope_subject)
                case ScopeSubject():
                    self._scope(subject)
                case ClusterSubject():
                    pass
        for scope in self.scopes.values():
            scope.record = self._observed(scope.record, found)
            scope.gone.clear()
            if scope.is_dropped:
                continue
            for subject in {**scope.objects, **in_stream.get(scope.subject, {})}:
                record = self._observed(scope.objects.get(subject) or SubjectRecord(subject), found)
                if record.published is not None and is_gone(record.published) and not record.is_pending:
                    record = replace(record, attempt=self._expiring(scope, subject, record, now))
                scope.objects[subject] = record
        self._resume(last_sequence, now)

    def failed_to_read(self, ticket: int, problem: str, now: float) -> None:
        if isinstance(self.phase, ReadingStream) and self.phase.ticket == ticket:
            self._read(now, after_s=REREAD_S, problem=problem)

    @staticmethod
    def _observed(record: SubjectRecord, found: Stored) -> SubjectRecord:
        message, sequence = found.get(record.subject, (None, 0))
        is_unsure = record.is_unsure and record.sequence == sequence
        # What was too large is written again: the limit may be another one by now.
        return replace(record, published=message, sequence=sequence, is_unsure=is_unsure, attempt=IDLE)

    def _resume(self, last_sequence: int, now: float) -> None:
        """Decide what the stream's messages mean for this publisher."""
        published = self.record.published
        assert published is None or isinstance(published, ClusterMessage)
        if self._ending is not None:
            is_own = published is None or published.cluster.incarnation == self._ending.cluster.incarnation
            if is_own or (published is not None and published.ended):
                for scope in self.scopes.values():
                    scope.epoch = last_sequence  # of a scope that is not in the stream
                self._begin_end(self._ending if is_own or published is None else published, now)
                return
            self._ending = None  # another publisher has engaged the cluster since
        if self._wanted is None:
            self._finish(now)
            return
        is_same = published is not None and published.cluster.incarnation == self._wanted.incarnation
        if published is not None and (published.ended or not is_same):
            is_displaced = not is_same and self._claimed == self._wanted.incarnation
            is_other = not published.ended and self.is_other(published.cluster)
            if is_displaced or is_other or not self._is_followed(self.key):
                self._claimed = ""
                self.phase = DisplacedByAnother(now + (DISPLACED_S if is_displaced else SECOND_LOOK_S))
                self._schedule.wake(self.record.subject, self.phase.until)
                return
        for subject in self._kinds:
            self._scope(subject)
        for scope in [*self.scopes.values()]:
            self._resume_scope(scope, published, last_sequence, now)
        self._desire_cluster(now)

    def _resume_scope(
        self, scope: ScopePublication, cluster: ClusterMessage | None, last_sequence: int, now: float
    ) -> None:
        """Go on with a scope of the stream, end it, or begin another one."""
        assert self._wanted is not None
        published, is_declared = scope.published, scope.subject in self._kinds
        scope.over, scope.purge = "", 0
        if published is None:
            has_leftovers = any(record.published is not None for record in scope.objects.values())
            if not is_declared and not has_leftovers:
                self.scopes.pop(scope.subject).gone.clear()
                return
            scope.over = "" if is_declared else Gone.WITHDRAWN.value
        elif not is_declared:
            scope.over = Gone.WITHDRAWN.value
        elif published.cluster.uid != self._wanted.uid:
            scope.over = Gone.WITHDRAWN.value  # readers see the other UID
        elif scope.gone.are_too_many or (
            cluster is not None and cluster.ended and scope.record.sequence < self.record.sequence
        ):
            scope.over = Gone.WITHDRAWN.value
        self._begin(scope, last_sequence if published is None else published.epoch, now)

    def _begin(self, scope: ScopePublication, epoch: int, now: float) -> None:
        scope.epoch = epoch
        for subject, record in scope.objects.items():
            if isinstance(record.desired, ObjectMessage):
                scope.objects[subject] = replace(record, desired=replace(record.desired, epoch=epoch))
        for record in [*scope.objects.values()]:
            self._put(scope, record, now)
        scope.awaiting = None
        if not scope.is_read and scope.unread_at is None:
            scope.unread_at = now + TAKEOVER_S
            self._schedule.wake(scope.subject, scope.unread_at)
        self._prove(scope, now)
        self._desire_scope(scope, now)

    # --- what is desired ---

    def _desire_cluster(self, now: float) -> None:
        if self._wanted is None or not isinstance(self.phase, WritingStream):
            return
        self.record = replace(self.record, desired=ClusterMessage(self._wanted))
        if not self.record.is_pending:
            self._claimed = self._wanted.incarnation
        self._consider(self.record, now)
        for scope in [*self.scopes.values()]:
            self._desire_scope(scope, now)

    def _desire_scope(self, scope: ScopePublication, now: float) -> None:
        if isinstance(self.phase, ReadingStream | DisplacedByAnother | NothingToPublish):
            return
        cluster, last = self._wanted, scope.last
        ending = self.phase.message.cluster if isinstance(self.phase, EndingCluster) else None
        if scope.over or ending is not None or cluster is None:
            known = last.cluster if last is not None else ending or cluster
            desired = None if known is None else ScopeMessage(known, ScopeIsOver(scope.over), scope.epoch)
        else:
            publisher = scope.publisher(self._schedule.publisher, now)
            desired = ScopeMessage(cluster, scope.state(now), scope.epoch, publisher)
        attempt = IDLE if isinstance(scope.record.attempt, RefusedMessage) else scope.record.attempt
        scope.record = replace(scope.record, desired=desired, attempt=attempt)
        self._consider(scope.record, now)

    def _prove(self, scope: ScopePublication, now: float) -> None:
        """Schedule the removal of objects that the source has not named, or end it."""
        if not any(record.is_unproven for record in scope.objects.values()):
            scope.known = None
        elif scope.known is None:
            published = (record.published for record in scope.objects.values())
            scope.known = sum(message is not None and not is_gone(message) for message in published)
        is_known = isinstance(scope.source, Synced) and isinstance(self.phase, WritingStream) and not scope.over
        if not is_known or scope.known is None:
            scope.sweep_at, scope.held = None, ""
        elif scope.sweep_at is None:
            scope.sweep_at = now + SECOND_LOOK_S
            self._schedule.wake(scope.subject, scope.sweep_at)

    def relisted(self, subject: ScopeSubject, now: float) -> None:
        """Another list of the scope is complete, which began after `Relist`."""
        if subject in self.scopes:
            self.scopes[subject].known = math.inf
            self._prove(self.scopes[subject], now)

    def relist_lost(self, now: float) -> None:
        """Lists that were asked for may not have been reported: ask again."""
        for scope in self.scopes.values():
            if scope.held:
                self._prove(scope, now)

    def _sweep(self, scope: ScopePublication, now: float) -> Relist | None:
        """Remove the objects that the source has not named. Its watch has continued for a while after its list."""
        scope.sweep_at = None
        missing = [record for record in scope.objects.values() if record.is_unproven]
        known = scope.known or len(missing)
        if is_mass(len(missing), known):
            scope.held = f"the list lacks {len(missing)} of {known} published objects: removed if a second one does too"
            self._desire_scope(scope, now)
            return Relist(scope.subject)
        for record in missing:
            assert isinstance(record.published, ObjectMessage)
            desired = ObjectMessage(record.published.object, scope.epoch, Gone.MISSING.value)
            self._put(scope, replace(record, desired=desired), now)
        scope.held, scope.known = "", None
        self._desire_scope(scope, now)
        return None

    def _begin_end(self, message: ClusterMessage, now: float) -> None:
        self.phase = EndingCluster(message)
        self.record = replace(self.record, desired=message)
        self._consider(self.record, now)
        self._end_scopes(now)

    @property
    def _ends_scopes(self) -> bool:
        """Whether the scopes may end: the cluster has, or cannot before."""
        return isinstance(self.phase, EndingCluster) and (self.phase.is_refused or not self.record.is_pending)

    def _end_scopes(self, now: float) -> None:
        """End the scopes once the end of the cluster is stored: what was on its way before is, too."""
        if not isinstance(self.phase, EndingCluster) or not self._ends_scopes:
            return
        for scope in self.scopes.values():
            last = scope.last
            has_objects = scope.is_dropped or any(record.published is not None for record in scope.objects.values())
            scope.over = self.phase.message.ended if last is not None or has_objects else ""
            scope.purge = 0
            if last is not None:
                scope.epoch = last.epoch
        self._continue_end(now)

    def _continue_end(self, now: float) -> None:
        """Finish when all scopes are purged."""
        if not self._ends_scopes:
            return
        unfinished = [scope for scope in self.scopes.values() if scope.over]
        for scope in unfinished:
            self._desire_scope(scope, now)
        if not unfinished and not self.record.is_pending:
            self._finish(now)

    def _finish(self, now: float) -> None:
        self.phase, self._ending, self._claimed = NothingToPublish(), None, ""
        if self._wanted is not None:
            self._read(now)
        else:
            self.clear()
            self.record = SubjectRecord(self.record.subject)

    def clear(self) -> None:
        """Forget all scopes."""
        for scope in self.scopes.values():
            scope.gone.clear()
        self.scopes.clear()

    # --- writes ---

    @property
    def _has_claimed(self) -> bool:
        published = self.record.published
        return (
            self._wanted is not None
            and isinstance(published, ClusterMessage)
            and not published.ended
            and published.cluster.incarnation == self._wanted.incarnation
        )

    def _permits(self, subject: Subject) -> bool:
        match self.phase, subject:
            case WritingStream(), ClusterSubject():
                return True
            case WritingStream(), ScopeSubject():
                return self._has_claimed
            case WritingStream(), ObjectSubject(scope):
                return self._has_claimed and self.scopes[scope].has_begun
            case EndingCluster(), ClusterSubject():
                return self.in_flight == 0
            case EndingCluster(), ScopeSubject():
                return self._ends_scopes and bool(self.scopes[subject].over)
        return False

    def _consider(self, record: SubjectRecord, now: float) -> None:
        """Queue a record that is to be written now."""
        if record.attempt != IDLE or not self._permits(record.subject):
            return
        if record.is_pending and record.is_behind:
            self._set(replace(record, attempt=Deferred(now + BEHIND_S, then_writes=True)))
            self._schedule.wake(record.subject, now + BEHIND_S)
        elif record.is_pending or self._has_to_purge(record.subject):
            self._set(replace(record, attempt=QUEUED))
            self._schedule.ready(record.subject)

    def _has_to_purge(self, subject: Subject) -> bool:
        """Return whether a scope has ended in the stream, and its objects are to be purged."""
        if not isinstance(subject, ScopeSubject):
            return False
        scope = self.scopes[subject]
        published = scope.record.published
        is_ended = isinstance(published, ScopeMessage) and (
            published.ends_cluster or published.state == ScopeIsOver(scope.over)
        )
        return bool(scope.over) and is_ended and not scope.purge

    def wake(self, subject: Subject, now: float) -> Relist | None:
        """Consider a subject whose time has come."""
        if isinstance(subject, ClusterSubject):
            if isinstance(self.phase, DisplacedByAnother) and self.phase.until <= now:
                self._read(now)
            if isinstance(self.phase, ReadingStream):
                self._schedule.ready(subject)
        if isinstance(subject, ScopeSubject):
            scope = self.scopes.get(subject)
            if scope is not None:
                self._expire(scope, now)
            if scope is not None and scope.gone.are_too_many and not scope.over:
                self._begin_again(now)
            if scope is not None and scope.sweep_at is not None and scope.sweep_at <= now:
                return self._sweep(scope, now)
            if scope is not None and scope.unread_at is not None and scope.unread_at <= now:
                self._desire_scope(scope, now)
        self._awake(subject, now)
        return None

    def _begin_again(self, now: float) -> None:
        """Have scopes with too many gone objects begin again, once the stream is read."""
        if isinstance(self.phase, WritingStream):
            self._read(now)

    def _expiring(self, scope: ScopePublication, subject: ObjectSubject, record: SubjectRecord, now: float) -> Deferred:
        """Have the message that an object is gone forgotten, once the stream has deleted it."""
        until = now + GONE_TTL_S + BEHIND_S
        if not scope.gone:
            self._schedule.wake(scope.subject, until)
        scope.gone.add(until, subject, record)
        return Deferred(until)

    def _expire(self, scope: ScopePublication, now: float) -> None:
        has_expired = False
        while scope.gone and scope.gone.next_at <= now:
            has_expired = True
            self._awake(scope.gone.pop(), now)
        if has_expired and scope.gone:
            self._schedule.wake(scope.subject, scope.gone.next_at)

    def _awake(self, subject: Subject, now: float) -> None:
        """Consider a record whose wait is over."""
        record = self._find(subject)
        waited = None if record is None else record.attempt
        if record is None or not isinstance(waited, Deferred) or waited.until > now:
            return
        if record.published is not None and is_gone(record.published) and not record.is_pending:
            record = replace(record, published=None, sequence=0)  # the message has expired
        record = replace(record, attempt=IDLE, is_unsure=record.is_unsure or waited.then_writes)
        if isinstance(subject, ObjectSubject):
            self._put(self.scopes[subject.scope], record, now)
        else:
            self._set(record)
            self._consider(record, now)

    def take(  # noqa: PLR0911 - a table
        self, subject: Subject, now: float, limit: int
    ) -> ReadCluster | WriteMessage | Purge | None:
        """Return what to do about a subject whose turn has come. `limit`: maximum bytes of a message."""
        if isinstance(self.phase, ReadingStream) and isinstance(subject, ClusterSubject):
            if self.phase.ticket or self.in_flight or now < self.phase.at:
                return None
            self.phase = replace(self.phase, ticket=self._schedule.ticket())
            return ReadCluster(self.key, self.phase.ticket)
        record = self._find(subject)
        if record is None or record.attempt != QUEUED:
            return None
        if not self._permits(subject):
            self._set(replace(record, attempt=IDLE))
            return None
        if self._has_to_purge(subject):
            assert isinstance(subject, ScopeSubject)
            scope = self.scopes[subject]
            scope.purge = self._schedule.ticket()
            self._set(replace(record, attempt=IDLE))
            self.in_flight += 1
            return Purge(subject, record.sequence, scope.purge)
        if not record.is_pending or record.desired is None:
            self._set(replace(record, attempt=IDLE))
            return None
        message = record.desired
        if isinstance(message, ScopeMessage) and now < self._full_until + LONGEST_RETRY_S:
            message = message.within(record.published)
        encoded = message.encode()
        if problem := problem_of(subject, encoded, limit):
            self._refused(replace(record, attempt=RefusedMessage(problem)), now)
            return None
        self.in_flight += 1
        ticket = self._schedule.ticket()
        self._set(replace(record, attempt=InFlight(ticket)))
        return WriteMessage(subject, message, encoded, record.sequence, ttl_s(message), ticket)

    # --- answers ---

    def written(self, write: WriteMessage, sequence: int, now: float) -> None:
        """The message is stored."""
        record = self._answered(write)
        if record is not None:
            record = replace(record, published=write.message, sequence=sequence, attempt=IDLE, is_unsure=False)
            match write.subject:
                case ObjectSubject(scope):
                    self._object_written(self.scopes[scope], write.subject, record, now)
                case ScopeSubject():
                    self._scope_written(self.scopes[write.subject], record, now)
                case ClusterSubject():
                    had_claimed, self.record = self._has_claimed, record
                    self._cluster_written(now, had_claimed=had_claimed)
        self._settled(now)

    def conflicted(self, write: WriteMessage, now: float) -> None:
        """The last message of the subject is another one: another publisher wrote it, or an earlier write of ours."""
        record = self._answered(write)
        if record is not None:
            self._set(replace(record, attempt=IDLE))
            self._read(now)
        self._settled(now)

    def rejected(self, write: WriteMessage, problem: str, now: float) -> None:
        """The stream does not take the message at present: it is full."""
        record = self._answered(write)
        if record is not None:
            if now >= self._full_until:  # otherwise it is one of the same attempt
                was_full = now < self._full_until + LONGEST_RETRY_S
                self._retry_s = min(2.0 * self._retry_s, LONGEST_RETRY_S) if was_full else RETRY_S
                self._full_until = now + self._retry_s
            self._refused(replace(record, attempt=Deferred(self._full_until, problem)), now)
            self._schedule.wake(write.subject, self._full_until)
            if isinstance(self.phase, EndingCluster) and write.subject == self.record.subject:
                self.phase = replace(self.phase, is_refused=True)
                self._end_scopes(now)
        self._settled(now)

    def lost(self, write: WriteMessage, now: float) -> None:
        """Whether the message is, or will be, stored is not known."""
        record = self._answered(write)
        if record is not None:
            self._set(replace(record, attempt=IDLE, is_unsure=True))
            self._read(now, after_s=REREAD_S)
        self._settled(now)

    def purged(self, purge: Purge, now: float) -> None:
        self.in_flight -= 1
        scope = self.scopes.get(purge.scope)
        if (
            scope is not None
            and scope.purge == purge.ticket
            and not isinstance(self.phase, ReadingStream | DisplacedByAnother)
        ):
            scope.over, scope.purge = "", 0
            for subject, record in [*scope.objects.items()]:
                if record.sequence < purge.below:
                    scope.objects[subject] = replace(record, published=None, sequence=0, attempt=IDLE)
                scope.put(scope.objects[subject])
            scope.gone.begin_again(scope.objects)
            if scope.gone:
                self._schedule.wake(scope.subject, scope.gone.next_at)
            if isinstance(self.phase, EndingCluster):
                self._continue_end(now)
            elif scope.subject in self._kinds:
                self._begin(scope, purge.below, now)
            else:
                self.scopes.pop(scope.subject).gone.clear()
        self._settled(now)

    def purge_lost(self, purge: Purge, now: float) -> None:
        self.in_flight -= 1
        self._read(now, after_s=REREAD_S)
        self._settled(now)

    def _answered(self, write: WriteMessage) -> SubjectRecord | None:
        """Return the record of a write, if the write is still its own."""
        self.in_flight -= 1
        record = self._find(write.subject)
        return record if record is not None and record.attempt == InFlight(write.ticket) else None

    def _settled(self, now: float) -> None:
        """Do what has waited until no write is on its way."""
        if self.in_flight:
            return
        if isinstance(self.phase, ReadingStream):
            self._schedule.wake(self.record.subject, max(now, self.phase.at))
        elif isinstance(self.phase, EndingCluster):
            self._consider(self.record, now)

    def _cluster_written(self, now: float, *, had_claimed: bool) -> None:
        if isinstance(self.phase, EndingCluster):
            self._consider(self.record, now)
            self._end_scopes(now)
            return
        self._desire_cluster(now)
        if self._has_claimed and not had_claimed:
            for scope in self.scopes.values():
                for item in [*scope.objects.values()]:
                    self._consider(item, now)

    def _object_written(
        self, scope: ScopePublication, subject: ObjectSubject, record: SubjectRecord, now: float
    ) -> None:
        if record.published is not None and is_gone(record.published) and not record.is_pending:
            record = replace(record, attempt=self._expiring(scope, subject, record, now))
        self._put(scope, record, now)
        if scope.gone.are_too_many:
            self._begin_again(now)

    def _scope_written(self, scope: ScopePublication, record: SubjectRecord, now: float) -> None:
        had_begun = scope.has_begun
        scope.record = record
        if scope.has_begun and not had_begun:
            for item in [*scope.objects.values()]:
                self._consider(item, now)
        self._desire_scope(scope, now)

    def _refused(self, record: SubjectRecord, now: float) -> None:
        if isinstance(record.subject, ObjectSubject):
            scope = self.scopes[record.subject.scope]
            self._put(scope, record, now)
        else:
            self._set(record)

    # --- records ---

    def _scope(self, subject: ScopeSubject) -> ScopePublication:
        if subject not in self.scopes:
            exceeded = functools.partial(self._schedule.wake, subject, 0.0)
            gone = GoneObjects(self._budget, lambda: self.tenant, exceeded)
            self.scopes[subject] = ScopePublication(subject, gone)
        return self.scopes[subject]

    def _find(self, subject: Subject) -> SubjectRecord | None:
        match subject:
            case ClusterSubject():
                return self.record
            case ScopeSubject():
                return self.scopes[subject].record if subject in self.scopes else None
            case ObjectSubject(scope):
                return self.scopes[scope].objects.get(subject) if scope in self.scopes else None

    def _set(self, record: SubjectRecord) -> None:
        match record.subject:
            case ClusterSubject():
                self.record = record
            case ScopeSubject():
                self.scopes[record.subject].record = record
            case ObjectSubject(scope):
                self.scopes[scope].put(record)

    def _put(self, scope: ScopePublication, record: SubjectRecord, now: float) -> None:
        """Replace the record of an object, and have it written if it is to be. The scope may be SYNCED then."""
        was_awaiting, refused = bool(scope.awaiting), len(scope.refused)
        scope.put(record)
        self._consider(record, now)
        if was_awaiting != bool(scope.awaiting) or refused != len(scope.refused):
            self._desire_scope(scope, now)
