"""The summary of a range of simulations of objects."""

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.seeded.report import Seeds

from .simulation_run import Outcome


@dataclass
class Report(Seeds):
    changes: int = 0
    gone: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.count(outcome.seed, outcome.virtual_s, is_failed=bool(outcome.breaches))
        self.changes += outcome.changes
        self.faults.update(outcome.injected)
        self.gone.update(outcome.gone)

    def __str__(self) -> str:
        gone = ", ".join(f"{count} {reason}" for reason, count in sorted(self.gone.items()))
        return self.text("simulations of objects", f"{self.changes} changes validated", f"objects gone: {gone}")
