"""Random changes of projects over HTTP, with a record of those that are known to have been applied.

A write whose response was lost may have been applied, so its object is read before the next write.
"""

import asyncio
from random import Random
from typing import Any

import aiohttp

from tests.end_to_end.process.upstream import State, Upstream
from tests.end_to_end.real.api import Api, RefusedError
from tests.end_to_end.soak.servers import COLLECTION, Server

NAMES = [f"p-{number}" for number in range(40)]
MARK = "marker"
ENVIRONMENTS = ("prod", "staging", "dev")
BIG = "x" * 16_000
"""Padding that fills the buffers of a stalled reader within minutes."""

_TRY_AGAIN_S = 0.2
_LOST = (RefusedError, aiohttp.ClientError, OSError, TimeoutError)


class ProjectWriter:
    """Changes projects at random, and records what the server accepted."""

    def __init__(self, server: Server, random: Random) -> None:
        self._server = server
        self._random = random
        self._writes = 0
        self._piece = 0
        """The number of earlier pieces of the soak; a part of each label value, so that pieces write different ones."""
        self._doubtful = ""
        self._turn = asyncio.Lock()
        self.upstream = Upstream()
        self.lost = 0
        """The number of writes that were rejected, or whose responses were lost."""

    async def churn(self, per_second: float) -> None:
        """Change projects until canceled."""
        while True:
            async with self._turn:
                await self.change_randomly()
            await asyncio.sleep(self._random.expovariate(per_second))

    def quiet(self) -> asyncio.Lock:
        """Return a lock; while it is held, only its holder makes changes."""
        return self._turn

    async def change_randomly(self) -> bool:
        """Make one random change; return whether it is known to have been applied."""
        return await self._try(self._one)

    async def mark(self) -> str:
        """Write a new label value to the marker object, until it succeeds; the lock must be held."""
        self._writes += 1
        mark = f"{self._piece}-{self._writes}"
        labels = {"mark": mark, "env": "prod"}
        while not await self._try(lambda api: self._label(api, MARK, labels)):  # noqa: ASYNC110 - polled
            await asyncio.sleep(_TRY_AGAIN_S)
        return mark

    async def load_or_create(self) -> bool:
        """Read the existing objects or create new ones; return whether there were any."""
        async with self._server.api() as api:
            left = {document["metadata"]["name"]: document for document in (await api.call("GET", COLLECTION))["items"]}
            for name in {*self.upstream.names(), *left}:
                self._note(name, left.get(name))
            if left:
                before = dict(self.upstream[MARK].labels).get("mark", "0-0")
                self._piece = int(before.partition("-")[0]) + 1
                return True
            await self._create(api, MARK, ready=True)
            for name in NAMES[: len(NAMES) * 2 // 3]:
                await self._create(api, name, ready=True)
        return False

    @property
    def writes(self) -> int:
        return self._writes

    async def _try(self, write: Any) -> bool:
        try:
            async with self._server.api() as api:
                if self._doubtful:
                    await self._settle(api)
                await write(api)
        except _LOST:
            self.lost += 1
            return False
        return True

    async def _settle(self, api: Api) -> None:
        name = self._doubtful
        try:
            self._note(name, await api.call("GET", f"{COLLECTION}/{name}"))
        except RefusedError as error:
            if error.status != 404 or '"NotFound"' not in str(error) or name not in str(error):
                raise
            self._note(name, None)

    async def _one(self, api: Api) -> None:
        self._writes += 1
        present = [name for name in self.upstream.names() if name != MARK]
        if len(present) < len(NAMES) // 2:
            absent = [name for name in NAMES if name not in present]
            await self._create(api, self._random.choice(absent), ready=self._random.random() < 0.8)
            return
        name = self._random.choice(present)
        match self._random.choices(("delete", "replace", "turn", "relabel", "annotate"), (2, 2, 4, 8, 6))[0]:
            case "delete":
                await self._delete(api, name)
            case "replace":
                await self._delete(api, name)
                await self._create(api, name, ready=True)
            case "turn":
                await self._set_ready(api, name, not self.upstream[name].ready)
            case "relabel":
                await self._label(api, name, {"env": self._random.choice(ENVIRONMENTS)})
            case _:
                metadata = {"annotations": {"example.com/write": str(self._writes)}}
                await self._call(api, name, "PATCH", f"/{name}", {"metadata": metadata})

    async def _create(self, api: Api, name: str, *, ready: bool) -> None:
        body = {
            "apiVersion": "/".join(COLLECTION.split("/")[2:4]),
            "kind": "Project",
            "metadata": {
                "name": name,
                "labels": {"env": self._random.choice(ENVIRONMENTS)},
                "annotations": {"example.com/big": BIG},
            },
            "spec": {"ownerRef": {"kind": "Organization", "name": "acme"}},
        }
        await self._call(api, name, "POST", "", body)
        if ready:
            await self._set_ready(api, name, True)

    async def _set_ready(self, api: Api, name: str, ready: bool) -> None:
        condition = {
            "type": "Ready",
            "status": str(ready),
            "reason": "Soak",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        await self._call(api, name, "PATCH", f"/{name}/status", {"status": {"conditions": [condition]}})

    async def _label(self, api: Api, name: str, labels: dict[str, str]) -> None:
        await self._call(api, name, "PATCH", f"/{name}", {"metadata": {"labels": labels}})

    async def _delete(self, api: Api, name: str) -> None:
        self._doubtful = name
        await api.call("DELETE", f"{COLLECTION}/{name}")
        self._note(name, None)

    async def _call(self, api: Api, name: str, method: str, path: str, body: object) -> None:
        self._doubtful = name
        self._note(name, await api.call(method, COLLECTION + path, body))

    def _note(self, name: str, document: dict[str, Any] | None) -> None:
        self._doubtful = ""
        if document is None:
            self.upstream.note(name, None)
            return
        metadata = document["metadata"]
        conditions = document.get("status", {}).get("conditions", [])
        is_ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
        labels = tuple(sorted(metadata.get("labels", {}).items()))
        self.upstream.note(name, State(metadata["uid"], is_ready, labels))
