"""The state that the demo shows: clusters, recent events, and counts."""

from collections import Counter, deque
from dataclasses import dataclass, replace

from milo_discovery import Cluster, ConnectivityState, Event, EventType, SourceState, SourceStatus
from milo_discovery_cli.text_output import state

HIGHLIGHTED_S = 4.0
RECENT_EVENTS = 200


@dataclass(frozen=True)
class Row:
    cluster: Cluster
    last: EventType
    at: float


@dataclass(frozen=True)
class RecentEvent:
    event: Event
    at: float


class Scene:
    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self.recent: deque[RecentEvent] = deque(maxlen=RECENT_EVENTS)
        """Recent events, latest first."""
        self.counts: Counter[EventType] = Counter()
        """The number of events shown as recent, by type."""

    @property
    def engaged(self) -> int:
        return sum(row.last is not EventType.DISENGAGED for row in self._rows.values())

    def add(self, event: Event, now: float) -> bool:
        """Add an event. Return whether to show it as recent.

        It is not shown if it only reports that a new cluster will be probed, or is reachable.
        """
        before = self._rows.pop(event.cluster.name, None)
        if before is not None and _is_first_probe(before.cluster, event):
            self._rows[event.cluster.name] = replace(before, cluster=event.cluster)
            return False
        self.counts[event.type] += 1
        self.recent.appendleft(RecentEvent(event, now))
        self._rows[event.cluster.name] = Row(event.cluster, event.type, now)
        return True

    def rows(self, now: float) -> list[Row]:
        """Return the clusters by name; a disengaged one remains for a few seconds."""
        expired = [
            name
            for name, row in self._rows.items()
            if row.last is EventType.DISENGAGED and now - row.at > HIGHLIGHTED_S
        ]
        for name in expired:
            del self._rows[name]
        return sorted(self._rows.values(), key=lambda row: row.cluster.name)


def _is_first_probe(before: Cluster, event: Event) -> bool:
    """Return whether an event only reports that a new cluster will be probed, or is reachable."""
    is_new = before.connectivity.state in (ConnectivityState.UNSPECIFIED, ConnectivityState.UNKNOWN)
    is_expected = event.cluster.connectivity.state in (ConnectivityState.UNKNOWN, ConnectivityState.REACHABLE)
    others = replace(event.cluster, connectivity=before.connectivity)
    return event.type is EventType.UPDATED and is_new and is_expected and others == before


def describe(event: Event) -> str:
    """Return the text of an event, without the name of its cluster."""
    cluster = event.cluster
    if event.type is EventType.DISENGAGED:
        return ": ".join(filter(None, (event.reason.name, event.message)))
    labels = ",".join(f"{key}={value}" for key, value in sorted(cluster.labels.items()) if "/" not in key)
    note = cluster.deletion_message if cluster.deletion_requested_at else ""
    # The result of a probe may be the only change in an UPDATED event.
    probed = ", reachable" if cluster.connectivity.state is ConnectivityState.REACHABLE else ""
    return "  ".join(filter(None, (f"{state(cluster)}{probed}", note, labels)))


def describe_source(source: SourceStatus | None) -> str:
    """Return the state of the daemon's source, with the reason if it is not streaming."""
    if source is None:
        return "connecting"
    if source.state is SourceState.STREAMING:
        return source.state.name
    return ": ".join(filter(None, (source.state.name, source.reason, source.message)))
