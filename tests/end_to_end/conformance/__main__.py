"""Tests the clients with the conformance kit, and prints the table of languages and profiles."""

import argparse
import asyncio
import sys
import time

from milo_conformance.__main__ import Candidate, run_candidates, select
from milo_conformance.cases import every_case
from milo_conformance.report import table
from milo_conformance.run import CaseOutcome, Profile
from milo_conformance.subscriber import Program
from tests.end_to_end.conformance.clients import CLIENTS, Client, ToolMissing

JOBS = 16
"""The number of cases that run concurrently, over all languages: most cases only wait for a heartbeat or a retry."""


def cell(client: Client, outcomes: list[CaseOutcome], profile: Profile) -> str:
    """Return a cell of the table: the cases that passed, of those that the client claims."""
    of_profile = [outcome for outcome in outcomes if outcome.case.profile is profile]
    if not of_profile:
        return "" if profile in client.profiles else "not claimed"
    ran = [outcome for outcome in of_profile if outcome.skipped is None]
    passed = sum(outcome.passed for outcome in ran)
    total = f"{len(ran)} of {len(of_profile)}" if len(ran) < len(of_profile) else f"{len(ran)}"
    return f"✓ {total}" if passed == len(ran) else f"FAILED {len(ran) - passed}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev conformance", description=__doc__)
    parser.add_argument(
        "languages", nargs="*", metavar="LANGUAGE", help=f"clients, of {', '.join(CLIENTS)}; default: all"
    )
    parser.add_argument("--case", action="append", default=[], help="run this case only")
    parser.add_argument("--verbose", action="store_true", help="print the exchange between daemon and subscriber")
    given = parser.parse_args()
    if unknown := set(given.languages) - set(CLIENTS):
        parser.error(f"no client in {', '.join(sorted(unknown))}; languages: {', '.join(CLIENTS)}")
    if unknown := set(given.case) - {case.name for case in every_case()}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    candidates, built_in_s = {}, {}
    for language in given.languages or CLIENTS:
        client = CLIENTS[language]
        started = time.monotonic()
        try:
            command = client.build()
        except ToolMissing as missing:
            print(f"{language}: SKIPPED: {missing}", file=sys.stderr)
            continue
        built_in_s[language] = time.monotonic() - started
        cases = select([profile.value for profile in client.profiles], given.case)
        candidates[language] = Candidate(Program(command), cases, client.lacks_features)
    built = time.monotonic()
    finished = asyncio.run(run_candidates(list(candidates.values()), JOBS, is_verbose=given.verbose))
    rows, failed = [], False
    for language, outcomes in zip(candidates, finished, strict=True):
        if any(outcome.failure is not None for outcome in outcomes):
            failed = True
            print(f"=== {language}\n{table(outcomes)}\n")
        cells = [cell(CLIENTS[language], outcomes, profile) for profile in Profile]
        rows.append([language, *cells, f"{built_in_s[language]:.0f} s"])
    heads = ["language", *(profile.value for profile in Profile), "build"]
    for row in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(row)} |")
    print(f"finished in {time.monotonic() - built:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
