"""The summary of a range of simulations of publishers."""

from dataclasses import dataclass

from tests.simulation.publishing.simulation_run import Outcome
from tests.simulation.seeded.report import Seeds


@dataclass
class Report(Seeds):
    writes: int = 0
    deletions: int = 0

    def add(self, outcome: Outcome) -> None:
        self.count(outcome.seed, outcome.virtual_s, is_failed=bool(outcome.breaches))
        self.writes += outcome.writes
        self.deletions += outcome.deletions
        self.faults.update(fault.split()[1] for fault in outcome.faults)
        if not outcome.breaches:
            self.recoveries_s.append(outcome.settled_s)

    def __str__(self) -> str:
        return self.text(
            "simulations of publishers",
            f"{self.writes} requests and {self.deletions} deletions validated",
            f"each cluster has its object after the last fault: p50 {self.recovery_s(0.5):.0f} s, "
            f"p99 {self.recovery_s(0.99):.0f} s, at most {self.recovery_s(1.0):.0f} s",
        )
