"""What holds for all tests."""

import pytest
from hypothesis import settings

from tests.reliability import of_row

# The same examples each time: a failure in CI is one that anybody can repeat. To look further than that, now and then:
# ./dev test tests/properties --hypothesis-profile=explore
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("repeatable")

ON_REAL_SERVERS = "built"
"""The fixture that whoever needs real API servers asks for, by whatever way (tests/real)."""
SHARED = (
    ON_REAL_SERVERS,
    "plays",  # the scenarios, a few of which are always under way
    "installed",  # packages, in an environment of their own
    "builder",
)
"""Fixtures that take long to make, or play ahead of their tests: who asks for one stays on one of the processes that
share the tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also what is tested on real API servers (needs Go)")
    parser.addoption("--row", metavar="ROW", help="just the tests of that row of docs/reliability.md: F17, S9, O2, A14")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in SHARED:
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(fixture))
                break
    if (row := config.getoption("--row")) is not None:
        _keep(config, items, of_row(row, items))
    if config.getoption("--real"):
        return
    _keep(config, items, [item for item in items if ON_REAL_SERVERS not in getattr(item, "fixturenames", ())])


def _keep(config: pytest.Config, items: list[pytest.Item], kept: list[pytest.Item]) -> None:
    left_out = [item for item in items if item not in kept]
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)
