"""Formats of the results: TAP, JUnit XML, a table, and a report that the authors of a client publish."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from xml.sax.saxutils import quoteattr

from milo_conformance.run import Case, CaseOutcome, Profile
from milo_discovery.v1 import discovery_pb2 as pb

LAST_LINES = 40
"""Of a failed case's exchange: a failure that does not recur leaves nothing else to find its cause by."""


def table(outcomes: Sequence[CaseOutcome]) -> str:
    """Return the failures, and the results by profile."""
    lines = []
    for outcome in outcomes:
        if outcome.failure is not None:
            one = outcome.case
            lines += [f"FAILED {one.profile.value}/{one.name}: {one.title}.", *indented(outcome.failure)]
            lines += [*indented(one.why), *indented(place(one)), ""]
            lines += [*map(printable, outcome.exchange[-LAST_LINES:]), ""]
    lines += [f"{'profile':<12} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>8}"]
    for profile in Profile:
        of_profile = [outcome for outcome in outcomes if outcome.case.profile is profile]
        if of_profile:
            passed, failed, skipped = counts(of_profile)
            seconds = sum(outcome.seconds for outcome in of_profile)
            lines.append(f"{profile.value:<12} {passed:>6} {failed:>6} {skipped:>7} {seconds:>8.1f}")
    return "\n".join(lines)


def tap(outcomes: Sequence[CaseOutcome]) -> str:
    """Return the results in the Test Anything Protocol, version 14."""
    lines = ["TAP version 14", f"1..{len(outcomes)}"]
    for number, outcome in enumerate(outcomes, 1):
        name = f"{number} - {outcome.case.profile.value}/{outcome.case.name}"
        if outcome.failure is not None:
            message = json.dumps(outcome.failure)
            lines += [
                f"not ok {name}",
                "  ---",
                f"  message: {message}",
                f"  demands: {json.dumps(place(outcome.case))}",
                "  ...",
            ]
        else:
            lines.append(f"ok {name}" + (f" # SKIP {outcome.skipped}" if outcome.skipped else ""))
    return "\n".join(lines)


def junit(outcomes: Sequence[CaseOutcome]) -> str:
    """Return the results as JUnit XML, a suite for each profile."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>"]
    for profile in Profile:
        of_profile = [outcome for outcome in outcomes if outcome.case.profile is profile]
        if not of_profile:
            continue
        _, failed, skipped = counts(of_profile)
        lines.append(
            f'  <testsuite name="{profile.value}" tests="{len(of_profile)}" failures="{failed}" skipped="{skipped}">'
        )
        for outcome in of_profile:
            attributes = f'classname="{profile.value}" name="{outcome.case.name}" time="{outcome.seconds:.3f}"'
            if outcome.failure is not None:
                inner = f"<failure message={quoteattr(printable(outcome.failure))}/>"
            else:
                inner = f"<skipped message={quoteattr(outcome.skipped)}/>" if outcome.skipped else ""
            lines.append(f"    <testcase {attributes}>{inner}</testcase>")
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def to_publish(outcomes: Sequence[CaseOutcome], client: str) -> str:
    """Return a report: the client, the version of the kit, and the results of each profile."""
    profiles = []
    for profile in Profile:
        of_profile = [outcome for outcome in outcomes if outcome.case.profile is profile]
        if of_profile:
            passed, failed, skipped = counts(of_profile)
            profiles.append(
                {
                    "name": profile.value,
                    "result": "failure" if failed else "partial" if skipped else "success",
                    "statistics": {"passed": passed, "failed": failed, "skipped": skipped},
                    "failedTests": [outcome.case.name for outcome in of_profile if outcome.failure is not None],
                    "skippedTests": [outcome.case.name for outcome in of_profile if outcome.skipped is not None],
                }
            )
    report = {
        "kind": "ConformanceReport",
        "apiVersion": "discovery.miloapis.com/v1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kit": f"milo-discovery-conformance {metadata.version('milo-discovery-conformance')}",
        "client": client,
        "profiles": profiles,
    }
    return json.dumps(report, indent=2) + "\n"


def place(one: Case) -> str:
    """Return the quotation from the proto file that requires the tested behavior."""
    return f"{PROTO}: {' '.join(one.demands.replace('//', ' ').split())!r}"


PROTO = pb.DESCRIPTOR.name


def counts(outcomes: Iterable[CaseOutcome]) -> tuple[int, int, int]:
    outcomes = list(outcomes)
    failed = sum(outcome.failure is not None for outcome in outcomes)
    skipped = sum(outcome.skipped is not None for outcome in outcomes)
    return len(outcomes) - failed - skipped, failed, skipped


def indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def printable(text: str) -> str:
    """Return the text without characters that XML does not allow."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
