"""The channel that single calls share, until it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

ChannelT = TypeVar("ChannelT")


@dataclass
class _Lane(Generic[ChannelT]):
    channel: ChannelT
    calls: int = 0
    has_answered: bool = False


class Lanes(Generic[ChannelT]):
    """Gives each call a channel to run on.

    A channel that has just failed turns calls away for a while, daemon or no daemon, so the next call gets another. The
    failed one is closed when the last call on it is over: closing it earlier would cancel those that still run.
    """

    def __init__(self, connect: Callable[[], ChannelT]) -> None:
        self._connect = connect
        self._current: _Lane[ChannelT] | None = None

    def enter(self) -> _Lane[ChannelT]:
        """A call begins."""
        if self._current is None:
            self._current = _Lane(self._connect())
        self._current.calls += 1
        return self._current

    def answered(self, lane: _Lane[ChannelT]) -> None:
        """A call succeeded."""
        lane.has_answered = True

    def failed(self, lane: _Lane[ChannelT]) -> bool:
        """A call found nobody at the other end. Whether another channel may find somebody.

        Where somebody answered before on this one, the daemon has ended since, and another may be there already. As no
        call changes anything, it may be made again.
        """
        if self._current is lane:
            self._current = None
        return lane.has_answered

    def leave(self, lane: _Lane[ChannelT]) -> ChannelT | None:
        """A call is over. Gives a channel to close, if that was the last call on one that failed."""
        lane.calls -= 1
        return lane.channel if lane is not self._current and not lane.calls else None

    def close(self) -> ChannelT | None:
        """No more calls. Gives the channel to close, if there is one."""
        current, self._current = self._current, None
        return current.channel if current else None
