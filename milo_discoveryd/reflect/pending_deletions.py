"""A deletion is asked about before it is told.

On the wire, an object that was deleted and one that left the selector look alike, and a real API server has been
seen to report live objects as deleted. Operators delete data when a cluster goes. So each name that seems to be gone is
asked for: only "not found", or another UID under the name, is evidence.
"""

import heapq
from collections.abc import Callable, Set

import msgspec

from milo_discoveryd.model.observation import Malformed, Observation
from milo_discoveryd.reflect.backoff import Backoff


class ConfirmationRequest(msgspec.Struct, frozen=True):
    """To be answered by a consistent read of the object."""

    name: str
    ticket: int


class Found(msgspec.Struct, frozen=True):
    observation: Observation


class NotFound(msgspec.Struct, frozen=True):
    pass


class Inconclusive(msgspec.Struct, frozen=True):
    problem: str


ConfirmationResult = Found | NotFound | Inconclusive


class ConfirmedDeletion(msgspec.Struct, frozen=True):
    """The object of this UID is not there any more: that is certain."""

    name: str
    uid: str


class _PendingDeletion(msgspec.Struct):
    uid: str
    since: float
    ticket: int
    asked_at: float = 0.0
    failures: int = 0
    problem: str = ""
    is_held: bool = False


class PendingDeletions:
    """Names that seem to be gone, each asked about until there is an answer, at most `at_once` at a time."""

    def __init__(self, jitter: Callable[[], float], at_once: int = 20, backoff: Backoff | None = None) -> None:
        self._jitter = jitter
        self._at_once = at_once
        self._backoff = backoff or Backoff()
        self._open: dict[str, _PendingDeletion] = {}
        self._due: list[tuple[float, int, str]] = []
        """A heap of when to ask which ticket; what was settled meanwhile is passed over."""
        self._asked: set[int] = set()
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def held(self) -> int:
        if not self._open:
            return 0  # as nearly always, and this is asked with every change
        return sum(suspicion.is_held for suspicion in self._open.values())

    def suspect(self, name: str, uid: str, now: float, *, ask_at: float | None = None) -> None:
        """To be asked about at once, or at that time."""
        known = self._open.get(name)
        if known is not None and known.uid == uid and not known.is_held:
            return
        suspicion = self._opened(name, uid, now)
        heapq.heappush(self._due, (now if ask_at is None else ask_at, suspicion.ticket, name))

    def hold(self, name: str, uid: str, now: float, why: str) -> None:
        """Not to be asked about until it is suspected again; an answer that is under way counts for nothing."""
        suspicion = self._opened(name, uid, now)
        suspicion.is_held, suspicion.problem = True, why

    def _opened(self, name: str, uid: str, now: float) -> _PendingDeletion:
        known = self._open.get(name)
        self._tickets += 1
        since = known.since if known is not None and known.uid == uid else now
        self._open[name] = suspicion = _PendingDeletion(uid, since, self._tickets)
        return suspicion

    def clear(self, name: str) -> None:
        """The name was seen again, so whatever is asked about it is beside the point."""
        self._open.pop(name, None)

    def clear_all(self, names: Set[str]) -> None:
        """These were seen again: far more than are under suspicion, as a rule."""
        for name in self._open.keys() & names:
            self.clear(name)

    def why(self, name: str) -> tuple[float, str] | None:
        """Since when the name is under suspicion, and what keeps it from being settled."""
        suspicion = self._open.get(name)
        return None if suspicion is None else (suspicion.since, suspicion.problem)

    def questions(self, now: float) -> list[ConfirmationRequest]:
        """Those to ask now. Each is to be answered."""
        due: list[ConfirmationRequest] = []
        while self._due and self._due[0][0] <= now and len(self._asked) < self._at_once:
            _, ticket, name = heapq.heappop(self._due)
            suspicion = self._open.get(name)
            if suspicion is not None and suspicion.ticket == ticket:
                self._asked.add(ticket)
                suspicion.asked_at = now
                due.append(ConfirmationRequest(name, ticket))
        return due

    @property
    def next_at(self) -> float | None:
        """When there will be something to ask, if nothing else happens."""
        return self._due[0][0] if self._due and len(self._asked) < self._at_once else None

    def answered(
        self, question: ConfirmationRequest, answer: ConfirmationResult, now: float
    ) -> ConfirmedDeletion | Observation | None:
        self._asked.discard(question.ticket)
        suspicion = self._open.get(question.name)
        if suspicion is None or suspicion.ticket != question.ticket:
            return None  # settled meanwhile by the stream itself
        if isinstance(answer, Found) and _is_unreadable(answer.observation, suspicion.uid):
            # Neither gone nor known to be what it was: perhaps outside the selector, where no watch would tell of it.
            answer = Inconclusive("what is there can't be read")
        if isinstance(answer, Inconclusive):
            suspicion.failures += 1
            suspicion.problem = answer.problem
            # The time that an answer was waited for counts as waited.
            wait = self._backoff.delay(suspicion.failures, self._jitter) - (now - suspicion.asked_at)
            ask_at = now + max(wait, self._backoff.delay(1, self._jitter))
            heapq.heappush(self._due, (ask_at, suspicion.ticket, question.name))
            return None
        self.clear(question.name)
        return ConfirmedDeletion(question.name, suspicion.uid) if isinstance(answer, NotFound) else answer.observation


def _is_unreadable(found: Observation, uid: str) -> bool:
    return isinstance(found, Malformed) and found.uid in ("", uid)
