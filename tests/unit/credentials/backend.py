"""A cluster and a scripted API, for tests of credential issuers."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from milo_discoveryd.model.cluster import Cluster, Target
from milo_kube.http.errors import TransportError

ALPHA = Target(name="alpha", uid="uid-alpha", place=("https://milo.test/alpha",))


def engaged(target: Target = ALPHA, incarnation: int = 1, *, object_uid: str = "") -> Cluster:
    return Cluster(
        target=target,
        source_version="1",
        engaged_at=0.0,
        incarnation=incarnation,
        object_uid=object_uid or f"object-of-{target.uid}",
    )


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


def answering(status: int, value: object, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), headers)


class ScriptedApi:
    """An API with scripted responses, which records its requests."""

    def __init__(self, *answers: Answer | TransportError) -> None:
        self.answers = deque(answers)
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.before_deletions: Callable[[], Awaitable[None]] = partial(asyncio.sleep, 0)
        """What a deletion waits for before it is sent."""

    async def get(self, path: str, query: Iterable[tuple[str, str]] = (), *, timeout_s: float) -> Answer:
        return self._next("GET", path)

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        self.bodies.append(body)
        return self._next("POST", path)

    async def delete(
        self, path: str, body: bytes, *, timeout_s: float, sending: Callable[[], None] | None = None
    ) -> Answer:
        await self.before_deletions()
        if sending is not None:
            sending()
        self.bodies.append(body)
        return self._next("DELETE", path)

    def _next(self, method: str, path: str) -> Answer:
        self.asked.append((method, path))
        answer = self.answers.popleft()
        if isinstance(answer, TransportError):
            raise answer
        return answer
