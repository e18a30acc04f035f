"""Collects the status of the daemon from its parts."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from heapq import merge, nsmallest
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.kubeconfigs.kubeconfigs import CredentialDescription
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import Cluster, Reachability
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.rights.caller_selector import verified_fields
from milo_discoveryd.sharding.status import GroupStatus
from milo_discoveryd.telemetry.journal import RecentChanges
from milo_discoveryd.telemetry.status import (
    ORDER,
    PAGE_SIZE,
    ClusterExplanation,
    ClusterQuery,
    ClusterRow,
    CredentialSummary,
    DaemonIdentity,
    DaemonStatus,
    EngagementChange,
    IssuerRow,
    ReloadState,
    RulesCurrent,
    ShardSummary,
    SourceRow,
    SourceSummary,
    SubscriberRow,
    by_urgency,
    is_unreachable,
    organization_of,
    when,
)
from milo_kube.moment import Moment
from milo_kube.reflect.view_status import ViewState
from milo_kube.rfc3339 import rfc3339

SLICE = 50
"""The maximum number of records that are searched before the event loop may run other tasks."""
SORTED_AT_ONCE = 500
"""The number of clusters that are sorted or merged before the event loop may run other tasks."""
LISTING_SHARE = 0.02
"""The share of the event loop's time that listings for one query may take."""
_LISTINGS = 4
"""The maximum number of listings that are kept: each may have a row for every cluster."""
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
        changes: RecentChanges,
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
        self._changes = changes
        self._subscribers = subscribers
        self._credentials = credentials
        self._credential_of = credential_of
        self._shard = shard
        self._configuration = configuration
        self._listings: dict[tuple[tuple[str, ...], str], _Listing] = {}

    async def status(self, question: ClusterQuery, *, with_names: bool) -> DaemonStatus:
        """Return the status. Searching the clusters lets other tasks run in between."""
        matching = await self._matching(question) if with_names and not question.cluster else []
        first = question.first_row(len(matching))
        now, sources = Moment(time.time(), time.monotonic()), self._fleet.sources
        contexts = {source.name: source.description.context if with_names else "" for source in sources}
        engagements = [source.engagements for source in sources]
        counts = {state: sum(each.count(state) for each in engagements) for state in ORDER}
        configuration = self._configuration()
        if not with_names and not isinstance(configuration, RulesCurrent):
            configuration = msgspec.structs.replace(configuration, problems=())
        return DaemonStatus(
            at=when(now.wall),
            identity=self._identity,
            context=contexts[sources[0].name] if len(sources) == 1 else "",
            source=_source(self._fleet, now, with_message=with_names),
            sources=tuple(
                SourceRow(
                    name=source.name,
                    kind=source.description.kind,
                    context=contexts[source.name],
                    engaged=source.engagements.engaged,
                    summary=_source(source, now, with_message=with_names),
                )
                for source in sources
                if source.name
            ),
            sharding=None if self._shard is None else self._sharding(self._shard, with_message=with_names),
            engaged=sum(each.engaged for each in engagements),
            counts={state.value: count for state, count in counts.items()},
            unreachable=sum(each.unreachable for each in engagements) + counts[ObjectState.UNREACHABLE],
            deletions_unconfirmed=sum(source.deletions_unconfirmed for source in sources),
            clusters=tuple(self._row(name, record) for name, record in matching[first : first + PAGE_SIZE]),
            matching=len(matching),
            first=first,
            recent_changes=tuple(self._changes) if with_names else (),
            subscribers=_rows(self._subscribers(), with_names=with_names),
            subscribers_waiting=len(self._fleet.waiting),
            credentials=tuple(_issuer(credential, with_message=with_names) for credential in self._credentials()),
            explanation=self._explanation(question.cluster) if with_names and question.cluster else None,
            configuration=configuration,
        )

    async def _matching(self, question: ClusterQuery) -> list[tuple[str, ClusterRecord]]:
        """Return the clusters that match, those that need attention first.

        A result is reused for a while, so that a repeated query takes at most LISTING_SHARE of the event loop's time.
        """
        key = (tuple(question.words), question.state)
        self._listings = {key: listing for key, listing in self._listings.items() if listing.until > time.monotonic()}
        if (kept := self._listings.get(key)) is not None:
            return kept.clusters
        busy_s, found = 0.0, list[tuple[str, ClusterRecord]]()
        known = list(self._fleet.items())
        began = time.thread_time()
        for portion in _sorted_portions(known, question):
            found += portion
            busy_s += time.thread_time() - began
            await asyncio.sleep(0)
            began = time.thread_time()
        for oldest in list(self._listings)[: 1 - _LISTINGS]:
            del self._listings[oldest]
        self._listings[key] = _Listing(found, time.monotonic() + busy_s / LISTING_SHARE)
        return found

    def _row(self, name: str, record: ClusterRecord) -> ClusterRow:
        source = self._fleet.source_of(name)
        assert source is not None, f"no source of the cluster {name!r}"
        synced_at = self._changes.synced_at.get(source.name, math.inf)
        return ClusterRow(
            name=name,
            state=record.state.value,
            engaged=record.engaged,
            since=when(record.since),
            since_start=record.engaged and self._identity.started_at.timestamp() <= record.since <= synced_at,
            unreachable=is_unreachable(record),
            organization=organization_of(record),
            endpoint="" if record.cluster is None else record.cluster.target.endpoint,
            notes=tuple(self._notes(name, record, source)),
        )

    def _notes(self, name: str, record: ClusterRecord, source: ClusterSource) -> Iterator[str]:
        if record.message:
            yield record.message
        if (suspicion := source.pending_deletion(name)) is not None:
            yield f"reported as deleted; engaged until the deletion is confirmed{suspicion[1] and f' ({suspicion[1]})'}"
        if source.engagements.not_ready.until(name) is not None:
            yield "not ready; engaged for now, because of not_ready_grace or removals.hold_not_ready"
        cluster = record.cluster
        if cluster is None:
            return
        if (draining := cluster.draining) is not None:
            awaited = self._fleet.releases.unreleased(name)
            more = ", ..." if len(awaited) > _NAMES_SHOWN else ""
            waits_for = ", ".join(nsmallest(_NAMES_SHOWN, (key.name for key in awaited))) + more
            yield f"draining ({draining.reason.value}) until {rfc3339(draining.deadline)}; waits for {waits_for}"
        if cluster.target.deletion_requested_at is not None:
            yield f"being deleted{cluster.target.deletion_message and f': {cluster.target.deletion_message}'}"
        if cluster.target.suspensions is not None:
            reasons = ", ".join(suspension.reason for suspension in cluster.target.suspensions if suspension.reason)
            yield f"suspended{reasons and f': {reasons}'}"
        if cluster.connectivity.state is Reachability.UNREACHABLE:
            yield f"unreachable: {cluster.connectivity.message}"

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
                EngagementChange(
                    at=when(transition.at),
                    type=transition.type.value,
                    cluster=name,
                    reason="" if transition.reason is None else transition.reason.value,
                    message=transition.message,
                )
                for transition in reversed(record.transitions)
            ),
        )
        cluster = record.cluster
        if cluster is None:
            return explained
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
            subscribers=_rows((each for each in self._subscribers() if each.covers(cluster)), with_names=True),
        )

    def _sharding(self, shard: ShardStatus, *, with_message: bool) -> ShardSummary:
        group = shard.status()
        if group.problem and not with_message:
            group = msgspec.structs.replace(group, problem="failing")
        owns, draining = shard.valid_s() is not None, len(self._fleet.releases)
        return ShardSummary(group=group, owns=owns, draining=draining, unowned=shard.unowned())


def _sorted_portions(
    known: Sequence[tuple[str, ClusterRecord]], question: ClusterQuery
) -> Iterator[list[tuple[str, ClusterRecord]]]:
    """Yield the clusters that match, those that need attention first, in portions. Many are empty: other tasks may run
    after each one, and sorting a large fleet at once would block the event loop."""
    words, runs, run = question.words, list[list[tuple[str, ClusterRecord]]](), list[tuple[str, ClusterRecord]]()
    for begin in range(0, len(known), SLICE):
        run += [row for row in known[begin : begin + SLICE] if question.matches(*row, words)]
        if len(run) >= SORTED_AT_ONCE:
            runs.append(sorted(run, key=by_urgency))
            run = []
        yield []
    merged = merge(*runs, sorted(run, key=by_urgency), key=by_urgency)
    while portion := list(islice(merged, SORTED_AT_ONCE)):
        yield portion


class _Listing(NamedTuple):
    clusters: list[tuple[str, ClusterRecord]]
    until: float
    """When the listing expires, on the monotonic clock."""


def _source(followed: Fleet | ClusterSource, now: Moment, *, with_message: bool) -> SourceSummary:
    status, ahead = followed.status, now.wall - now.steady
    has_reason = status.state is not ViewState.STREAMING
    return SourceSummary(
        state=status.state.value,
        since=when(status.since + ahead),
        reason=status.reason if has_reason else "",
        message=status.message if has_reason and with_message else "",
        last_contact=_when(status.last_contact, ahead),
        retry_at=_when(status.retry_at, ahead),
        synced=followed.synced,
    )


def _rows(subscribers: Iterable[Subscriber], *, with_names: bool) -> tuple[SubscriberRow, ...]:
    rows = []
    for each in subscribers:
        row = SubscriberRow(since=when(each.opened_at), lag=each.lag)
        if with_names:
            texts = {"subscriber": each.name, "caller": _identity(each.caller), "wants": _in_words(each.wanted)}
            row = msgspec.structs.replace(row, **{name: _excerpt(text) for name, text in texts.items()})
        rows.append(row)
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


def _when(time_: float | None, ahead: float = 0.0) -> datetime | None:
    return None if time_ is None else when(time_ + ahead)


def _in_words(wanted: Filter) -> str:
    parts = [str(wanted.selector)] if wanted.selector else []
    for kind, names in (("names", wanted.names), ("organizations", wanted.organizations), ("sources", wanted.sources)):
        if names:
            more = len(names) - _NAMES_SHOWN
            parts.append(f"{kind} {', '.join(nsmallest(_NAMES_SHOWN, names))}{f' and {more} more' if more > 0 else ''}")
    return "; ".join(parts) or "everything"
