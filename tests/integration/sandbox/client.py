"""A plain HTTP client for the sandbox, which reads watches as lines of JSON."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from milo_sandbox import Sandbox

PROJECTS = "/apis/resourcemanager.miloapis.com/v1alpha1/projects"
CONTROL_PLANES = "/apis/infrastructure.miloapis.com/v1alpha1/projectcontrolplanes"
DEADLINE_S = 60.0


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.json["items"]]

    @property
    def version(self) -> str:
        return str(self.json["metadata"]["resourceVersion"])


class Stream:
    """An open watch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self._content = response.content

    async def next(self) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return json.loads(await self._content.readline())

    async def take(self, count: int) -> list[tuple[str, str]]:
        """Return the next lines, each as its type and the object's name."""
        lines = [await self.next() for _ in range(count)]
        return [(line["type"], line["object"]["metadata"].get("name", "")) for line in lines]

    async def rest(self) -> list[Any]:
        """Return all lines up to a clean end; raise if the connection breaks."""
        async with asyncio.timeout(DEADLINE_S):
            return [json.loads(line) async for line in self._content]


class Client:
    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self._sandbox = sandbox
        self._session = session
        self._tls = ssl.create_default_context(cadata=sandbox.ca_pem.decode())
        self.token: str | None = sandbox.token()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        **query: str,
    ) -> Answer:
        kind = {"PATCH": "application/merge-patch+json"}.get(method, "application/json")
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {**self._authorization, **({"Content-Type": kind} if data is not None else {}), **(headers or {})}
        async with (
            asyncio.timeout(DEADLINE_S),
            self._session.request(
                method, self._sandbox.url + path, data=data, headers=given, params=query, ssl=self._tls
            ) as response,
        ):
            return Answer(response.status, dict(response.headers), await response.read())

    async def get(self, path: str, *, headers: dict[str, str] | None = None, **query: str) -> Answer:
        return await self.call("GET", path, headers=headers, **query)

    @asynccontextmanager
    async def watch(self, path: str, *, headers: dict[str, str] | None = None, **query: str) -> AsyncIterator[Stream]:
        async with self._session.get(
            self._sandbox.url + path,
            params={"watch": "1", **query},
            headers={**self._authorization, **(headers or {})},
            ssl=self._tls,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as response:
            yield Stream(response)

    @property
    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}
