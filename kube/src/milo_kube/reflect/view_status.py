"""The freshness of the view of a source."""

import enum

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
    retry_at: float | None = None
    """When a stale source is read again; in the past while it is."""
