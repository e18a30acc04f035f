"""Run seeded simulations: one with its history, or a range of seeds with a summary.

./dev simulate --seed 17
./dev simulate --seeds 0-9999
"""

import argparse
import sys
import time

from tests.simulation.seeded.report import Report
from tests.simulation.seeded.simulation_run import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev simulate", description="Seeded simulations on virtual time.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run one simulation and print its history")
    which.add_argument("--seeds", metavar="FIRST-LAST", help="run a range of seeds and print a summary")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        outcome = simulate(arguments.seed)
        print(outcome.history)
        print("\n".join(outcome.breaches) or f"passed; recovered {outcome.recovery_s:.1f} s after the last fault")
        return bool(outcome.breaches)
    first, last = map(int, arguments.seeds.split("-"))
    report = Report(first, last)
    started = time.process_time()
    for seed in range(first, last + 1):
        outcome = simulate(seed)
        report.add(outcome)
        for breach in outcome.breaches:
            print(f"seed {seed}: {breach}", flush=True)
    print(report)
    print(f"{time.process_time() - started:.0f} s of processor time")
    return bool(report.failed)


if __name__ == "__main__":
    sys.exit(main())
