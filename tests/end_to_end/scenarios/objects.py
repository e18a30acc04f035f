"""The objects that a mode watches, written to any server, without a client library."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeAlias

import aiohttp
import msgspec

from tests.end_to_end.scenarios.kubeconfig import Access
from tests.end_to_end.scenarios.steps import Mode

Document: TypeAlias = dict[str, Any]

ORGANIZATION_LABEL = "resourcemanager.miloapis.com/organization-name"
OWNER_ANNOTATION = "resourcemanager.miloapis.com/owner-name"
PROJECT_FINALIZER = "resourcemanager.miloapis.com/project-controller"
PROJECT_UID_LABEL = "resourcemanager.miloapis.com/project-uid"
DEFAULT_ORGANIZATION = "acme"

_AT_ONCE = 16
_LATER = (429, 503)
_PATIENCE_S = 600.0
"""Limit for each request and for each wait for a condition. It is this long because Milo's controllers check a deleted
project for remaining objects only every 30 seconds, and scenarios delete dozens of projects at once.
"""
_ASK_AGAIN_S = 0.1


class ServerRefusedError(Exception):
    """The server rejected a request, or did not respond."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Status(msgspec.Struct):
    message: str


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    group: str
    name: str
    plural: str
    condition: str
    """The condition that must be True for an engagement."""

    @property
    def collection(self) -> str:
        return f"/apis/{self.group}/v1alpha1/{self.plural}"


KINDS: Mapping[Mode, Kind] = {
    "project": Kind(group="resourcemanager.miloapis.com", name="Project", plural="projects", condition="Ready"),
    "project-control-plane": Kind(
        group="infrastructure.miloapis.com",
        name="ProjectControlPlane",
        plural="projectcontrolplanes",
        condition="ControlPlaneReady",
    ),
}


class Objects:
    """The objects of a mode's kind on a server, with all UIDs that each name has had."""

    def __init__(self, mode: Mode, access: Access, *, has_controllers: bool = False) -> None:
        """`has_controllers`: Milo's controllers set the conditions, and empty a project before they delete it."""
        self._has_controllers = has_controllers
        self._mode = mode
        self._kind = KINDS[mode]
        self._access = access
        self._uids: dict[str, list[str]] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # One connection per request, since pooled ones would outlive the server.
            connector=aiohttp.TCPConnector(ssl=self._access.tls, force_close=True, limit=_AT_ONCE),
            timeout=aiohttp.ClientTimeout(total=_PATIENCE_S),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def uids(self, name: str) -> list[str]:
        """Return the UIDs that the objects of a name had, oldest first; the name may be a key with the name of a
        source.
        """
        return self._uids.get(name.rpartition("#")[2], [])

    async def create(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        finalizers: Iterable[str] = (),
        ready: bool = False,
    ) -> None:
        labels, annotations = dict(labels or {}), dict(annotations or {})
        spec: Document = {}
        if self._mode == "project":
            # The owner in the spec, from which Milo writes the organization label.
            owner = labels.get(ORGANIZATION_LABEL) or annotations.get(OWNER_ANNOTATION) or DEFAULT_ORGANIZATION
            spec = {"ownerRef": {"kind": "Organization", "name": owner}}
        created = await self._call(
            "POST",
            "",
            {
                "apiVersion": f"{self._kind.group}/v1alpha1",
                "kind": self._kind.name,
                "metadata": {
                    "name": name,
                    "labels": labels,
                    "annotations": annotations,
                    "finalizers": list(finalizers),
                },
                "spec": spec,
            },
        )
        if ready and self._has_controllers:
            await self._until(lambda document: document is not None and self._is_ready(document), name)
        elif ready:
            await self._set_condition(created, "", "True", "")

    async def burst(self, prefix: str, count: int, labels: Mapping[str, str]) -> None:
        """Create objects concurrently, within the limit of connections."""
        creations = (self.create(f"{prefix}-{number}", labels=labels, ready=True) for number in range(count))
        for outcome in await asyncio.gather(*creations, return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def condition(self, name: str, status: str, *, kind: str = "", message: str = "") -> None:
        await self._set_condition(await self._call("GET", name), kind, status, message)

    async def label(self, name: str, put: Mapping[str, str], unset: Iterable[str]) -> None:
        await self._call("PATCH", name, {"metadata": {"labels": {**put, **dict.fromkeys(unset)}}})

    async def annotate(self, name: str, put: Mapping[str, str], unset: Iterable[str]) -> None:
        await self._call("PATCH", name, {"metadata": {"annotations": {**put, **dict.fromkeys(unset)}}})

    async def delete(self, name: str) -> None:
        await self._call("DELETE", name)

    async def unfinalize(self, name: str) -> None:
        held = (await self._call("GET", name))["metadata"].get("finalizers", [])
        kept = [finalizer for finalizer in held if self._has_controllers and finalizer == PROJECT_FINALIZER]
        await self._call("PATCH", name, {"metadata": {"finalizers": kept or None}})

    async def replace(self, name: str) -> None:
        """Replace the object with one of the same content, without the fields that the server sets."""
        metadata = (await self._call("GET", name))["metadata"]
        await self.delete(name)
        await self._until(lambda document: document is None, name)
        await self.create(name, labels=metadata.get("labels"), annotations=metadata.get("annotations"), ready=True)

    async def clear(self) -> None:
        """Delete all objects, with their finalizers."""
        for item in (await self._call("GET", ""))["items"]:
            if item["metadata"].get("finalizers"):
                await self.unfinalize(item["metadata"]["name"])
        await self._call("DELETE", "")
        await self._until(lambda document: document is not None and not document["items"], "")

    def _is_ready(self, document: Document) -> bool:
        conditions = document.get("status", {}).get("conditions", [])
        return any(
            (condition["type"], condition["status"]) == (self._kind.condition, "True") for condition in conditions
        )

    async def _until(self, holds: Callable[[Document | None], bool], name: str) -> None:
        """Read an object until a condition on it holds; the condition is given None if there is no such object."""
        async with asyncio.timeout(_PATIENCE_S):
            while not holds(await self._found(name)):  # noqa: ASYNC110 - the server has no event
                await asyncio.sleep(_ASK_AGAIN_S)

    async def _found(self, name: str) -> Document | None:
        try:
            return await self._call("GET", name)
        except ServerRefusedError as error:
            if error.status != 404:
                raise
            return None

    async def _set_condition(self, document: Document, kind: str, status: str, message: str) -> None:
        kind = kind or self._kind.condition
        held = document.get("status", {}).get("conditions", [])
        before: Document = next((existing for existing in held if existing["type"] == kind), {})
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": kind,
            "status": status,
            "reason": "Scenario",
            "message": message,
            "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == status else now,
        }
        conditions = [existing for existing in held if existing["type"] != kind] + [condition]
        await self._call("PATCH", f"{document['metadata']['name']}/status", {"status": {"conditions": conditions}})

    async def _call(self, method: str, name: str, body: Document | None = None) -> Document:
        path = f"{self._kind.collection}/{name}".rstrip("/")
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while (answer := await self._answer(method, path, body)) is None:  # noqa: ASYNC110 - polled
                    await asyncio.sleep(_ASK_AGAIN_S)
        except aiohttp.ClientError as error:
            raise ServerRefusedError(f"{method} {path}: {error}") from error
        except TimeoutError:
            raise ServerRefusedError(f"{method} {path}: no response within {_PATIENCE_S:g} s") from None
        self._remember(answer)
        return answer

    async def _answer(self, method: str, path: str, body: Document | None) -> Document | None:
        """Return the response, or None from a restarted server that asks for a retry."""
        headers = {"Authorization": f"Bearer {token}"} if (token := self._access.token()) else {}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        async with self._session.request(method, self._access.server + path, json=body, headers=headers) as response:
            if response.status in _LATER:
                return None
            if response.status >= 400:
                text = f"{method} {path}: {response.status} {_told(await response.text())}"
                raise ServerRefusedError(text, response.status)
            answer: Document = await response.json()
            return answer

    def _remember(self, document: Document) -> None:
        metadata = document.get("metadata", {})
        if document.get("kind") != self._kind.name or not metadata.get("uid"):
            return
        uid = metadata["uid"]
        if self._mode == "project-control-plane":
            uid = metadata.get("labels", {}).get(PROJECT_UID_LABEL) or uid
        uids = self._uids.setdefault(metadata["name"], [])
        if uids[-1:] != [uid]:
            uids.append(uid)


def _told(text: str) -> str:
    """Return the message of a Status, or the first 300 characters of any other text."""
    try:
        return msgspec.json.decode(text, type=_Status).message
    except msgspec.DecodeError:
        return text[:300]
