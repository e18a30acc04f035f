"""A small operator that keeps a ConfigMap named `welcome` in every engaged project.

    KUBECONFIG=... MILO_DISCOVERY_ADDRESS=unix:///... python operator_greeter.py

The daemon reports the projects and the endpoints of their API servers. The operator authenticates with an identity of
its own that is valid in every project, here the one in KUBECONFIG.
"""

import asyncio
import base64
import logging
import os
import ssl
from contextlib import suppress
from pathlib import Path

import aiohttp
import yaml

from milo_discovery import Cluster, DiscoveryClient, EngagedCluster, Fleet

log = logging.getLogger("greeter")

NAMESPACE = "/api/v1/namespaces/default"
NAME = "welcome"


class Identity:
    """The operator's credential, and the CA that verifies the API servers."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._user = config["users"][0]["user"]
        authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
        self.tls = ssl.create_default_context(cadata=authority)

    @property
    def headers(self) -> dict[str, str]:
        # Read for each request, because the file is replaced when the token is renewed.
        token = self._user.get("token") or Path(self._user["tokenFile"]).read_text().strip()
        return {"Authorization": f"Bearer {token}"}


class Greeter:
    """The work in one project. It is idempotent."""

    def __init__(self, http: aiohttp.ClientSession, identity: Identity) -> None:
        self._http = http
        self._identity = identity

    async def reconcile(self, project: Cluster) -> None:
        if project.suspended:
            return  # it refuses writes; an update follows when it is resumed
        if project.deletion_requested_at is not None:
            await self._delete(project)
            log.info("%s: farewell", project.name)
            return
        await self._write(project, f"Welcome, {project.organization or 'stranger'}, to {project.name}.")
        log.info("%s: welcomed", project.name)

    async def _write(self, project: Cluster, text: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {"text": text}}
        url = f"{project.endpoint}{NAMESPACE}/configmaps"
        async with self._http.put(f"{url}/{NAME}", json=body, headers=self._identity.headers) as answer:
            if answer.status != 404:
                answer.raise_for_status()
                return
        async with self._http.post(url, json=body, headers=self._identity.headers) as answer:
            answer.raise_for_status()

    async def _delete(self, project: Cluster) -> None:
        url = f"{project.endpoint}{NAMESPACE}/configmaps/{NAME}"
        async with self._http.delete(url, headers=self._identity.headers) as answer:
            if answer.status != 404:
                answer.raise_for_status()


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    identity = Identity(Path(os.environ["KUBECONFIG"]))
    connector = aiohttp.TCPConnector(ssl=identity.tls, limit=20)
    deadline = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(connector=connector, timeout=deadline) as http, DiscoveryClient() as client:
        greeter = Greeter(http, identity)
        fleet = Fleet(client)

        # Called for each engaged project, cancelled at disengagement, and restarted after a backoff if it raises.
        @fleet.on_engage
        async def greet(cluster: EngagedCluster) -> None:
            project = cluster.current
            while True:
                await greeter.reconcile(project)
                project = await cluster.updated(since=project)

        await fleet.run()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
