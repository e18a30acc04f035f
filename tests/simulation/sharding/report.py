"""The summary of a range of simulations of a shard group."""

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.sharding.simulation_run import Outcome


@dataclass
class Report:
    first: int
    last: int
    simulations: int = 0
    failed: list[int] = field(default_factory=list)
    engagements: int = 0
    views: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    settled_s: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.simulations += 1
        self.engagements += outcome.engagements
        self.views += outcome.views
        self.virtual_s += outcome.virtual_s
        self.faults.update(fault.split()[1] for fault in outcome.faults)
        if outcome.breaches:
            self.failed.append(outcome.seed)
        else:
            self.settled_s.append(outcome.settled_s)

    def settled(self, share: float) -> float:
        """Return how long after the last fault every cluster was owned, at this quantile."""
        ordered = sorted(self.settled_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def __str__(self) -> str:
        lines = [
            f"seeds {self.first}-{self.last}: {self.simulations} simulations of a shard group, "
            f"{self.virtual_s / 3600:.0f} hours of virtual time",
            f"{len(self.failed)} failed{': ' + ', '.join(map(str, self.failed[:20])) if self.failed else ''}",
            f"{self.engagements} engagements and {self.views} views judged, {self.faults.total()} faults injected",
            f"every cluster owned after the last fault: p50 {self.settled(0.5):.0f} s, p99 {self.settled(0.99):.0f} s, "
            f"at most {self.settled(1.0):.0f} s",
            *(f"  {count:8} {name}" for name, count in sorted(self.faults.items())),
        ]
        return "\n".join(lines)
