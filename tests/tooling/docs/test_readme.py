"""The commands of the README lead to an engaged cluster; `./dev readme` runs them in a fresh clone."""

import os
from pathlib import Path

from tests.end_to_end.process.conftest import directory
from tests.tooling.docs.stranger import ROOT, Stranger

__all__ = ["directory"]


def test_readme_commands_lead_to_a_working_operator(directory: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MILO_DISCOVERY")}
    *_, last = Stranger(ROOT, directory, clean).uses()
    assert last == "the operator of the page works in one"


def test_readme_test_command_is_the_one_that_ci_runs() -> None:
    [command] = Stranger(ROOT, ROOT, {}).tests.splitlines()
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
