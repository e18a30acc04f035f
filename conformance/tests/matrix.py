"""Runs each broken subscriber against all cases of its profile: only its own case may catch it, with two exceptions.

`./dev python -m conformance.tests.matrix [PROFILE|CASE...]` prints a table of the broken subscribers, by default of
all, with the cases that catch each. The exit status is 1 if a broken subscriber is caught by another case as well, or
by none.
"""

import asyncio
import sys
import time

from milo_conformance import daemon, run
from milo_conformance.__main__ import run_cases
from milo_conformance.cases import every_case
from milo_conformance.run import Case
from milo_conformance.subscriber import Program

SOON_S = 12.0
"""More than the longest delay before a reconnect, five seconds, on a loaded machine."""
JOBS = 16
"""Cases that run concurrently: most of them wait."""
ALSO_CAUGHT_BY = {
    "backoff": ["backoff-after-snapshots", "backoff-doubles", "backoff-jitter"],
    "large-batch": ["larger-batch"],
}
"""Without a delay before reconnects, there is no backoff or jitter either; a lower limit rejects larger batches too."""


def command(broken: str) -> list[str]:
    return [sys.executable, "-m", "conformance.tests.reference", broken]


def subscriber(broken: str) -> Program:
    return Program(command(broken))


def selected(names: list[str]) -> list[Case]:
    """Return the cases of these profiles and with these names; an empty list selects all."""
    if unknown := set(names) - {name for one in every_case() for name in (one.profile.value, one.name)}:
        sys.exit(f"no such profile or case: {', '.join(sorted(unknown))}")
    return [one for one in every_case() if not names or {one.profile.value, one.name} & set(names)]


async def main(names: list[str]) -> int:
    daemon.LIMIT_S = run.LIMIT_S = SOON_S
    unexpected = 0
    for row in (["planted bug", "caught by", "", "seconds"], ["---"] * 4):
        print(f"| {' | '.join(row)} |")
    for broken in selected(names):
        cases = [one for one in every_case() if one.profile is broken.profile]
        started = time.monotonic()
        outcomes = await run_cases(cases, subscriber(broken.name), frozenset(), jobs=JOBS)
        caught = [outcome.case.name for outcome in outcomes if outcome.failure is not None]
        is_expected = set(caught) == {broken.name, *ALSO_CAUGHT_BY.get(broken.name, [])}
        unexpected += not is_expected
        by = f"{', '.join(caught) or 'no case'} of {len(cases)}"
        verdict = "" if is_expected else "UNEXPECTED"
        print(f"| {broken.name} | {by} | {verdict} | {time.monotonic() - started:.0f} |", flush=True)
    print(f"{unexpected} of the broken subscribers are not caught by their own case alone")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
