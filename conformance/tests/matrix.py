"""Runs each broken subscriber against all cases of its profile: only its own case may catch it, with two exceptions.

`./dev python -m conformance.tests.matrix [PROFILE|CASE...]` prints each subscriber that another case
catches as well, or that none catches.
"""

import asyncio
import sys

from milo_conformance import daemon, run
from milo_conformance.__main__ import run_cases
from milo_conformance.cases import every_case
from milo_conformance.subscriber import Program

SOON_S = 12.0
"""More than the longest delay before a reconnect, five seconds, on a loaded machine."""
ALSO_CAUGHT_BY = {"backoff": ["backoff-doubles", "backoff-jitter"], "large-batch": ["larger-batch"]}
"""Without a delay before reconnects, there is no backoff or jitter either; a lower limit rejects larger batches too."""


def command(broken: str) -> list[str]:
    return [sys.executable, "-m", "conformance.tests.reference", broken]


def subscriber(broken: str) -> Program:
    return Program(command(broken))


async def main(selected: list[str]) -> int:
    daemon.LIMIT_S = run.LIMIT_S = SOON_S
    unexpected = 0
    for broken in every_case():
        if selected and not {broken.profile.value, broken.name} & set(selected):
            continue
        cases = [one for one in every_case() if one.profile is broken.profile]
        outcomes = await run_cases(cases, subscriber(broken.name), frozenset(), jobs=8)
        caught = [outcome.case.name for outcome in outcomes if outcome.failure is not None]
        if caught != [broken.name, *ALSO_CAUGHT_BY.get(broken.name, [])]:
            unexpected += 1
            print(f"{broken.name} is caught by {', '.join(caught) or 'no case'}", flush=True)
    print(f"{unexpected} of the broken subscribers are not caught by their own case alone")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
