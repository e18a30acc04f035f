"""The report of a soak test, as JSON and as markdown."""

from dataclasses import asdict, dataclass, field
from typing import Any

from tests.end_to_end.process.history import History
from tests.end_to_end.soak.gauges import Gauges


@dataclass(frozen=True)
class Recovery:
    lasted_s: float
    """The duration of the fault."""
    took_s: float
    """The time from its end until all subscribers have a change made after it."""


@dataclass(frozen=True)
class Subscriber:
    who: str
    streams: int
    batches: int
    events: int

    @classmethod
    def of(cls, history: History) -> "Subscriber":
        return cls(history.who, len(history.streams), len(list(history.batches())), len(list(history.events())))


@dataclass(frozen=True)
class Slope:
    an_hour: float
    first: float
    last: float
    most: float

    @classmethod
    def of(cls, gauges: Gauges, what: str) -> "Slope":
        return cls(gauges.slope(what), *gauges.ends(what))


@dataclass
class Report:
    server: str
    seed: int
    minutes: float
    faults: dict[str, int]
    groups: dict[str, str]
    recoveries: dict[str, list[Recovery]]
    disk: str
    writes: int
    writes_lost: int
    subscribers: list[Subscriber]
    client_events: int
    handed: int
    """The number of credentials."""
    gauges: Gauges
    failures: list[str] = field(default_factory=list)

    @property
    def stalled(self) -> int:
        """Streams that the steady daemon ended because the subscriber stalled."""
        return int(
            self.gauges.last.get(
                "grpc_server_handled_total Aborted WatchClusters milo.discovery.v1.DiscoveryService server_stream", 0.0
            )
        )

    def slopes(self) -> dict[str, Slope]:
        return {what: Slope.of(self.gauges, what) for what in ("memory_mib", "resident_mib", "files", "tasks")}

    def json(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "seed": self.seed,
            "minutes": round(self.minutes, 1),
            "faults": self.faults,
            "recoveries": {name: [asdict(each) for each in all_of_it] for name, all_of_it in self.recoveries.items()},
            "disk": self.disk,
            "writes": self.writes,
            "writes_lost": self.writes_lost,
            "subscribers": [asdict(each) for each in self.subscribers],
            "client_events": self.client_events,
            "handed": self.handed,
            "stalled": self.stalled,
            "slopes": {name: asdict(slope) for name, slope in self.slopes().items()},
            "samples": [asdict(sample) for sample in self.gauges.samples],
            "failures": self.failures,
        }

    def markdown(self) -> str:
        return "\n".join([*self._summary(), "", *self._table_of_faults(), "", *self._table_of_slopes(), ""])

    def _summary(self) -> list[str]:
        events = sum(each.events for each in self.subscribers) + self.client_events
        streams = sum(each.streams for each in self.subscribers)
        return [
            f"{self.minutes:.0f} minutes against {self.server}, seed {self.seed}: {sum(self.faults.values())} faults "
            f"of {len(self.faults)} kinds, {self.writes} writes upstream.",
            f"Validated: {events} events on {streams} streams, of {len(self.subscribers)} recorded subscribers and one "
            f"of the client library, and {self.handed} credentials.",
            f"Streams ended because the subscriber stalled: {self.stalled}.",
            f"**Validator failures and recoveries over the limit: {len(self.failures)}.**",
            *(f"- {failure}" for failure in self.failures[:50]),
        ]

    def _table_of_faults(self) -> list[str]:
        rows = ["| fault | count | recovery: median | p99 | longest |", "|---|---:|---:|---:|---:|"]
        for group in dict.fromkeys(self.groups.values()):
            names = [name for name, of in self.groups.items() if of == group and name in self.recoveries]
            rows += [_row(name, [each.took_s for each in self.recoveries[name]]) for name in names]
            took = [each.took_s for name in names for each in self.recoveries[name]]
            if took:
                rows.append(_row(f"**all of {group}**", took))
        return rows

    def _table_of_slopes(self) -> list[str]:
        rows = [
            "| of the daemon that ran throughout | start | end | maximum | per hour |",
            "|---|---:|---:|---:|---:|",
        ]
        titles = {
            "memory_mib": "anonymous memory, MiB",
            "resident_mib": "resident memory, MiB",
            "files": "open files",
            "tasks": "tasks",
        }
        for what, slope in self.slopes().items():
            rows.append(
                f"| {titles[what]} | {slope.first:.1f} | {slope.last:.1f} | {slope.most:.1f} | {slope.an_hour:+.2f} |"
            )
        return rows


def _row(name: str, took: list[float]) -> str:
    ordered = sorted(took)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return f"| {name} | {len(took)} | {at(0.5):.1f} s | {at(0.99):.1f} s | {ordered[-1]:.1f} s |"
