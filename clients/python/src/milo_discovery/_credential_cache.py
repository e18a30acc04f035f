"""The newest credential of one cluster, and when to refresh it. Reads no clock: the caller passes the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING

from milo_discovery.kubeconfig_access import KubeconfigAccess, read_access, usable_until
from milo_kube.backoff import BackoffPolicy, StreamBackoff

if TYPE_CHECKING:
    from milo_discovery.model import Kubeconfig

# Share of the time between `refresh_after` and expiry to wait for a pushed credential before requesting one.
_PUSH_WAIT_SHARE = 0.25
_RENEWAL_INTERVAL = timedelta(seconds=5)
"""Minimum interval between requests, even if the daemon's kubeconfigs are rejected or due for a refresh on arrival."""
_RETRY = BackoffPolicy(initial=timedelta(seconds=1), maximum=_RENEWAL_INTERVAL)


class CredentialState(Enum):
    """Whether the cached credential can be used, and whether to request the next one."""

    FRESH = auto()
    REFRESH_DUE = auto()
    """Still valid; request the next one in the background."""
    EXPIRED = auto()
    """No longer valid, issued for a former endpoint, or not fetched yet."""


@dataclass(frozen=True, slots=True)
class CachedCredential:
    """A kubeconfig's credential with its refresh and expiry times."""

    access: KubeconfigAccess
    refresh_at: datetime | None
    expires_at: datetime | None
    issued_at: datetime | None = None
    endpoint: str = ""
    """The endpoint that the cluster had when the credential was requested; empty if it is unknown."""

    def replaces(self, other: CachedCredential, now: datetime) -> bool:
        """Return whether this credential replaces `other`. `issued_at` is not enough, since clocks can be set back."""
        if self.expires_at is None or other.expires_at is None or self.expires_at >= other.expires_at:
            return True
        if self.endpoint != other.endpoint or self.issued_at is None or other.issued_at is None:
            return self.endpoint != other.endpoint
        return self.issued_at > other.issued_at or other.issued_at > now


@dataclass(frozen=True, slots=True)
class _Pause:
    """The time after a request in which no further one is made for the same endpoint."""

    begin: datetime
    end: datetime
    endpoint: str


class CredentialCache:
    """The newest credential of one cluster. Any thread may read it: a single assignment replaces the credential."""

    def __init__(self) -> None:
        self._current: CachedCredential | None = None
        self._last_pushed: Kubeconfig | None = None
        self._pause: _Pause | None = None
        self._backoff = StreamBackoff(_RETRY)

    @property
    def current(self) -> CachedCredential:
        assert self._current is not None, "the cache contains no credential"
        return self._current

    def offer(self, kubeconfig: Kubeconfig, now: datetime, *, endpoint: str = "", pushed: bool = False) -> None:
        """Store the credential of a kubeconfig, unless the cached one is newer.

        With `pushed`, the stream is expected to deliver the next credential too, so a request for it is delayed.
        Raises UnusableKubeconfig, once for each pushed one.
        """
        if kubeconfig is self._last_pushed:
            return
        if pushed:
            self._last_pushed = kubeconfig
        offered = replace(_parse(kubeconfig, _PUSH_WAIT_SHARE if pushed else 0.0), endpoint=endpoint)
        if self._current is None or offered.replaces(self._current, now):
            self._current = offered
            if pushed:
                self._pause = None

    def requested(self, kubeconfig: Kubeconfig, now: datetime, endpoint: str = "") -> None:
        """Store the credential of a requested kubeconfig. Delay the next request if it replaces another credential."""
        is_replacement = self._current is not None and self._current.endpoint == endpoint
        self.offer(kubeconfig, now, endpoint=endpoint)
        self._backoff = StreamBackoff(_RETRY)
        self._pause = _Pause(now, now + _RENEWAL_INTERVAL, endpoint) if is_replacement else None

    def request_failed(self, now: datetime, endpoint: str = "", retry_after: timedelta | None = None) -> None:
        """Delay the next request after one that failed, for at least the daemon's `retry_after`."""
        self._pause = _Pause(now, now + self._backoff.failed(ran=timedelta(), retry_after=retry_after), endpoint)

    def may_request(self, now: datetime, endpoint: str = "") -> bool:
        """Return whether a credential may be requested now. A clock that was set back does not extend the delay."""
        pause = self._pause
        return pause is None or pause.endpoint != endpoint or not pause.begin <= now < pause.end

    def state(self, now: datetime, endpoint: str = "") -> CredentialState:
        """Return the state of the credential for the present endpoint of its cluster."""
        current = self._current
        if current is None or current.endpoint != endpoint:
            return CredentialState.EXPIRED
        if current.expires_at is not None and now >= current.expires_at:
            return CredentialState.EXPIRED
        if current.refresh_at is None or now < current.refresh_at or not self.may_request(now, endpoint):
            return CredentialState.FRESH
        return CredentialState.REFRESH_DUE


def _parse(kubeconfig: Kubeconfig, push_wait_share: float) -> CachedCredential:
    access = read_access(kubeconfig.kubeconfig)
    expires_at, refresh_at, issued_at = kubeconfig.expires_at, kubeconfig.refresh_after, kubeconfig.issued_at
    if expires_at is None:
        return CachedCredential(access, refresh_at=refresh_at, expires_at=None, issued_at=issued_at)
    if refresh_at is not None:
        refresh_at += push_wait_share * (expires_at - refresh_at)
    return CachedCredential(
        access, refresh_at=refresh_at, expires_at=usable_until(expires_at, issued_at), issued_at=issued_at
    )
