"""Address and credentials of an API server, from its kubeconfig."""

import base64
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

PROJECTS = "/apis/resourcemanager.miloapis.com/v1alpha1/projects"
MERGE = {"Content-Type": "application/merge-patch+json"}


class Access(msgspec.Struct, frozen=True):
    kubeconfig: Path
    url: str
    authority: str
    token: str

    @classmethod
    def of(cls, kubeconfig: Path) -> "Access":
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        data = cluster.get("certificate-authority-data")
        return cls(
            kubeconfig=kubeconfig,
            url=cluster["server"],
            authority=base64.b64decode(data).decode() if data else Path(cluster["certificate-authority"]).read_text(),
            token=user.get("token") or Path(user["tokenFile"]).read_text().strip(),
        )

    def session(self, connections: int = 100) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=self.authority), limit=connections)
        return aiohttp.ClientSession(
            self.url,
            connector=connector,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=1 << 20,
        )


async def call(session: aiohttp.ClientSession, method: str, path: str, body: Any, *, patch: bool = False) -> None:
    async with session.request(method, path, json=body, headers=MERGE if patch else None) as answer:
        if answer.status >= 400:
            raise ConnectionError(f"{method} {path}: {answer.status} {await answer.text()}")
        await answer.read()
