"""Cache of TokenReview results. Callers pass the time.

Tokens are kept as digests only. Rejected tokens have a separate cache, so that invalid tokens evict only each other.
"""

from collections import OrderedDict
from typing import TypeAlias, TypeVar

import msgspec

ACCEPTED_S = 60.0
"""How long a token is accepted without another review. A revoked token is accepted for this long at most."""
REJECTED_S = 10.0
SIZE = 10_000
MAX_BYTES = 32 << 20
"""Limit of the size of all accepted users: in large organizations, each user is in hundreds of groups."""

_OVERHEAD = 64
"""Approximate size of a string in a tuple, in addition to its characters."""


class TokenUser(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    groups: tuple[str, ...] = ()
    expires_at: float | None = None
    """When the token expires, in Unix time."""


class TokenRejected(msgspec.Struct, frozen=True):
    why: str


ReviewResult: TypeAlias = TokenUser | TokenRejected
T = TypeVar("T")


class _Accepted(msgspec.Struct, frozen=True):
    user: TokenUser
    reviewed_at: float
    ends_at: float


class TokenReviewCache:
    def __init__(self, *, size: int = SIZE) -> None:
        self._accepted: OrderedDict[bytes, _Accepted] = OrderedDict()
        self._rejected: OrderedDict[bytes, tuple[TokenRejected, float]] = OrderedDict()
        self._size = size
        self._bytes = 0
        """The size of all accepted users."""

    def get(self, digest: bytes, now: float, max_age_s: float = ACCEPTED_S) -> ReviewResult | None:
        """Return the cached result, or None if there is no result, if it has expired, or if it accepts the token but is
        older than `max_age_s`."""
        accepted = self._accepted.get(digest)
        if accepted is not None and now < min(accepted.ends_at, accepted.reviewed_at + min(max_age_s, ACCEPTED_S)):
            return accepted.user
        rejected = self._rejected.get(digest)
        return rejected[0] if rejected is not None and now < rejected[1] else None

    def was_accepted(self, digest: bytes) -> bool:
        """Return whether the last cached review accepted the token, even if its result has expired."""
        return digest in self._accepted

    def put(self, digest: bytes, result: ReviewResult, now: float, left_s: float) -> None:
        """Store a result. `left_s`: the token's remaining lifetime."""
        if (before := self._accepted.pop(digest, None)) is not None:
            self._bytes -= _size_of(before.user)
        self._rejected.pop(digest, None)
        if isinstance(result, TokenUser):
            self._accepted[digest] = _Accepted(result, now, now + left_s)
            self._bytes += _size_of(result)
            while len(self._accepted) > self._size or self._bytes > MAX_BYTES:
                _, evicted = self._accepted.popitem(last=False)
                self._bytes -= _size_of(evicted.user)
        else:
            _add(self._rejected, digest, (result, now + REJECTED_S), self._size)

    def __len__(self) -> int:
        return len(self._accepted) + len(self._rejected)


def _size_of(user: TokenUser) -> int:
    return _OVERHEAD * (1 + len(user.groups)) + len(user.name) + sum(map(len, user.groups))


def _add(entries: OrderedDict[bytes, T], digest: bytes, entry: T, size: int) -> None:
    entries[digest] = entry
    if len(entries) > size:
        entries.popitem(last=False)
