"""Deletions that await confirmation by a read of the object.

On the wire, an object that was deleted and one that left the selector look alike, and a real API server was observed
reporting live objects as deleted. Operators delete data when a cluster is disengaged. So each reported deletion is
confirmed: only "not found", or an object with another UID, is evidence.

A read that finds the object refutes the report, but so does a read from a cache that lags behind the watch. So a
refuted report is checked again, at growing intervals, until the watch or a list shows the object. A server that was
restored from a backup may lack the object only because of the restore. So these checks wait until the server has proved
that it was not replaced.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.object_state import FORGETTABLE_STATES
from milo_discoveryd.model.observation import Malformed
from milo_kube.reflect.backoff import Backoff


class ConfirmationRequest(msgspec.Struct, frozen=True):
    """A request for a consistent read of one object, to send now."""

    name: str
    ticket: int
    was_refuted: bool = False
    """An earlier read found the object."""


class Found(msgspec.Struct, frozen=True):
    observation: ObservedObject


class Absent(msgspec.Struct, frozen=True):
    pass


class Inconclusive(msgspec.Struct, frozen=True):
    problem: str
    is_refusal: bool = False
    """The server refused the read. It would refuse other reads too, so all of them wait."""
    is_older: bool = False
    """The read returned an older state than the watch or a list: a replica lags behind, or the server was restored."""
    retry_after_s: float | None = None


ConfirmationResult = Found | Absent | Inconclusive


class ConfirmedDeletion(msgspec.Struct, frozen=True):
    """Evidence that the object of this UID no longer exists."""

    name: str
    uid: str


class _PendingDeletion(msgspec.Struct):
    uid: str
    since: float
    ticket: int
    tenant: str = ""
    """Empty if it is not known."""
    requested_at: float = 0.0
    failures: int = 0
    problem: str = ""
    older_since: float | None = None
    """When a read first returned an older state."""
    is_held: bool = False
    is_held_until_accepted: bool = False
    """Only an administrator ends the hold, or a newer state of the object."""
    is_released: bool = False
    """Two lists lacked the object, along with many others, so its deletion is confirmed at a limited rate."""
    is_refuted: bool = False
    """A read found the object, and neither the watch nor a list has shown it since."""


class DoubtedObjects(dict[str, _PendingDeletion]):
    """The pending deletions by name, and sums over them: these are read after every change, of very many."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.until_accepted: Counter[float] = Counter()
        """How many are held until an administrator accepts them, by when they were first reported."""
        self.reinstated = 0
        """How many objects are no longer doubted, but were not deleted."""

    def put(self, name: str, pending: _PendingDeletion) -> None:
        """Add a pending deletion instead of the object's former one, with its final `is_held`."""
        self._count(self.get(name), -1)
        self[name] = pending
        self._count(pending, 1)

    def remove(self, name: str) -> None:
        self._count(self.pop(name, None), -1)

    def _count(self, pending: _PendingDeletion | None, change: int) -> None:
        if pending is None or not pending.is_held:
            return
        self.held += change
        if pending.is_held_until_accepted:
            self.until_accepted[pending.since] += change
            if not self.until_accepted[pending.since]:
                del self.until_accepted[pending.since]


_Entry = tuple[float, tuple[int, ...], int, str]
"""The time of a read, its order among those of the same time, and the ticket and name of its deletion. Each pending
deletion has a number, its ticket. An entry is skipped if its ticket is no longer pending."""

_RETRY_AFTER_BOUNDS_S = (0.1, 300.0)
_RECHECK = Backoff(first_s=1.0, cap_s=300.0)
"""Delays between reads of an object whose reported deletion was refuted."""


_HANGING_S = 0.1
"""How long a read occupies its slot. This time is multiplied by the number of reads in flight per slot: reads that hang
delay the next read by at most a second, and the more reads hang, the more slowly new ones are sent."""
_HANGING = 10
"""Maximum number of reads in flight, as a multiple of the concurrency."""
_SKIPPED_KEPT = 100


class _FirstReads:
    """The deletions whose first read is due, or will be at a set time. Tenants take turns: a round has one read of
    each, since one tenant can delete more objects than are read in the same time. Objects without a known tenant share
    the turns of one.

    The newest report is first among those of a tenant, and among the tenants of a round: hundreds of older reads may
    hang.
    """

    def __init__(self) -> None:
        self.later: list[_Entry] = []
        """A heap of deletions by the set time of the read."""
        self._waiting: dict[str, list[tuple[int, str]]] = {}
        """The tickets and names of the deletions of each tenant, the newest last."""
        self._turns: list[tuple[int, int, str]] = []
        """A heap with the round of each of these tenants, the negative ticket of its newest deletion then, and its
        name."""
        self._round = 0
        self._served: set[str] = set()
        """The tenants that had a read in this round."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def next_at(self) -> float:
        """When the next read is due; infinite if there is none."""
        if self._turns:
            return -math.inf
        return self.later[0][0] if self.later else math.inf

    @property
    def first(self) -> tuple[int, str] | None:
        return self._waiting[self._turns[0][-1]][-1] if self._turns else None

    def push(self, tenant: str, ticket: int, name: str) -> None:
        waiting = self._waiting.setdefault(tenant, [])
        waiting.append((ticket, name))
        self._count += 1
        if len(waiting) == 1:
            self._queue(tenant)

    def pop(self, *, is_sent: bool) -> None:
        """Remove the first deletion. If its read is not sent, its tenant keeps the turn."""
        its_round, _, tenant = heapq.heappop(self._turns)
        self._waiting[tenant].pop()
        self._count -= 1
        if is_sent:
            if its_round > self._round:
                self._round = its_round
                self._served.clear()
            self._served.add(tenant)
        if self._waiting[tenant]:
            self._queue(tenant)
        else:
            del self._waiting[tenant]
        if not self._turns:
            self._served.clear()

    def keep(self, is_pending: Callable[[int, str], bool]) -> None:
        """Remove the deletions that are not pending."""
        for tenant, waiting in [*self._waiting.items()]:
            waiting[:] = [entry for entry in waiting if is_pending(*entry)]
            if not waiting:
                del self._waiting[tenant]
        self._turns = [turn for turn in self._turns if turn[-1] in self._waiting]
        heapq.heapify(self._turns)
        self._count = sum(map(len, self._waiting.values()))

    def _queue(self, tenant: str) -> None:
        ticket, _ = self._waiting[tenant][-1]
        heapq.heappush(self._turns, (self._round + (tenant in self._served), -ticket, tenant))


class PendingDeletions:
    """The deletions that await confirmation. Reads are repeated until they are conclusive, `concurrency` at a time.

    Reads that hang do not delay the others: a tenant's newest report is confirmed first, a read that hangs occupies no
    slot, and retries use at most half of the concurrency. After a refusal all reads wait, and then one read at a time
    is sent until the server answers again.
    """

    def __init__(self, jitter: Callable[[], float], concurrency: int = 20, backoff: Backoff | None = None) -> None:
        self.jitter = jitter
        self._concurrency = concurrency
        self._backoff = backoff or Backoff()
        self.doubted = DoubtedObjects()
        """The deletions that await confirmation, and the refuted ones that are to be checked again, by name."""
        self._due = _FirstReads()
        self._retries_due: list[_Entry] = []
        """A heap of deletions whose reads failed, by the time of the retry."""
        self._retries_ready: list[_Entry] = []
        """A heap of those whose time has come: first that with the fewest failures, of these the newest, so that one
        failure does not put a deletion behind hundreds whose reads hang. The time is the past."""
        self._rechecks_due: list[_Entry] = []
        """A heap of refuted deletions, by the time of the next check."""
        self.defers_rechecks = False
        """True while refuted deletions must not be checked again."""
        self._in_flight: dict[int, tuple[float, bool]] = {}
        """The tickets of reads in flight, when each was sent, and whether it is a retry."""
        self._refusals = 0
        """The number of consecutive refusals."""
        self._refusal = ""
        self._paused_until = -math.inf
        self._tickets = 0

    def __len__(self) -> int:
        return len(self.doubted) and sum(not pending.is_refuted for pending in self.doubted.values())

    @property
    def held(self) -> int:
        return self.doubted.held

    @property
    def until_accepted(self) -> Mapping[float, int]:
        """How many deletions are held until an administrator accepts them, by when they were first reported."""
        return self.doubted.until_accepted

    def add(self, name: str, uid: str, now: float, *, tenant: str = "", confirm_at: float | None = None) -> None:
        """Schedule the confirmation of a deletion: now, or at `confirm_at` if it is one of many that are released."""
        former, is_released = self._awaiting(name), confirm_at is not None
        if former is not None and former.uid == uid and not former.is_held:
            former.is_released = is_released
            return
        pending = self._new(name, uid, now)
        pending.tenant, pending.is_released = tenant, is_released
        self.doubted.put(name, pending)
        if confirm_at is None:
            self._push_first(pending, name)
        else:
            self._push(self._due.later, confirm_at, pending.ticket, name)

    def hold(self, name: str, uid: str, now: float, message: str, *, until_accepted: bool = False) -> None:
        """Keep a deletion unconfirmed until `add` is called again. The result of a read in flight is ignored."""
        pending = self._new(name, uid, now)
        pending.is_held, pending.is_held_until_accepted, pending.problem = True, until_accepted, message
        self.doubted.put(name, pending)

    def hold_released(self, now: float, message: str) -> None:
        """Hold again the deletions that were released, and are not confirmed yet."""
        for name, pending in [*self.doubted.items()]:
            if pending.is_released and not pending.is_refuted:
                self.hold(name, pending.uid, now, message)

    def _new(self, name: str, uid: str, now: float) -> _PendingDeletion:
        former = self._awaiting(name)
        self._tickets += 1
        since = former.since if former is not None and former.uid == uid else now
        return _PendingDeletion(uid, since, self._tickets)

    def _awaiting(self, name: str) -> _PendingDeletion | None:
        """Return the pending deletion of the object; None if there is none, or if it was refuted."""
        pending = self.doubted.get(name)
        return None if pending is None or pending.is_refuted else pending

    def discard(self, name: str) -> None:
        """Drop a pending deletion: the object was seen again."""
        self.doubted.remove(name)
        self.doubted.reinstated += 1

    def discard_all(self, names: Iterable[str]) -> None:
        """Drop the pending deletions of those of these objects that have one."""
        for name in names:
            if name in self.doubted:
                self.discard(name)

    def is_held(self, name: str) -> bool:
        pending = self.doubted.get(name)
        return pending is not None and pending.is_held

    def is_kept_since(self, name: str, since: float) -> bool:
        """Return whether the object was missing at this time, and its removal is held or was released."""
        pending = self.doubted.get(name)
        return pending is not None and (pending.is_held or pending.is_released) and pending.since <= since

    def is_held_until_accepted(self, name: str) -> bool:
        pending = self.doubted.get(name)
        return pending is not None and pending.is_held_until_accepted

    def is_released(self, name: str) -> bool:
        pending = self.doubted.get(name)
        return pending is not None and pending.is_released

    def awaits_read(self, name: str) -> bool:
        """Return whether the object's deletion is pending, and no read of the object has returned a result yet."""
        pending = self._awaiting(name)
        return pending is not None and not pending.failures

    def is_doubted(self, name: str) -> bool:
        """Return whether a deletion of the object is pending, or was refuted only by reads."""
        return name in self.doubted

    @property
    def refused(self) -> str | None:
        """Why the server refuses the reads for which pending deletions wait; None if it does not refuse them."""
        awaits_read = self._refusals and not all(pending.is_refuted for pending in self.doubted.values())
        return self._refusal if awaits_read else None

    def explain(self, name: str) -> tuple[float, str] | None:
        """Return when the deletion was reported, and why it is not confirmed yet; None if none is pending."""
        pending = self._awaiting(name)
        return None if pending is None else (pending.since, pending.problem)

    def older_since(self, name: str) -> float | None:
        """Return when a read of the object first returned an older state than the watch or a list; None if no read
        did."""
        pending = self.doubted.get(name)
        return None if pending is None else pending.older_since

    def take_due(self, now: float) -> list[ConfirmationRequest]:
        """Return the requests to send now. The result of each must be passed to `resolve`."""
        due: list[ConfirmationRequest] = []
        for name, pending in self._pop_until(now, self._due.later):
            self._push_first(pending, name)
        for name, pending in self._pop_until(now, self._retries_due):
            order = (pending.failures, -pending.ticket)
            self._push(self._retries_ready, -math.inf, pending.ticket, name, order)
        if not self._refusals:
            self._take_retries(self._retries_ready, now, due)  # before new reports, which may be more than can be read
        while (first := self._due.first) is not None:
            is_pending = self._is_pending(*first)
            if is_pending and not self._has_slot(now, is_retry=False):
                break
            self._due.pop(is_sent=is_pending)
            if is_pending:
                due.append(self._request(*first, now, is_retry=False))
        if not self.defers_rechecks:
            self._take_retries(self._rechecks_due, now, due)
        # After a refusal, retries come last: perhaps their objects alone cannot be read, and all others would wait.
        self._take_retries(self._retries_ready, now, due)
        return due

    def _take_retries(self, queue: list[_Entry], now: float, due: list[ConfirmationRequest]) -> None:
        while queue and queue[0][0] <= now:
            _, _, ticket, name = queue[0]
            if self._is_pending(ticket, name):
                if not self._has_slot(now, is_retry=True):
                    return
                due.append(self._request(ticket, name, now, is_retry=True))
            heapq.heappop(queue)

    def _pop_until(self, now: float, queue: list[_Entry]) -> Iterator[tuple[str, _PendingDeletion]]:
        while queue and queue[0][0] <= now:
            _, _, ticket, name = heapq.heappop(queue)
            if self._is_pending(ticket, name):
                yield name, self.doubted[name]

    def _request(self, ticket: int, name: str, now: float, *, is_retry: bool) -> ConfirmationRequest:
        pending = self.doubted[name]
        self._in_flight[ticket] = now, is_retry
        pending.requested_at = now
        return ConfirmationRequest(name, ticket, pending.is_refuted)

    def _has_slot(self, now: float, *, is_retry: bool) -> bool:
        slot_at = self._slot_at(is_retry=is_retry)
        return slot_at is not None and slot_at <= now

    def _slot_at(self, *, is_retry: bool) -> float | None:
        """Return when the next request may be sent; None if a request in flight must end first."""
        in_flight = [*self._in_flight.values()]
        is_full = len(in_flight) >= self._concurrency * _HANGING
        if (self._refusals and in_flight) or is_full:
            return None
        if is_retry and sum(retry for _, retry in in_flight) >= max(1, self._concurrency // 2):
            return None
        if len(in_flight) < self._concurrency:
            return self._paused_until
        hanging_s = _HANGING_S * (len(in_flight) // self._concurrency)
        return max(self._paused_until, sorted(in_flight)[-self._concurrency][0] + hanging_s)

    @property
    def next_at(self) -> float | None:
        """When `take_due` will return a request, if nothing else happens."""
        queues = self._retries_ready, self._retries_due, [] if self.defers_rechecks else self._rechecks_due
        retries = min((queue[0][0] for queue in queues if queue), default=math.inf)
        due = [
            max(at, slot_at)
            for at, is_retry in ((self._due.next_at, False), (retries, True))
            if at < math.inf and (slot_at := self._slot_at(is_retry=is_retry)) is not None
        ]
        return min(due, default=None)

    def resolve(
        self, request: ConfirmationRequest, result: ConfirmationResult, now: float
    ) -> ConfirmedDeletion | ObservedObject | None:
        """Return the state or deletion that the result proves, or None if it proves nothing."""
        self._in_flight.pop(request.ticket, None)
        self._note_refusal(result, now)
        pending = self.doubted.get(request.name)
        if pending is None or pending.ticket != request.ticket:
            return None  # the deletion was settled, held or reported again while the read was in flight
        if isinstance(result, Found) and _is_unreadable(result.observation, pending.uid):
            # The object exists, but may now be outside the selector, where the watch does not report it.
            result = Inconclusive("the object can't be decoded")
        if isinstance(result, Inconclusive):
            pending.problem = result.problem
            if result.is_older and pending.older_since is None:
                pending.older_since = now
            self._try_again(request.name, pending, self._backoff, now)
            return None
        if isinstance(result, Absent):
            self.doubted.remove(request.name)
            return ConfirmedDeletion(request.name, pending.uid)
        observation = result.observation
        if observation.state not in FORGETTABLE_STATES and observation.uid == pending.uid:
            pending.is_refuted, pending.older_since = True, None
            self._try_again(request.name, pending, _RECHECK, now)
        else:
            self.discard(request.name)
        return observation

    def _try_again(self, name: str, pending: _PendingDeletion, backoff: Backoff, now: float) -> None:
        pending.failures += 1
        # Subtract the time that the request took.
        wait_s = backoff.delay(pending.failures, self.jitter) - (now - pending.requested_at)
        confirm_at = now + max(wait_s, backoff.delay(1, self.jitter))
        queue = self._rechecks_due if pending.is_refuted else self._retries_due
        self._push(queue, confirm_at, pending.ticket, name)

    def _push_first(self, pending: _PendingDeletion, name: str) -> None:
        self._due.push(pending.tenant, pending.ticket, name)
        if len(self._due) > 2 * len(self.doubted) + _SKIPPED_KEPT:
            self._due.keep(self._is_pending)

    def _push(self, queue: list[_Entry], at: float, ticket: int, name: str, order: tuple[int, ...] = ()) -> None:
        heapq.heappush(queue, (at, order, ticket, name))
        if len(queue) > 2 * len(self.doubted) + _SKIPPED_KEPT:
            # While reads hang, an object that is reported as deleted and seen again repeatedly leaves one each time.
            queue[:] = [entry for entry in queue if self._is_pending(entry[2], entry[3])]
            heapq.heapify(queue)

    def _is_pending(self, ticket: int, name: str) -> bool:
        pending = self.doubted.get(name)
        return pending is not None and pending.ticket == ticket

    def _note_refusal(self, result: ConfirmationResult, now: float) -> None:
        if not isinstance(result, Inconclusive):
            self._refusals, self._paused_until = 0, -math.inf
        elif result.is_refusal:
            if now >= self._paused_until:  # count refusals of concurrent reads once
                self._refusals += 1
            delay = self._backoff.delay(self._refusals, self.jitter)
            if result.retry_after_s is not None:
                low, high = _RETRY_AFTER_BOUNDS_S
                delay = max(delay, min(high, max(low, result.retry_after_s)))
            self._paused_until = max(self._paused_until, now + delay)
            self._refusal = result.problem


def _is_unreadable(observation: ObservedObject, uid: str) -> bool:
    return isinstance(observation, Malformed) and observation.uid in ("", uid)
