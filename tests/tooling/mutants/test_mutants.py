"""Every mutant applies to the current code; `./dev mutants` runs them, nightly or for the changes of a pull request."""

import pytest

from tests.tooling.mutants.__main__ import affected
from tests.tooling.mutants.mutant import SHARED, Mutant
from tests.tooling.mutants.mutants import MUTANTS
from tests.tooling.mutants.running import ROOT, Outcome, run

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def test_mutant_names_are_unique() -> None:
    assert len(BY_NAME) == len(MUTANTS)


@pytest.mark.parametrize("name", BY_NAME)
def test_mutant_applies_to_the_source_once_and_names_tests_that_exist(name: str) -> None:
    mutant = BY_NAME[name]
    source = (ROOT / mutant.source / mutant.module).read_text()
    assert source.count(mutant.was) == 1, f"{mutant.module} has changed: update the mutant {name!r}"
    compile(source.replace(mutant.was, mutant.becomes), mutant.module, "exec")
    assert [test for test in mutant.caught_by if not (ROOT / test).exists()] == []


@pytest.mark.parametrize("name", BY_NAME)
def test_mutant_says_that_its_tests_are_async(name: str) -> None:
    """Async tests fail without their plugin, and so would seem to catch any mutant."""
    files = [ROOT / test.partition("::")[0] for test in BY_NAME[name].caught_by]
    if any("async def test_" in file.read_text() for file in files if file.is_file()):
        assert BY_NAME[name].is_async


def test_run_distinguishes_caught_and_surviving_mutants_from_broken_tests() -> None:
    tests = ("tests/unit/reflect/test_backoff.py",)
    outcomes = {
        "(1.0 + jitter())": Outcome.SURVIVED,
        "1.0": Outcome.CAUGHT,
        "(1.0 +": Outcome.BROKEN,
    }
    for becomes, outcome in outcomes.items():
        mutant = Mutant("test", "reflect/backoff.py", "(1.0 + jitter())", becomes, tests, source=SHARED)
        assert run(mutant.caught_by, mutant).outcome is outcome


def test_since_selects_the_mutants_of_changed_packages_and_tests() -> None:
    mutant = Mutant("test", "registry/log.py", "a", "b", ("tests/unit/registry/test_cursor.py",))
    assert affected(mutant, {"milo_discoveryd/registry/cursor.py"})
    assert affected(mutant, {"tests/unit/registry/test_cursor.py"})
    assert not affected(mutant, {"milo_discoveryd/registry/deeper/other.py", "docs/testing.md"})
