"""One cluster's credential over time: which is the newest, and when to get the next. Pure: it is told the time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING

from milo_discovery import _access
from milo_discovery._access import Access

if TYPE_CHECKING:
    from milo_discovery.model import Kubeconfig

# A request takes a while to arrive: so long before its end a credential isn't used any more.
_MARGIN = timedelta(seconds=5)
_MARGIN_OF_LIFE = 0.1
# Who is sent renewals lets so much of what is left after `refresh_after` pass before asking for one.
_PATIENCE = 0.25
_RETRY_AFTER = timedelta(seconds=1)


class Standing(Enum):
    """What a credential is good for."""

    FRESH = auto()
    DUE = auto()
    """Good, and time for the next."""
    OVER = auto()
    """Not good any more, or not there yet."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a kubeconfig gives access with, and from when to when."""

    access: Access
    due_at: datetime | None
    over_at: datetime | None


class Credentials:
    """The newest credential. Any thread may look; it changes in one step."""

    def __init__(self) -> None:
        self._current: Credential | None = None
        self._offered: Kubeconfig | None = None
        self._not_before: datetime | None = None

    @property
    def current(self) -> Credential:
        assert self._current is not None, "looked at before the first one was taken"
        return self._current

    def offer(self, kubeconfig: Kubeconfig, *, sent: bool = False) -> None:
        """Take it, unless what is held lives longer. `sent`: so will be the next, and is asked for only if it isn't."""
        if kubeconfig is self._offered:
            return
        offered = _read(kubeconfig, _PATIENCE if sent else 0.0)
        self._offered = kubeconfig
        held = self._current
        if held is None or held.over_at is None or offered.over_at is None or offered.over_at >= held.over_at:
            self._current = offered
            self._not_before = None

    def failed(self, now: datetime) -> None:
        """The next couldn't be got."""
        self._not_before = now + _RETRY_AFTER

    def standing(self, now: datetime) -> Standing:
        current = self._current
        if current is None or (current.over_at is not None and now >= current.over_at):
            return Standing.OVER
        if current.due_at is None or now < current.due_at or (self._not_before and now < self._not_before):
            return Standing.FRESH
        return Standing.DUE


def _read(kubeconfig: Kubeconfig, patience: float) -> Credential:
    access = _access.read(kubeconfig.kubeconfig)
    ends, due = kubeconfig.expires_at, kubeconfig.refresh_after
    if ends is None:
        return Credential(access, due_at=due, over_at=None)
    if due is not None:
        due += patience * (ends - due)
    return Credential(access, due_at=due, over_at=usable_until(ends, kubeconfig.issued_at))


def usable_until(ends: datetime, issued: datetime | None) -> datetime:
    """When to stop using what ends then: a little earlier, so that it still arrives in time."""
    return ends - (_MARGIN if issued is None else min(_MARGIN, _MARGIN_OF_LIFE * (ends - issued)))
