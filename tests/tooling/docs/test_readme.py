"""The commands of the README, and those of the Go provider's README, lead to a working operator.

`./dev readme` runs them in a fresh clone, with empty caches.
"""

import os
from pathlib import Path

import pytest

from tests.end_to_end.examples.building import CACHE, alone, tool
from tests.end_to_end.process.conftest import directory
from tests.tooling.docs.stranger import FIRST_RESULT_WITHIN_S, ROOT, Stranger, first_reconcile, report

__all__ = ["directory"]


@pytest.fixture
def environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MILO_DISCOVERY")}


def test_readme_commands_lead_to_a_working_operator(directory: Path, environ: dict[str, str]) -> None:
    *_, last = Stranger(ROOT, directory, environ).uses()
    assert last == "the operator of the README works in a cluster"


@pytest.mark.builds
@pytest.mark.nightly
@pytest.mark.timeout(3 * FIRST_RESULT_WITHIN_S)
def test_go_readme_leads_to_a_first_reconcile_within_ten_minutes(
    directory: Path, environ: dict[str, str], request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    if not request.config.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    tool("go")
    with alone(CACHE / "clone"), capfd.disabled():
        # The first run compiles what the user's build cache lacks, maybe while other tests compile.
        for name, within_s in (("first", 2 * FIRST_RESULT_WITHIN_S), ("second", FIRST_RESULT_WITHIN_S)):
            (directory / name).mkdir()
            report(first_reconcile(ROOT, directory / name, environ), within_s)


def test_readme_test_command_runs_what_ci_runs() -> None:
    """The stages unit and end-to-end run the tests of `./dev test`: see tests/tooling/ci/test_stages.py."""
    assert Stranger(ROOT, ROOT, {}).tests == "./dev test\n"
