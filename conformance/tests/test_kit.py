"""Tests of the kit, with a subscriber that breaks no rule, and for each case one that breaks its rule."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conformance.tests import matrix
from milo_conformance import daemon, run
from milo_conformance.__main__ import run_cases
from milo_conformance.cases import every_case
from milo_conformance.run import Case
from milo_conformance.subscriber import Program

ROOT = Path(__file__).parents[2]
PROTO = (ROOT / "proto/milo/discovery/v1/discovery.proto").read_text()
SOON_S = 5.0
RUN = f"""from milo_conformance import __main__, daemon, run
daemon.LIMIT_S = run.LIMIT_S = {SOON_S}
__main__.main()
"""

pytestmark = pytest.mark.timeout(600)


def kit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, "run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.nightly  # each merge runs the kit on the client libraries, which pass the same cases
async def test_subscriber_that_breaks_no_rule_passes_every_case() -> None:
    outcomes = await run_cases(every_case(), matrix.subscriber(""), frozenset(), jobs=4)
    assert {one.case.name: one.failure for one in outcomes if one.failure} == {}


@pytest.mark.nightly  # runs a subscriber for each case
async def test_each_case_fails_a_subscriber_that_breaks_the_rule_under_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LIMIT_S", SOON_S)
    monkeypatch.setattr(run, "LIMIT_S", SOON_S)
    assert await not_caught(every_case()) == []


async def test_subscriber_that_breaks_a_rule_is_caught_even_if_it_starts_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(daemon, "LIMIT_S", 3 * SOON_S)
    monkeypatch.setattr(run, "LIMIT_S", 3 * SOON_S)
    names = {"address-not-there-yet", "server-uid", "token-without-tls"}  # they test the start
    cases = [one for one in every_case() if one.name in names]
    assert len(cases) == len(names)
    assert await not_caught(cases, "sh", "-c", 'sleep 4; exec "$@"', "sh") == []


async def not_caught(cases: list[Case], *prefix: str) -> list[str]:
    """Return the cases that do not catch the subscriber that breaks their rule; `prefix` precedes its command."""
    slots = asyncio.Semaphore(16)  # most wait for a timeout

    async def is_caught(one: Case) -> bool:
        async with slots:
            subscriber = Program([*prefix, *matrix.command(one.name)])
            [outcome] = await run_cases([one], subscriber, frozenset(), jobs=1)
        return outcome.failure is not None

    caught = await asyncio.gather(*map(is_caught, cases))
    return [one.name for one, was_caught in zip(cases, caught, strict=True) if not was_caught]


@pytest.mark.parametrize("case", every_case(), ids=lambda one: f"{one.profile.value}-{one.name}")
def test_case_quotes_the_proto_file(case: Case) -> None:
    assert case.demands in PROTO


def test_case_names_are_unique() -> None:
    names = [one.name for one in every_case()]
    assert len(set(names)) == len(names)


def test_failure_is_reported_in_tap_junit_and_report(tmp_path: Path) -> None:
    junit, report = tmp_path / "junit.xml", tmp_path / "report.json"
    chosen = [option for name in ("empty-fleet", "first-snapshot") for option in ("--case", name)]
    forms = ["--output", "tap", "--junit", str(junit), "--report", str(report), "--client", "reference 1"]
    ran = kit(*chosen, *forms, "--", *matrix.command("empty-fleet"))
    assert ran.returncode == 1
    assert "ok 1 - core/first-snapshot" in ran.stdout
    assert "not ok 2 - core/empty-fleet" in ran.stdout
    [suite] = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    written = json.loads(report.read_text())
    assert written["client"] == "reference 1"
    assert written["profiles"] == [
        {
            "name": "core",
            "result": "failure",
            "statistics": {"passed": 1, "failed": 1, "skipped": 0},
            "failedTests": ["empty-fleet"],
            "skippedTests": [],
        }
    ]


def test_verbose_run_prints_the_exchange() -> None:
    ran = kit("--case", "first-snapshot", "--verbose", "--", *matrix.command(""))
    assert ran.returncode == 0
    assert "stream 1 is opened, resume_revision=''" in ran.stdout
    assert "reported: ENGAGED b suspended" in ran.stdout


def test_missing_program_is_an_error_with_exit_status_2() -> None:
    ran = kit("--case", "first-snapshot", "--", "/no/such/program")
    assert (ran.returncode, ran.stderr) == (2, "error: cannot start '/no/such/program': No such file or directory\n")


def test_program_that_exits_is_reported_as_a_failure() -> None:
    ran = kit("--case", "first-snapshot", "--", sys.executable, "-c", "raise SystemExit('no settings')")
    assert ran.returncode == 1
    assert "no settings" in ran.stdout or "no stream was opened" in ran.stdout
