"""Collects the status of the daemon from its parts."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from heapq import nsmallest
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.kubeconfigs.kubeconfigs import CredentialDescription
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import Cluster, Reachability
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.rights.caller_selector import verified_fields
from milo_discoveryd.sharding.status import GroupStatus
from milo_discoveryd.telemetry.journal import RecentHistory
from milo_discoveryd.telemetry.status import (
    ORDER,
    PAGE_SIZE,
    ClusterExplanation,
    ClusterQuery,
    ClusterRow,
    ClusterTransition,
    CredentialSummary,
    DaemonIdentity,
    DaemonStatus,
    IssuerRow,
    ReloadState,
    RulesCurrent,
    ShardSummary,
    SourceRow,
    SourceSummary,
    SubscriberRow,
    is_unreachable,
    organization_of,
    when,
)
from milo_kube.moment import Moment
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.rfc3339 import rfc3339

SLICE = 50
"""The maximum number of records that are searched before the event loop may run other tasks."""
LISTING_SHARE = 0.02
"""The share of the event loop's time that listings for one query may take."""
_NAMES_SHOWN = 3
_LONGEST = 200
"""Maximum length of caller-supplied text in a subscriber's row: there may be thousands of rows."""


class Subscriber(Protocol):
    opened_at: float

    @property
    def lag(self) -> int: ...

    @property
    def wanted(self) -> Filter: ...

    @property
    def caller(self) -> Caller: ...

    @property
    def name(self) -> str: ...

    def covers(self, cluster: Cluster) -> bool:
        """Return whether the filter and the rights of the subscriber cover the cluster."""


class ShardStatus(Protocol):
    """The status of this daemon as a member of a shard group."""

    def status(self) -> GroupStatus: ...

    def valid_s(self) -> float | None: ...

    def unowned(self) -> int: ...


class StatusBoard:
    """Gathers the status. If names must not be shown, it leaves out everything that could contain one, such as
    messages."""

    def __init__(
        self,
        identity: DaemonIdentity,
        fleet: Fleet,
        history: RecentHistory,
        *,
        subscribers: Callable[[], Iterable[Subscriber]],
        credentials: Callable[[], Iterable[IssuerHealth]],
        credential_of: Callable[[Cluster], CredentialDescription | None],
        shard: ShardStatus | None = None,
        configuration: Callable[[], ReloadState] = RulesCurrent,
    ) -> None:
        """`shard` is set if the clusters are distributed among several daemons."""
        self._identity = identity
        self._fleet = fleet
        self._history = history
        self._subscribers = subscribers
        self._credentials = credentials
        self._credential_of = credential_of
        self._shard = shard
        self._configuration = configuration
        self._listings: dict[tuple[str, str, str], _Listing] = {}

    async def status(self, question: ClusterQuery, *, with_names: bool) -> DaemonStatus:
        """Return the status. Searching the clusters lets other tasks run in between."""
        matching = await self._matching(question) if with_names and not question.cluster else []
        first = question.first_row(len(matching))
        now = Moment(time.time(), time.monotonic())
        fleet_engagements = [source.engagements for source in self._fleet.sources]
        counts = {state: sum(engagements.count(state) for engagements in fleet_engagements) for state in ORDER}
        return DaemonStatus(
            at=when(now.wall),
            identity=self._identity,
            source=_source(self._fleet.status, now, synced=self._fleet.synced, with_message=with_names),
            context=self._fleet.sources[0].description.context if with_names and len(self._fleet.sources) == 1 else "",
            sources=tuple(
                SourceRow(
                    name=source.name,
                    kind=source.description.kind,
                    context=source.description.context if with_names else "",
                    engaged=source.engagements.engaged,
                    summary=_source(source.status, now, synced=source.synced, with_message=with_names),
                )
                for source in self._fleet.sources
                if source.name
            ),
            sharding=None if self._shard is None else _sharding(self._shard, len(self._fleet.releases), with_names),
            engaged=sum(engagements.engaged for engagements in fleet_engagements),
            counts={state.value: count for state, count in counts.items()},
            unreachable=sum(each.unreachable for each in fleet_engagements) + counts[ObjectState.UNREACHABLE],
            deletions_unconfirmed=sum(source.deletions_unconfirmed for source in self._fleet.sources),
            revision=self._fleet.log.head,
            clusters=tuple(self._row(name, record) for name, record in matching[first : first + PAGE_SIZE]),
            matching=len(matching),
            first=first,
            recent_changes=tuple(self._history) if with_names else (),
            subscribers=_rows(self._subscribers(), with_names=with_names),
            subscribers_waiting=len(self._fleet.waiting),
            credentials=tuple(_issuer(credential, with_message=with_names) for credential in self._credentials()),
            history=self._history.samples(),
            explanation=self._explanation(question.cluster) if with_names and question.cluster else None,
            configuration=_configuration(self._configuration(), with_message=with_names),
        )

    async def _matching(self, question: ClusterQuery) -> list[tuple[str, ClusterRecord]]:
        """Return the clusters that match, in the order of the query.

        A result is reused for a while, so that a repeated query takes at most LISTING_SHARE of the event loop's time.
        """
        key = (question.search, question.state, question.sort)
        kept = self._listings.get(key)
        if kept is not None and kept.until > time.monotonic():
            return kept.clusters
        self._listings = {key: listing for key, listing in self._listings.items() if listing.until > time.monotonic()}
        busy_s, matches = 0.0, question.matches
        found: list[tuple[str, ClusterRecord]] = []
        known = list(self._fleet.items())
        for begin in range(0, len(known), SLICE):
            if begin:
                await asyncio.sleep(0)
            began = time.thread_time()
            found += [row for row in known[begin : begin + SLICE] if matches(*row)]
            busy_s += time.thread_time() - began
        began = time.thread_time()
        clusters = question.sorted(found)
        busy_s += time.thread_time() - began
        self._listings[key] = _Listing(clusters, time.monotonic() + busy_s / LISTING_SHARE)
        return clusters

    def _row(self, name: str, record: ClusterRecord) -> ClusterRow:
        source = self._fleet.source_of(name)
        assert source is not None, f"no source of the cluster {name!r}"
        waits_for = [release.key.name for release in self._fleet.releases.awaited(name)]
        is_graced = source.engagements.not_ready.until(name) is not None
        began = (self._identity.started_at.timestamp(), self._history.synced_at.get(source.name, math.inf))
        return _row(name, record, source.pending_deletion(name), waits_for, is_graced=is_graced, began=began)

    def _explanation(self, name: str) -> ClusterExplanation:
        record = self._fleet[name]
        if record is None:
            return ClusterExplanation(name=name)
        explained = ClusterExplanation(
            name=name,
            row=self._row(name, record),
            uid=record.uid,
            labels=() if record.present is None else record.present.labels,
            transitions=tuple(
                ClusterTransition(
                    at=when(transition.at),
                    type=transition.type.value,
                    reason="" if transition.reason is None else transition.reason.value,
                    message=transition.message,
                )
                for transition in reversed(record.transitions)
            ),
        )
        cluster = record.cluster
        return explained if cluster is None else self._about(explained, cluster)

    def _about(self, explained: ClusterExplanation, cluster: Cluster) -> ClusterExplanation:
        """Add the fields that only engaged clusters have."""
        target, held = cluster.target, self._credential_of(cluster)
        return msgspec.structs.replace(
            explained,
            uid=target.uid,
            labels=target.labels,
            connectivity=cluster.connectivity.state.value,
            connectivity_since=_when(cluster.connectivity.since),
            deletion_requested_at=_when(target.deletion_requested_at),
            deletion_waits_for=target.deletion_message,
            credential=None
            if held is None
            else CredentialSummary(
                issuer=held.issuer, type=held.type, expires_at=_when(held.expires_at), problem=held.problem
            ),
            subscribers=_rows(
                (subscriber for subscriber in self._subscribers() if subscriber.covers(cluster)), with_names=True
            ),
        )


def _sharding(shard: ShardStatus, draining: int, with_message: bool) -> ShardSummary:
    group = shard.status()
    if group.problem and not with_message:
        group = msgspec.structs.replace(group, problem="failing")
    owns = shard.valid_s() is not None
    return ShardSummary(group=group, owns=owns, draining=draining, unowned=shard.unowned())


def _configuration(state: ReloadState, *, with_message: bool) -> ReloadState:
    if with_message or isinstance(state, RulesCurrent):
        return state
    return msgspec.structs.replace(state, problems=())


def _source(status: ViewStatus, now: Moment, *, synced: bool, with_message: bool) -> SourceSummary:
    def wall(steady: float) -> datetime:
        return when(now.wall - (now.steady - steady))

    return SourceSummary(
        state=status.state.value,
        since=wall(status.since),
        reason=status.reason if status.state is not ViewState.STREAMING else "",
        message=status.message if with_message and status.state is not ViewState.STREAMING else "",
        last_contact=None if status.last_contact is None else wall(status.last_contact),
        synced=synced,
    )


class _Listing(NamedTuple):
    clusters: list[tuple[str, ClusterRecord]]
    until: float
    """When the listing expires, on the monotonic clock."""


def _rows(subscribers: Iterable[Subscriber], *, with_names: bool) -> tuple[SubscriberRow, ...]:
    rows = (
        SubscriberRow(
            since=when(subscriber.opened_at),
            lag=subscriber.lag,
            subscriber=_excerpt(subscriber.name) if with_names else "",
            caller=_excerpt(_identity(subscriber.caller)) if with_names else "",
            wants=_excerpt(_in_words(subscriber.wanted)) if with_names else "",
        )
        for subscriber in subscribers
    )
    return tuple(sorted(rows, key=lambda row: (-row.lag, row.since)))


def _excerpt(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _identity(caller: Caller) -> str:
    """Return the strongest verified identity of the caller. The address of a connection is no identity."""
    fields = dict(verified_fields(caller))
    if caller.user:
        return caller.user
    if caller.sans:
        return ", ".join(caller.sans)
    known = ", ".join(f"{field} {fields[field]}" for field in ("uid", "pid") if field in fields)
    return f"{known}{_program(caller.pid)}" or f"any caller of {caller.listener}"


def _program(pid: int | None) -> str:
    """Return the program of a process as a part of a text; empty if it is not visible, as in another container."""
    try:
        return f" ({Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()})" if pid else ""
    except OSError:
        return ""


def _issuer(health: IssuerHealth, *, with_message: bool) -> IssuerRow:
    """Return the row of an issuer. Without `with_message`, "failing" replaces the problem, which may name a cluster."""
    return IssuerRow(
        name=health.name,
        type=health.type,
        problem=health.problem if with_message or not health.problem else "failing",
        expires_at=_when(health.expires_at),
        leases=health.leases,
        failing=health.failing,
    )


def _when(wall: float | None) -> datetime | None:
    return None if wall is None else when(wall)


def _row(
    name: str,
    record: ClusterRecord,
    suspicion: tuple[float, str] | None,
    waits_for: Sequence[str],
    *,
    is_graced: bool,
    began: tuple[float, float],
) -> ClusterRow:
    target = None if record.latest is None else record.latest.target
    return ClusterRow(
        name=name,
        state=record.state.value,
        engaged=record.engaged,
        since=when(record.since),
        since_start=record.engaged and began[0] <= record.since <= began[1],
        unreachable=is_unreachable(record),
        organization=organization_of(record),
        endpoint=target.endpoint if target is not None and record.engaged else "",
        notes=tuple(_notes(record, suspicion, waits_for, is_graced=is_graced)),
    )


def _notes(
    record: ClusterRecord, suspicion: tuple[float, str] | None, waits_for: Sequence[str], *, is_graced: bool
) -> Iterator[str]:
    if record.message:
        yield record.message
    if suspicion is not None:
        yield f"reported as deleted; engaged until the deletion is confirmed{suspicion[1] and f' ({suspicion[1]})'}"
    if is_graced:
        yield "not ready; engaged for now, because of not_ready_grace or removals.hold_not_ready"
    cluster = record.cluster
    if cluster is None:
        return
    if (draining := cluster.draining) is not None:
        names = ", ".join(waits_for[:_NAMES_SHOWN]) + (", ..." if len(waits_for) > _NAMES_SHOWN else "")
        yield f"draining ({draining.reason.value}) until {rfc3339(draining.deadline)}; waits for {names}"
    if cluster.target.deletion_requested_at is not None:
        yield f"being deleted{cluster.target.deletion_message and f': {cluster.target.deletion_message}'}"
    if cluster.target.suspensions is not None:
        reasons = ", ".join(suspension.reason for suspension in cluster.target.suspensions if suspension.reason)
        yield f"suspended{reasons and f': {reasons}'}"
    if cluster.connectivity.state is Reachability.UNREACHABLE:
        yield f"unreachable: {cluster.connectivity.message}"


def _in_words(wanted: Filter) -> str:
    parts = [str(wanted.selector)] if wanted.selector else []
    for kind, names in (("names", wanted.names), ("organizations", wanted.organizations), ("sources", wanted.sources)):
        if names:
            more = len(names) - _NAMES_SHOWN
            parts.append(f"{kind} {', '.join(nsmallest(_NAMES_SHOWN, names))}{f' and {more} more' if more > 0 else ''}")
    return "; ".join(parts) or "everything"
