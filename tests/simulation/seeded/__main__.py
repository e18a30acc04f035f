"""Runs lives from their seeds: one, with its history, or a range, with what came of it.

./dev deterministic --seed 17
./dev deterministic --seeds 0-9999
"""

import argparse
import sys
import time

from tests.simulation.seeded.life import live
from tests.simulation.seeded.report import Report


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev deterministic", description="One seed, one life, the same each time.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="print the history of one")
    which.add_argument("--seeds", metavar="FIRST-LAST", help="try these, and report")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        outcome = live(arguments.seed)
        print(outcome.history)
        print("\n".join(outcome.breaches) or f"well, {outcome.recovery_s:.1f} s after the last fault")
        return bool(outcome.breaches)
    first, last = map(int, arguments.seeds.split("-"))
    report = Report(first, last)
    started = time.process_time()
    for seed in range(first, last + 1):
        outcome = live(seed)
        report.add(outcome)
        for breach in outcome.breaches:
            print(f"seed {seed}: {breach}", flush=True)
    print(report)
    print(f"{time.process_time() - started:.0f} s of processor time")
    return bool(report.failed)


if __name__ == "__main__":
    sys.exit(main())
