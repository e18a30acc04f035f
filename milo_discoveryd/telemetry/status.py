"""The status of the daemon at one moment, as plain values, and queries that select clusters in it. Pure.

As JSON it follows the conventions of protobuf's JSON: field names in camelCase, and times in the format of RFC 3339.
"""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from operator import itemgetter
from typing import Any, TypeAlias

import msgspec

from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.model.cluster import Pairs, Reachability
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.sharding.status import GroupStatus

PAGE_SIZE = 50
_WORDS = 8
"""The number of words of a search that are looked for. Each is compared with all labels of each cluster."""
ENGAGED, UNREACHABLE = "engaged", "unreachable"
"""States that queries can select, in addition to the states of objects."""


FORMAT = 1
"""The version of the status as JSON, which is incremented when a field is removed or changes its meaning."""


def when(wall: float) -> datetime:
    return datetime.fromtimestamp(wall, UTC)


class DaemonIdentity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
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


class SourceSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    state: str
    since: datetime
    reason: str
    message: str
    last_contact: datetime | None
    synced: bool
    """Whether the source is synced: see `SourceProgress.synced`. With several sources, whether all are."""


class SourceRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The status of one source, if sources have names."""

    name: str
    kind: str
    context: str
    engaged: int
    summary: SourceSummary


class ShardSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The group of daemons among which the clusters are distributed, and this daemon's part in it."""

    group: GroupStatus
    owns: bool
    """Whether this daemon's Lease is renewed, so that it may engage its clusters."""
    draining: int
    """Number of clusters that this daemon is about to disengage."""
    unowned: int
    """Number of ready clusters that are assigned to this daemon, but that it has not engaged."""


class ClusterRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    state: str
    engaged: bool
    since: datetime
    since_start: bool = False
    """Whether the first list of this run engaged the cluster, so that `since` says nothing of the cluster."""
    unreachable: bool = False
    """The cluster does not answer connectivity probes; it is engaged, or was disengaged for that reason."""
    organization: str = ""
    endpoint: str = ""
    notes: tuple[str, ...] = ()


class RecentChange(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    at: datetime
    type: str
    cluster: str
    reason: str = ""
    message: str = ""


class SubscriberRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    since: datetime
    lag: int
    """The number of unsent revisions plus, during a snapshot, the number of unsent clusters."""
    subscriber: str = ""
    """The name under which draining clusters wait for the subscriber; empty if they do not."""
    caller: str = ""
    """The caller's identity, as the listener verified it, and the program of a process of this machine."""
    wants: str = ""


class CredentialSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The credential that the daemon holds for one cluster."""

    issuer: str
    type: str
    expires_at: datetime | None = None
    """When the credential expires; None if none is held."""
    problem: str = ""


class IssuerRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An issuer of credentials."""

    name: str
    type: str
    problem: str
    """Why the last attempt failed, ignoring failures that concern only one cluster; empty if it succeeded."""
    expires_at: datetime | None
    """When the first of the issuer's credentials expires; None if the issuer holds none."""
    leases: int
    failing: Mapping[str, int] = {}
    """The number of clusters, by reason, that get no new credential because of a failure specific to the cluster, or
    whose API servers reject the credential."""


class History(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Samples of the last hour, the oldest first."""

    interval_s: int
    engaged: tuple[int, ...]
    changes: tuple[int, ...]
    """Engagements and disengagements since the previous sample."""
    lag: tuple[int, ...]
    """The largest lag of a subscriber."""


class ClusterTransition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    at: datetime
    type: str
    reason: str = ""
    message: str = ""


class ClusterExplanation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The explanation of why one cluster is engaged or not, with everything that is known about the cluster."""

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
    transitions: tuple[ClusterTransition, ...] = ()
    """Newest first."""
    subscribers: tuple[SubscriberRow, ...] = ()
    """The subscribers whose filter and rights cover the cluster."""


class ClusterQuery(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Selects the clusters to show."""

    search: str = ""
    """Words, of which the first eight must each occur in the name, organization, message or a label, in any case."""
    state: str = ""
    page: int = 1
    sort: str = ""
    """A key of `SORTING`, with the prefix "-" for reverse order. By default states that need attention come first."""
    cluster: str = ""
    """The name of a cluster to explain, instead of listing any."""

    def first_row(self, matching: int) -> int:
        """Return the index of the first row on the page, or on the last page if there are fewer."""
        pages = max(1, math.ceil(matching / PAGE_SIZE))
        return (min(max(self.page, 1), pages) - 1) * PAGE_SIZE

    def sorted(self, found: list[tuple[str, ClusterRecord]]) -> list[tuple[str, ClusterRecord]]:
        by_name = sorted(found, key=itemgetter(0))
        key = SORTING.get(self.sort.removeprefix("-"), SORTING[""])
        return sorted(by_name, key=key, reverse=self.sort.startswith("-"))

    @cached_property
    def matches(self) -> Callable[[str, ClusterRecord], bool]:
        """A predicate on the name and the record of a cluster."""
        words, state = self.search.casefold().split(maxsplit=_WORDS)[:_WORDS], self.state
        has_state: Callable[[ClusterRecord], bool] = _STATES.get(state, lambda record: record.state.value == state)
        if not words:
            return lambda _, record: has_state(record)
        return lambda name, record: has_state(record) and all(_has_word(name, record, word) for word in words)


ORDER = tuple(MEANINGS)
"""All states of objects. Those that need attention come first."""
WORDS = {state.value: meaning.words for state, meaning in MEANINGS.items()}
_URGENCY = {state: place for place, state in enumerate(ORDER)}

SORTING: dict[str, Callable[[tuple[str, ClusterRecord]], Any]] = {
    "": lambda row: _URGENCY[row[1].state],
    "state": lambda row: _URGENCY[row[1].state],
    "name": itemgetter(0),
    "since": lambda row: row[1].since,
    "organization": lambda row: organization_of(row[1]),
}


def organization_of(record: ClusterRecord) -> str:
    fields = record.present or (None if record.latest is None else record.latest.target)
    return "" if fields is None else fields.organization


_STATES: dict[str, Callable[[ClusterRecord], bool]] = {
    "": lambda _: True,
    ENGAGED: lambda record: record.engaged,
    UNREACHABLE: lambda record: is_unreachable(record),  # noqa: PLW0108 - defined below
}


def _has_word(name: str, record: ClusterRecord, word: str) -> bool:
    if word in name or (record.message and word in record.message.casefold()):
        return True
    fields = record.present or (None if record.latest is None else record.latest.target)
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


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    format: int = FORMAT
    at: datetime
    identity: DaemonIdentity
    context: str = ""
    """The context of Milo that the only source watches; empty for kinds that do not depend on it."""
    source: SourceSummary
    """The source; with several sources, the one whose view is least current."""
    engaged: int
    counts: dict[str, int]
    """Number of known objects by state. The states that need attention come first."""
    words: Mapping[str, str] = msgspec.field(default_factory=lambda: WORDS)
    """The name of each state for people."""
    unreachable: int
    """Clusters that do not answer connectivity probes: engaged ones, and those disengaged for that reason."""
    deletions_unconfirmed: int
    revision: int
    clusters: tuple[ClusterRow, ...]
    matching: int
    """The number of clusters that match the query; `clusters` has one page of them."""
    first: int
    """The index of the first item of `clusters` among all clusters that match."""
    page_size: int = PAGE_SIZE
    recent_changes: tuple[RecentChange, ...]
    """Engagements and disengagements, newest first."""
    subscribers: tuple[SubscriberRow, ...]
    """The subscribers; those that are furthest behind come first."""
    subscribers_waiting: int
    """Number of subscribers that keep their clusters until a second list verifies the first list of this run."""
    credentials: tuple[IssuerRow, ...]
    history: History
    explanation: ClusterExplanation | None = None
    sources: tuple[SourceRow, ...] = ()
    """Empty if the only source has no name."""
    sharding: ShardSummary | None = None
    """None if this daemon is not in a shard group."""
    configuration: ReloadState = RulesCurrent()
