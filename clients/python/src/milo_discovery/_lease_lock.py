"""A lock on a Kubernetes Lease, as a state machine without I/O: the caller makes the requests, and passes the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any

from milo_kube.rfc3339 import rfc3339

_RELEASED_DURATION_S = 1


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """The periods of a lock, in seconds. The defaults are those of client-go."""

    lease_duration: float = 15.0
    """Time without a renewal after which another candidate takes the lock."""
    renew_deadline: float = 10.0
    """Time without a renewal after which the holder stops its work."""
    retry_period: float = 2.0
    """Time between two attempts."""

    def __post_init__(self) -> None:
        if self.lease_duration < 1:
            raise ValueError(
                f"lease_duration is {self.lease_duration:g} s; a Lease counts whole seconds: use at least 1 s"
            )
        if not 0 < self.retry_period < self.renew_deadline < self.lease_duration:
            raise ValueError(
                f"retry_period ({self.retry_period:g} s), renew_deadline ({self.renew_deadline:g} s) and "
                f"lease_duration ({self.lease_duration:g} s) must be positive and increase in this order: a holder "
                "that cannot renew must stop its work before another candidate takes the lock"
            )


class LeaseLock:
    """One candidate's view of a Lease.

    A candidate never compares clocks with another: a lock is free once its Lease has been unchanged for the lease
    duration.
    """

    def __init__(self, identity: str, timing: LeaseTiming) -> None:
        if not identity:
            raise ValueError("the identity is empty; use a name that no other candidate has, such as the pod's name")
        self._identity = identity
        self._timing = timing
        self._seen: Mapping[str, Any] | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None
        self._is_uncertain = False

    @property
    def is_uncertain(self) -> bool:
        """Whether a write was begun whose result is not known: this candidate may hold the lock without knowing it."""
        return self._is_uncertain

    @property
    def is_held(self) -> bool:
        """Whether this candidate took the lock, has not released it, and is the last observed holder."""
        return self._renewed_at is not None

    @property
    def holder(self) -> str:
        """The last observed holder's identity, or an empty string."""
        return str(_spec(self._seen).get("holderIdentity") or "")

    @property
    def lease(self) -> Mapping[str, Any] | None:
        """The last observed Lease; None if there is none."""
        return self._seen

    def holds_at(self, now: float) -> bool:
        """Return whether the holder may work at this time. Safe in any thread."""
        renewed_at = self._renewed_at
        return renewed_at is not None and now < renewed_at + self._timing.renew_deadline

    def stops_at(self) -> float:
        """Return the time at which the holder has to stop its work unless the lock is renewed before."""
        assert self._renewed_at is not None, "the lock is not held"
        return self._renewed_at + self._timing.renew_deadline

    def observe(self, lease: Mapping[str, Any] | None, now: float) -> None:
        """Record the Lease as read from the API server; None if it does not exist."""
        if _version(lease) != _version(self._seen) or lease is None:
            self._seen_at = now
        self._seen = lease
        if self.holder != self._identity:
            self._renewed_at = None
            self._is_uncertain = False

    def claim(self, now: float, wall_clock: datetime) -> dict[str, Any] | None:
        """Return the spec to write in order to take or keep the lock, or None while another candidate holds it.

        From then on, its write is under way.
        """
        spec = _spec(self._seen)
        is_own = self.holder == self._identity
        if self.holder and not is_own:
            duration = spec.get("leaseDurationSeconds") or self._timing.lease_duration
            if now < self._seen_at + duration:
                return None
        time = rfc3339(wall_clock, "microseconds")
        transitions = int(spec.get("leaseTransitions") or 0)
        self._is_uncertain = True
        return {
            **spec,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": ceil(self._timing.lease_duration),
            "acquireTime": spec.get("acquireTime", time) if is_own else time,
            "renewTime": time,
            "leaseTransitions": transitions if is_own or not self._seen else transitions + 1,
        }

    def written(self, lease: Mapping[str, Any], began_at: float) -> None:
        """Record a successful write. The lock is held from `began_at`, the time before the request was sent."""
        self._seen = lease
        self._seen_at = began_at
        self._renewed_at = began_at
        self._is_uncertain = False

    def release(self, wall_clock: datetime) -> dict[str, Any] | None:
        """Return the spec that frees the lock for other candidates at once; None if this candidate does not hold it.

        After a write whose result is not known, observe the Lease first.
        """
        took_it = self._is_uncertain and self.holder == self._identity
        if self._renewed_at is None and not took_it:
            return None
        self._renewed_at, self._is_uncertain = None, False
        time = rfc3339(wall_clock, "microseconds")
        released = {"holderIdentity": "", "leaseDurationSeconds": _RELEASED_DURATION_S, "renewTime": time}
        return {**_spec(self._seen), **released}


def _spec(lease: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (lease or {}).get("spec") or {}


def _version(lease: Mapping[str, Any] | None) -> tuple[str, str] | None:
    metadata = None if lease is None else lease["metadata"]
    return metadata and (metadata["uid"], metadata["resourceVersion"])
