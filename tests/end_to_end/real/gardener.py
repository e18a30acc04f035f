"""Gardener's API server beside a kube-apiserver; gardenlet, which would write the status of Shoots, does not run."""

import base64
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.end_to_end.real import kubeconfig, process
from tests.end_to_end.real.api import Api
from tests.end_to_end.real.builds import GARDENER, obtain, say_to_stderr
from tests.end_to_end.real.certificates import ClientAuthority
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.platforms import CLUSTER, conditions
from tests.end_to_end.real.servers import RealApi
from tests.support.ports import free_port

Document = dict[str, Any]
CORE = f"/apis/core.gardener.cloud/v1beta1/namespaces/{NAMESPACE}"
ADMINS = "gardener.cloud:system:admins"
"""The group of the client certificates in an AdminKubeconfigRequest."""
_NEED_MORE_OF_A_GARDEN = (
    "DeletionConfirmation",
    "ExtensionValidator",
    "ResourceReferenceManager",
    "ShootDNS",
    "ShootMutator",
    "ShootQuotaValidator",
    "ShootTolerationRestriction",
    "ShootValidator",
)
"""Admission plugins that need a CloudProfile, a Project, or a Seed."""


@asynccontextmanager
async def api_server(server: RealApi, directory: Path) -> AsyncIterator[tuple[Path, Api]]:
    """Run it with the etcd of a server, which authenticates its callers; yield a kubeconfig and a client."""
    port = free_port()
    certificate, key = server.authority.server("gardener")
    argv = [
        str(obtain(GARDENER, say_to_stderr)),
        f"--etcd-servers={server.etcd.url}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        *(f"--{user}kubeconfig={server.kubeconfig}" for user in ("", "authentication-", "authorization-")),
        "--cluster-identity=test",
        f"--disable-admission-plugins={','.join(_NEED_MORE_OF_A_GARDEN)}",
    ]
    running = process.start(GARDENER.title, argv, log=directory / "gardener.log", tied=True)
    url = f"https://127.0.0.1:{port}"
    own = kubeconfig.write(
        directory / "garden.kubeconfig", server=url, authority=server.authority.pem, user={"token": server.token}
    )
    try:
        async with Api(url, server.authority.file, server.token) as api:
            await running.until("is not ready", lambda: api.answers("/readyz"))
            yield own, api
    finally:
        await running.end(signal.SIGKILL)


async def create_shoot(garden: Api, platform: Api, workload: RealApi, clients: ClientAuthority) -> str:
    """Create a Shoot whose API server is `workload`, as gardenlet reports it, and return its path."""
    await platform.ensure(
        f"/api/v1/namespaces/{NAMESPACE}/configmaps",
        {"metadata": {"name": f"{CLUSTER}.ca-cluster"}, "data": {"ca.crt": workload.authority.pem.decode()}},
    )
    secret = {"ca.crt": clients.pem, "ca.key": clients.key_pem}
    data = {name: base64.b64encode(content).decode() for name, content in secret.items()}
    await garden.ensure(f"{CORE}/internalsecrets", {"metadata": {"name": f"{CLUSTER}.ca-client"}, "data": data})
    shoot = {
        "apiVersion": "core.gardener.cloud/v1beta1",
        "kind": "Shoot",
        "metadata": {"name": CLUSTER},
        "spec": {
            "cloudProfile": {"name": "local"},
            "region": "local",
            "provider": {"type": "local"},
            "kubernetes": {"version": "1.33.0"},
        },
    }
    path = f"{CORE}/shoots/{CLUSTER}"
    await garden.ensure(f"{CORE}/shoots", shoot)
    addresses = [{"name": "internal", "url": "https://api.internal.test"}, {"name": "external", "url": workload.url}]
    [available] = conditions("APIServerAvailable")
    available["lastUpdateTime"] = available["lastTransitionTime"]
    status = {"advertisedAddresses": addresses, "conditions": [available]}
    await garden.call("PATCH", f"{path}/status", {"status": status})
    return path


async def bind_admins(workload: Api) -> None:
    """Give the administrators all rights in the cluster of a Shoot, as gardenlet does."""
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": ADMINS},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": ADMINS}],
    }
    await workload.ensure(f"/apis/{group}/v1/clusterrolebindings", binding)
