"""Milo's quota: consumers that are granted `LIMIT` claim twice as much, with an amount of one per claim.

Consumers are organizations, whose claims are in the core API, and projects, whose claims are in the project.
"""

import asyncio
import time
from collections.abc import Sequence
from http import HTTPStatus
from itertools import product
from typing import Any

import aiohttp
import msgspec

from bench import projects
from bench.access import MERGE, PROJECTS, Access

LIMIT = 10
CLAIMS = 2 * LIMIT
_ORGANIZATIONS, _PROJECTS = 10, 40
_WRITERS = 16
_LOOK_EVERY_S = 0.5
_READY_WITHIN_S = 120.0
_DECIDED_WITHIN_S = 180.0
_SETTLED_S = 5.0
_MANAGER = "resourcemanager.miloapis.com"
_QUOTA = "quota.miloapis.com/v1alpha1"
_GRANTED, _DENIED = "QuotaAvailable", "QuotaExceeded"
_NOT_YET = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)
"""The server's status codes until it has processed a new project's namespace or a new registration."""
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""The server's status codes while it is overloaded, as after a failover."""


class Consumer(msgspec.Struct, frozen=True):
    kind: str
    name: str
    namespace: str
    control_plane: str = ""

    @property
    def reference(self) -> dict[str, str]:
        return {"apiGroup": _MANAGER, "kind": self.kind, "name": self.name}

    def path(self, plural: str) -> str:
        return f"{self.control_plane}/apis/{_QUOTA}/namespaces/{self.namespace}/{plural}"


def consumers(count: int) -> list[Consumer]:
    """Return organizations, and up to `_PROJECTS` of the projects."""
    names = [projects.name(index) for index in range(min(count, _PROJECTS))]
    return [
        *(Consumer("Organization", f"bench-{n}", f"organization-bench-{n}") for n in range(_ORGANIZATIONS)),
        *(Consumer("Project", name, "milo-system", f"{PROJECTS}/{name}/control-plane") for name in names),
    ]


class Quota:
    """Grants and claims of one resource type, which is named after the step."""

    def __init__(self, access: Access, step: str, of: Sequence[Consumer]) -> None:
        self._access, self._step, self._consumers = access, step, of
        self._granted: set[tuple[Consumer, str]] = set()
        """Claims that were granted at any time."""

    async def grant(self) -> None:
        """Create the grants; return once they apply."""
        async with self._access.session() as session, asyncio.timeout(_READY_WITHIN_S):
            for kind in ("Organization", "Project"):
                spec = {
                    "consumerType": {"apiGroup": _MANAGER, "kind": kind},
                    "type": "Entity",
                    "resourceType": self._type(kind),
                    "baseUnit": "project",
                    "displayUnit": "projects",
                    "unitConversionFactor": 1,
                    "claimingResources": [{"apiGroup": _MANAGER, "kind": "Project"}],
                }
                name = f"{self._step}-{kind.lower()}"
                await _create(session, f"/apis/{_QUOTA}/resourceregistrations", "ResourceRegistration", name, spec)
            for consumer in self._consumers:
                await _create(session, f"{consumer.control_plane}/api/v1/namespaces", "Namespace", consumer.namespace)
                allowance = {"resourceType": self._type(consumer.kind), "buckets": [{"amount": LIMIT}]}
                spec = {"consumerRef": consumer.reference, "allowances": [allowance]}
                await _create(session, consumer.path("resourcegrants"), "ResourceGrant", self._step, spec)
            for consumer in self._consumers:
                await self._applied(session, consumer)

    async def _applied(self, session: aiohttp.ClientSession, consumer: Consumer) -> None:
        """Wait until the grant of a consumer applies.

        Milo rejects a grant if the controller that validates it has not seen the registration yet, and validates it
        again only after a change.
        """
        grant = f"{consumer.path('resourcegrants')}/{self._step}"
        while True:
            buckets = await _list(session, consumer.path("allowancebuckets"))
            of_type = [bucket for bucket in buckets if bucket["spec"]["resourceType"] == self._type(consumer.kind)]
            if any(bucket.get("status", {}).get("limit") for bucket in of_type):
                return
            change = {"metadata": {"annotations": {"bench.example.com/changed-at": str(time.time())}}}
            async with session.patch(grant, json=change, headers=MERGE):
                pass  # an error is ignored, since the change is repeated
            await asyncio.sleep(_LOOK_EVERY_S)

    async def claim(self, indices: range) -> None:
        """Create the claims with these indices for each consumer."""
        left = iter(product(self._consumers, indices))

        async def work() -> None:
            for consumer, index in left:
                name = f"{self._step}-{index}"
                spec = {
                    "consumerRef": consumer.reference,
                    "requests": [{"resourceType": self._type(consumer.kind), "amount": 1}],
                    "resourceRef": {"apiGroup": _MANAGER, "kind": "Project", "name": name},
                }
                await _create(session, consumer.path("resourceclaims"), "ResourceClaim", name, spec)

        async with self._access.session() as session, asyncio.TaskGroup() as tasks:
            for _ in range(_WRITERS):
                tasks.create_task(work())

    async def decided(self) -> dict[str, float]:
        """Wait, within a limit, until all claims are granted or denied, and longer, since decisions may change."""
        began = decided_at = time.perf_counter()
        undecided = -1
        async with self._access.session() as session:
            while (now := time.perf_counter()) - began < _DECIDED_WITHIN_S and now - decided_at < _SETTLED_S:
                before, undecided = undecided, len(self._consumers) * CLAIMS - await self._look(session)
                if undecided or before:
                    decided_at = time.perf_counter()
                await asyncio.sleep(_LOOK_EVERY_S)
        granted = {
            quota_consumer: sum(consumer == quota_consumer for consumer, _ in self._granted)
            for quota_consumer in self._consumers
        }
        over = {consumer: max(0, count - LIMIT) for consumer, count in granted.items()}
        return {
            "quota.claims": len(self._consumers) * CLAIMS,
            "quota.seconds": decided_at - began,
            "quota.undecided": undecided,
            "quota.granted_of_limit": min(granted.values()) / LIMIT,
            "quota.core.granted_over_limit": sum(
                count for consumer, count in over.items() if not consumer.control_plane
            ),
            "quota.projects.granted_over_limit": sum(
                count for consumer, count in over.items() if consumer.control_plane
            ),
        }

    async def _look(self, session: aiohttp.ClientSession) -> int:
        """Record which claims are granted; return how many are decided."""
        decided = 0
        for consumer in self._consumers:
            for claim in await _list(session, consumer.path("resourceclaims")):
                name = claim["metadata"]["name"]
                reasons = {condition["reason"] for condition in claim.get("status", {}).get("conditions", ())}
                if name.startswith(f"{self._step}-"):
                    decided += bool(reasons & {_GRANTED, _DENIED})
                    self._granted |= {(consumer, name)} if _GRANTED in reasons else set()
        return decided

    def _type(self, kind: str) -> str:
        return f"bench.example.com/{self._step}-of-{kind.lower()}s"


async def _create(
    session: aiohttp.ClientSession, collection: str, kind: str, name: str, spec: dict[str, Any] | None = None
) -> None:
    """Create an object unless it exists; retry until the server accepts it."""
    body = {"apiVersion": _QUOTA if spec else "v1", "kind": kind, "metadata": {"name": name}, "spec": spec or {}}
    while True:
        async with session.post(collection, json=body) as answer:
            if answer.status not in (*_NOT_YET, *_BUSY):
                if answer.status >= 400 and answer.status != HTTPStatus.CONFLICT:
                    raise ConnectionError(f"POST {collection}: {answer.status} {await answer.text()}")
                return
        await asyncio.sleep(_LOOK_EVERY_S)


async def _list(session: aiohttp.ClientSession, collection: str) -> list[dict[str, Any]]:
    while True:
        async with session.get(collection) as answer:
            if answer.status not in _BUSY:
                answer.raise_for_status()
                return (await answer.json())["items"]
        await asyncio.sleep(_LOOK_EVERY_S)
