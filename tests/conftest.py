"""Options and scheduling of all tests."""

from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support.rows import of_row
from tests.tooling.import_contracts.contracts import unit_tests_of_pure_modules

ON_REAL_SERVERS = "built"
"""The fixture of every test that needs real API servers (tests/end_to_end/real)."""
IN_A_CLUSTER = "node"
"""The fixture of every test that needs a kubelet (tests/end_to_end/cluster)."""
TOGETHER = (
    "conformance/tests/test_kit.py",
    "tests/end_to_end/scenarios/test_scenarios.py",
    "tests/integration/telemetry/test_status_in_browser.py",
    "tests/simulation/cost/test_long_life.py",
    "tests/tooling/deploy/test_components.py",
    "tests/tooling/deploy/test_image.py",
    "tests/tooling/deploy/test_manifests.py",
    "tests/tooling/deploy/test_packages.py",
    "tests/tooling/deploy/test_prometheus.py",
    "tests/tooling/deploy/test_sharding_component.py",
    "tests/end_to_end/real/",
)
"""Files whose tests share slow fixtures, or keep several processes busy: each runs in one worker."""

LONGEST = "tests/end_to_end/real/test_faults.py"
"""The slowest file: its modes run in different workers."""

FIRST = (
    "tests/tooling/import_contracts/test_pure_coverage.py",
    TOGETHER[0],
    "tests/tooling/deploy/test_prometheus.py",
    "tests/end_to_end/process/test_churn.py",
    "tests/end_to_end/process/test_restored_server.py",
    "tests/end_to_end/process/test_many_streams.py",
    "tests/end_to_end/matrix/test_matrix.py",
    "tests/end_to_end/kubeconfigs/test_operator.py",
    "tests/end_to_end/examples/test_newcomers.py",
    "tests/end_to_end/examples/test_config_map_operators.py",
    "tests/simulation/seeded/test_simulations.py",
    "tests/simulation/sharding/test_states.py",
    "tests/tooling/docs/test_tutorial.py",
    "tests/tooling/docs/test_readme.py",
    "tests/tooling/docs/test_commands.py",
    "tests/integration/app/test_several_sources.py",
)
"""Tests that take tens of seconds each: if they started last, all workers but one would wait for them."""

WAITING = "tests/end_to_end/process/test_two_sources.py"
"""A file whose tests mostly wait. They are spread over the first tests, so that few of them run at once."""

COVERAGE = Path(__file__).parents[1] / FIRST[0]
"""The test that runs the unit tests of the pure modules. A run of all tests does not run these a second time."""
_COVERED = pytest.StashKey[set[Path]]()


class Sharing(LoadScopeScheduling):
    """Distributes single tests over workers. Each file of TOGETHER runs in one worker, before other tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file == LONGEST:
            return f"{file} {'project-control-plane' in nodeid}"
        return file if file.startswith(TOGETHER) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return Sharing(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="run tests on real API servers as well (needs Go)")
    parser.addoption("--cluster", action="store_true", help="run tests in a cluster of this machine (needs root, Go)")
    parser.addoption(
        "--simulations", type=int, default=250, help="number of seeded simulations; ./dev simulate runs more"
    )
    parser.addoption(
        "--starts", type=int, default=4, help="number of starts in tests/end_to_end/process/test_cold_starts.py"
    )
    parser.addoption(
        "--streams", type=int, default=24, help="number of streams in tests/end_to_end/process/test_many_streams.py"
    )
    parser.addoption("--cells", default="some", help="cells of tests/end_to_end/matrix: some, or all (nightly)")
    parser.addoption(
        "--row", metavar="ROW", help="run only the tests of a row of docs/reviewers: F17, S9, O2, A14, K5, I6"
    )


def pytest_configure(config: pytest.Config) -> None:
    runs_all = any(config.invocation_params.dir / argument in COVERAGE.parents for argument in config.args)
    is_selected = config.getoption("keyword") or config.getoption("--row") is not None
    config.stash[_COVERED] = unit_tests_of_pure_modules() if runs_all and not is_selected else set()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not collect the files that COVERAGE runs: each worker would take seconds to collect them."""
    return collection_path in config.stash[_COVERED] or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (row := config.getoption("--row")) is not None:
        _keep(config, items, of_row(row, items))
    items.sort(key=_place)
    items[:] = _spread(items)
    for option, fixture in (("--real", ON_REAL_SERVERS), ("--cluster", IN_A_CLUSTER)):
        if not config.getoption(option):
            _keep(config, items, [item for item in items if fixture not in getattr(item, "fixturenames", ())])


def _place(item: pytest.Item) -> int:
    """Return the position of the item's file in FIRST; the end for files that are not in it."""
    return next((place for place, file in enumerate(FIRST) if item.nodeid.startswith(file)), len(FIRST))


def _spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the items with one of `WAITING` before every three others."""
    waiting = [item for item in items if item.nodeid.startswith(WAITING)]
    spread = [item for item in items if not item.nodeid.startswith(WAITING)]
    for number, item in enumerate(waiting):
        spread.insert(4 * number, item)
    return spread


def _keep(config: pytest.Config, items: list[pytest.Item], kept: list[pytest.Item]) -> None:
    selected = set(kept)
    left_out = [item for item in items if item not in selected]
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)
