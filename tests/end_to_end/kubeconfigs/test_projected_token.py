"""A daemon process whose only credential is a projected service-account token, as in a pod."""

import json
from pathlib import Path

from milo_discovery import DiscoveryClient
from milo_sandbox import Sandbox
from milo_sandbox.rights import EVERYTHING
from tests.end_to_end.kubeconfigs.workspace import Workspace
from tests.end_to_end.process.daemon import DaemonProcess

WORKLOAD = "system:serviceaccount:milo:discovery"


async def test_daemon_with_projected_token_issues_a_working_kubeconfig(directory: Path, kubectl: str) -> None:
    async with Sandbox(seed=1) as sandbox:
        sandbox.projects.create("alpha", ready=True)
        sandbox.rights.grant(WORKLOAD, [EVERYTHING])
        (directory / "ca.pem").write_bytes(sandbox.ca_pem)
        projected = directory / "projected.token"
        projected.write_text(sandbox.tokens.issue(WORKLOAD, audiences=[sandbox.url]))
        upstream = sandbox.kubeconfig()
        upstream["users"][0]["user"] = {}
        (directory / "upstream").write_text(json.dumps(upstream))
        exchange = {
            "name": "workload",
            "type": "token-exchange",
            "token_url": f"{sandbox.url}/oauth/v2/token",
            "ca_file": str(directory / "ca.pem"),
            "subject_token_file": str(projected),
        }
        config = directory / "config.yaml"
        config.write_text(json.dumps({"kubeconfigs": {"issuers": [exchange]}, "credentials": "workload"}))
        address = f"unix://{directory}/d.sock"
        flags = ("--config", str(config), "--discovery-kubeconfig", str(directory / "upstream"), "--listen", address)
        async with DaemonProcess(address, *flags, "--http-listen", "off") as daemon:
            await daemon.start()
            async with DiscoveryClient(address) as client, client.watch() as watch:
                await watch.synced()
            workspace = Workspace(directory, sandbox, daemon, [])
            path = await workspace.kubeconfig("--token")
            got = await workspace.run(kubectl, f"--kubeconfig={path}", "get", "namespaces", "-o", "name")
            assert (got.status, got.err) == (0, "")
            assert projected.read_text() not in path.read_text()
