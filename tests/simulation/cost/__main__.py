"""Compares the cost of this tree with the baseline: ./dev python -m tests.simulation.cost [--rewrite]."""

import argparse
import sys

from tests.simulation.cost import baseline

parser = argparse.ArgumentParser(prog="./dev python -m tests.simulation.cost", description=__doc__)
parser.add_argument("--rewrite", action="store_true", help="replace the baseline with the figures of this tree")
arguments = parser.parse_args()
if not baseline.IS_COMPARABLE:
    parser.error("the baseline was measured with Python 3.11: other versions count calls differently")
figures = baseline.all_figures()
changed = [*baseline.differences(baseline.read(), figures)]
if arguments.rewrite:
    baseline.write(figures)
sys.stdout.writelines(f"{difference}\n" for difference in changed)
sys.exit(bool(changed) and not arguments.rewrite)
