"""Limits on calls in flight, for each owner of connections and for all owners together."""

from collections import Counter
from collections.abc import Sequence

from milo_discoveryd.server.calls.grpc_errors import TooManyCallsError

MAX_PER_OWNER = 100
"""Maximum number of calls in flight for each owner of authenticated connections. A call is in flight until it is
answered or, if it opens a stream, until the stream is admitted; one of reflection until it ends."""
MAX_CALLS = 1000
"""Maximum number of calls in flight at all listeners together. Each listener gets an equal share."""
MAX_LARGE = 20
"""Maximum number of calls in flight with a large request, whose filter is kept in memory during the call."""
LARGE_BYTES = 4096
MAX_REFLECTIONS = 16
"""Maximum number of calls of reflection. gRPC keeps a request and an answer of each, also of a client that reads
nothing."""
RETRY_S = 1.0


class InFlightCalls:
    """The calls in flight at one listener."""

    def __init__(self, listeners: int = 1) -> None:
        """`listeners` is how many listeners the daemon has."""
        self._listeners = listeners
        self._calls = _OwnedSlots()
        self._large = _OwnedSlots()
        self._reflections = _OwnedSlots()

    def slot(self, owners: Sequence[str], request_bytes: int = 0, *, is_reflection: bool = False) -> "CallSlot":
        """Count a call for each of its owners, so that a certificate with more names gets no more calls.

        Raises TooManyCallsError.
        """
        limits = {self._calls: MAX_CALLS}
        if request_bytes > LARGE_BYTES:
            limits[self._large] = MAX_LARGE
        if is_reflection:
            limits[self._reflections] = MAX_REFLECTIONS
        if not all(slots.has_room(owners, max(1, limit // self._listeners)) for slots, limit in limits.items()):
            message = "too many calls in flight from this caller or from all callers; retry after some have ended"
            raise TooManyCallsError("TOO_MANY_CALLS", "calls in flight", message, retry_after_s=RETRY_S)
        return CallSlot(tuple(limits), owners)

    def __len__(self) -> int:
        """Return the number of owners with calls in flight."""
        return len(self._calls.by_owner)


class _OwnedSlots:
    """Counts the slots that each owner has taken."""

    def __init__(self) -> None:
        self._taken = 0
        self.by_owner: Counter[str] = Counter()

    def has_room(self, owners: Sequence[str], limit: int) -> bool:
        """Return whether these owners may take a slot: each must have fewer slots than MAX_PER_OWNER, and fewer than
        are free, so that other owners can take slots as well."""
        own = max((self.by_owner[owner] for owner in owners), default=0)
        return own < min(limit - self._taken, MAX_PER_OWNER)

    def count(self, owners: Sequence[str], change: int) -> None:
        self._taken += change
        for owner in owners:
            self.by_owner[owner] += change
            if not self.by_owner[owner]:
                del self.by_owner[owner]


class CallSlot:
    """One call's slot among the calls in flight. A stream releases its slot once the stream quota has admitted it."""

    def __init__(self, counted: Sequence[_OwnedSlots], owners: Sequence[str]) -> None:
        self._counted = counted
        self._owners = owners
        for slots in counted:
            slots.count(owners, 1)

    def release(self) -> None:
        for slots in self._counted:
            slots.count(self._owners, -1)
        self._counted = ()

    def __enter__(self) -> "CallSlot":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
