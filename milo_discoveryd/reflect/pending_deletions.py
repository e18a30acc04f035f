"""Deletions that await confirmation by a read of the object.

On the wire, an object that was deleted and one that left the selector look alike, and a real API server has been seen
to report live objects as deleted. Operators delete data when a cluster is disengaged. So each reported deletion is
confirmed: only "not found", or another UID under the name, is evidence.
"""

import heapq
from collections.abc import Callable, Set

import msgspec

from milo_discoveryd.model.observation import Malformed, Observation
from milo_discoveryd.reflect.backoff import Backoff


class ConfirmationRequest(msgspec.Struct, frozen=True):
    """A consistent read of one object, to be made now."""

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
    """The object of this UID does not exist any more."""

    name: str
    uid: str


class _PendingDeletion(msgspec.Struct):
    uid: str
    since: float
    ticket: int
    requested_at: float = 0.0
    failures: int = 0
    problem: str = ""
    is_held: bool = False


class PendingDeletions:
    """Each is confirmed until there is a result, with at most `concurrency` reads in flight."""

    def __init__(self, jitter: Callable[[], float], concurrency: int = 20, backoff: Backoff | None = None) -> None:
        self._jitter = jitter
        self._concurrency = concurrency
        self._backoff = backoff or Backoff()
        self._pending: dict[str, _PendingDeletion] = {}
        self._due: list[tuple[float, int, str]] = []
        """A heap of when to confirm which ticket. Tickets that were settled meanwhile are skipped."""
        self._in_flight: set[int] = set()
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def held(self) -> int:
        if not self._pending:
            return 0  # the common case, and this is read with every change
        return sum(pending.is_held for pending in self._pending.values())

    def add(self, name: str, uid: str, now: float, *, confirm_at: float | None = None) -> None:
        """Have a deletion confirmed, now or at `confirm_at`."""
        known = self._pending.get(name)
        if known is not None and known.uid == uid and not known.is_held:
            return
        pending = self._new(name, uid, now)
        heapq.heappush(self._due, (now if confirm_at is None else confirm_at, pending.ticket, name))

    def hold(self, name: str, uid: str, now: float, message: str) -> None:
        """Keep a deletion unconfirmed until it is added again. The result of a read in flight is ignored."""
        pending = self._new(name, uid, now)
        pending.is_held, pending.problem = True, message

    def _new(self, name: str, uid: str, now: float) -> _PendingDeletion:
        known = self._pending.get(name)
        self._tickets += 1
        since = known.since if known is not None and known.uid == uid else now
        self._pending[name] = pending = _PendingDeletion(uid, since, self._tickets)
        return pending

    def discard(self, name: str) -> None:
        """Drop a pending deletion: the object was seen again."""
        self._pending.pop(name, None)

    def discard_all(self, names: Set[str]) -> None:
        """Drop the pending deletions among `names`, which are usually far more."""
        for name in self._pending.keys() & names:
            self.discard(name)

    def explain(self, name: str) -> tuple[float, str] | None:
        """Return since when the deletion is pending, and what keeps it from being confirmed."""
        pending = self._pending.get(name)
        return None if pending is None else (pending.since, pending.problem)

    def take_due(self, now: float) -> list[ConfirmationRequest]:
        """Return the requests to make now. Each must be given a result."""
        due: list[ConfirmationRequest] = []
        while self._due and self._due[0][0] <= now and len(self._in_flight) < self._concurrency:
            _, ticket, name = heapq.heappop(self._due)
            pending = self._pending.get(name)
            if pending is not None and pending.ticket == ticket:
                self._in_flight.add(ticket)
                pending.requested_at = now
                due.append(ConfirmationRequest(name, ticket))
        return due

    @property
    def next_at(self) -> float | None:
        """When there will be a request to make, if nothing else happens."""
        return self._due[0][0] if self._due and len(self._in_flight) < self._concurrency else None

    def resolve(
        self, request: ConfirmationRequest, result: ConfirmationResult, now: float
    ) -> ConfirmedDeletion | Observation | None:
        """Return what the result proves, or None if it proves nothing."""
        self._in_flight.discard(request.ticket)
        pending = self._pending.get(request.name)
        if pending is None or pending.ticket != request.ticket:
            return None  # settled meanwhile by the watch or a list
        if isinstance(result, Found) and _is_unreadable(result.observation, pending.uid):
            # Neither deleted nor known to be unchanged: it may be outside the selector, where no watch reports it.
            result = Inconclusive("the object can't be decoded")
        if isinstance(result, Inconclusive):
            pending.failures += 1
            pending.problem = result.problem
            # The time that the request took counts towards the wait.
            wait = self._backoff.delay(pending.failures, self._jitter) - (now - pending.requested_at)
            confirm_at = now + max(wait, self._backoff.delay(1, self._jitter))
            heapq.heappush(self._due, (confirm_at, pending.ticket, request.name))
            return None
        self.discard(request.name)
        return ConfirmedDeletion(request.name, pending.uid) if isinstance(result, NotFound) else result.observation


def _is_unreadable(found: Observation, uid: str) -> bool:
    return isinstance(found, Malformed) and found.uid in ("", uid)
