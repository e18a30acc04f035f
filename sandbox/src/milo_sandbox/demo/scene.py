"""What there is to look at: the clusters, what just happened to them, and how much happened in all."""

from collections import Counter, deque
from dataclasses import dataclass

from milo_discovery import Cluster, ConnectivityState, Event, EventType

FADES_AFTER_S = 4.0
FEED_LENGTH = 200

# Probes find out a moment after an engagement: an update that says nothing else.
_REACHED = {ConnectivityState.REACHABLE: ", reachable", ConnectivityState.UNREACHABLE: ", unreachable"}


@dataclass(frozen=True)
class Row:
    cluster: Cluster
    last: EventType
    at: float


@dataclass(frozen=True)
class Happening:
    event: Event
    at: float


class Scene:
    """Takes what a subscriber is told, and the time."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self.feed: deque[Happening] = deque(maxlen=FEED_LENGTH)
        """The latest first."""
        self.counts: Counter[EventType] = Counter()

    @property
    def engaged(self) -> int:
        return sum(row.last is not EventType.DISENGAGED for row in self._rows.values())

    def happened(self, event: Event, now: float) -> None:
        self.counts[event.type] += 1
        self.feed.appendleft(Happening(event, now))
        self._rows.pop(event.cluster.name, None)
        self._rows[event.cluster.name] = Row(event.cluster, event.type, now)

    def rows(self, now: float) -> list[Row]:
        """By name; one that was disengaged stays for a moment, so that it is seen going."""
        gone = [
            name
            for name, row in self._rows.items()
            if row.last is EventType.DISENGAGED and now - row.at > FADES_AFTER_S
        ]
        for name in gone:
            del self._rows[name]
        return sorted(self._rows.values(), key=lambda row: row.cluster.name)


def state(cluster: Cluster) -> str:
    if cluster.deletion_requested_at is not None:
        return "terminating"
    return "suspended" if cluster.suspended else "ready"


def about(event: Event) -> str:
    """What a person wants to know beside the name."""
    cluster = event.cluster
    if event.type is EventType.DISENGAGED:
        return ": ".join(filter(None, (event.reason.name, event.message)))
    labels = ",".join(f"{key}={value}" for key, value in cluster.labels.items() if "/" not in key)
    note = cluster.deletion_message if cluster.deletion_requested_at else ""
    return "  ".join(filter(None, (f"{state(cluster)}{_REACHED.get(cluster.connectivity.state, '')}", note, labels)))
