"""An issued kubeconfig, used by a real kubectl with a project's control plane."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_sandbox import Sandbox
from tests.integration.kubeconfigs.daemon import a_daemon
from tests.support.eventually import LIMIT_S


async def kubectl(kubeconfig: Path, *arguments: str) -> str:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not on PATH: nothing here was tried")
    process = await asyncio.create_subprocess_exec(
        program, f"--kubeconfig={kubeconfig}", *arguments,
        env={"HOME": str(kubeconfig.parent)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_embedded_kubeconfig_opens_control_plane_of_its_project(tmp_path: Path) -> None:
    async with Sandbox(seed=1) as sandbox:
        sandbox.projects.create("alpha", ready=True)
        upstream = sandbox.write_kubeconfig(tmp_path / "upstream")
        config = tmp_path / "config.yaml"
        source = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
        config.write_text(json.dumps({"kubeconfigs": {"issuers": [source]}}))
        async with a_daemon(tmp_path, file=config, discovery_kubeconfig=str(upstream)) as stub:
            answer = await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha"))
        path = tmp_path / "alpha.yaml"
        path.write_bytes(answer.kubeconfig.kubeconfig)
        assert "milo-system" in await kubectl(path, "get", "namespaces")
        viewed = json.loads(await kubectl(path, "config", "view", "--raw", "-o", "json"))
    assert viewed["clusters"][0]["cluster"]["server"] == sandbox.control_plane_url("alpha")
    left = answer.kubeconfig.expires_at.ToDatetime() - answer.kubeconfig.issued_at.ToDatetime()
    assert 0 < left.total_seconds() <= 600
