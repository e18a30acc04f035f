"""The status of the daemon at one moment, as plain values."""

import msgspec

from milo_discoveryd.kubeconfigs.source_health import SourceHealth
from milo_discoveryd.registry.registry import ClusterRecord


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    mode: str
    epoch: str
    started_at: float


class SourceSummary(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    since: float
    reason: str
    message: str
    last_contact: float | None
    synced: bool
    """Whether one complete list was received."""


class ClusterRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: str
    engaged: bool
    since: float
    organization: str = ""
    endpoint: str = ""
    notes: tuple[str, ...] = ()


class RecentChange(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    type: str
    cluster: str
    reason: str = ""
    message: str = ""


class SubscriberRow(msgspec.Struct, frozen=True, kw_only=True):
    since: float
    lag: int
    wants: str


class ClusterQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Selects the clusters to show."""

    search: str = ""
    """A part of the name, the organization or the message, in any case."""
    state: str = ""

    def matches(self, name: str, record: ClusterRecord) -> bool:
        if self.state and record.state.value != self.state:
            return False
        wanted = self.search.casefold()
        organization = "" if record.latest is None else record.latest.target.organization
        return not wanted or any(wanted in said.casefold() for said in (name, organization, record.message))


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    identity: Identity
    source: SourceSummary
    engaged: int
    counts: dict[str, int]
    """Known objects, by state."""
    deletions_unconfirmed: int
    revision: int
    clusters: tuple[ClusterRow, ...]
    matching: int
    """The number of clusters that match the query; `clusters` has the first of them."""
    recent_changes: tuple[RecentChange, ...]
    """Engagements and disengagements, newest first."""
    subscribers: tuple[SubscriberRow, ...]
    credentials: tuple[SourceHealth, ...]
