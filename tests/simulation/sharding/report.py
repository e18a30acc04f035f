"""The summary of a range of simulations of a shard group."""

from dataclasses import dataclass

from tests.simulation.seeded.report import Seeds
from tests.simulation.sharding.simulation_run import Outcome


@dataclass
class Report(Seeds):
    engagements: int = 0
    views: int = 0

    def add(self, outcome: Outcome) -> None:
        self.count(outcome.seed, outcome.virtual_s, is_failed=bool(outcome.breaches))
        self.engagements += outcome.engagements
        self.views += outcome.views
        self.faults.update(fault.split()[1] for fault in outcome.faults)
        if not outcome.breaches:
            self.recoveries_s.append(outcome.settled_s)

    def __str__(self) -> str:
        return self.text(
            "simulations of a shard group",
            f"{self.engagements} engagements and {self.views} views validated",
            f"every cluster owned after the last fault: p50 {self.recovery_s(0.5):.0f} s, "
            f"p99 {self.recovery_s(0.99):.0f} s, at most {self.recovery_s(1.0):.0f} s",
        )
