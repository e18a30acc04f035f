"""Reports of `check` and `status` on expiring certificates, and on credentials that Milo rejects or does not issue."""

import base64
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from milo_discovery import DiscoveryClient
from milo_sandbox import Sandbox
from milo_sandbox.rights import EVERYTHING
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.watching import until
from tests.support.certificates import Authority
from tests.support.forked_command import forked

SERVICE_ACCOUNT = {"namespace": "milo", "service_account": "operators"}


async def checked(workspace: Workspace, **settings: Any) -> list[str]:
    """Return the lines that `check` prints for two sources of one Milo."""
    workspace.daemon(**settings)  # writes the settings
    arguments = ("check", "--config", str(workspace.directory / "config.yaml"))
    _, out, err = await forked("milo-discoveryd", arguments, {})
    assert not err
    return out.splitlines()


def source(name: str, kubeconfig: object, **more: object) -> dict[str, object]:
    return {"name": name, "kind": "project", "discovery_kubeconfig": str(kubeconfig), **more}


async def test_check_warns_of_expiring_certificates_unless_the_daemon_issues_them(
    workspace: Workspace,
) -> None:
    authority = Authority()
    (workspace.directory / "ca.crt").write_bytes(authority.pem)
    (workspace.directory / "ca.key").write_bytes(authority.key)
    old = authority.issue(life=timedelta(minutes=10))
    config = workspace.sandbox.kubeconfig()
    config["users"][0]["user"] |= {
        "client-certificate-data": base64.b64encode(old.certificate).decode(),
        "client-key-data": base64.b64encode(old.key).decode(),
    }
    (workspace.directory / "old").write_text(json.dumps(config))
    own = {
        "name": "own",
        "type": "client-certificate",
        "ca_certificate": str(workspace.directory / "ca.crt"),
        "ca_key": str(workspace.directory / "ca.key"),
        "common_name": "daemon",
        "hand_out": "false",
        "sources": ["own"],
    }
    lines = await checked(
        workspace,
        discovery_kubeconfig=None,
        sources=[
            source("own", workspace.kubeconfig, credentials="own"),
            source("old", workspace.directory / "old"),
        ],
        kubeconfigs={"issuers": [own]},
    )
    about = [line for line in lines if "certificate expires" in line]
    assert [line.partition(" at ")[0] for line in about] == [
        "warn  old: discovery identity: the client certificate expires"
    ]


async def test_check_reports_that_milo_does_not_serve_token_requests(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    issuers = [
        {"name": f"of-{name}", "type": "token-request", "sources": [name], **SERVICE_ACCOUNT} for name in ("a", "b")
    ]
    sources = [source(name, workspace.kubeconfig) for name in ("a", "b")]
    lines = await checked(workspace, discovery_kubeconfig=None, sources=sources, kubeconfigs={"issuers": issuers})
    failed = [line for line in lines if line.startswith("fail")]
    assert len(failed) == 2
    for line in failed:
        assert "Milo's own API server serves no TokenRequest: set the issuer's `kubeconfig`" in line


@pytest.mark.parametrize("rejecting", ["a", "b"])
async def test_status_names_the_issuer_whose_tokens_milo_rejects(workspace: Workspace, rejecting: str) -> None:
    """The project is reachable: its host answers the daemon's own credential."""
    workspace.sandbox.projects.create("alpha", ready=True)
    async with Sandbox() as another:
        of_another = another.token("operator", rules=[EVERYTHING])
    right = workspace.sandbox.token("operator", rules=[EVERYTHING])
    tokens = {name: of_another if name == rejecting else right for name in ("a", "b")}
    for name, token in tokens.items():
        (workspace.directory / f"{name}.token").write_text(token)
    issuers = [
        {"name": f"of-{name}", "type": "token-file", "sources": [name], "path": f"{workspace.directory}/{name}.token"}
        for name in tokens
    ]
    sources = [source(name, workspace.kubeconfig) for name in tokens]
    settings: dict[str, Any] = {"discovery_kubeconfig": None, "connectivity": {"interval": "1s"}}
    async with workspace.daemon(sources=sources, kubeconfigs={"issuers": issuers}, **settings) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch(include_kubeconfigs=True) as watch:
            await daemon.during(until(watch, lambda seen: {"a#alpha", "b#alpha"} <= set(seen.clusters)))
            failing = await daemon.during(rejected(client))
            arguments = ("--address", workspace.address, "status")
            _, out, _ = await forked("milo-discovery", arguments, {})
        assert failing == {f"of-{name}": {"rejected": 1} if name == rejecting else {} for name in tokens}
        shown = {name: line for name in failing for line in out.splitlines() if name in line}
        found = {name for name, line in shown.items() if "clusters with failing credentials: 1 rejected" in line}
        assert found == {f"of-{rejecting}"}


async def rejected(client: DiscoveryClient) -> dict[str, Mapping[str, int]]:
    """Return the number of clusters with failing credentials of each issuer, by problem, once there is one."""
    while True:
        info = await client.server_info()
        failing = {issuer.name: issuer.failing_clusters for issuer in info.credential_issuers}
        if any(failing.values()):
            return failing
