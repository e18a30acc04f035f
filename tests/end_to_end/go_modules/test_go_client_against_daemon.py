"""The Go modules against the real daemon and the sandbox."""

import asyncio
import os
import tempfile
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from tests.end_to_end.examples.building import ROOT, tool
from tests.end_to_end.kubeconfigs.workspace import open_workspace

TEST = "TestModuleWorksWithARealDaemon"


@pytest.mark.builds
@pytest.mark.timeout(1200)  # the first build compiles gRPC, or Kubernetes
@pytest.mark.parametrize("module", ["clients/go", "clients/go/multicluster", "clients/go/objects/tests"])
async def test_go_client_test_passes_against_the_daemon(module: str, pytestconfig: pytest.Config) -> None:
    if module != "clients/go" and not pytestconfig.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    go = tool("go")
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:  # short, since a socket's path has 107 bytes at most
        async with open_workspace(Path(directory)) as workspace:
            process = await asyncio.create_subprocess_exec(
                *(go, "test", "-count=1", "-v", "-run", f"^{TEST}$", "."),
                cwd=ROOT / module,
                env={**os.environ, "MILO_DISCOVERY_TEST_ADDRESS": workspace.address},
                stdout=PIPE,
                stderr=STDOUT,
            )
            out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert f"--- PASS: {TEST}" in out.decode(), out.decode()  # the test was not skipped
