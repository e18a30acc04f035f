"""What holds for all tests."""

import pytest
from hypothesis import settings

# The same examples each time: a failure in CI is one that anybody can repeat. To look further than that, now and then:
# ./dev test tests/properties --hypothesis-profile=explore
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("repeatable")

ON_REAL_SERVERS = "built"
"""The fixture that whoever needs real API servers asks for, by whatever way (tests/real)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also what is tested on real API servers (needs Go)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--real"):
        return
    left_out = [item for item in items if ON_REAL_SERVERS in getattr(item, "fixturenames", ())]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
