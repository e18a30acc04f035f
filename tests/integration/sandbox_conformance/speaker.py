"""An HTTP client that records its requests and their responses."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from tests.end_to_end.scenarios import kubeconfig
from tests.end_to_end.scenarios.objects import KINDS
from tests.end_to_end.scenarios.servers import ApiServer
from tests.end_to_end.scenarios.steps import Mode
from tests.integration.sandbox_conformance.transcripts import HEADERS, Normalizer, Transcript, masked

_DEADLINE_S = 60.0
_MERGE = "application/merge-patch+json"
_SPECS: Mapping[Mode, Mapping[str, Any]] = {
    "project": {"ownerRef": {"kind": "Organization", "name": "acme"}},
    "project-control-plane": {},
}


class Speaker:
    def __init__(self, server: ApiServer, mode: Mode) -> None:
        self.server = server
        self.mode = mode
        self.kind = KINDS[mode]
        self.transcript: Transcript = []
        self._access = kubeconfig.read(server.kubeconfig)
        self._normalizer = Normalizer()
        self._root = ""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._access.tls, force_close=True),
            timeout=aiohttp.ClientTimeout(total=_DEADLINE_S),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def minimal_object(self, name: str, **metadata: Any) -> dict[str, Any]:
        """Return the smallest object that the server accepts."""
        return {
            "apiVersion": f"{self.kind.group}/v1alpha1",
            "kind": self.kind.name,
            "metadata": {"name": name, **metadata},
            "spec": _SPECS[self.mode],
        }

    async def ask(
        self,
        method: str,
        below: str = "",
        body: Any = None,
        *,
        token: str = "",
        content_type: str = "",
        **query: str,
    ) -> Any:
        """Send a request; return the JSON of the response, or its text. `below` is the path below the collection."""
        headers = self._headers(token) | {"Content-Type": content_type or self._content_type(method)}
        data = body if isinstance(body, str) or body is None else json.dumps(body)
        async with self._session.request(method, self._url(below, query), data=data, headers=headers) as response:
            answer = _read(await response.text())
            self._note(f"{method} {below}", query, response, self._normalizer.normalized(answer))
            return answer

    async def unrecorded(self, method: str) -> Any:
        """Read or delete the collection without recording it."""
        async with self._session.request(method, self._url("", {}), headers=self._headers()) as response:
            return await response.json()

    async def unrecorded_status(self, method: str, path: str, body: Any = None) -> int:
        """Send a request without recording it; return the status of the response."""
        headers = self._headers() | {"Content-Type": self._content_type(method)}
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, self._url(path, {}), data=data, headers=headers) as response:
            return response.status

    async def until(self, status: int, path: str) -> None:
        """Wait until a path responds with a status."""
        async with asyncio.timeout(_DEADLINE_S):
            while await self.unrecorded_status("GET", path) != status:  # noqa: ASYNC110 - the server sends no event
                await asyncio.sleep(0.05)

    def visit_control_plane(self) -> None:
        """Send the next requests to the API with CustomResourceDefinitions, with paths from /api on."""
        self._root = self.server.control_plane()

    async def apply(self, path: str, document: Any, manager: str, **query: str) -> Any:
        """Send a server-side apply, and record the managers of fields afterwards."""
        query = {"fieldManager": manager, **query}
        answer = await self.ask("PATCH", path, document, content_type="application/apply-patch+yaml", **query)
        if "metadata" in answer and "managedFields" in answer["metadata"]:
            owners = [
                [entry["manager"], entry["operation"], entry.get("subresource", ""), entry["fieldsV1"]]
                for entry in answer["metadata"]["managedFields"]
            ]
            self.transcript.append({"owners": sorted(owners, key=json.dumps)})
        return answer

    async def create(self, name: str, **metadata: Any) -> Any:
        return await self.ask("POST", "", self.minimal_object(name, **metadata))

    async def set_condition(self, name: str, status: str) -> Any:
        condition = {
            "type": self.kind.condition,
            "status": status,
            "reason": "Told",
            "message": "as it was told",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        return await self.ask("PATCH", f"/{name}/status", {"status": {"conditions": [condition]}})

    async def version(self) -> str:
        """Return the current version of the collection."""
        return str((await self.unrecorded("GET"))["metadata"]["resourceVersion"])

    @asynccontextmanager
    async def watch(self, **query: str) -> AsyncIterator["Lines"]:
        query = {"watch": "1", **query}
        async with self._session.get(
            self._url("", query), headers=self._headers(), timeout=aiohttp.ClientTimeout(total=None)
        ) as response:
            refused = None if response.status == 200 else self._normalizer.normalized(_read(await response.text()))
            self._note("GET ", query, response, refused)
            yield Lines(response.content, self._normalizer, self.transcript)

    def _headers(self, token: str = "") -> dict[str, str]:
        return {"Authorization": f"Bearer {token or self._access.token()}"}

    def _content_type(self, method: str) -> str:
        return _MERGE if method == "PATCH" else "application/json"

    def _url(self, below: str, query: Mapping[str, str]) -> str:
        asked = "&".join(f"{key}={quote(value)}" for key, value in query.items())
        path = self._root + below if below.startswith("/api") else self.kind.collection + below
        return f"{self._access.server}{path}{'?' if asked else ''}{asked}"

    def _note(self, asked: str, query: Mapping[str, str], response: aiohttp.ClientResponse, answer: Any) -> None:
        normalized = {key: masked(key, value) for key, value in query.items()}
        self.transcript.append(
            {
                "asked": asked.strip(),
                **({"query": normalized} if normalized else {}),
                "status": response.status,
                "headers": {name: response.headers[name] for name in HEADERS if name in response.headers},
                **({} if answer is None else {"answer": answer}),
            }
        )


class Lines:
    """The lines of an open watch, each recorded as it is read."""

    def __init__(self, body: aiohttp.StreamReader, normalizer: Normalizer, transcript: Transcript) -> None:
        self._body = body
        self._normalizer = normalizer
        self._transcript = transcript

    async def read(self, count: int = 1) -> None:
        for _ in range(count):
            async with asyncio.timeout(_DEADLINE_S):
                line = await self._body.readline()
            self._transcript.append({"read": self._normalizer.normalized(_read(line.decode())) if line else "the end"})

    async def to_the_end(self) -> None:
        while not self._transcript or self._transcript[-1] != {"read": "the end"}:
            await self.read()


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
