"""The example operator of each language as a process.

It maintains one ConfigMap per project across restarts of the daemon and the API server.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import STDOUT
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.resources import CONFIG_MAPS, Document
from milo_sandbox.sandbox import Sandbox
from milo_sandbox.store import Store
from tests.end_to_end.conformance.clients import ToolMissing, java_operator, node_operator, rust_operator
from tests.end_to_end.examples.building import EXAMPLES, Command, go_program
from tests.end_to_end.kubeconfigs.workspace import open_workspace

pytestmark = pytest.mark.timeout(1800)  # the first build downloads and compiles libraries

TOKEN_LIFE_S = 20.0
STOPPED_S = 10.0
WITHIN_S = 120.0
KEY = "default/greeting"
DEFINITION = EXAMPLES / "go-operator/config/crd/greetings.yaml"


@dataclass(frozen=True, slots=True)
class Operator:
    """An example operator. Those that reconcile Greetings write their text into the ConfigMap."""

    build: Callable[[], Command]
    reconciles_greetings: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return "text" if self.reconciles_greetings else "greeting"

    def prepare(self, store: Store) -> None:
        """Define the kind Greeting in the control plane, and create one, if the operator needs it."""
        if self.reconciles_greetings:
            definition = yaml.safe_load(DEFINITION.read_text())
            store.create(CUSTOM_RESOURCE_DEFINITIONS, definition)
            [greetings] = [resource for resource in store.resources if resource.plural == "greetings"]
            document = {"metadata": {"name": "greeting"}, "spec": {"text": "Hello"}}
            store.create(greetings, document, namespace="default")

    def wanted(self, project: str) -> str:
        return "Hello" if self.reconciles_greetings else f"Hello, {project}"


def python_operator() -> Command:
    return [sys.executable, str(EXAMPLES / "python/greeter.py")]


def go_operator() -> Command:
    [program] = go_program(EXAMPLES / "go-operator/cmd", "greeting-operator")
    return [program, "-metrics-bind-address=0", "-health-probe-bind-address=0"]


OPERATORS = {
    "python": Operator(python_operator, reconciles_greetings=True, environ={"MILO_OPERATOR_LISTEN": "off"}),
    "go": Operator(go_operator, reconciles_greetings=True),
    "node": Operator(node_operator),
    "java": Operator(java_operator),
    "rust": Operator(rust_operator),
}


async def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def running(command: Sequence[str], environ: Mapping[str, str], log: Path) -> AsyncIterator[None]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environ}, stdout=output, stderr=STDOUT
        )
    try:
        yield
        assert process.returncode is None, log.read_text()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def spoil(store: Store, key: str) -> None:
    def change(live: Document) -> Document:
        return {**live, "data": {**live["data"], key: "spoiled"}}

    store.modify(CONFIG_MAPS, "greeting", change, namespace="default")


def own_cluster(sandbox: Sandbox, directory: Path) -> dict[str, str]:
    """Return the environment variable with the kubeconfig of the cluster in which the operator itself runs."""
    path = directory / "own"
    path.write_text(json.dumps(sandbox.kubeconfig(project="alpha")))
    path.chmod(0o600)
    return {"KUBECONFIG": str(path)}


@pytest.mark.parametrize(
    "language",
    ["python", *(pytest.param(operator, marks=pytest.mark.builds) for operator in OPERATORS if operator != "python")],
)
async def test_operator_repairs_drift_across_restarts_of_daemon_and_api_server(language: str) -> None:
    operator = OPERATORS[language]
    try:
        command = operator.build()
    except ToolMissing as missing:
        pytest.skip(f"{missing}: the operator for it is neither built nor run")
    with tempfile.TemporaryDirectory(prefix="milo-") as name:
        directory = Path(name)
        log = directory / "log"
        async with open_workspace(directory, token_life=TOKEN_LIFE_S) as workspace:
            sandbox, daemon = workspace.sandbox, workspace.daemon

            async def greeted(project: str) -> None:
                store, wanted = sandbox.control_plane(project), operator.wanted(project)

                def is_greeted() -> bool:
                    found = store.find(CONFIG_MAPS, KEY)
                    return found is not None and found.document()["data"][operator.key] == wanted

                await eventually(is_greeted, f"the ConfigMap of {project}; {language}: {log.read_text()[-2000:]}")

            async def repaired() -> None:
                spoil(alpha, operator.key)
                await greeted("alpha")

            alpha = sandbox.control_plane("alpha")
            operator.prepare(alpha)
            environ = {"MILO_DISCOVERY_ADDRESS": workspace.address, **operator.environ}
            async with running(command, environ | own_cluster(sandbox, directory), log):
                await greeted("alpha")
                alpha.create(CONFIG_MAPS, {"metadata": {"name": "of-another"}, "data": {}}, namespace="default")
                started = time.monotonic()
                await repaired()
                alpha.discard(CONFIG_MAPS, KEY)
                await greeted("alpha")
                watches = sandbox.open_watches

                await daemon.kill()
                await repaired()
                await daemon.start()

                daemon.signal(signal.SIGSTOP)
                await repaired()
                await asyncio.sleep(STOPPED_S)
                daemon.signal(signal.SIGCONT)
                await repaired()

                await sandbox.restart()
                await repaired()

                # Wait until the first credential has expired.
                await asyncio.sleep(max(0.0, started + TOKEN_LIFE_S + 2 - time.monotonic()))
                await repaired()
                # A second handler for the project would have watches of its own.
                await eventually(lambda: sandbox.open_watches == watches, f"{watches} open watches, as before")

                sandbox.projects.create("beta", ready=True)
                operator.prepare(sandbox.control_plane("beta"))
                await greeted("beta")
            assert log.read_text().count("working in alpha") == (not operator.reconciles_greetings)
            assert "of-another" not in log.read_text(), "the operator treats a ConfigMap of another as its own"
