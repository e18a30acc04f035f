"""What was said of bearer tokens, for as long as it counts; and how often may be asked. Pure.

Tokens are known here by their digests only. Those that were turned down have room of their own: who makes up tokens
drives out no more than what others have made up.
"""

from collections import OrderedDict
from typing import TypeAlias, TypeVar

import msgspec

ACCEPTED_S = 60.0
"""So long a token that was revoked is still taken, at most."""
REJECTED_S = 10.0
SIZE = 10_000
PER_SECOND = 20.0
BURST = 100.0


class TokenUser(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    groups: tuple[str, ...] = ()
    until: float | None = None
    """When the token ends, as Unix time."""


class TokenRejected(msgspec.Struct, frozen=True):
    why: str


ReviewResult: TypeAlias = TokenUser | TokenRejected
T = TypeVar("T")


class TokenReviewCache:
    """`now` is a clock that only goes forward."""

    def __init__(self, now: float, *, size: int = SIZE, per_second: float = PER_SECOND, burst: float = BURST) -> None:
        self._accepted: OrderedDict[bytes, tuple[TokenUser, float]] = OrderedDict()
        self._rejected: OrderedDict[bytes, tuple[TokenRejected, float]] = OrderedDict()
        self._size = size
        self._per_second = per_second
        self._burst = burst
        self._level = burst
        self._at = now

    def of(self, digest: bytes, now: float) -> ReviewResult | None:
        found = self._accepted.get(digest) or self._rejected.get(digest)
        return None if found is None or now >= found[1] else found[0]

    def keep(self, digest: bytes, verdict: ReviewResult, now: float, left_s: float) -> None:
        """`left_s` is what the token has left, by its own word."""
        self._accepted.pop(digest, None)
        self._rejected.pop(digest, None)
        if isinstance(verdict, TokenUser):
            _add(self._accepted, digest, (verdict, now + min(ACCEPTED_S, left_s)), self._size)
        else:
            _add(self._rejected, digest, (verdict, now + REJECTED_S), self._size)

    def wait_s(self, now: float) -> float:
        """Until one more may be asked for. Where that is now, it is taken as asked for."""
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self._per_second
        self._level -= 1
        return 0.0

    def __len__(self) -> int:
        return len(self._accepted) + len(self._rejected)


def _add(kept: OrderedDict[bytes, T], digest: bytes, what: T, size: int) -> None:
    kept[digest] = what
    if len(kept) > size:
        kept.popitem(last=False)
