"""The operators in Node, Java and Rust that keep one ConfigMap in each project, as processes."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milo_sandbox.resources import CONFIG_MAPS, Document
from milo_sandbox.store import Store
from tests.end_to_end.conformance.clients import ToolMissing, java_operator, node_operator, rust_operator
from tests.end_to_end.examples.program import Program
from tests.end_to_end.kubeconfigs.workspace import open_workspace

pytestmark = pytest.mark.timeout(1800)  # the first build downloads and compiles libraries

TOKEN_LIFE_S = 20.0
WITHIN_S = 120.0
KEY = "default/greeting"
OPERATORS = {"node": node_operator, "java": java_operator, "rust": rust_operator}


async def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"within {WITHIN_S:g} s: {what}"
        await asyncio.sleep(0.05)


def greeting(store: Store) -> str | None:
    found = store.find(CONFIG_MAPS, KEY)
    return None if found is None else str(store.read(CONFIG_MAPS, "greeting", "default")["data"]["greeting"])


def spoil(store: Store) -> None:
    def change(live: Document) -> Document:
        return {**live, "data": {"greeting": "spoiled"}}

    store.modify(CONFIG_MAPS, "greeting", change, namespace="default")


@pytest.mark.parametrize("language", OPERATORS)
async def test_operator_repairs_drift_across_restarts_and_expired_credentials(language: str) -> None:
    try:
        command = OPERATORS[language]()
    except ToolMissing as missing:
        pytest.skip(f"{missing}: the operator for it is neither built nor run")
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:
        async with open_workspace(Path(directory), token_life=TOKEN_LIFE_S) as workspace:
            sandbox, daemon = workspace.sandbox, workspace.daemon
            alpha = sandbox.control_plane("alpha")
            async with Program(command, {"MILO_DISCOVERY_ADDRESS": workspace.address}) as printed:
                lines = [await printed.line()]

                async def greeted(store: Store, name: str) -> None:
                    await eventually(lambda: greeting(store) == f"Hello, {name}", f"the ConfigMap of {name}")

                await greeted(alpha, "alpha")
                started = time.monotonic()
                spoil(alpha)
                await greeted(alpha, "alpha")
                alpha.discard(CONFIG_MAPS, KEY)
                await greeted(alpha, "alpha")

                await daemon.kill()
                spoil(alpha)
                await greeted(alpha, "alpha")
                await daemon.start()

                await sandbox.restart()
                spoil(alpha)
                await greeted(alpha, "alpha")

                # Beyond the life of the first credential.
                await asyncio.sleep(max(0.0, started + TOKEN_LIFE_S + 2 - time.monotonic()))
                spoil(alpha)
                await greeted(alpha, "alpha")

                sandbox.projects.create("beta", ready=True)
                await greeted(sandbox.control_plane("beta"), "beta")
                lines += await printed.until("working in beta")
            assert [line for line in lines if line.endswith("working in alpha")] == ["working in alpha"], lines
