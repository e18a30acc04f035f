"""The cases of multicluster-runtime's own providers, with the Go provider, a daemon process and real API servers.

A cluster is a Secret with its kubeconfig, as for multicluster-runtime's kubeconfig provider. The projects are on two
servers, so that a cluster can move.
"""

import asyncio
import difflib
import json
import os
import re
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import yaml

from milo_discovery import DiscoveryClient, DiscoveryError
from tests.end_to_end.examples.building import ROOT, go_test, run, tool
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.servers import RealApi
from tests.support.eventually import LIMIT_S, eventually

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
    "TestProviderRunsInsideTheMultiProvider",
)


async def test_go_provider_cases_pass_on_real_servers(platform: RealApi, workload: RealApi, directory: Path) -> None:
    definition = yaml.safe_load((ROOT / "deploy/sources/kubeconfig-secrets.yaml").read_text())
    # The cases delete more clusters within seconds than an operator should lose at once. A list may lack the last two,
    # which are then held for `verify_after`.
    settings = {
        "http_listen": "off",
        "label_selector": "drain!=yes",
        "drain_timeout": "1h",
        "removals": {"count": 1000, "verify_after": "1s"},
    }
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump({**definition, **settings, "connectivity": {"interval": "off"}}))
    label, _, value = definition["settings"]["resource"]["label_selector"].partition("=")
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


@dataclass(frozen=True, slots=True)
class Member:
    """A daemon of a shard group whose clusters are the namespaces that have its label."""

    address: str
    arguments: tuple[str, ...]
    pod: dict[str, str]
    """The environment variables that identify its pod."""


def members_of(group: str, label: str, kubeconfig: str, directory: Path, count: int) -> list[Member]:
    members = []
    for number in range(count):
        config, address = directory / f"{number}.yaml", f"unix://{directory}/{number}.sock"
        settings = {
            "mode": "declarative",
            "settings": {
                "resource": {"version": "v1", "plural": "namespaces"},
                "endpoint": {"template": "https://{metadata.name}.invalid"},
            },
            "label_selector": label,
            "discovery_kubeconfig": kubeconfig,
            "sharding": {"group": group, "kubeconfig": kubeconfig, "hand_over": True},
            "connectivity": {"interval": "off"},
            "listen": [address],
            "http_listen": "off",
            "log": {"level": "warning"},
        }
        config.write_text(yaml.safe_dump(settings))
        pod = {"POD_NAME": f"{group}-{number}", "POD_NAMESPACE": NAMESPACE, "POD_UID": f"uid-{number}"}
        members.append(Member(address, ("--config", str(config)), pod))
    return members


async def test_sharded_namespace_example_runs_with_the_coordinator(platform: RealApi, directory: Path) -> None:
    """The Go test starts and kills the daemons, and has two and three replicas of the example in its process."""
    kubeconfig = str(platform.kubeconfig_as("operator", "system:masters"))
    members = [
        {
            "address": member.address,
            "command": [sys.executable, "-m", "milo_discoveryd", "run", *member.arguments],
            "environment": [f"{name}={value}" for name, value in {"PATH": os.environ["PATH"], **member.pod}.items()],
        }
        for member in members_of("example", "shard-test=yes", kubeconfig, directory, 3)
    ]
    described = directory / "shards.json"
    described.write_text(json.dumps({"kubeconfig": kubeconfig, "labels": {"shard-test": "yes"}, "members": members}))
    case = "TestShardedNamespaceExampleOnRealServers"
    status, text = await go_cases((case,), "MILO_DISCOVERY_TEST_REAL_SHARDS", described)
    assert status == 0, text
    assert f"--- PASS: {case} " in text


OPERATOR = ROOT / "examples/go-operator"
"""Its go.mod has what the example of multicluster-runtime imports, and both modules of this repository."""
SHARDED = re.compile(r"sharded\.New\(.*?^\t\t\t\)", re.DOTALL | re.MULTILINE)
ITS_CLIENT = re.compile(r"^\t// Direct client for coordinator.*?^\t}\n\n", re.DOTALL | re.MULTILINE)
RECONCILED = re.compile(r'Reconciling ConfigMap.*"cluster": "([^"]+)", "ns": "[^"]+", "name": "([^"]+)"')
# A package variable of controller-runtime. By default, each replica listens on port 8080, which works in pods, but not
# for two processes of one host.
WITHOUT_METRICS = "-X sigs.k8s.io/controller-runtime/pkg/metrics/server.DefaultBindAddress=0"


def upstream_example() -> str:
    """Return the source of multicluster-runtime's example `sharded-namespace`, in the version that the build uses."""
    command = [tool("go"), "mod", "download", "-json", "sigs.k8s.io/multicluster-runtime"]
    found = json.loads(subprocess.run(command, cwd=OPERATOR, capture_output=True, check=True).stdout)
    return (Path(found["Dir"]) / "examples/sharded-namespace/main.go").read_text()


def with_documented_change(source: str) -> str:
    """Return the example with the import and the line of docs/sharding.md.

    Go rejects unused variables, so the client that only sharded.New used is removed as well.
    """
    text = (ROOT / "docs/sharding.md").read_text()
    [imported] = re.findall(r'^import (discoverymc ".*")$', text, re.MULTILINE)
    [line] = re.findall(r"WithCoordinator\((.*)\)\)$", text, re.MULTILINE)
    [made], [client] = SHARDED.findall(source), ITS_CLIENT.findall(source)
    assert (source.count("kubeClient"), (made + client).count("kubeClient")) == (2, 2), (
        "kubeClient is used outside of sharded.New"
    )
    changed = source
    for old, new in (
        ('"sigs.k8s.io/multicluster-runtime/pkg/manager/coordinator/sharded"', imported),
        ('\t"sigs.k8s.io/controller-runtime/pkg/client"\n', ""),
        (client, ""),
        (made, line),
    ):
        assert changed.count(old) == 1, old
        changed = changed.replace(old, new)
    added = [diff_line[1:].strip() for diff_line in difference(source, changed) if diff_line[0] == "+"]
    assert added == [imported, f"{line},"]
    return changed


def difference(before: str, after: str) -> list[str]:
    """Return the lines that were removed, with a minus sign, and those that were added, with a plus sign."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def built_example(directory: Path) -> str:
    """Build the changed example as a package of the example operator, with an overlay instead of a file in it."""
    (directory / "main.go").write_text(with_documented_change(upstream_example()))
    overlay, program = directory / "overlay.json", str(directory / "sharded-namespace")
    overlay.write_text(json.dumps({"Replace": {str(OPERATOR / "cmd/sharded/main.go"): str(directory / "main.go")}}))
    run(
        [tool("go"), "build", "-overlay", str(overlay), "-ldflags", WITHOUT_METRICS, "-o", program, "./cmd/sharded"],
        OPERATOR,
    )
    return program


async def test_sharded_namespace_example_runs_with_nothing_but_the_documented_change(
    platform: RealApi, directory: Path
) -> None:
    """Two replicas as processes, each beside a daemon; the second one ends, and the first one takes its namespaces."""
    program = await asyncio.to_thread(built_example, directory)
    names = {f"upstream-{number}" for number in range(16)}
    kubeconfig = str(platform.kubeconfig_as("operator", "system:masters"))
    members = members_of("upstream", "upstream-example=yes", kubeconfig, directory, 2)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(platform.api())
        for name in names:
            metadata = {"name": name, "labels": {"upstream-example": "yes"}}
            await api.ensure("/api/v1/namespaces", {"metadata": metadata})
        daemons = [
            await stack.enter_async_context(DaemonProcess(member.address, *member.arguments, environ=member.pod))
            for member in members
        ]
        for daemon in daemons:
            await daemon.start()
        for member in members:
            await settled(member.address, len(names), len(members))
        replicas = []
        for number, member in enumerate(members):
            environ = {**os.environ, "KUBECONFIG": kubeconfig, "MILO_DISCOVERY_ADDRESS": member.address}
            replicas.append(await stack.enter_async_context(Replica(program, environ, directory / f"replica-{number}")))

        async def reconcile(name: str, *working: Replica) -> None:
            """Create a ConfigMap in each namespace, and wait until each was reconciled by one of these replicas."""
            for namespace in names:
                await api.call("POST", f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": name}})
            try:
                await eventually(lambda: set().union(*(replica.reconciled(name) for replica in working)) == names)
            except TimeoutError:
                raise AssertionError("\n\n".join(replica.printed[-3000:] for replica in replicas)) from None
            shares = [replica.reconciled(name) for replica in replicas]
            assert sum(map(len, shares)) == len(names), shares
            assert all(replica.reconciled(name) for replica in working), shares

        await reconcile("first", *replicas)
        assert await replicas[1].terminate() == 0, replicas[1].printed
        assert await daemons[1].terminate() == 0
        await reconcile("second", replicas[0])
        assert await replicas[0].terminate() == 0, replicas[0].printed
        leases = await api.call("GET", "/apis/coordination.k8s.io/v1/leases")
        assert [lease for lease in leases["items"] if lease["metadata"]["name"].startswith("mcr-")] == []


async def settled(address: str, clusters: int, members: int) -> None:
    """Wait until the group is settled with this number of members, and the daemon owns some, but not all, clusters."""
    async with DiscoveryClient(address) as client, asyncio.timeout(LIMIT_S):
        while True:
            with suppress(DiscoveryError):
                sharding = (await client.server_info()).sharding
                owned = len((await client.list()).clusters)
                if sharding and sharding.settled and len(sharding.members) == members and 0 < owned < clusters:
                    return
            await asyncio.sleep(0.1)


class Replica:
    """A process of the example, with its output in a file."""

    def __init__(self, program: str, environ: dict[str, str], output: Path) -> None:
        self._program, self._environ, self._output = program, environ, output

    async def __aenter__(self) -> Self:
        with self._output.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                self._program, env=self._environ, stdout=output, stderr=STDOUT
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    @property
    def printed(self) -> str:
        return self._output.read_text()

    def reconciled(self, name: str) -> set[str]:
        """Return the namespaces whose ConfigMap of this name was reconciled."""
        return {namespace for namespace, found in RECONCILED.findall(self.printed) if found == name}

    async def terminate(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), LIMIT_S)


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
