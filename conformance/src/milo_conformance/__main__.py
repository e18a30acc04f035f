"""The command `milo-discovery-conformance`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from milo_conformance import report
from milo_conformance.cases import every_case
from milo_conformance.failure import CannotRun
from milo_conformance.run import Case, CaseOutcome, Feature, Profile, run_case
from milo_conformance.subscriber import Launch, Program


@click.group()
@click.version_option(package_name="milo-discovery-conformance")
def main() -> None:
    """Test whether a client of milo-discoveryd follows its protocol."""


@main.command("list")
@click.option("--profile", "profiles", multiple=True, type=click.Choice([profile.value for profile in Profile]))
def list_cases(profiles: Sequence[str]) -> None:
    """List the cases, each with its reason and the sentence of the proto file that requires it."""
    for one in select(profiles, ()):
        click.echo(f"{one.profile.value}/{one.name}\n    {one.title}.\n    {one.why}\n    {report.place(one)}")


@main.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Choice([profile.value for profile in Profile]),
    help="Run the cases of this profile. May be repeated. Default: all profiles.",
)
@click.option(
    "--without",
    "unsupported",
    multiple=True,
    type=click.Choice([feature.value for feature in Feature]),
    help="Skip the cases that need this feature, because the client lacks it.",
)
@click.option(
    "--case", "names", multiple=True, help="Run only the case with this name, given without profile. May be repeated."
)
@click.option(
    "--jobs", default=4, show_default=True, type=click.IntRange(1, 64), help="Maximum number of concurrent cases."
)
@click.option("--verbose", is_flag=True, help="Print the exchange between daemon and subscriber.")
@click.option("--output", type=click.Choice(["table", "tap"]), default="table", show_default=True)
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML to this file.")
@click.option(
    "--report", "report_file", type=click.Path(path_type=Path), help="Write a report for publication to this file."
)
@click.option("--client", default="", help="The client's name and version, for the report.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(  # noqa: PLR0917  (click passes them by name)
    profiles: Sequence[str],
    unsupported: Sequence[str],
    names: Sequence[str],
    jobs: int,
    verbose: bool,
    output: str,
    junit: Path | None,
    report_file: Path | None,
    client: str,
    command: Sequence[str],
) -> None:
    """Run the cases against COMMAND, a subscriber. Exit with 1 if a case fails, and 2 if COMMAND cannot be started."""
    cases = select(profiles, names)
    try:
        outcomes = asyncio.run(
            run_cases(cases, Program(command), frozenset(map(Feature, unsupported)), jobs, is_verbose=verbose)
        )
    except CannotRun as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo(report.tap(outcomes) if output == "tap" else report.table(outcomes))
    if junit is not None:
        junit.write_text(report.junit(outcomes))
    if report_file is not None:
        report_file.write_text(report.to_publish(outcomes, client))
    sys.exit(any(outcome.failure is not None for outcome in outcomes))


def select(profiles: Sequence[str], names: Sequence[str]) -> list[Case]:
    """Return the cases of these profiles with these names; an empty sequence selects all."""
    cases = every_case()
    unknown = set(names) - {one.name for one in cases}
    if unknown:
        raise click.BadParameter(f"no such case: {', '.join(sorted(unknown))}", param_hint="--case")
    return [
        one for one in cases if (not profiles or one.profile.value in profiles) and (not names or one.name in names)
    ]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A client to test, with the cases that it claims to pass."""

    launch: Launch
    cases: Sequence[Case]
    unsupported: frozenset[Feature] = frozenset()


async def run_candidates(
    candidates: Sequence[Candidate], jobs: int, *, is_verbose: bool = False
) -> list[list[CaseOutcome]]:
    """Run the cases of all candidates, `jobs` at a time and large ones alone; return the outcomes by candidate."""
    slots = asyncio.Semaphore(jobs)
    outcomes: dict[tuple[int, Case], CaseOutcome] = {}

    async def run_one(number: int, one: Case) -> None:
        async with slots:
            candidate = candidates[number]
            outcome = outcomes[number, one] = await run_case(one, candidate.launch, candidate.unsupported)
        if is_verbose:
            click.echo("\n".join([f"=== {one.profile.value}/{one.name}", *outcome.exchange, ""]))

    # In the order of the cases, so that programs that start at the same time are of different candidates.
    every = [
        (number, one) for one in every_case() for number, candidate in enumerate(candidates) if one in candidate.cases
    ]
    await asyncio.gather(*[run_one(number, one) for number, one in every if not one.is_large])
    for number, one in every:
        if one.is_large:
            await run_one(number, one)
    return [[outcomes[number, one] for one in candidate.cases] for number, candidate in enumerate(candidates)]


async def run_cases(
    cases: Sequence[Case], launch: Launch, unsupported: frozenset[Feature], jobs: int, *, is_verbose: bool = False
) -> list[CaseOutcome]:
    """Run the cases, `jobs` at a time and large ones alone; return their outcomes in order."""
    [outcomes] = await run_candidates([Candidate(launch, cases, unsupported)], jobs, is_verbose=is_verbose)
    return outcomes


if __name__ == "__main__":
    main()
