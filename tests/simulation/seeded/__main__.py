"""Run seeded simulations: one with its history, or a range of seeds with a summary.

./dev simulate --seed 17
./dev simulate --seeds 0-9999
./dev simulate --sharding --seeds 0-9999
./dev simulate --publishing --seeds 0-9999
./dev simulate --objects --seeds 0-9999
./dev simulate --published-objects --seeds 0-9999
./dev simulate --hostile --seeds 0-99
"""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from objects.tests.simulation.simulation_run import simulate as simulate_objects
from tests.simulation.hostile.simulation_run import simulate as simulate_hostile_tenant
from tests.simulation.published_objects.simulation_run import simulate as simulate_published_objects
from tests.simulation.publishing.replica import GROUP
from tests.simulation.publishing.simulation_run import simulate as simulate_publishing
from tests.simulation.seeded.simulation_run import simulate
from tests.simulation.sharding.fleet_run import simulate_fleets
from tests.simulation.sharding.simulation_run import simulate as simulate_leases

PROGRESS_EVERY = 1000
FLEETS_EVERY = 10
"""One in this many simulations of a shard group is of its fleets, which takes longer than one of its Leases alone."""


def simulate_group(seed: int) -> Any:
    return simulate_leases(seed) if seed % FLEETS_EVERY else simulate_fleets(seed)


def simulate_publishers(seed: int) -> Any:
    return simulate_publishing(seed, GROUP if seed % 2 else "")


class Kind(NamedTuple):
    """What is simulated, and where its outcomes have the figures of the summary."""

    help: str
    simulate: Callable[[int], Any]
    validated: tuple[str, ...]
    """Attributes with numbers."""
    recovery: str = ""
    """The attribute with the time from the last fault until the recovery."""
    others: str = ""
    """The attribute with the names of other things that happened."""


KINDS = {
    "daemon": Kind("a daemon", simulate, ("events", "handed"), "recovery_s", "waited_for"),
    "sharding": Kind(
        f"a shard group, with its fleets in one of {FLEETS_EVERY} seeds",
        simulate_group,
        ("engagements", "views"),
        "settled_s",
    ),
    "publishing": Kind(
        "publishers, with and without a shard group", simulate_publishers, ("writes", "deletions"), "settled_s"
    ),
    "objects": Kind("a store of the objects of all clusters", simulate_objects, ("changes",), "", "gone"),
    "published-objects": Kind(
        "publishers and readers of objects in a stream",
        simulate_published_objects,
        ("writes", "conflicts"),
        "settled_s",
    ),
    "hostile": Kind("a daemon with a hostile tenant", simulate_hostile_tenant, ("changes", "mints")),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev simulate", description="Seeded simulations on virtual time.")
    what = parser.add_mutually_exclusive_group()
    for name, kind in KINDS.items():
        what.add_argument(f"--{name}", dest="kind", action="store_const", const=kind, help=f"simulate {kind.help}")
    parser.set_defaults(kind=KINDS["daemon"])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run one simulation and print its history")
    which.add_argument("--seeds", metavar="FIRST-LAST", help="run a range of seeds and print a summary")
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # the log of each fault
    if arguments.seed is not None:
        return _one(arguments.kind, arguments.seed)
    first, last = map(int, arguments.seeds.split("-"))
    return _range(arguments.kind, first, last)


def _one(kind: Kind, seed: int) -> int:
    outcome = kind.simulate(seed)
    print(getattr(outcome, "history", f"faults: {', '.join(getattr(outcome, 'faults', Counter(_faults(outcome))))}"))
    recovered = f"; recovered {getattr(outcome, kind.recovery):.1f} s after the last fault" if kind.recovery else ""
    print("\n".join(outcome.breaches) or f"passed{recovered}")
    return bool(outcome.breaches)


def _range(kind: Kind, first: int, last: int) -> int:
    started, report = time.process_time(), Report(kind)
    for seed in range(first, last + 1):
        outcome = kind.simulate(seed)
        report.add(outcome)
        for breach in outcome.breaches:
            print(f"seed {seed}: {breach}", flush=True)
        if report.simulations % PROGRESS_EVERY == 0:
            print(f"{report.simulations} simulations, to seed {seed}: {len(report.failed)} failed", file=sys.stderr)
    print(f"seeds {first}-{last}: {report}\n{time.process_time() - started:.0f} s of processor time")
    return bool(report.failed)


@dataclass
class Report:
    """The summary of a range of simulations."""

    kind: Kind
    simulations: int = 0
    failed: list[int] = field(default_factory=list)
    virtual_s: float = 0.0
    validated: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    """Of simulations that passed, and waited for nothing else."""

    def add(self, outcome: Any) -> None:
        self.simulations += 1
        self.virtual_s += outcome.virtual_s
        self.validated.update({name: getattr(outcome, name) for name in self.kind.validated})
        self.faults.update(_faults(outcome))
        others = getattr(outcome, self.kind.others, ())
        self.others.update(others)
        if outcome.breaches:
            self.failed.append(outcome.seed)
        elif self.kind.recovery and not others:
            self.recoveries_s.append(getattr(outcome, self.kind.recovery))

    def recovery_s(self, share: float) -> float:
        """Return the recovery time at this quantile."""
        ordered = sorted(self.recoveries_s) or [0.0]
        return ordered[int(share * (len(ordered) - 1))]

    def __str__(self) -> str:
        shares = {"p50": 0.5, "p99": 0.99, "at most": 1.0}
        took = ", ".join(f"{name} {self.recovery_s(share):.1f} s" for name, share in shares.items())
        validated = " and ".join(f"{count} {name}" for name, count in self.validated.items())
        parts = [
            f"{self.simulations} simulations of {self.kind.help}, {self.virtual_s / 3600:.0f} hours of virtual time",
            f"{len(self.failed)} failed{': ' + ', '.join(map(str, self.failed[:20])) if self.failed else ''}",
            f"{validated} validated, {self.faults.total()} faults injected",
            *([f"recovery: {took}, over {len(self.recoveries_s)} simulations"] if self.kind.recovery else []),
            *(f"  {count:8} {name}" for name, count in [*sorted(self.faults.items()), *sorted(self.others.items())]),
        ]
        return "\n".join(parts)


def _faults(outcome: Any) -> Iterable[str]:
    """Return the name of each injected fault: of `injected`, a Counter, or of `faults`, in the form `TIME NAME`."""
    if hasattr(outcome, "injected"):
        return outcome.injected.elements()
    return (fault.split()[1] for fault in outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
