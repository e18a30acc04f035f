"""The cases of multicluster-runtime's own providers, with the Go provider, a daemon process and real API servers.

A cluster is a Secret with its kubeconfig, as for multicluster-runtime's kubeconfig provider. The projects are on two
servers, so that a cluster can move.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.examples.building import ROOT, go_test
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.servers import RealApi

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(1800),
]  # the first build takes minutes

CASES = (
    "TestProviderHasNoClustersInitially",
    "TestProviderReturnsSameClusterUntilRemoval",
    "TestProviderReconcilesExistingNewAndUpdatedObjects",
    "TestProviderIndexesEachCluster",
    "TestProviderIndexIsAvailableInAllClustersAndNamespaces",
    "TestProviderAddsIndexToRunningClusters",
    "TestProviderFollowsAMovedEndpoint",
    "TestProviderKeepsTheInstanceWhenAClusterIsUpdated",
    "TestProviderCancelsTheContextOfARemovedClusterWithTheReason",
    "TestProviderHandlesConcurrentCalls",
    "TestProviderRunsInsideMulti",
)


async def test_go_provider_cases_pass_on_real_servers(platform: RealApi, workload: RealApi, directory: Path) -> None:
    definition = yaml.safe_load((ROOT / "deploy/sources/kubeconfig-secrets.yaml").read_text())
    # The cases delete more clusters within seconds than an operator should lose at once.
    settings = {
        "http_listen": "off",
        "label_selector": "drain!=yes",
        "drain_timeout": "1h",
        "removals": {"count": 1000},
    }
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump({**definition, **settings, "connectivity": {"interval": "off"}}))
    label, _, value = definition["declarative"]["resource"]["label_selector"].partition("=")
    address = f"unix://{directory}/d.sock"
    servers = {
        "address": address,
        "platform": str(platform.kubeconfig),
        "namespace": NAMESPACE,
        "labels": {label: value},
        "servers": [str(server.kubeconfig_as("operator", "system:masters")) for server in (platform, workload)],
    }
    described = directory / "servers.json"
    described.write_text(json.dumps(servers))
    async with workload.api() as api:
        await api.ensure("/api/v1/namespaces", {"metadata": {"name": "default"}})
    arguments = ("--config", str(config), "--discovery-kubeconfig", str(platform.kubeconfig), "--listen", address)
    async with DaemonProcess(address, *arguments) as daemon:
        await daemon.start()
        status, text = await go_cases(CASES, "MILO_DISCOVERY_TEST_REAL", described)
        assert status == 0, f"{text}\nlast output of the daemon:\n{daemon.tail(40)}"
    assert [case for case in CASES if f"--- PASS: {case} " not in text] == []


async def test_sharded_namespace_example_runs_with_the_coordinator(platform: RealApi, directory: Path) -> None:
    """The Go test starts and kills the daemons, and has two and three replicas of the example in its process."""
    labels = {"shard-test": "yes"}
    kubeconfig = str(platform.kubeconfig_as("operator", "system:masters"))
    members = []
    for member in range(3):
        config, address = directory / f"{member}.yaml", f"unix://{directory}/{member}.sock"
        settings = {
            "mode": "declarative",
            "declarative": {
                "resource": {"version": "v1", "plural": "namespaces"},
                "endpoint": {"template": "https://{metadata.name}.invalid"},
            },
            "label_selector": "shard-test=yes",
            "discovery_kubeconfig": kubeconfig,
            "sharding": {"group": "example", "kubeconfig": kubeconfig, "hand_over": True},
            "connectivity": {"interval": "off"},
            "listen": [address],
            "http_listen": "off",
            "log": {"level": "warning"},
        }
        config.write_text(yaml.safe_dump(settings))
        pod = {"POD_NAME": f"example-{member}", "POD_NAMESPACE": NAMESPACE, "POD_UID": f"uid-{member}"}
        environ = [f"{name}={value}" for name, value in {"PATH": os.environ["PATH"], **pod}.items()]
        command = [sys.executable, "-m", "milo_discoveryd", "run", "--config", str(config)]
        members.append({"address": address, "command": command, "environment": environ})
    described = directory / "shards.json"
    described.write_text(json.dumps({"kubeconfig": kubeconfig, "labels": labels, "members": members}))
    case = "TestShardedNamespaceExampleOnRealServers"
    status, text = await go_cases((case,), "MILO_DISCOVERY_TEST_REAL_SHARDS", described)
    assert status == 0, text
    assert f"--- PASS: {case} " in text


async def go_cases(cases: tuple[str, ...], variable: str, described: Path) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(*go_test(), "-count=1", "-v", "-run", f"^({'|'.join(cases)})$", "."),
        cwd=ROOT / "clients/go/multicluster",
        env={**os.environ, variable: str(described)},
        stdout=PIPE,
        stderr=STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()
