"""Fails a run of all tests in which a directory takes more CPU time than its budget, as a pytest plugin.

The budgets are in seconds, in `cpu_budget` of pyproject.toml; the budget of other directories is DEFAULT_S. They are
enforced for the selection of `./dev test` and the stages of CI, ENFORCED_WITH. `--cpu-budget` prints the used CPU time.

The budgets are of CPU time, since it limits `./dev test` on two cores, and hardly depends on other load on the machine:
durations are ten times as long on a machine at load 25. So the budgets, about twice the CPU time that was measured on
such a machine, are enforced at any load. Waiting costs nothing: tests wait for states, and other tests run meanwhile.

The time is that of the process that runs the test, and of the children that exited during it. Processes forked by
tests/support/forked_command.py are not counted: their parent is the fork server.
"""

import resource
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import pytest

DEFAULT_S = 15.0
ENFORCED_WITH = "not builds and not nightly"
LONGEST = 5
"""Number of tests that are listed for a directory over its budget."""
_PROPERTY = "cpu_s"
_BEFORE = pytest.StashKey[float]()


def directory_of(nodeid: str, budgets: Mapping[str, float]) -> str:
    """Return the directory of a test: the nearest directory that has a budget, or else the directory of its file."""
    file = PurePosixPath(nodeid.partition("::")[0])
    return next((str(parent) for parent in file.parents if str(parent) in budgets), str(file.parent))


def parsed(lines: list[str]) -> dict[str, float]:
    return {directory.strip(): float(seconds) for directory, _, seconds in (line.partition("=") for line in lines)}


class Budget:
    """The CPU time of all tests, by directory."""

    def __init__(self, budgets: Mapping[str, float], *, is_enforced: bool, is_printed: bool) -> None:
        self._budgets = budgets
        self._is_enforced = is_enforced
        self._is_printed = is_printed
        self._used: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and _PROPERTY in (used := dict(report.user_properties)):
            seconds = used[_PROPERTY]
            assert isinstance(seconds, float)
            self._used[directory_of(report.nodeid, self._budgets)][report.nodeid] = seconds

    def _rows(self) -> list[tuple[str, float, float]]:
        """Return each directory with its used CPU time and its budget, the most expensive first."""
        rows = [
            (directory, sum(tests.values()), self._budgets.get(directory, DEFAULT_S))
            for directory, tests in self._used.items()
        ]
        return sorted(rows, key=lambda row: row[1], reverse=True)

    def _overspent(self) -> list[str]:
        return [directory for directory, used, budget in self._rows() if used > budget] if self._is_enforced else []

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._overspent() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        overspent = self._overspent()
        if not overspent and not self._is_printed:
            return
        terminalreporter.section("CPU time by directory")
        for directory, used, budget in self._rows():
            if self._is_printed:
                terminalreporter.line(f"{used:7.1f} s of {budget:4.0f} s  {directory}")
        for directory in overspent:
            terminalreporter.line(
                f"FAILED {directory} used more CPU time than its cpu_budget in pyproject.toml; its longest tests:"
            )
            tests = sorted(self._used[directory].items(), key=lambda test: test[1], reverse=True)
            for name, seconds in tests[:LONGEST]:
                terminalreporter.line(f"{seconds:7.1f} s  {name}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("cpu_budget", "CPU time in seconds of the tests in a directory: DIRECTORY = SECONDS", type="linelist")
    parser.addoption("--cpu-budget", action="store_true", help="print the CPU time of the tests by directory")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    is_enforced = config.getoption("markexpr") == ENFORCED_WITH
    budget = Budget(
        parsed(config.getini("cpu_budget")), is_enforced=is_enforced, is_printed=config.getoption("--cpu-budget")
    )
    config.pluginmanager.register(budget, "cpu-budget")


def _cpu_s() -> float:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEFORE] = _cpu_s()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    if call.when == "teardown":
        item.user_properties.append((_PROPERTY, _cpu_s() - item.stash[_BEFORE]))
    return (yield)
