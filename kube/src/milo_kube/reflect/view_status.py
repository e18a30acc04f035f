"""The freshness of the view of a source."""

import enum
from collections.abc import Sequence

import msgspec


class ViewState(enum.Enum):
    STREAMING = "STREAMING"
    CATCHING_UP = "CATCHING_UP"
    STALE = "STALE"


class ViewStatus(msgspec.Struct, frozen=True):
    state: ViewState
    since: float
    reason: str = ""
    """Machine-readable, in CamelCase."""
    message: str = ""
    last_contact: float | None = None
    """When the source last answered."""


_SEVERITY = {ViewState.STREAMING: 0, ViewState.CATCHING_UP: 1, ViewState.STALE: 2}


def worst(statuses: Sequence[ViewStatus]) -> ViewStatus:
    """Return a status that summarizes several: the worst one, with the oldest contact."""
    if len(statuses) == 1:
        return statuses[0]
    worst_status = max(statuses, key=lambda status: _SEVERITY[status.state])
    contacts = [status.last_contact for status in statuses if status.last_contact is not None]
    last_contact = min(contacts) if len(contacts) == len(statuses) else None
    return msgspec.structs.replace(worst_status, last_contact=last_contact)
