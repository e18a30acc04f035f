"""Cluster API's controllers beside a kube-apiserver: its core, the kubeadm providers, and infrastructure in memory.

The API servers of the clusters are in the infrastructure provider, and accept every caller.
"""

import base64
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.end_to_end.real import process
from tests.end_to_end.real.api import Api
from tests.end_to_end.real.builds import (
    CLUSTER_API,
    GoProgram,
    cache_directory,
    exclusively,
    obtain,
    say_to_stderr,
    source_directory,
)
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.platforms import CLUSTER
from tests.end_to_end.real.servers import RealApi
from tests.support.ports import free_port

Document = dict[str, Any]
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
_CONTRACT = {"cluster.x-k8s.io/v1beta2": "v1beta2"}
"""The label by which Cluster API finds the version of a provider's objects."""
_OBJECTS = f"""\
apiVersion: infrastructure.cluster.x-k8s.io/v1beta2
kind: DevCluster
spec:
  backend: {{inMemory: {{}}}}
---
apiVersion: infrastructure.cluster.x-k8s.io/v1beta2
kind: DevMachineTemplate
spec:
  template:
    spec:
      backend:
        inMemory:
          vm: {{provisioning: {{startupDuration: 1s}}}}
          node: {{provisioning: {{startupDuration: 1s}}}}
          apiServer: {{provisioning: {{startupDuration: 1s}}}}
          etcd: {{provisioning: {{startupDuration: 1s}}}}
---
apiVersion: controlplane.cluster.x-k8s.io/v1beta2
kind: KubeadmControlPlane
spec:
  replicas: 1
  version: v1.33.0
  machineTemplate:
    spec:
      infrastructureRef: {{apiGroup: infrastructure.cluster.x-k8s.io, kind: DevMachineTemplate, name: {CLUSTER}}}
---
apiVersion: cluster.x-k8s.io/v1beta2
kind: Cluster
spec:
  infrastructureRef: {{apiGroup: infrastructure.cluster.x-k8s.io, kind: DevCluster, name: {CLUSTER}}}
  controlPlaneRef: {{apiGroup: controlplane.cluster.x-k8s.io, kind: KubeadmControlPlane, name: {CLUSTER}}}
"""


@asynccontextmanager
async def controllers(server: RealApi, directory: Path) -> AsyncIterator[None]:
    """Run the controllers, one at a time on this host: the clusters' API servers have fixed ports."""
    certificates = directory / "webhooks"
    certificates.mkdir()
    for issued, name in zip(server.authority.server("webhooks"), ("tls.crt", "tls.key"), strict=True):
        (certificates / name).write_bytes(issued.read_bytes())
    async with AsyncExitStack() as stack:
        stack.enter_context(exclusively(cache_directory() / "cluster-api"))
        api = await stack.enter_async_context(server.api())
        for program in CLUSTER_API:
            for definition in _definitions(program):
                await api.define(definition)
        for program in CLUSTER_API:
            webhooks, health = free_port(), free_port()
            argv = [
                "/usr/bin/env",
                "POD_IP=127.0.0.1",
                str(obtain(program, say_to_stderr)),
                f"--kubeconfig={server.kubeconfig}",
                f"--webhook-port={webhooks}",
                f"--webhook-cert-dir={certificates}",
                f"--health-addr=127.0.0.1:{health}",
                "--diagnostics-address=127.0.0.1:0",
            ]
            log = directory / f"{program.name}.log"
            running = process.start(program.title, argv, log=log, tied=True)
            stack.push_async_callback(running.end, signal.SIGKILL)
            await running.until("is not ready", partial(_ready, health))
            await _register(api, program, f"https://127.0.0.1:{webhooks}", server.authority.pem)
        yield


def objects() -> Iterator[tuple[str, Document]]:
    """Yield the objects of a cluster with one control plane machine, each with its collection."""
    for document in yaml.safe_load_all(_OBJECTS):
        # The provider in memory adds an annotation, and panics if there is none.
        document["metadata"] = {"name": CLUSTER, "annotations": {"example.com/infrastructure": "in-memory"}}
        yield f"/apis/{document['apiVersion']}/namespaces/{NAMESPACE}/{document['kind'].lower()}s", document


def _directory(program: GoProgram) -> Path:
    """Return the directory of a program's manifests in its module."""
    return source_directory(program) / program.package.removeprefix(program.module).strip("/") / "config"


def _definitions(program: GoProgram) -> Iterator[Document]:
    """Yield a provider's definitions with their storage version only, which needs no conversion."""
    for file in sorted((_directory(program) / "crd/bases").glob("*.yaml")):
        definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        definition["metadata"]["labels"] = _CONTRACT
        spec = definition["spec"]
        spec["versions"] = [version for version in spec["versions"] if version["storage"]]
        yield definition


async def _ready(port: int) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            return answer.status == 200
    return False


async def _register(api: Api, program: GoProgram, url: str, authority: bytes) -> None:
    """Register a provider's webhooks at its URL, instead of at a Service."""
    for configuration in yaml.safe_load_all((_directory(program) / "webhook/manifests.yaml").read_text()):
        configuration["metadata"]["name"] += f"-{program.name}"
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": url + path, "caBundle": base64.b64encode(authority).decode()}
        await api.ensure(f"{_ADMISSION}/{configuration['kind'].lower()}s", configuration)
