"""The summary of a range of simulation runs."""

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.seeded.simulation_run import Outcome


@dataclass
class Report:
    first: int
    last: int
    simulations: int = 0
    failed: list[int] = field(default_factory=list)
    events: int = 0
    handed: int = 0
    virtual_s: float = 0.0
    injected: Counter[str] = field(default_factory=Counter)
    waited_for: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    """Recovery times of simulations that waited only for the API server."""

    def add(self, outcome: Outcome) -> None:
        self.simulations += 1
        self.events += outcome.events
        self.handed += outcome.handed
        self.virtual_s += outcome.virtual_s
        self.injected += outcome.injected
        self.waited_for.update(outcome.waited_for)
        if outcome.breaches:
            self.failed.append(outcome.seed)
        if not outcome.waited_for:
            self.recoveries_s.append(outcome.recovery_s)

    def recovery_s(self, share: float) -> float:
        """Return the recovery time at this quantile."""
        ordered = sorted(self.recoveries_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def __str__(self) -> str:
        lines = [
            f"seeds {self.first}-{self.last}: {self.simulations} simulations, "
            f"{self.virtual_s / 3600:.0f} hours of virtual time",
            f"{len(self.failed)} failed{': ' + ', '.join(map(str, self.failed[:20])) if self.failed else ''}",
            f"{self.events} events and {self.handed} credentials judged, {sum(self.injected.values())} faults injected",
            f"recovery: p50 {self.recovery_s(0.5):.1f} s, p99 {self.recovery_s(0.99):.1f} s, "
            f"at most {max(self.recoveries_s, default=0.0):.1f} s, over {len(self.recoveries_s)} simulations",
            *(f"also waited for {what}: {count} simulations" for what, count in sorted(self.waited_for.items())),
            *(f"  {count:8} {name}" for name, count in sorted(self.injected.items())),
        ]
        return "\n".join(lines)
