"""Run seeded simulations: one with its history, or a range of seeds with a summary.

./dev simulate --seed 17
./dev simulate --seeds 0-9999
./dev simulate --sharding --seeds 0-9999
./dev simulate --publishing --seeds 0-9999
./dev simulate --objects --seeds 0-9999
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from objects.tests.simulation.report import Report as ObjectsReport
from objects.tests.simulation.simulation_run import simulate as simulate_objects
from tests.simulation.publishing.report import Report as PublishingReport
from tests.simulation.publishing.simulation_run import simulate as simulate_publishers
from tests.simulation.seeded.report import Report
from tests.simulation.seeded.simulation_run import simulate
from tests.simulation.sharding.report import Report as ShardingReport
from tests.simulation.sharding.simulation_run import simulate as simulate_group

PROGRESS_EVERY = 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev simulate", description="Seeded simulations on virtual time.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sharding", action="store_true", help="simulate a shard group instead of a daemon")
    what.add_argument("--publishing", action="store_true", help="simulate two publishers of a shard group")
    what.add_argument("--objects", action="store_true", help="simulate a store of the objects of all clusters")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run one simulation and print its history")
    which.add_argument("--seeds", metavar="FIRST-LAST", help="run a range of seeds and print a summary")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        if arguments.publishing:
            return _one_of_publishers(arguments.seed)
        if arguments.objects:
            return _one_of_objects(arguments.seed)
        return (_one_of_a_group if arguments.sharding else _one)(arguments.seed)
    first, last = map(int, arguments.seeds.split("-"))
    if arguments.sharding:
        return _range(ShardingReport(first, last), simulate_group)
    if arguments.publishing:
        return _range(PublishingReport(first, last), simulate_publishers)
    if arguments.objects:
        return _range(ObjectsReport(first, last), simulate_objects)
    return _range(Report(first, last), simulate)


def _one(seed: int) -> int:
    outcome = simulate(seed)
    print(outcome.history)
    print("\n".join(outcome.breaches) or f"passed; recovered {outcome.recovery_s:.1f} s after the last fault")
    return bool(outcome.breaches)


def _one_of_a_group(seed: int) -> int:
    outcome = simulate_group(seed)
    print("faults:", ", ".join(outcome.faults))
    print("\n".join(outcome.breaches) or f"passed; every cluster owned {outcome.settled_s:.1f} s after the last fault")
    return bool(outcome.breaches)


def _one_of_publishers(seed: int) -> int:
    outcome = simulate_publishers(seed)
    print("faults:", ", ".join(outcome.faults))
    print("\n".join(outcome.breaches) or f"passed; settled {outcome.settled_s:.1f} s after the last fault")
    return bool(outcome.breaches)


def _one_of_objects(seed: int) -> int:
    outcome = simulate_objects(seed)
    print("faults:", dict(outcome.injected))
    print("\n".join(outcome.breaches) or f"passed; {outcome.changes} changes validated")
    return bool(outcome.breaches)


def _range(report: Report | ShardingReport | PublishingReport | ObjectsReport, run: Callable[[int], Any]) -> int:
    started = time.process_time()
    for seed in range(report.first, report.last + 1):
        outcome = run(seed)
        report.add(outcome)
        for breach in outcome.breaches:
            print(f"seed {seed}: {breach}", flush=True)
        if report.simulations % PROGRESS_EVERY == 0:
            print(f"{report.simulations} simulations, to seed {seed}: {len(report.failed)} failed", file=sys.stderr)
    print(report)
    print(f"{time.process_time() - started:.0f} s of processor time")
    return bool(report.failed)


if __name__ == "__main__":
    sys.exit(main())
