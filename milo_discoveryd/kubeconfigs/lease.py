"""One credential, kept fresh: when to get the next, and whether this one may still be handed out.

Pure: it is told the time, answers when it wants to be looked at again, and never gets anything itself. Plans are made
on the steady clock. A credential's end is judged by both clocks, and the earlier verdict holds: the wall clock may have
been set back since, and the steady one may have stood still while the machine slept.
"""

from collections.abc import Callable
from math import inf
from typing import TypeAlias

import msgspec

from milo_discoveryd.credentials.minted import Minted
from milo_discoveryd.model.moment import Moment

RENEWAL = (0.36, 0.42)
"""Where in its life the next credential is asked for: drawn anew each time. So early that one which can't be had for
half a lifetime is missed by nobody: the last wait in vain and the margin still fit in before the end."""
FIRST_RENEWAL = (0.1, 0.42)
"""And for the first: leases that were born together drift apart before they can become a herd."""
REFRESH = (0.5, 0.6)
"""Where in its life holders are told to come for the next: by then there is one."""
WAITS_S = (0.5, 15.0)
"""Between attempts: doubling, from about the first to about the second."""
WAIT_OF_LIFE = 0.025
"""And no longer than this part of its life, while one is held."""
MOST_S = 3600.0
"""However long a credential lives, after so long a newer one is looked for: somebody may have replaced it."""
LOOK_AGAIN = 0.1
"""A source that gives the same once more is asked again when this part of what is left has passed."""
LOOK_AGAIN_S = (0.2, 60.0)

Draw: TypeAlias = Callable[[], float]
"""A number from 0 up to 1, by chance."""


class Held(msgspec.Struct, frozen=True):
    minted: Minted
    until: float
    """Its end on the steady clock, by the wall clock of when it came."""

    def left_s(self, now: Moment) -> float:
        return min(self.minted.expires_at - now.wall, self.until - now.steady)


class Empty(msgspec.Struct, frozen=True):
    """Nobody has asked for it yet."""


class Fresh(msgspec.Struct, frozen=True):
    held: Held
    renew_at: float


class Renewing(msgspec.Struct, frozen=True):
    """The next is being got; `failure` is why the last attempt at it came to nothing."""

    held: Held | None
    attempts: int = 0
    failure: Exception | None = None


class Retrying(msgspec.Struct, frozen=True):
    """The next couldn't be got, and what is held is still good."""

    held: Held
    retry_at: float
    attempts: int
    failure: Exception


class Expired(msgspec.Struct, frozen=True):
    """Nothing is held any more, or nothing ever was."""

    retry_at: float
    attempts: int
    failure: Exception


State: TypeAlias = Empty | Fresh | Renewing | Retrying | Expired


class Lease:
    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self.state: State = Empty()

    @property
    def failure(self) -> Exception | None:
        """Why the next credential could not be got, as long as it couldn't."""
        return self.state.failure if isinstance(self.state, Renewing | Retrying | Expired) else None

    @property
    def is_renewing(self) -> bool:
        return isinstance(self.state, Renewing)

    @property
    def due_at(self) -> float | None:
        """When the next attempt should begin, on the steady clock; None while one is under way, or none was wanted."""
        match self.state:
            case Fresh(renew_at=at) | Retrying(retry_at=at) | Expired(retry_at=at):
                return at
            case _:
                return None

    @property
    def ends_at(self) -> float:
        """When what is held ends, on the steady clock; where nothing is, it has ended."""
        return -inf if self._held is None else self._held.until

    def valid(self, now: Moment) -> Minted | None:
        """What may be handed out, be it for a short while."""
        held = self._held
        if held is None or held.left_s(now) <= margin_s(held.minted.life_s):
            return None
        return held.minted

    def useful(self, now: Moment) -> Minted | None:
        """What is worth handing out: a good part of its life is left."""
        held = self._held
        if held is None or held.left_s(now) < useful_s(held.minted.life_s):
            return None
        return held.minted

    def begin(self) -> Minted | None:
        """An attempt begins: what it is to replace."""
        assert not self.is_renewing, "one at a time"
        held = self._held
        attempts = self.state.attempts if isinstance(self.state, Retrying | Expired) else 0
        self.state = Renewing(held, attempts, self.failure)
        return None if held is None else held.minted

    def succeeded(self, minted: Minted, now: Moment) -> None:
        before = self._held
        until = now.steady + (minted.expires_at - now.wall)
        if before is not None and before.minted.credential == minted.credential:
            # Whoever renews it hasn't yet. What was known of its end stands: the wall clock may have moved since.
            left = max(0.0, before.left_s(now))
            least, most = LOOK_AGAIN_S
            self.state = Fresh(before, now.steady + min(most, max(least, left * LOOK_AGAIN)))
            return
        part = self._between(RENEWAL if before is not None else FIRST_RENEWAL)
        renew_in = min(minted.issued_at + part * minted.life_s - now.wall, MOST_S * 2 * part)
        self.state = Fresh(Held(minted, until), now.steady + max(LOOK_AGAIN_S[0], renew_in))

    def failed(self, failure: Exception, now: Moment, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: what the backend asked for, at most as long as the longest wait of ours is taken."""
        assert isinstance(self.state, Renewing)
        held, attempts = self.state.held, min(self.state.attempts + 1, 16)
        least, most = WAITS_S
        longest = most if held is None else min(most, max(least, WAIT_OF_LIFE * held.minted.life_s))
        wait = min(longest, least * 2.0**self.state.attempts)
        wait = max(self._between((0.5, 1.0)) * wait, min(retry_after_s or 0.0, most))
        if held is not None and held.left_s(now) > 0:
            self.state = Retrying(held, now.steady + wait, attempts, failure)
        else:
            self.state = Expired(now.steady + wait, attempts, failure)

    def look(self, now: Moment) -> bool:
        """Whether an attempt should begin now. What has ended meanwhile is let go."""
        match self.state:
            case Fresh(held=held) if held.left_s(now) <= 0:
                self.state = Empty()
                return True
            case Retrying(held=held, retry_at=at, attempts=attempts, failure=failure) if held.left_s(now) <= 0:
                self.state = Expired(at, attempts, failure)
        return self.due_at is not None and self.due_at <= now.steady

    @property
    def _held(self) -> Held | None:
        return self.state.held if isinstance(self.state, Fresh | Renewing | Retrying) else None

    def _between(self, bounds: tuple[float, float]) -> float:
        least, most = bounds
        return least + self._draw() * (most - least)


def useful_s(life_s: float) -> float:
    """How much of its life must be left for a credential to be worth handing out: 30 % and at least a minute, which
    for very short lives becomes 40 %, so that renewal comes first."""
    return max(0.3 * life_s, min(60.0, 0.4 * life_s))


def margin_s(life_s: float) -> float:
    """How long before its end a credential is no longer handed out: it has to arrive, and be used."""
    return min(10.0, 0.05 * life_s)


def refresh_at(minted: Minted, now: float, draw: Draw) -> float:
    """When a holder who is handed it at `now` should come for the next (wall time): always between now and its end."""
    least, most = REFRESH
    part = least + draw() * (most - least)
    planned = min(minted.issued_at + part * minted.life_s, now + 2 * part * MOST_S)
    return planned if planned > now else now + part * max(0.0, minted.expires_at - now)
