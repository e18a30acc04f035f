"""The summary of a range of simulation runs."""

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.seeded.simulation_run import Outcome


@dataclass
class Seeds:
    """The figures of a range of seeds that every kind of simulation reports."""

    first: int
    last: int
    simulations: int = 0
    failed: list[int] = field(default_factory=list)
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    """Time from the last fault until the recovery, of simulations that waited for nothing else."""

    def count(self, seed: int, virtual_s: float, *, is_failed: bool) -> None:
        self.simulations += 1
        self.virtual_s += virtual_s
        if is_failed:
            self.failed.append(seed)

    def recovery_s(self, share: float) -> float:
        """Return the recovery time at this quantile."""
        ordered = sorted(self.recoveries_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def text(self, what: str, judged: str, *lines: str) -> str:
        parts = [
            f"seeds {self.first}-{self.last}: {self.simulations} {what}, "
            f"{self.virtual_s / 3600:.0f} hours of virtual time",
            f"{len(self.failed)} failed{': ' + ', '.join(map(str, self.failed[:20])) if self.failed else ''}",
            f"{judged}, {self.faults.total()} faults injected",
            *lines,
            *(f"  {count:8} {name}" for name, count in sorted(self.faults.items())),
        ]
        return "\n".join(parts)


@dataclass
class Report(Seeds):
    events: int = 0
    handed: int = 0
    waited_for: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.count(outcome.seed, outcome.virtual_s, is_failed=bool(outcome.breaches))
        self.events += outcome.events
        self.handed += outcome.handed
        self.faults += outcome.injected
        self.waited_for.update(outcome.waited_for)
        if not outcome.waited_for:
            self.recoveries_s.append(outcome.recovery_s)

    def __str__(self) -> str:
        return self.text(
            "simulations",
            f"{self.events} events and {self.handed} credentials validated",
            f"recovery: p50 {self.recovery_s(0.5):.1f} s, p99 {self.recovery_s(0.99):.1f} s, "
            f"at most {self.recovery_s(1.0):.1f} s, over {len(self.recoveries_s)} simulations",
            *(f"also waited for {what}: {count} simulations" for what, count in sorted(self.waited_for.items())),
        )
