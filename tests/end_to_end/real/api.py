"""Requests to a real API server for its setup and for tests."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.support.eventually import LIMIT_S

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_NOT_THERE = 404
_EXISTS_ALREADY = 409
_MERGE = {"Content-Type": "application/merge-patch+json"}


class RefusedError(Exception):
    """The server responded with an error status."""

    def __init__(self, request: str, status: int, answer: str) -> None:
        super().__init__(f"{request}: {status} {answer}")
        self.status = status


class Api:
    """A client of one server with one user's credential."""

    def __init__(self, url: str, authority: Path, credential: str | tuple[Path, Path]) -> None:
        """Authenticate with a bearer token, or with a client certificate and its key."""
        self._url = url
        self._tls = ssl.create_default_context(cafile=authority)
        self._headers: dict[str, str] = {}
        if isinstance(credential, str):
            self._headers["Authorization"] = f"Bearer {credential}"
        else:
            self._tls.load_cert_chain(*credential)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, force_close=True)
        # aiohttp's default allows only 30 s to connect, which a busy test process exceeds.
        timeout = aiohttp.ClientTimeout(total=300.0)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._session.close()

    async def answers(self, path: str) -> bool:
        """Return whether the server responds with 200; false if it is unreachable."""
        try:
            return await self.status(path) == 200
        except aiohttp.ClientError:
            return False

    async def status(self, path: str) -> int:
        async with self._session.get(self._url + path) as answer:
            return answer.status

    async def header(self, path: str, name: str) -> str:
        """Return a header of the response, whatever its status."""
        async with self._session.get(self._url + path) as answer:
            return answer.headers.get(name, "")

    async def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        headers = _MERGE if method == "PATCH" else None
        async with self._session.request(method, self._url + path, json=body, headers=headers) as answer:
            if answer.status < 400:
                content: dict[str, Any] = await answer.json()
                return content
            problem = await answer.text()
        if answer.status == 429 and "storage is (re)initializing" in problem:  # the server has just started
            await asyncio.sleep(1.0)
            return await self.call(method, path, body)
        raise RefusedError(f"{method} {path}", answer.status, problem)

    async def refusal(self, method: str, path: str, body: object = None) -> int | None:
        """Return the status of a rejected request, or None if it is accepted."""
        try:
            await self.call(method, path, body)
        except RefusedError as refusal:
            return refusal.status
        return None

    async def forget(self, path: str) -> None:
        """Delete an object, if it exists."""
        try:
            await self.call("DELETE", path)
        except RefusedError as refusal:
            if refusal.status != _NOT_THERE:
                raise

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[aiohttp.StreamReader]:
        """Yield the body of a response as it arrives, such as the lines of a watch."""
        endless = aiohttp.ClientTimeout(total=None)
        async with self._session.get(self._url + path, timeout=endless) as answer:
            if answer.status >= 400:
                raise RefusedError(f"GET {path}", answer.status, await answer.text())
            yield answer.content

    async def define(self, definition: Mapping[str, Any]) -> None:
        """Create a CustomResourceDefinition unless it exists, and wait until its objects are served.

        Its condition Established is not enough: the server answers requests for the objects with 404 for a while.
        """
        await self.ensure(DEFINITIONS, definition)
        spec = definition["spec"]
        served = next(version["name"] for version in spec["versions"] if version["served"])
        objects = f"/apis/{spec['group']}/{served}/{spec['names']['plural']}"
        async with asyncio.timeout(LIMIT_S):
            while not await self.answers(objects):  # noqa: ASYNC110  (another process serves them)
                await asyncio.sleep(0.1)

    async def ensure(self, collection: str, body: object) -> None:
        """Create an object unless it exists."""
        try:
            await self.call("POST", collection, body)
        except RefusedError as refusal:
            if refusal.status != _EXISTS_ALREADY:
                raise
