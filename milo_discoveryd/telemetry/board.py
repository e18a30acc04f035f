"""Collects the status of the daemon from its parts."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from milo_discoveryd.kubeconfigs.source_health import SourceHealth
from milo_discoveryd.model.cluster import ConnectivityState
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.filter import Filter
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.registry import ClusterRecord, ObjectState
from milo_discoveryd.rfc3339 import rfc3339
from milo_discoveryd.telemetry.status import (
    ClusterQuery,
    ClusterRow,
    DaemonStatus,
    Identity,
    RecentChange,
    SourceSummary,
    SubscriberRow,
)
from milo_kube.reflect.source_status import SourceState

RECENT_CHANGES_KEPT = 50
SHOWN_AT_ONCE = 500
_NAMES_SHOWN = 3
# States that need attention come first.
_ORDER = (
    ObjectState.MALFORMED,
    ObjectState.UNREACHABLE,
    ObjectState.NOT_READY,
    ObjectState.READY,
    ObjectState.OUTSIDE,
    ObjectState.DELETED,
)


class Subscriber(Protocol):
    opened_at: float

    @property
    def lag(self) -> int: ...

    @property
    def wanted(self) -> Filter: ...


class RecentChanges:
    """The last engagements and disengagements. Updates are left out: connectivity probes alone make too many."""

    def __init__(self) -> None:
        self._kept: deque[RecentChange] = deque(maxlen=RECENT_CHANGES_KEPT)

    def note(self, done: Event) -> None:
        self._kept.appendleft(
            RecentChange(
                at=time.time(),
                type=done.type.value,
                cluster=done.cluster.target.name,
                reason="" if done.reason is None else done.reason.value,
                message=done.message,
            )
        )

    def __iter__(self) -> Iterator[RecentChange]:
        return iter(self._kept)


class StatusBoard:
    """Gathers the status. Without names, it has nothing in it that could contain one: no filters, no messages."""

    def __init__(
        self,
        identity: Identity,
        fleet: Fleet,
        recent: RecentChanges,
        *,
        subscribers: Callable[[], Iterable[Subscriber]],
        credentials: Callable[[], Iterable[SourceHealth]],
    ) -> None:
        self._identity = identity
        self._fleet = fleet
        self._recent = recent
        self._subscribers = subscribers
        self._credentials = credentials

    def status(self, question: ClusterQuery, *, with_names: bool) -> DaemonStatus:
        now = Moment(time.time(), time.monotonic())
        registry = self._fleet.registry
        matching = self._matching(question) if with_names else []
        shown = heapq.nsmallest(SHOWN_AT_ONCE, matching, key=lambda pair: (_RANK[pair[1].state], pair[0]))
        return DaemonStatus(
            at=now.wall,
            identity=self._identity,
            source=self._source(now, with_message=with_names),
            engaged=registry.engaged,
            counts={state.value: registry.count(state) for state in _ORDER},
            deletions_unconfirmed=len(self._fleet.pending_reports),
            revision=self._fleet.log.head,
            clusters=tuple(self._row(name, record) for name, record in shown),
            matching=len(matching),
            recent_changes=tuple(self._recent) if with_names else (),
            subscribers=tuple(
                sorted(
                    (_subscriber(each, with_filter=with_names) for each in self._subscribers()),
                    key=lambda row: (-row.lag, row.since),
                )
            ),
            credentials=tuple(each if with_names else _without_message(each) for each in self._credentials()),
        )

    def _matching(self, question: ClusterQuery) -> list[tuple[str, ClusterRecord]]:
        return [(name, record) for name, record in self._fleet.registry.items() if question.matches(name, record)]

    def _row(self, name: str, record: ClusterRecord) -> ClusterRow:
        waits_for = [each.key.name for each in self._fleet.registry.releases.awaited(name)]
        return _row(name, record, self._fleet.pending_reports.explain(name), waits_for)

    def _source(self, now: Moment, *, with_message: bool) -> SourceSummary:
        status = self._fleet.status

        def wall(steady: float) -> float:
            return now.wall - (now.steady - steady)

        return SourceSummary(
            state=status.state.value,
            since=wall(status.since),
            reason=status.reason if status.state is not SourceState.STREAMING else "",
            message=status.message if with_message and status.state is not SourceState.STREAMING else "",
            last_contact=None if status.last_contact is None else wall(status.last_contact),
            synced=self._fleet.synced,
        )


def _subscriber(subscriber: Subscriber, *, with_filter: bool) -> SubscriberRow:
    wants = _in_words(subscriber.wanted) if with_filter else ""
    return SubscriberRow(since=subscriber.opened_at, lag=subscriber.lag, wants=wants)


def _without_message(health: SourceHealth) -> SourceHealth:
    """A failure may be about one cluster, and name it."""
    return msgspec.structs.replace(health, problem="failing" if health.problem else "")


_RANK = {state: rank for rank, state in enumerate(_ORDER)}


def _row(name: str, record: ClusterRecord, suspicion: tuple[float, str] | None, waits_for: Sequence[str]) -> ClusterRow:
    target = None if record.latest is None else record.latest.target
    return ClusterRow(
        name=name,
        state=record.state.value,
        engaged=record.engaged,
        since=record.since,
        organization="" if target is None else target.organization,
        endpoint=target.endpoint if target is not None and record.engaged else "",
        notes=tuple(_notes(record, suspicion, waits_for)),
    )


def _notes(record: ClusterRecord, suspicion: tuple[float, str] | None, waits_for: Sequence[str]) -> Iterator[str]:
    if record.message:
        yield record.message
    if suspicion is not None:
        yield f"reported as deleted; engaged until the deletion is confirmed{suspicion[1] and f' ({suspicion[1]})'}"
    if record.grace_until is not None:
        yield "not ready; engaged for now, by not_ready_grace or removals.hold_not_ready"
    cluster = record.cluster
    if cluster is None:
        return
    if (draining := cluster.draining) is not None:
        names = ", ".join(waits_for[:_NAMES_SHOWN]) + (", ..." if len(waits_for) > _NAMES_SHOWN else "")
        yield f"draining ({draining.reason.value}) until {rfc3339(draining.deadline)}; waits for {names}"
    if cluster.target.deletion_requested_at is not None:
        yield f"being deleted{cluster.target.deletion_message and f': {cluster.target.deletion_message}'}"
    if cluster.target.suspended:
        yield "suspended"
    if cluster.connectivity.state is ConnectivityState.UNREACHABLE:
        yield f"unreachable: {cluster.connectivity.message}"


def _in_words(wanted: Filter) -> str:
    parts = [str(wanted.selector)] if wanted.selector else []
    for kind, names in (("names", wanted.names), ("organizations", wanted.organizations)):
        if names:
            more = len(names) - _NAMES_SHOWN
            parts.append(f"{kind} {', '.join(sorted(names)[:_NAMES_SHOWN])}{f' and {more} more' if more > 0 else ''}")
    return "; ".join(parts) or "everything"
