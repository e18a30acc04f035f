"""The status of the daemon at one moment, as plain values, and queries that select clusters in it. Pure.

As JSON it follows the conventions of protobuf's JSON: field names in camelCase, and times in the format of RFC 3339.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeAlias

import msgspec

from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.model.cluster import Pairs, Reachability
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.sharding.status import GroupStatus

PAGE_SIZE = 50
_WORDS = 8
"""The number of words of a search that are looked for. Each is compared with all labels of each cluster."""
FORMAT = 1
"""The version of the status as JSON, which is incremented when a field is removed or changes its meaning."""
ORDER = tuple(MEANINGS)
"""All states of objects. Those that need attention come first."""
_URGENCY = {state: place for place, state in enumerate(ORDER)}


def when(wall: float) -> datetime:
    return datetime.fromtimestamp(wall, UTC)


class Shown(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of the status."""


class DaemonIdentity(Shown, frozen=True, kw_only=True):
    version: str
    mode: str
    host: str
    """The host name of the machine; in a pod, the pod's name."""
    epoch: str = msgspec.field(name="incarnation")
    started_at: datetime


class RulesCurrent(msgspec.Struct, frozen=True, tag_field="state", tag="current"):
    """The rules of the configuration file are in force."""


class RulesWaiting(msgspec.Struct, frozen=True, tag_field="state", tag="waiting"):
    """The rules of the configuration file need the file's other settings, which take effect at the next start."""

    problems: tuple[str, ...]


class FileRefused(msgspec.Struct, frozen=True, tag_field="state", tag="refused"):
    """The configuration file is invalid, and the rules that were read last are in force."""

    problems: tuple[str, ...]


ReloadState: TypeAlias = RulesCurrent | RulesWaiting | FileRefused
"""The result of the last time that the configuration file was read."""


class SourceSummary(Shown, frozen=True, kw_only=True):
    state: str
    since: datetime
    reason: str
    message: str
    last_contact: datetime | None
    retry_at: datetime | None
    """When the source is read again, if it is stale; in the past while it is."""
    synced: bool
    """Whether the source is synced: see `SourceProgress.synced`. With several sources, whether all are."""


class SourceRow(Shown, frozen=True, kw_only=True):
    """The status of one source, if sources have names."""

    name: str
    kind: str
    context: str
    engaged: int
    summary: SourceSummary


class ShardSummary(Shown, frozen=True, kw_only=True):
    """The group of daemons among which the clusters are distributed, and this daemon's part in it."""

    group: GroupStatus
    owns: bool
    """Whether this daemon's Lease is renewed, so that it may engage its clusters."""
    draining: int
    """Number of clusters that this daemon is about to disengage."""
    unowned: int
    """Number of ready clusters that are assigned to this daemon, but that it has not engaged."""


class ClusterRow(Shown, frozen=True, kw_only=True):
    name: str
    state: str
    engaged: bool
    since: datetime
    since_start: bool
    """Whether the first list of this run engaged the cluster, so that `since` says nothing of the cluster."""
    unreachable: bool
    """The cluster does not answer connectivity probes; it is engaged, or was disengaged for that reason."""
    organization: str
    endpoint: str
    notes: tuple[str, ...]


class EngagementChange(Shown, frozen=True, kw_only=True):
    """An engagement or disengagement."""

    at: datetime
    type: str
    cluster: str
    reason: str
    message: str


class SubscriberRow(Shown, frozen=True, kw_only=True):
    since: datetime
    lag: int
    """The number of unsent revisions plus, during a snapshot, the number of unsent clusters."""
    subscriber: str = ""
    """The name under which draining clusters wait for the subscriber; empty if they do not."""
    caller: str = ""
    """The caller's identity, as the listener verified it, and the program of a process of this machine."""
    wants: str = ""


class CredentialSummary(Shown, frozen=True, kw_only=True):
    """The credential that the daemon holds for one cluster: see `CredentialDescription`."""

    issuer: str
    type: str
    expires_at: datetime | None
    problem: str


class IssuerRow(Shown, frozen=True, kw_only=True):
    """An issuer of credentials: see `IssuerHealth`."""

    name: str
    type: str
    problem: str
    expires_at: datetime | None
    leases: int
    failing: Mapping[str, int]


class ClusterExplanation(Shown, frozen=True, kw_only=True):
    """Everything that is known about one cluster, with what explains whether it is engaged."""

    name: str
    row: ClusterRow | None = None
    """None: the name is not known."""
    uid: str = ""
    labels: Pairs = ()
    connectivity: str = ""
    connectivity_since: datetime | None = None
    deletion_requested_at: datetime | None = None
    deletion_waits_for: str = ""
    credential: CredentialSummary | None = None
    transitions: tuple[EngagementChange, ...] = ()
    """Newest first."""
    subscribers: tuple[SubscriberRow, ...] = ()
    """The subscribers whose filter and rights cover the cluster."""


class DaemonStatus(Shown, frozen=True, kw_only=True):
    format: int = FORMAT
    at: datetime
    identity: DaemonIdentity
    context: str
    """The context of Milo that the only source watches; empty for kinds that do not depend on it."""
    source: SourceSummary
    """The source; with several sources, the one whose view is least current."""
    sources: tuple[SourceRow, ...]
    """Empty if the only source has no name."""
    sharding: ShardSummary | None
    """None if this daemon is not in a shard group."""
    engaged: int
    counts: Mapping[str, int]
    """Number of known objects by state. The states that need attention come first."""
    unreachable: int
    """Clusters that do not answer connectivity probes: engaged ones, and those disengaged for that reason."""
    deletions_unconfirmed: int
    clusters: tuple[ClusterRow, ...]
    matching: int
    """The number of clusters that match the query; `clusters` has one page of them."""
    first: int
    """The index of the first item of `clusters` among all clusters that match."""
    page_size: int = PAGE_SIZE
    recent_changes: tuple[EngagementChange, ...]
    """Newest first."""
    subscribers: tuple[SubscriberRow, ...]
    """The subscribers; those that are furthest behind come first."""
    subscribers_waiting: int
    """Number of subscribers that keep their clusters until a second list verifies the first list of this run."""
    credentials: tuple[IssuerRow, ...]
    explanation: ClusterExplanation | None
    configuration: ReloadState


class ClusterQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Selects the clusters to show."""

    search: str = ""
    """Words, of which the first eight must each occur in the name, organization, message or a label, in any case."""
    state: str = ""
    """A state of objects, `engaged` or `unreachable`. Default: all."""
    page: int = 1
    cluster: str = ""
    """The name of a cluster to explain, instead of listing any."""

    def first_row(self, matching: int) -> int:
        """Return the index of the first row on the page, or on the last page if there are fewer."""
        pages = max(1, math.ceil(matching / PAGE_SIZE))
        return (min(max(self.page, 1), pages) - 1) * PAGE_SIZE

    @property
    def words(self) -> list[str]:
        return self.search.casefold().split(maxsplit=_WORDS)[:_WORDS]

    def matches(self, name: str, record: ClusterRecord, words: list[str]) -> bool:
        return self._has_state(record) and all(_has_word(name, record, word) for word in words)

    def _has_state(self, record: ClusterRecord) -> bool:
        match self.state:
            case "":
                return True
            case "engaged":
                return record.engaged
            case "unreachable":
                return is_unreachable(record)
            case state:
                return record.state.value == state


def by_urgency(row: tuple[str, ClusterRecord]) -> tuple[int, str]:
    """The key that sorts the clusters of a listing."""
    return _URGENCY[row[1].state], row[0]


def organization_of(record: ClusterRecord) -> str:
    fields = record.present or record.target
    return "" if fields is None else fields.organization


def _has_word(name: str, record: ClusterRecord, word: str) -> bool:
    if word in name or (record.message and word in record.message.casefold()):
        return True
    fields = record.present or record.target
    if fields is None:
        return False
    if word in fields.organization.casefold():
        return True
    key, separator, value = word.partition("=")
    if separator:
        return any(label.casefold().endswith(key) and its.casefold().startswith(value) for label, its in fields.labels)
    return any(word in label.casefold() or word in its.casefold() for label, its in fields.labels)


def is_unreachable(record: ClusterRecord) -> bool:
    if record.cluster is not None:
        return record.cluster.connectivity.state is Reachability.UNREACHABLE
    return record.state is ObjectState.UNREACHABLE
