"""The public scenarios on daemons with a state file and on members of a shard group, which change nothing of them."""

from pathlib import Path
from typing import Any

import pytest

from milo_sandbox import Sandbox
from milo_sandbox.kubeconfigs import write
from tests.end_to_end.matrix.cell import HUB
from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.__main__ import OWN
from tests.end_to_end.scenarios.running import chosen
from tests.end_to_end.scenarios.scenario_run import run_scenario
from tests.end_to_end.scenarios.servers import Sandboxes
from tests.end_to_end.scenarios.steps import Mode, OnDaemon, Scenario

PARTS = [
    (scenario, mode)
    for scenario, mode in chosen(scenario for file in OWN for scenario in reading.load(file))
    if isinstance(scenario, Scenario)
]
ENDS = [part for part in PARTS if any(isinstance(step, OnDaemon) for _, step in part[0].steps)]
"""Those in which the daemon ends. A member of a group that returns loses its clusters for a while on a busy machine:
the cells of the matrix have that."""
OF_STATE = PARTS
OF_GROUP = [part for part in PARTS if part not in ENDS]
SOME = {"recreated-is-another-cluster-project", "label-selector-limits-project-control-plane"}
"""The scenarios of each CI run; all of them run nightly (`--cells all`)."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parts = OF_GROUP if "group" in metafunc.function.__name__ else OF_STATE
    ids = [f"{scenario.name}-{mode}" for scenario, mode in parts]
    is_all = metafunc.config.getoption("--cells") == "all"
    wanted = [(part, each) for part, each in zip(parts, ids, strict=True) if is_all or each in SOME]
    metafunc.parametrize(("scenario", "mode"), [part for part, _ in wanted], ids=[each for _, each in wanted])


async def test_scenario_passes_on_a_daemon_with_a_state_file(scenario: Scenario, mode: Mode, directory: Path) -> None:
    state = directory / "state"
    state.mkdir(mode=0o700)
    await run_scenario(scenario, mode, Sandboxes(), more_settings={"state_directory": str(state)})


async def test_scenario_passes_on_a_member_of_a_shard_group(scenario: Scenario, mode: Mode, directory: Path) -> None:
    async with Sandbox() as hub:
        hub.projects.create(HUB, ready=True)
        kubeconfig = directory / "hub"
        write(kubeconfig, hub.kubeconfig(project=HUB, token=hub.token()))
        sharding: dict[str, Any] = {"group": "matrix", "namespace": "default", "kubeconfig": str(kubeconfig)}
        environ = {"POD_NAME": "member-0", "POD_UID": "pod-0"}
        await run_scenario(scenario, mode, Sandboxes(), more_settings={"sharding": sharding}, environ=environ)
