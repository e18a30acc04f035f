"""The lease on one credential: decides when to renew it, and whether it may still be issued.

Time is an argument, and requests are made elsewhere. Renewals are planned on the monotonic clock. Expiry is
checked on both clocks and the earlier one counts: the wall clock may have been set back, and the monotonic clock may
have stopped while the machine was suspended. After the wall clock was set back, a certificate that was issued before
may not be valid yet: it is renewed.
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import TypeAlias

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import BackendError
from milo_kube import retry_after
from milo_kube.credential import CredentialError
from milo_kube.moment import Moment

RENEWAL = (0.36, 0.42)
"""The part of a credential's life in which renewal starts, at a random point. It is early enough that the issuer can be
down for half a lifetime: the last backoff and the safety margin still fit before the expiry."""
FIRST_RENEWAL = (0.1, 0.42)
"""`RENEWAL` for a lease's first credential: leases that began together spread out instead of renewing together."""
REFRESH = (0.5, 0.6)
"""The part of a credential's life after which holders should fetch the next one. The daemon has it by then."""
BACKOFF_S = (0.5, 15.0)
"""The first wait between attempts and, by default, the longest; the wait doubles with each failure."""
BACKOFF_SHARE = 0.025
"""While a credential is held, the backoff is capped at this share of its life, but not below the first wait."""
MAX_RENEWAL_S = 3600.0
"""The approximate maximum time until a renewal: even a long-lived credential may have been replaced at its issuer."""
UNCHANGED_RETRY_SHARE = 0.1
"""If an issuer returns the same credential, the next request follows after this share of the remaining life, within
the bounds of `UNCHANGED_RETRY_S`."""
UNCHANGED_RETRY_S = (0.2, 60.0)
LEAST_RENEWAL_S = 20.0
"""The minimum time until a credential that replaced another one of the same cluster is renewed. Those who write a
cluster's Secret choose the lifetime, and each new credential is sent to all streams. A lifetime of a minute or more is
not affected: see `RENEWAL`."""
JUMP_S = 5.0
"""A larger change of the wall clock against the monotonic one is a step."""

Draw: TypeAlias = Callable[[], float]
"""Returns a random number in [0, 1)."""


class HeldCredential(msgspec.Struct, frozen=True, gc=False):
    issued: IssuedCredential
    until: float
    """The expiry on the monotonic clock, converted when the credential was received."""
    received_at: float
    """When it was received, on the wall clock."""

    def left_s(self, now: Moment) -> float:
        return min(self.issued.expires_at - now.wall, self.until - now.steady)


class Empty(msgspec.Struct, frozen=True):
    """No credential is held, and no attempt to get one is in flight or has failed."""


class Fresh(msgspec.Struct, frozen=True, gc=False):
    held: HeldCredential
    renew_at: float


class Renewing(msgspec.Struct, frozen=True):
    """A mint is in flight; `failure` is why the previous attempt failed."""

    held: HeldCredential | None
    attempts: int = 0
    failure: CredentialError | None = None


class Retrying(msgspec.Struct, frozen=True):
    """Renewal failed, and the held credential is still valid."""

    held: HeldCredential
    retry_at: float
    attempts: int
    failure: CredentialError


class Expired(msgspec.Struct, frozen=True):
    """No valid credential is held, and the last attempt failed."""

    retry_at: float
    attempts: int
    failure: CredentialError


CredentialLeaseState: TypeAlias = Empty | Fresh | Renewing | Retrying | Expired


class CredentialLease:
    def __init__(self, draw: Draw, *, least_renewal_s: float = 0.0) -> None:
        """`least_renewal_s`: see `LEAST_RENEWAL_S`."""
        self._draw = draw
        self._least_renewal_s = least_renewal_s
        self._has_issued = False
        self.state: CredentialLeaseState = Empty()

    @property
    def failure(self) -> CredentialError | None:
        """Why the last attempt failed; None if it succeeded."""
        return self.state.failure if isinstance(self.state, Renewing | Retrying | Expired) else None

    @property
    def is_renewing(self) -> bool:
        return isinstance(self.state, Renewing)

    @property
    def due_at(self) -> float | None:
        """When the next attempt is due (monotonic); None in the states Empty and Renewing."""
        match self.state:
            case Fresh(renew_at=at) | Retrying(retry_at=at) | Expired(retry_at=at):
                return at
            case _:
                return None

    @property
    def ends_at(self) -> float:
        """When the held credential expires (monotonic); minus infinity if there is none."""
        return -inf if self._held is None else self._held.until

    @property
    def held(self) -> IssuedCredential | None:
        """The credential, even if it expires too soon to be issued."""
        return None if self._held is None else self._held.issued

    def valid(self, now: Moment) -> IssuedCredential | None:
        """Return the held credential, or None if it expires too soon to be issued."""
        held = self._held
        if held is None or held.left_s(now) <= margin_s(held.issued.life_s):
            return None
        return held.issued

    def useful(self, now: Moment) -> IssuedCredential | None:
        """Return the credential if enough of its life is left that callers need not wait for another."""
        held = self._held
        if held is None or held.left_s(now) < useful_s(held.issued.life_s):
            return None
        return held.issued

    def begin(self) -> IssuedCredential | None:
        """Begin an attempt, and return the credential that it is to replace."""
        assert not self.is_renewing, "a renewal is in progress already"
        held = self._held
        attempts = self.state.attempts if isinstance(self.state, Retrying | Expired) else 0
        self.state = Renewing(held, attempts, self.failure)
        return None if held is None else held.issued

    def succeeded(self, issued: IssuedCredential, now: Moment) -> None:
        before = self._held
        until = now.steady + (issued.expires_at - now.wall)
        if before is not None and before.issued.credential == issued.credential:
            # The same credential was issued again. Its expiry is kept, since the wall clock may have been adjusted.
            left = max(0.0, before.left_s(now))
            least, most = UNCHANGED_RETRY_S
            held = msgspec.structs.replace(before, received_at=now.wall)
            self.state = Fresh(held, now.steady + min(most, max(least, left * UNCHANGED_RETRY_SHARE)))
            return
        part = self._between(RENEWAL if before is not None else FIRST_RENEWAL)
        renew_in = min(issued.issued_at + part * issued.life_s - now.wall, MAX_RENEWAL_S * 2 * part)
        least = max(UNCHANGED_RETRY_S[0], self._least_renewal_s if self._has_issued else 0.0)
        self._has_issued = True
        self.state = Fresh(HeldCredential(issued, until, now.wall), now.steady + max(least, renew_in))

    def failed(
        self,
        failure: CredentialError,
        now: Moment,
        retry_after_s: float | None = None,
        *,
        longest_s: float = BACKOFF_S[1],
    ) -> None:
        """Record a failed attempt. `retry_after_s` is the delay that the backend requested, and is capped at the
        longest backoff."""
        assert isinstance(self.state, Renewing)
        held, attempts = self.state.held, min(self.state.attempts + 1, 16)
        least, most = BACKOFF_S[0], longest_s
        longest = most if held is None else min(most, max(least, BACKOFF_SHARE * held.issued.life_s))
        wait = min(longest, least * 2.0**self.state.attempts)
        wait = retry_after.delay_s(self._between((0.5, 1.0)) * wait, retry_after_s, at_most_s=most)
        if held is not None and held.left_s(now) > 0:
            self.state = Retrying(held, now.steady + wait, attempts, failure)
        else:
            self.state = Expired(now.steady + wait, attempts, failure)

    def check(self, now: Moment) -> bool:
        """Return whether an attempt should begin now, and release an expired credential."""
        match self.state:
            case Fresh(held=held, renew_at=at) if held.until <= now.steady < at:
                problem = (
                    f"the credential expired {at - held.until:.1f} s before the next may be requested; its source must "
                    "issue credentials that are valid for longer"
                )
                self.state = Expired(at, 0, BackendError(problem, of_cluster=True))
            case Fresh(held=held) if held.left_s(now) <= 0:
                self.state = Empty()
                return True
            case Fresh(held=held) if now.wall < held.received_at - JUMP_S:
                return True
            case Retrying(held=held, retry_at=at, attempts=attempts, failure=failure) if held.left_s(now) <= 0:
                self.state = Expired(at, attempts, failure)
        return self.due_at is not None and self.due_at <= now.steady

    @property
    def _held(self) -> HeldCredential | None:
        return self.state.held if isinstance(self.state, Fresh | Renewing | Retrying) else None

    def _between(self, bounds: tuple[float, float]) -> float:
        least, most = bounds
        return least + self._draw() * (most - least)


def useful_s(life_s: float) -> float:
    """Return the remaining lifetime that makes a credential useful: 30 % of its life, and at least a minute.

    For very short lifetimes the minute becomes 40 % of the lifetime, so that renewal still starts before that point.
    """
    return max(0.3 * life_s, min(60.0, 0.4 * life_s))


def margin_s(life_s: float) -> float:
    """Return how long before its expiry a credential is no longer issued: a caller needs time to receive and use it."""
    return min(10.0, 0.05 * life_s)


def refresh_at(issued: IssuedCredential, now: float, draw: Draw) -> float:
    """Return when a holder that receives the credential at `now` should fetch the next one (wall time, before the
    expiry)."""
    least, most = REFRESH
    part = least + draw() * (most - least)
    planned = min(issued.issued_at + part * issued.life_s, now + 2 * part * MAX_RENEWAL_S)
    return planned if planned > now else now + part * max(0.0, issued.expires_at - now)


class IssuerHealth(msgspec.Struct, frozen=True):
    """The state of a credential issuer and of its leases, for metrics, the status page and GetServerInfo."""

    name: str
    type: str
    problem: str
    """Why the last attempt failed, ignoring failures that concern only one cluster; empty if it succeeded."""
    expires_at: float | None
    """Earliest expiry of the credentials held from this issuer; None if none is held."""
    leases: int
    failing: Mapping[str, int] = {}
    """The number of clusters that get no new credential because of a failure specific to the cluster, or whose API
    servers reject the credential, by reason."""
    sources: frozenset[str] = frozenset()
    """The sources of the issuer's clusters; empty for all sources."""
