"""The daemon at one moment, as a person on call asks for it: plain values."""

import msgspec

from milo_discoveryd.kubeconfigs.source_health import SourceHealth
from milo_discoveryd.registry.registry import ClusterRecord


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    mode: str
    epoch: str
    started_at: float


class Source(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    since: float
    reason: str
    message: str
    last_contact: float | None
    synced: bool
    """One complete list was seen."""


class ClusterRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: str
    engaged: bool
    since: float
    organization: str = ""
    endpoint: str = ""
    notes: tuple[str, ...] = ()


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    type: str
    cluster: str
    reason: str = ""
    message: str = ""


class SubscriberRow(msgspec.Struct, frozen=True, kw_only=True):
    since: float
    lag: int
    wants: str


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Which clusters to show."""

    search: str = ""
    """In a name, an organization, or what is wrong with it; whatever its case."""
    state: str = ""

    def asks_for(self, name: str, record: ClusterRecord) -> bool:
        if self.state and record.state.value != self.state:
            return False
        wanted = self.search.casefold()
        organization = "" if record.latest is None else record.latest.target.organization
        return not wanted or any(wanted in said.casefold() for said in (name, organization, record.message))


class Status(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    identity: Identity
    source: Source
    engaged: int
    counts: dict[str, int]
    """Of objects known, by state."""
    deletions_unconfirmed: int
    revision: int
    clusters: tuple[ClusterRow, ...]
    matching: int
    """Clusters that were asked for, of which `clusters` are the first."""
    happenings: tuple[Happening, ...]
    """The last ones, newest first."""
    subscribers: tuple[SubscriberRow, ...]
    credentials: tuple[SourceHealth, ...]
