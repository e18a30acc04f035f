"""`./dev mutants`: runs the tests of each seeded bug, and reports the bugs that they do not catch."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tests.tooling.mutants.mutant import Mutant
from tests.tooling.mutants.mutants import MUTANTS
from tests.tooling.mutants.running import ROOT, Outcome, run


def changed_since(reference: str) -> set[str]:
    """Return the files that differ from a commit, uncommitted changes included."""
    listed = subprocess.check_output(["git", "diff", "--name-only", reference, "--"], cwd=ROOT, text=True)
    return set(listed.splitlines())


def affected(mutant: Mutant, changed: set[str]) -> bool:
    """Return whether a change touches the mutant's module, its tests, or a file in the same directory as the module."""
    module = f"{mutant.source}/{mutant.module}"
    package = module.rpartition("/")[0]
    return any(
        path.rpartition("/")[0] == package or any(path.startswith(test) for test in mutant.caught_by)
        for path in changed
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="./dev mutants", description=__doc__)
    parser.add_argument("name", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--since", metavar="REF", help="only mutants of packages and tests that changed since REF")
    given = parser.parse_args(arguments)
    chosen = [each for each in MUTANTS if not given.name or any(part in each.name for part in given.name)]
    if given.since is not None:
        changed = changed_since(given.since)
        chosen = [each for each in chosen if affected(each, changed)]
    tests = sorted({test for each in chosen for test in each.caught_by})
    failures = 0
    if tests:
        unchanged = run(tests, None, is_async=any(each.is_async for each in chosen))
        if unchanged.outcome is not Outcome.SURVIVED:
            sys.exit(f"the tests fail without a mutant:\n{unchanged.report}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(run, each.caught_by, each, is_async=each.is_async): each for each in chosen}
        for done in as_completed(running):
            outcome, report = done.result()
            if outcome is not Outcome.CAUGHT:
                failures += 1
                sys.stdout.write(f"{outcome.name}: {running[done].name} ({running[done].module})\n")
            if outcome is Outcome.BROKEN:
                sys.stdout.write(report)
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - failures} of {len(chosen)} mutants caught\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
