"""The report of a soak test, of one piece or of several together, as JSON and as markdown."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from tests.end_to_end.process.history import History
from tests.end_to_end.soak.gauges import Sample, Slope


@dataclass(frozen=True)
class Recovery:
    lasted_s: float
    """The duration of the fault."""
    took_s: float
    """The time from the end of the fault until each subscriber that reads at once has a change made after it."""


@dataclass(frozen=True)
class Subscriber:
    who: str
    streams: int
    batches: int
    events: int

    @classmethod
    def of(cls, history: History) -> "Subscriber":
        return cls(history.who, len(history.streams), len(list(history.batches())), len(list(history.events())))

    def __add__(self, other: "Subscriber") -> "Subscriber":
        return Subscriber(
            self.who, self.streams + other.streams, self.batches + other.batches, self.events + other.events
        )


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
    """The number of credentials that the daemons issued."""
    stalled: int
    """Streams that the steady daemon closed because the subscriber stalled."""
    slopes: dict[str, Slope]
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    pieces: int = 1
    restored: int = 0
    """Pieces that began with the objects and the daemons' state files of the piece before."""

    def json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def markdown(self) -> str:
        return "\n".join([*self._summary(), "", *self._table_of_faults(), "", *self._table_of_slopes(), ""])

    def _summary(self) -> list[str]:
        events = sum(subscriber.events for subscriber in self.subscribers) + self.client_events
        streams = sum(subscriber.streams for subscriber in self.subscribers)
        hours = f"{self.minutes:.0f} minutes" if self.minutes < 120 else f"{self.minutes / 60:.1f} hours"
        in_pieces = "" if self.pieces == 1 else f" in {self.pieces} pieces, {self.restored} of which continued another,"
        return [
            f"{hours}{in_pieces} against {self.server}, seed {self.seed}: {sum(self.faults.values())} faults "
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
            rows += [_row_of_recovery(name, [recovery.took_s for recovery in self.recoveries[name]]) for name in names]
            took = [recovery.took_s for name in names for recovery in self.recoveries[name]]
            if took:
                rows.append(_row_of_recovery(f"**all of {group}**", took))
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
        for what, slope in self.slopes.items():
            rows.append(
                f"| {titles[what]} | {slope.first:.1f} | {slope.last:.1f} | {slope.most:.1f} | {slope.an_hour:+.2f} |"
            )
        return rows


def _row_of_recovery(name: str, took: list[float]) -> str:
    ordered = sorted(took)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return f"| {name} | {len(took)} | {at(0.5):.1f} s | {at(0.99):.1f} s | {ordered[-1]:.1f} s |"


def merged(reports: Sequence[Report]) -> Report:
    """Merge the reports of all pieces.

    Growth per hour is the mean of the pieces by their length, since each has its own processes.
    """
    first, minutes = reports[0], sum(report.minutes for report in reports)
    faults: dict[str, int] = defaultdict(int)
    recoveries: dict[str, list[Recovery]] = defaultdict(list)
    subscribers: dict[str, Subscriber] = {}
    for report in reports:
        for name, count in report.faults.items():
            faults[name] += count
        for name, took in report.recoveries.items():
            recoveries[name] += took
        for subscriber in report.subscribers:
            subscribers[subscriber.who] = (
                subscribers[subscriber.who] + subscriber if subscriber.who in subscribers else subscriber
            )
    return Report(
        server=first.server,
        seed=first.seed,
        minutes=minutes,
        faults=dict(faults),
        groups={name: group for report in reports for name, group in report.groups.items()},
        recoveries=dict(recoveries),
        disk=first.disk,
        writes=sum(report.writes for report in reports),
        writes_lost=sum(report.writes_lost for report in reports),
        subscribers=list(subscribers.values()),
        client_events=sum(report.client_events for report in reports),
        handed=sum(report.handed for report in reports),
        stalled=sum(report.stalled for report in reports),
        slopes={what: _slope((report.minutes, report.slopes[what]) for report in reports) for what in first.slopes},
        failures=[
            f"piece {number}: {failure}" for number, report in enumerate(reports, 1) for failure in report.failures
        ],
        pieces=sum(report.pieces for report in reports),
        restored=sum(report.restored for report in reports),
    )


def _slope(pieces: Iterable[tuple[float, Slope]]) -> Slope:
    found = list(pieces)
    minutes = sum(lasted for lasted, _ in found)
    return Slope(
        an_hour=sum(lasted * slope.an_hour for lasted, slope in found) / minutes,
        first=found[0][1].first,
        last=found[-1][1].last,
        most=max(slope.most for _, slope in found),
    )
