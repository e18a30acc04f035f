"""The renewal of a credential of this process: when an attempt is due, and what requests use meanwhile. Pure.

A held credential is used until it has expired on both clocks: if they disagree, one of them was set or stood still, and
the server's answer decides. A renewal is due as soon as one clock says so.
"""

from collections.abc import Callable
from math import inf
from typing import TypeAlias

import msgspec

from milo_kube.credential import Credential, CredentialError
from milo_kube.moment import Moment

RENEWAL = 2 / 3
"""The part of a credential's life after which it is renewed."""
LEAST_LEFT_S = 10.0
"""It is renewed at the latest this long before its expiry."""
SHORTEST_S = 1.0
"""The shortest time after which a credential is renewed."""
BACKOFF_S = (5.0, 60.0)
"""The first wait after a failed attempt and the longest one; the wait doubles with each failure."""
UNCHANGED = 0.1
"""If an attempt obtains the same credential again, the next one follows after this part of the remaining life."""


class OwnCredential(msgspec.Struct, frozen=True):
    credential: Credential
    at: Moment
    """When it was obtained."""

    def is_valid(self, now: Moment) -> bool:
        """Return whether a clock says that the credential has not expired."""
        expires_at = self.credential.expires_at
        if expires_at is None:
            return True
        return now.wall < expires_at or now.steady - self.at.steady < expires_at - self.at.wall

    def renews_in(self, now: Moment) -> float:
        """Return in how many seconds the credential is to be renewed, by the clock that says so first."""
        expires_at = self.credential.expires_at
        if expires_at is None:
            return inf
        life = expires_at - self.at.wall
        after = max(SHORTEST_S, min(RENEWAL * life, life - LEAST_LEFT_S))
        return min(self.at.wall + after - now.wall, self.at.steady + after - now.steady)


class NoAttempt(msgspec.Struct, frozen=True):
    """No attempt was made yet."""


class Obtained(msgspec.Struct, frozen=True):
    """The last attempt obtained a credential."""

    held: OwnCredential
    tried_at: float
    not_before: float = -inf
    """When the next attempt may be made, because the last one obtained the same credential again."""
    is_wanted: bool = False
    """Whether an attempt is due for another reason than the expiry."""


class Attempting(msgspec.Struct, frozen=True):
    """An attempt is in progress. `failure` is why the previous one failed."""

    held: OwnCredential | None
    tried_at: float
    attempts: int
    failure: CredentialError | None


class Failing(msgspec.Struct, frozen=True):
    """The last attempt failed. A held credential is used as long as it is valid."""

    held: OwnCredential | None
    tried_at: float
    retry_at: float
    attempts: int
    failure: CredentialError


RenewalState: TypeAlias = NoAttempt | Obtained | Attempting | Failing


class CredentialRenewal:
    def __init__(self, gap_s: Callable[[], float]) -> None:
        """`gap_s` returns the minimum time between the begin of two attempts."""
        self._gap_s = gap_s
        self.state: RenewalState = NoAttempt()

    @property
    def held(self) -> OwnCredential | None:
        """The newest credential, which may have expired."""
        return None if isinstance(self.state, NoAttempt) else self.state.held

    @property
    def failure(self) -> CredentialError | None:
        """Why the last attempt failed; None if it succeeded."""
        return self.state.failure if isinstance(self.state, Attempting | Failing) else None

    def valid(self, now: Moment) -> Credential | None:
        """Return the credential to use now, or None."""
        held = self.held
        return held.credential if held is not None and held.is_valid(now) else None

    def is_due(self, now: Moment) -> bool:
        """Return whether the held credential is to be replaced, rather than only compared with its origin."""
        return self.held is None or self.held.renews_in(now) <= 0

    def attempts_in(self, now: Moment) -> float:
        """Return in how many seconds the next attempt is due, at most 0 if it is; infinity while one is in progress."""
        match self.state:
            case NoAttempt():
                return 0.0
            case Obtained(held, tried_at, not_before, is_wanted):
                planned = max(held.renews_in(now), not_before - now.steady)
                return max(0.0 if is_wanted else planned, self._gap_left_s(tried_at, now))
            case Failing(tried_at=tried_at, retry_at=retry_at):
                return max(retry_at - now.steady, self._gap_left_s(tried_at, now))
            case _:
                return inf

    def want(self, now: Moment) -> bool:
        """Make an attempt due, unless the last one was made a moment ago. Return whether there is one to wait for."""
        match self.state:
            case Obtained(tried_at=tried_at) | Failing(tried_at=tried_at) if self._gap_left_s(tried_at, now) > 0:
                return False
            case Obtained() as state:
                self.state = msgspec.structs.replace(state, is_wanted=True)
            case Failing() as state:
                self.state = msgspec.structs.replace(state, retry_at=now.steady)
        return True

    def begin(self, now: Moment) -> None:
        attempts = self.state.attempts if isinstance(self.state, Failing) else 0
        self.state = Attempting(self.held, now.steady, attempts, self.failure)

    def succeeded(self, credential: Credential, now: Moment) -> None:
        assert isinstance(self.state, Attempting)
        before, tried_at = self.state.held, self.state.tried_at
        if before is None or before.credential != credential or before.credential.expires_at != credential.expires_at:
            self.state = Obtained(OwnCredential(credential, now), tried_at)
            return
        left = 0.0 if credential.expires_at is None else credential.expires_at - now.wall
        self.state = Obtained(before, tried_at, not_before=now.steady + UNCHANGED * max(0.0, left))

    def failed(self, failure: CredentialError, now: Moment) -> None:
        assert isinstance(self.state, Attempting)
        least, most = BACKOFF_S
        wait = min(most, least * 2.0 ** min(self.state.attempts, 10))
        self.state = Failing(self.state.held, self.state.tried_at, now.steady + wait, self.state.attempts + 1, failure)

    def _gap_left_s(self, tried_at: float, now: Moment) -> float:
        return tried_at + self._gap_s() - now.steady
