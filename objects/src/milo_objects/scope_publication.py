"""The publication of one scope: the records of its objects, and the state that readers are to see. Pure."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec.structs import replace

from milo_objects.gone_objects import GoneObjects
from milo_objects.messages import LONGEST_PROBLEM, ScopeIsOver, ScopeMessage
from milo_objects.publication_records import SubjectRecord
from milo_objects.scope import Forbidden, NotServed, OverBudget, Pending, ScopeState, Stale, Synced
from milo_objects.subjects import ObjectSubject, ScopeSubject

_UNKNOWN_SINCE: Final = datetime.fromtimestamp(0, UTC)
_UNREAD: Final = "its publisher has not read it yet"
_UNFOLLOWED: Final = "no publisher follows it"


class ScopePublication:
    """The records of one scope."""

    __slots__ = (
        *("awaiting", "epoch", "gone", "held", "known", "objects", "over", "pending", "purge", "record"),
        *("refused", "source", "sweep_at", "unread_at"),
    )

    def __init__(self, subject: ScopeSubject, gone: GoneObjects) -> None:
        self.record = SubjectRecord(subject)
        self.objects: dict[ObjectSubject, SubjectRecord] = {}
        self.gone = gone
        self.source: ScopeState | None = None
        self.epoch = 0
        self.over = ""
        """Why the scope in the stream has to end; empty if it goes on."""
        self.purge = 0
        """The ticket of the purge after its end."""
        self.pending: set[ObjectSubject] = set()
        self.awaiting: set[ObjectSubject] | None = None
        """The objects that were not stored when the source was synced, or were refused since: SYNCED has to wait for
    them."""
        self.refused: dict[ObjectSubject, str] = {}
        self.sweep_at: float | None = None
        """When objects that the source has not named are proven to be gone."""
        self.held = ""
        """Why they are not removed yet."""
        self.known: float | None = None
        """How many objects the stream had when the source had not named some of them; None if it has named all. Those
        that were published since say nothing of how many are missing. Infinite once a second list lacks them too, of
        which none are too many."""
        self.unread_at: float | None = None
        """When a SYNCED of a former publisher is no longer believed, because this one has not read the scope."""

    @property
    def is_dropped(self) -> bool:
        """Whether its objects take too much memory. The stream is read again when the source lists them again."""
        return isinstance(self.source, OverBudget)

    def drop(self) -> None:
        """Forget the objects, and what the stream has of them."""
        self.objects.clear()
        self.gone.clear()
        self.pending.clear()

    @property
    def subject(self) -> ScopeSubject:
        assert isinstance(self.record.subject, ScopeSubject)
        return self.record.subject

    @property
    def published(self) -> ScopeMessage | None:
        """The scope's message in the stream, unless the scope has ended."""
        message = self.record.published
        assert message is None or isinstance(message, ScopeMessage)
        return None if message is None or isinstance(message.state, ScopeIsOver) else message

    @property
    def last(self) -> ScopeMessage | None:
        """The scope's message in the stream, unless the cluster has ended with the scope: readers may have it."""
        message = self.record.published
        assert message is None or isinstance(message, ScopeMessage)
        return None if message is None or message.ends_cluster else message

    @property
    def has_begun(self) -> bool:
        """Whether objects may be written: readers know the scope."""
        return not self.over and self.published is not None and self.published.epoch == self.epoch

    @property
    def is_read(self) -> bool:
        """Whether the source has said what it has read of the scope, or why it cannot."""
        return self.source is not None and not isinstance(self.source, Pending)

    def is_taken_over(self, now: float) -> bool:
        """Return whether the stream has what the first list has, and nothing else, or does not say SYNCED."""
        if self.record.is_pending and not self.record.problem:
            return False
        published = self.published
        if published is None or not isinstance(published.state, Synced):
            return self.is_read or (self.unread_at is not None and self.unread_at <= now)
        return self.is_read and self.sweep_at is None and not self.awaiting

    def publisher(self, own: str | None, now: float) -> str:
        """Return which publisher has read the scope: the former one, until this one has or is late."""
        published = self.published
        is_own = self.is_read or published is None or (self.unread_at is not None and self.unread_at <= now)
        if own is not None and is_own:
            return own
        return "" if published is None else published.publisher

    def state(self, now: float) -> ScopeState:
        """Return the state that readers are to see."""
        state = self._whole_state(now)
        if isinstance(state, Stale | Forbidden | NotServed | OverBudget) and _encoded(state.problem) > LONGEST_PROBLEM:
            problem, lengths = state.problem, range(LONGEST_PROBLEM + 1)
            fitting = bisect_right(lengths, LONGEST_PROBLEM, key=lambda length: _encoded(problem[:length])) - 1
            return replace(state, problem=f"{problem[:fitting]}...")
        return state

    def _whole_state(self, now: float) -> ScopeState:
        """Return the source's state; but what is not stored yet is not SYNCED."""
        source, published = self.source, self.published
        known = published.state if published is not None and not isinstance(published.state, ScopeIsOver) else None
        if source is None or isinstance(source, Pending):
            if isinstance(known, Synced) and self.unread_at is not None and self.unread_at <= now:
                known = Stale(known.since, _UNREAD)
            return known or source or Pending(_UNKNOWN_SINCE)
        if not isinstance(source, Synced):
            return source
        if self.refused:
            subject, problem = next(iter(self.refused.items()))  # of many, the first costs nothing to find
            others = f" and {len(self.refused) - 1} more" if len(self.refused) > 1 else ""
            place = f"{subject.namespace}/{subject.name}" if subject.namespace else subject.name
            return OverBudget(source.since, f"{place}{others}: not published: {problem}")
        if self.held:
            return Stale(source.since, self.held)
        if self.awaiting is None and self.has_begun:
            self.awaiting = set(self.pending)
        if self.awaiting is None or self.awaiting:
            return known or Pending(source.since)
        return source

    def put(self, record: SubjectRecord) -> None:
        """Replace the record of an object."""
        subject = record.subject
        assert isinstance(subject, ObjectSubject)
        record = record.compact()
        if record.is_done:
            self.objects.pop(subject, None)
        else:
            self.objects[subject] = record
        if record.problem and record.is_pending:
            self.refused[subject] = record.problem
        else:
            was_refused = self.refused.pop(subject, None) is not None
            if was_refused and record.is_pending and self.awaiting is not None:
                self.awaiting.add(subject)
        if record.is_pending and not record.problem:
            self.pending.add(subject)
        else:
            self.pending.discard(subject)
            if self.awaiting is not None:
                self.awaiting.discard(subject)


def _encoded(problem: str) -> int:
    """Return how many bytes a problem takes in a message."""
    return len(msgspec.json.encode(problem)) - len('""')


def disowned(message: ScopeMessage, publisher: str | None) -> ScopeMessage | None:
    """Return what is to be said of a scope that no publisher follows; None if what `publisher` does decides nothing."""
    if not isinstance(message.state, Synced) or publisher is None or message.publisher not in ("", publisher):
        return None
    return replace(message, state=Stale(message.state.since, _UNFOLLOWED))
