"""The report of storms, as markdown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.end_to_end.soak.report import Subscriber


@dataclass(frozen=True)
class StormReport:
    seed: str
    seconds: float
    """The duration of the storm, including the time in which the subscribers converged."""
    recovery_s: float
    faults: dict[str, int]
    kills: int
    writes: int
    subscribers: list[Subscriber]
    client_events: int
    credentials: int
    failures: list[str]

    def __str__(self) -> str:
        return (
            f"storm {self.seed}: {sum(self.faults.values())} faults with {self.kills} kills, converged after "
            f"{self.recovery_s:.1f} s, {len(self.failures)} failures"
        )


def markdown(storms: Sequence[StormReport], seconds: float) -> str:
    """Return the summary of storms, each of which lasted `seconds`."""
    faults: Counter[str] = Counter()
    for storm in storms:
        faults.update(storm.faults)
    subscribers = [subscriber for storm in storms for subscriber in storm.subscribers]
    events = sum(subscriber.events for subscriber in subscribers) + sum(storm.client_events for storm in storms)
    streams = sum(subscriber.streams for subscriber in subscribers)
    credentials = sum(storm.credentials for storm in storms)
    recoveries = [storm.recovery_s for storm in storms]
    failures = [f"storm {storm.seed}: {failure}" for storm in storms for failure in storm.failures]
    return "\n".join(
        [
            f"{len(storms)} storms of {seconds:.0f} s: {sum(faults.values())} faults with "
            f"{sum(storm.kills for storm in storms)} kills, {sum(storm.writes for storm in storms)} writes upstream.",
            f"Validated: {events} events on {streams} streams, and {credentials} credentials.",
            f"Convergence after a storm: median {median(recoveries):.1f} s, longest {max(recoveries):.1f} s.",
            f"**Validator failures and storms without convergence: {len(failures)}.**",
            *(f"- {failure}" for failure in failures[:50]),
            "",
            "| fault | count |",
            "|---|---:|",
            *(f"| {name} | {count} |" for name, count in sorted(faults.items())),
            "",
        ]
    )
