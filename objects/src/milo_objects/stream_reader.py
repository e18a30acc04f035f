"""What the messages of the stream mean for a store: snapshots, resumption, and the ends of scopes. Pure.

The stream has the last message of each subject, so that reading from a sequence gives each subject's present state that
is newer. A reader that was away for longer than messages of ends live, reads all of them, and then removes what it has
not seen. A stream that is another one by now may lack what its publisher has yet to write again: objects that it lacks
are removed when their scope is SYNCED there, and clusters when publishers have written no more of them for a while.

A cluster is the project of its newest scope: a publisher that lags may still write of a former project. What was
dropped and goes on nevertheless is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeAlias

import msgspec
from msgspec.structs import replace

from milo_objects.kinds import Kind
from milo_objects.messages import Heartbeat, ObjectMessage, ScopeIsOver, ScopeMessage, StoredMessage
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
from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject, Subject, parse, source_of

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
_UNREADABLE: Final = "its state in the stream cannot be decoded"
FORGOTTEN_S: Final = 3600.0
"""After which time it is forgotten when a publisher was heard."""


class ReadAgain(Exception):  # noqa: N818  (a demand)
    """The stream has objects that the reader has dropped: attach again, and read from there."""


class StreamPosition(msgspec.Struct, frozen=True):
    """How far a stream was read."""

    lineage: str
    """Which stream it is, and since when it certainly has lost nothing."""
    sequence: int
    at: float
    """When all messages that the stream then had were received, in seconds of the wall clock."""


class _Scope:
    """A scope as the reader knows it."""

    __slots__ = (
        *("buffered", "epoch", "follower", "is_dropped", "is_unreadable", "scope", "seen", "sequence", "state", "told"),
        "told_at",
    )

    def __init__(self) -> None:
        self.epoch: int | None = -1
        """Messages of objects with a lower one are ignored. None if the stream is another one by now."""
        self.scope: Scope | None = None
        """What the store calls it; None if it has not begun, has ended, or is one of a former project."""
        self.is_dropped = False
        """Whether the stream may have objects of this epoch that the reader has dropped."""
        self.is_unreadable = False
        """Whether the stream has a state of it that cannot be decoded, since it is read: what is known stays."""
        self.state: ScopeState | None = None
        """The state that the store gets once the reader has caught up."""
        self.told: ScopeMessage | None = None
        """The last message in the stream, unless it has ended."""
        self.told_at = 0.0
        """When it was stored."""
        self.sequence = 0
        self.follower: Follower = "", ""
        self.buffered: list[tuple[ObjectSubject, ObjectMessage]] = []
        """Objects of a scope whose own message comes later: perhaps after all others, if it was written again."""
        self.seen: set[ObjectSubject] | None = None
        """The objects that the stream has shown since it is read from the beginning; None if it has shown all."""

    @property
    def is_hidden(self) -> bool:
        """Whether the stream has it, and the store has not, and none of its objects was dropped since it is read."""
        return self.scope is None and self.told is not None and not self.is_dropped

    def drop(self) -> None:
        """Forget what has ended."""
        self.scope = self.state = self.told = self.seen = None
        self.is_dropped = False


Follower: TypeAlias = tuple[str, str]
"""What follows a scope: its publisher, which may be unnamed, and the source of its cluster."""


class _Publishers:
    """When publishers were last heard."""

    __slots__ = (
        "_first_at",
        "_followed_at",
        "_listens_since",
        "_opened_at",
        "_problems",
        "_reported",
        "_synced_at",
        "are_silent",
        "heard_at",
        "silent",
    )

    def __init__(self) -> None:
        self.are_silent = False
        """Whether none is heard."""
        self.silent: frozenset[Follower] = frozenset()
        """Those of scopes that are not heard, or are heard to follow not all clusters of the source."""
        self.heard_at = 0.0
        """Before one was heard, when the stream was first read."""
        self._first_at = 0.0
        """When the stream was first read."""
        self._listens_since = 0.0
        """Since when one that runs would have been heard; 0 if the stream has said when it last was."""
        self._opened_at = 0.0
        """When the connection began: the stream has the last heartbeat of one publisher only."""
        self._followed_at: dict[Follower | None, float] = {}
        """When they were last heard to follow all clusters; None for publishers that stand for everything."""
        self._problems: dict[Follower, tuple[float, str]] = {}
        """When they were last heard to follow not all, and why."""
        self._synced_at: Mapping[Follower, float] = {}
        """When those of scopes last wrote that one of them is SYNCED; 0 if they did not."""
        self._reported: object = None

    def listen(self, now: float) -> None:
        """A connection begins."""
        self._listens_since = self._opened_at = now
        self._first_at = self._first_at or now
        self.heard_at = self.heard_at or now

    def hear(self, at: float, heartbeat: Heartbeat | None) -> None:
        self.heard_at, self._listens_since = at, 0.0
        if heartbeat is None:
            self._followed_at[None] = at
            return
        for source, problem in heartbeat.sources.items():
            follower = heartbeat.publisher, source
            if problem:
                self._problems[follower] = at, problem
            else:
                self._followed_at[follower] = at
                self._problems.pop(follower, None)

    def followed_at(self, follower: Follower) -> float:
        """Return until when the clusters were followed, as far as was heard."""
        publisher, source = follower
        heard = [
            at for by, at in self._followed_at.items() if by in (None, follower) or (not publisher and by[1] == source)
        ]
        # One that was never heard may have ended before the stream was first read.
        return max(heard, default=min(self._synced_at.get(follower) or self._first_at, self._first_at))

    @property
    def problems(self) -> dict[Follower, str]:
        """Why not all clusters are known, by what would follow them."""
        problems = {
            (publisher, source): f"{source}: {problem}" if source else problem
            for (publisher, source), (_, problem) in self._problems.items()
        }
        return {**{follower: self.problem(follower) for follower in self.silent}, **problems}

    def problem(self, follower: Follower) -> str:
        """Return why what follows is believed no longer."""
        publisher, source = follower
        who = f"publisher {publisher}" if publisher else "a publisher"
        of = f" of the source {source}" if source else ""
        return f"{who}{of} has not been heard since {_time(self.followed_at(follower)):%Y-%m-%dT%H:%M:%SZ}"

    def has_changed(self, now: float, followers: Mapping[Follower, float]) -> bool:
        """Return whether others are silent now than before. `followers`: those of all scopes, with `_synced_at`."""
        were_silent, self._synced_at = self.are_silent, followers
        # The clock may have been set back.
        self.heard_at, self._listens_since = min(self.heard_at, now), min(self._listens_since, now)
        self._first_at, self._opened_at = min(self._first_at, now), min(self._opened_at, now)
        self._followed_at = {by: min(at, now) for by, at in self._followed_at.items() if at > now - FORGOTTEN_S}
        self._problems = {by: told for by, told in self._problems.items() if told[0] > now - SILENT_S}
        self.are_silent = now - max(self.heard_at, self._listens_since) > SILENT_S
        # What was not silent has a while to be heard on a new connection.
        known: frozenset[Follower] = frozenset() if were_silent else self.silent
        self.silent = frozenset(
            by
            for by in followers
            if now - max(self.followed_at(by), 0.0 if self.are_silent or by in known else self._opened_at) > SILENT_S
        )
        before, self._reported = self._reported, (self.are_silent, self.silent, self.problems)
        return before != self._reported


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
        if self._is_snapshot:
            self._scopes = {
                subject: scope
                for subject, scope in self._scopes.items()
                if scope.scope is not None or (is_same and scope.told is not None)
            }
        for scope in self._scopes.values():
            if self._is_snapshot:
                scope.seen = set() if scope.scope is not None else None
                scope.is_dropped = False
                scope.buffered.clear()
            scope.state, scope.is_unreadable = None, False
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

    def heard(self, at: float, now: float, heartbeat: Heartbeat | None = None) -> None:
        """A publisher ran at a time, which is the last one that the stream knows."""
        self._publishers.hear(at, heartbeat)
        self._note_silence(now)

    def _note_silence(self, now: float) -> None:
        followers: dict[Follower, float] = {}
        for scope in self._scopes.values():
            if scope.scope is not None:
                is_synced = scope.told is not None and isinstance(scope.told.state, Synced)
                followers[scope.follower] = max(followers.get(scope.follower, 0.0), scope.told_at if is_synced else 0.0)
        if self._publishers.has_changed(now, followers) and not self._is_behind:
            self._report_states()
            self._report_fleet(now)

    def _report_states(self) -> None:
        for scope in self._scopes.values():
            self._report_state(scope)

    def _report_state(self, scope: _Scope) -> None:
        """Report the state that the stream has of a scope, if what follows it is heard."""
        if scope.scope is None or scope.told is None:
            return
        state, follower = scope.told.state, scope.follower
        assert not isinstance(state, ScopeIsOver)
        if isinstance(state, Synced) and follower in self._publishers.silent:
            state = Stale(_time(self._publishers.followed_at(follower)), self._publishers.problem(follower))
        self._store.apply(ScopeChanged(scope.scope, state))

    def receive(self, stored: StoredMessage, now: float) -> None:
        """Apply a message. Raises ValueError for one that is not of milo-objects; the next ones can be applied. Raises
        ReadAgain."""
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
        message: ObjectMessage | ScopeMessage
        try:
            is_object = isinstance(subject, ObjectSubject)
            message = ObjectMessage.decode_kept(stored, kind) if is_object else ScopeMessage.decode(stored)
        except ValueError:
            self._keep(scope, subject)
            raise
        if isinstance(message, ObjectMessage):
            assert isinstance(subject, ObjectSubject)
            self._receive_object(scope, subject, message)
        else:
            was_known = self._is_fleet_known and not self._missing
            self._receive_scope(scope_subject, scope, message, stored)
            if scope_subject in self._missing:
                self._missing.remove(scope_subject)
                self._rewritten_at = now
            if not was_known and not self._is_behind:
                self._report_fleet(now)

    def _keep(self, scope: _Scope, subject: Subject) -> None:
        """Keep what is known of a subject whose message cannot be decoded."""
        if isinstance(subject, ObjectSubject):
            if scope.seen is not None:
                scope.seen.add(subject)
        elif scope.told is not None and self.position is not None:
            scope.is_unreadable = True
            scope.told = replace(scope.told, state=Stale(_time(self.position.at), _UNREADABLE))
            if not self._is_behind:
                self._report_state(scope)

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
                is_proven = not self._is_other_stream or isinstance(scope.state, Synced)
                if is_proven:
                    self._remove_unseen(scope)
            scope.state = None
        self._note_silence(now)
        self._report_states()
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
        elif (problems := self._publishers.problems) and self._is_fleet_known:
            self._stale(min(map(self._publishers.followed_at, problems)), "; ".join(sorted({*problems.values()})))
        elif self._is_fleet_known:
            self._store.apply(FleetChanged(Synced(_time(now))))

    def _stale(self, since: float, problem: str) -> None:
        if self._publishers.are_silent:
            since = min(since, self._publishers.heard_at)
        self._store.apply(FleetChanged(Stale(_time(since), problem)))

    def _receive_object(self, scope: _Scope, subject: ObjectSubject, message: ObjectMessage) -> None:
        if scope.scope is not None and message.epoch == scope.epoch:
            self._apply(scope, scope.scope, subject, message)
        elif scope.epoch is None or message.epoch > scope.epoch or (scope.is_hidden and message.epoch == scope.epoch):
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

    def _receive_scope(
        self, subject: ScopeSubject, scope: _Scope, message: ScopeMessage, stored: StoredMessage
    ) -> None:
        if scope.epoch is not None and message.epoch < scope.epoch:
            return
        if isinstance(message.state, ScopeIsOver):
            self._end(subject, scope, message.cluster.uid, message.state.reason)
            scope.epoch = message.epoch
            scope.buffered.clear()
            return
        former: Scope | None = None
        is_other = scope.told is not None and scope.told.cluster.uid != message.cluster.uid
        if is_other if scope.epoch is None else message.epoch > scope.epoch:
            former = scope.scope
            scope.drop()
        scope.epoch, scope.told, scope.told_at, scope.sequence = message.epoch, message, stored.at, stored.sequence
        scope.follower = message.publisher, source_of(subject.cluster)
        cluster = self._clusters.get(subject.cluster)
        if cluster is None or cluster.uid != message.cluster.uid:
            self._settle(subject.cluster)
        if former is not None:
            self._store.apply(ScopeEnded(former, ScopeEnd.WITHDRAWN))
        cluster = self._clusters[subject.cluster]
        if cluster.uid != message.cluster.uid:
            scope.is_dropped = True
            scope.buffered.clear()
            return
        cluster = self._clusters[subject.cluster] = replace(message.cluster, incarnation=cluster.incarnation)
        self._store.apply(ClusterChanged(cluster))
        self._show(subject, scope, cluster, message.state)

    def _show(self, subject: ScopeSubject, scope: _Scope, cluster: FleetCluster, state: ScopeState) -> None:
        if scope.scope is None:
            if scope.is_dropped:
                self._read_again(cluster)
            resource = self._kinds[subject.group, subject.resource].resource
            scope.scope = Scope(cluster.name, cluster.incarnation, resource)
            self._store.apply(ScopeChanged(scope.scope, Pending(state.since)))
        for place, found in scope.buffered:
            if found.epoch == scope.epoch:
                self._apply(scope, scope.scope, place, found)
        scope.buffered.clear()
        if self._is_behind:
            scope.state = state
        else:
            if isinstance(state, Synced):
                self._remove_unseen(scope)
            self._report_state(scope)

    def _settle(self, name: str) -> None:
        """Have a cluster be the project of its newest scope."""
        told = [
            (-1 if scope.epoch is None else scope.epoch, scope.scope is not None, scope.told.cluster, scope.is_dropped)
            for scope in self._of(name).values()
            if scope.told is not None
        ]
        cluster = self._clusters.get(name)
        if not told:
            return
        *_, newest, _ = max(told, key=lambda each: each[:2])
        if cluster is not None:
            if cluster.uid == newest.uid:
                return
            self._end_cluster(cluster, "REPLACED")
        self._clusters[name] = newest
        self._store.apply(ClusterChanged(newest))
        if any(is_dropped for *_, project, is_dropped in told if project.uid == newest.uid):
            self._read_again(newest)

    def _of(self, name: str) -> dict[ScopeSubject, _Scope]:
        """Return the scopes of a cluster."""
        subjects = (ScopeSubject(name, *kind) for kind in self._kinds)
        return {subject: self._scopes[subject] for subject in subjects if subject in self._scopes}

    def _read_again(self, cluster: FleetCluster) -> NoReturn:
        self._is_snapshot = True
        raise ReadAgain(f"{cluster.name}: what had ended goes on; the stream is read again")

    # --- ends ---

    def _end(self, subject: ScopeSubject, scope: _Scope, uid: str, reason: str) -> None:
        cluster = self._clusters.get(subject.cluster)
        if scope.scope is None or cluster is None:
            scope.drop()
            is_shown = any(other.scope is not None for other in self._of(subject.cluster).values())
            if cluster is not None and cluster.uid == uid and reason != Gone.WITHDRAWN.value and not is_shown:
                self._end_cluster(cluster, reason)  # whose scopes were withdrawn before
            return
        if reason == Gone.WITHDRAWN.value:
            self._withdraw(subject, scope)
            self._settle(cluster.name)
        else:
            # What began after the scope's last state may be of another engagement, and then goes on.
            self._end_cluster(cluster, reason, scope.sequence)
            scope.drop()

    def _withdraw(self, subject: ScopeSubject, scope: _Scope) -> None:
        if scope.scope is not None:
            self._store.apply(ScopeEnded(scope.scope, ScopeEnd.WITHDRAWN))
        scope.drop()
        self._missing.discard(subject)

    def _end_cluster(self, cluster: FleetCluster, reason: str, until: int = -1) -> None:
        """End a cluster with its scopes. `until`: those that had begun by this sequence do not go on."""
        self._store.apply(ClusterEnded(cluster, reason))
        del self._clusters[cluster.name]
        for subject, scope in self._of(cluster.name).items():
            if scope.scope is None:
                continue
            told = scope.told
            scope.drop()
            if scope.epoch is not None and subject not in self._missing:
                scope.is_dropped = True
                scope.told = told if scope.epoch > until else None
            self._missing.discard(subject)

    def _sweep(self, now: float) -> None:
        """End what the snapshot did not have; if it is of another stream, later."""
        shown = {key for key, scope in self._scopes.items() if scope.state is not None or scope.is_unreadable}
        if not self._missing:
            self._missing_since = self._rewritten_at = now
        self._missing = {subject for subject, scope in self._scopes.items() if scope.scope is not None} - shown
        if not self._is_other_stream:
            self._end_missing()
        for scope in self._scopes.values():
            if scope.is_hidden and scope.state is None:
                scope.told = None
        self._scopes = {
            subject: scope
            for subject, scope in self._scopes.items()
            if scope.scope is not None or scope.buffered or scope.is_dropped
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
            self._withdraw(subject, self._scopes[subject])

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
