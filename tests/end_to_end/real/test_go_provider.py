"""The cases of multicluster-runtime's own providers, with the Go provider, a daemon process and real API servers.

A cluster is a Secret with its kubeconfig, as for multicluster-runtime's kubeconfig provider. The projects are on two
servers, so that a cluster can move.
"""

import asyncio
import json
import os
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
    "TestProviderQueriesOneClusterByAnIndex",
    "TestProviderQueriesAllClustersThroughOneIndex",
    "TestProviderAddsIndexToRunningClusters",
    "TestProviderFollowsAMovedEndpoint",
    "TestProviderKeepsTheInstanceWhenAClusterIsUpdated",
    "TestProviderEndsTheContextOfARemovedClusterWithTheReason",
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
        process = await asyncio.create_subprocess_exec(
            *(*go_test(), "-count=1", "-v", "-run", f"^({'|'.join(CASES)})$", "."),
            cwd=ROOT / "clients/go/multicluster",
            env={**os.environ, "MILO_DISCOVERY_TEST_REAL": str(described)},
            stdout=PIPE,
            stderr=STDOUT,
        )
        out, _ = await process.communicate()
        text = out.decode()
        assert process.returncode == 0, f"{text}\nthe daemon said last:\n{daemon.tail(40)}"
    assert [case for case in CASES if f"--- PASS: {case} " not in text] == []
