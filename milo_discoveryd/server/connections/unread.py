"""How much is kept of what clients do not read."""

from collections.abc import Callable, Hashable

LARGE = 256 << 10
SMALL = 32 << 10
FEW = 16
"""Clients that do not read. A client that pauses for a moment is one of a few, and does not fall behind."""

SetLimit = Callable[[int], None]


class UnreadLimit:
    """The most that is kept for each connection, by the daemon and about as much by the kernel: less for each as soon
    as many clients do not read."""

    def __init__(self) -> None:
        self._limited: dict[Hashable, SetLimit] = {}
        self._stalled: set[Hashable] = set()

    @property
    def bytes(self) -> int:
        return SMALL if len(self._stalled) > FEW else LARGE

    def add(self, side: Hashable, set_limit: SetLimit) -> None:
        self._limited[side] = set_limit
        set_limit(self.bytes)

    def remove(self, side: Hashable) -> None:
        self._limited.pop(side, None)
        self.note(side, is_stalled=False)

    def note(self, side: Hashable, *, is_stalled: bool) -> None:
        """Note whether data waits to be written to this side of a connection."""
        before = self.bytes
        if is_stalled:
            self._stalled.add(side)
        else:
            self._stalled.discard(side)
        if self.bytes != before:
            for set_limit in self._limited.values():
                set_limit(self.bytes)
