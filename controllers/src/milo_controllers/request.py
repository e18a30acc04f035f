"""The request that a reconciler receives: one object of one cluster, with reads and writes there."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, Protocol, TypeVar, cast, overload

import msgspec

from milo_controllers.cluster_api import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_MERGE_PATCH,
    ClusterApi,
)
from milo_controllers.conditions import (
    ConditionStatus,
    is_terminating,
    owner_reference,
    with_condition,
    with_owner,
)
from milo_controllers.errors import Conflict, ControllerError, NotFound
from milo_controllers.event_log import EventContent, EventType
from milo_controllers.event_loop import ThreadCalls
from milo_controllers.event_recorder import EventRecorder, log_lost
from milo_controllers.fleet_view import ClusterCaches, FleetView
from milo_controllers.kinds import AnyKind, Document, Kind, ObjectT, document, kind_of
from milo_controllers.options import check_options
from milo_controllers.own_writes import Write
from milo_controllers.work_queue import Work
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import DiscoveryError

log = logging.getLogger("milo_controllers")

Other = TypeVar("Other")

PatchType = Literal["merge", "json", "strategic"]
_PATCHES: Mapping[PatchType, str] = {"merge": MERGE_PATCH, "json": JSON_PATCH, "strategic": STRATEGIC_MERGE_PATCH}
_CONFLICT_RETRIES = 4


@dataclass(frozen=True, slots=True)
class Result:
    """The result that a reconciler may return."""

    requeue_after: timedelta | None = None
    """Reconcile the object again after this time, unless it changes earlier."""

    def __post_init__(self) -> None:
        check_options("", requeue_after=self.requeue_after)


class _ObservedMetadata(msgspec.Struct):
    generation: int | None = None


class _Observed(msgspec.Struct):
    metadata: _ObservedMetadata


_OBSERVED = msgspec.json.Decoder(_Observed)


class RequestedCluster(Protocol):
    """The parts of an engaged cluster that a request uses."""

    @property
    def api(self) -> ClusterApi: ...
    @property
    def view(self) -> ClusterCaches: ...
    @property
    def events(self) -> EventRecorder: ...


class Request(Generic[ObjectT]):
    """One object to reconcile. The object may no longer exist."""

    def __init__(
        self,
        kind: Kind[ObjectT],
        work: Work,
        member: RequestedCluster,
        *,
        clusters: FleetView,
        field_manager: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.kind = kind
        self.namespace = work.key.namespace
        self.name = work.key.name
        self.clusters = clusters
        """The caches of all clusters."""
        self.failures = work.failures
        """Consecutive failures before this attempt."""
        self.writes: dict[tuple[str, str, str], Write] = {}
        """The last write of each object, by resource, namespace and name."""
        self._member = member
        self._field_manager = field_manager
        self._now = now
        self._calls = ThreadCalls()
        self._written: Document | None = None
        """The object as this reconcile last wrote it, which the cache may not contain yet."""
        self._observed: bytes | None = None
        """The object that `get` last returned."""

    def __repr__(self) -> str:
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"<Request {self.cluster.name}: {self.kind.resource} {place}>"

    @property
    def cluster(self) -> EngagedCluster:
        """The cluster that the object is in. `cluster.api_client()` opens a client of the kubernetes package."""
        return self._member.view.cluster

    def wait(self, call: Coroutine[Any, Any, Other]) -> Other:
        """Run a call in the event loop and return its result, for a reconciler that is a plain function.

        For example `request.wait(request.get())`. Raises CancelledError if the reconcile was canceled, and RuntimeError
        in an async reconciler.
        """
        return self._calls.wait(call)

    def end(self) -> None:
        """Cancel the calls of `wait`. Called by the controller at the end of the reconcile."""
        self._calls.end()

    # --- reads ---

    @overload
    async def get(self) -> ObjectT | None: ...
    @overload
    async def get(self, kind: str, name: str, namespace: str | None = None) -> Document | None: ...
    @overload
    async def get(self, kind: Kind[Other], name: str, namespace: str | None = None) -> Other | None: ...
    async def get(self, kind: Any = None, name: str | None = None, namespace: str | None = None) -> Any:
        """Return the reconciled object, or the one of this kind and name, from the cache; None if it does not exist.

        Without arguments, the result includes what this reconcile wrote. Raises NotCached or NotSynced.
        """
        if kind is None or name is None:
            written = self._written
            if written is not None:
                self._observed = msgspec.json.encode(written)
                return self.kind.decode(self._observed)
            self._observed = self._member.view.raw(self.kind, self.name, self.namespace)
            return self._member.view.get(self.kind, self.name, self.namespace)
        return self._member.view.get(kind, name, self._default(namespace))

    @overload
    def list(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        owned: bool = False,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[Document]: ...
    @overload
    def list(
        self,
        kind: Kind[Other],
        namespace: str | None = None,
        *,
        owned: bool = False,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[Other]: ...
    def list(
        self,
        kind: Any,
        namespace: str | None = None,
        *,
        owned: bool = False,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[Any]:
        """Return objects of the cluster from the cache: of one namespace or all; with `owned`, only those that this
        object owns; with `index=(NAME, VALUE)`, only those for which the index function returned the value.

        Raises NotCached or NotSynced.
        """
        owner = self._metadata()["uid"] if owned else None
        return self._member.view.list(kind, namespace, owner=owner, index=index)

    async def read(self, kind: AnyKind, name: str, namespace: str | None = None) -> Document:
        """Read an object from the API server. Raises NotFound, or NotServed for an unknown kind."""
        return await self._member.api.send("GET", kind_of(kind).path(name, self._default(namespace)))

    # --- writes ---

    async def create(self, kind: AnyKind, body: object, *, owned: bool = False) -> Document:
        """Create an object, with the reconciled object as its controller if `owned`. Raises AlreadyExists."""
        kind, body = await self._prepared(kind, body, owned=owned)
        path = kind.collection(self._namespace(body))
        return self._noted(kind, await self._member.api.send("POST", path, self._manager, body))

    async def update(self, kind: AnyKind, body: object) -> Document:
        """Replace an object. Raises Conflict if `metadata.resourceVersion` of `body` is not the current one."""
        kind, body = await self._prepared(kind, body)
        path = kind.path(body["metadata"]["name"], self._namespace(body))
        return self._noted(kind, await self._member.api.send("PUT", path, self._manager, body))

    async def apply(self, kind: AnyKind, body: object, *, owned: bool = False, force: bool = True) -> Document:
        """Create or change an object by server-side apply, with the reconciled object as its controller if `owned`.

        The field manager is the name of the controller. `force` takes over fields of other managers; without it,
        such fields raise Conflict.
        """
        kind, body = await self._prepared(kind, body, owned=owned)
        path = kind.path(body["metadata"]["name"], self._namespace(body))
        query = [*self._manager, ("force", str(force).lower())]
        return self._noted(kind, await self._member.api.send("PATCH", path, query, body, content_type=APPLY_PATCH))

    async def patch(
        self,
        kind: AnyKind,
        name: str,
        patch: object,
        *,
        namespace: str | None = None,
        subresource: str = "",
        type: PatchType = "merge",  # noqa: A002
    ) -> Document:
        """Patch an object, or a subresource of it. Raises Conflict if `patch` has an old `metadata.resourceVersion`.

        `type`: merge, json or strategic.
        """
        if type not in _PATCHES:
            raise ValueError(
                f"type={type!r} is not one of {', '.join(_PATCHES)}; for a server-side apply, call `apply`"
            )
        kind = kind_of(kind)
        path = kind.path(name, self._default(namespace), subresource)
        return self._noted(
            kind, await self._member.api.send("PATCH", path, self._manager, patch, content_type=_PATCHES[type])
        )

    async def delete(self, kind: AnyKind, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        """Delete an object; it is not an error if it does not exist. With `uid`, only the object with this UID."""
        body: Document = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        kind, place = kind_of(kind), (self._default(namespace), name)
        with suppress(NotFound):
            answer = await self._member.api.send("DELETE", kind.path(name, place[0]), (), body)
            # The server returns the object if it waits for finalizers; otherwise a Status, or the last state.
            if answer.get("kind") == "Status":
                found = str((answer.get("details") or {}).get("uid") or uid or "")
                self.writes[kind.resource, *place] = Write(kind.resource, place, found, "")
            else:
                self._noted(kind, answer)

    # --- the object itself ---

    async def patch_status(self, status: Mapping[str, Any]) -> None:
        """Merge `status` into the status of the object, without a resourceVersion: the last writer wins."""
        await self.patch(self.kind, self.name, {"status": status}, subresource="status")

    async def set_condition(self, type_: str, status: ConditionStatus, reason: str, message: str = "") -> bool:
        """Set a condition in the status of the object. Return whether it was changed.

        The condition's observedGeneration is that of the object that `get` last returned. lastTransitionTime changes
        only if `status` changes. A conflict is retried with the newer object, up to four times.
        """
        observed = self._observed and _OBSERVED.decode(self._observed).metadata.generation

        def changed(found: Document) -> Document | None:
            conditions = (found.get("status") or {}).get("conditions") or ()
            generation = observed or found["metadata"].get("generation")
            wanted = with_condition(conditions, type_, status, reason, message, generation=generation, now=self._now())
            return None if wanted is None else {"status": {"conditions": wanted}}

        return await self._change(changed, subresource="status")

    async def ensure_finalizer(self, finalizer: str) -> bool:
        """Add the finalizer unless the object has it or is terminating. Return whether it was added.

        Conflicts are retried as in `set_condition`.
        """

        def changed(found: Document) -> Document | None:
            finalizers: builtins.list[str] = found["metadata"].get("finalizers") or []
            if finalizer in finalizers or is_terminating(found):
                return None
            return {"metadata": {"finalizers": [*finalizers, finalizer]}}

        return await self._change(changed)

    async def remove_finalizer(self, finalizer: str) -> bool:
        """Remove the finalizer, if the object has it. Return whether it was removed.

        Conflicts are retried as in `set_condition`.
        """

        def changed(found: Document) -> Document | None:
            finalizers: builtins.list[str] = found["metadata"].get("finalizers") or []
            if finalizer not in finalizers:
                return None
            return {"metadata": {"finalizers": [other for other in finalizers if other != finalizer]}}

        try:
            return await self._change(changed)
        except NotFound:
            return False

    async def owner_reference(self, *, controller: bool = True) -> Document:
        """Return a reference to the object, for objects that it owns. Raises NotFound if it does not exist."""
        return owner_reference(await self._whole_document(), controller=controller)

    async def event(self, reason: str, note: str, *, type: EventType = "Normal", action: str = "Reconcile") -> None:  # noqa: A002
        """Record an event of the object. Repetitions become a series. A failure is logged, and not raised."""
        check_options("event", reason=reason, note=note, type=type, action=action)
        try:
            regarding = await self._whole_document()
        except (ControllerError, DiscoveryError) as error:
            log_lost(self.cluster.name, reason, self.name, error)
        else:
            await self._member.events.record(regarding, EventContent(type, reason, action, note), self._now())

    # --- internals ---

    async def _change(self, changed: Callable[[Document], Document | None], *, subresource: str = "") -> bool:
        """Send the patch that `changed` returns, with the resourceVersion it is based on, and retry conflicts."""
        found = await self._whole_document() if subresource else self._document()
        for attempt in range(_CONFLICT_RETRIES + 1):
            patch = changed(found)
            if patch is None:
                return False
            metadata = found["metadata"]
            # With these fields, the server refuses the patch if the object has changed or was replaced.
            locked = {"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]}
            body = {**patch, "metadata": {**patch.get("metadata", {}), **locked}}
            try:
                written = await self._member.api.send(
                    "PATCH",
                    self.kind.path(self.name, self.namespace, subresource),
                    self._manager,
                    body,
                    content_type=MERGE_PATCH,
                )
                self._noted(self.kind, written)
            except Conflict:
                current = await self.read(self.kind, self.name, self.namespace)
                if attempt == _CONFLICT_RETRIES or current["metadata"]["uid"] != metadata["uid"]:
                    raise
                found = current
            else:
                return True
        raise AssertionError("no attempt returned or raised")

    def _document(self) -> Document:
        """Return the object as a dict. Raises NotFound if it does not exist."""
        if self._written is not None:
            return self._written
        found = self._member.view.document(self.kind, self.name, self.namespace)
        if found is None:
            raise NotFound(404, "NotFound", f"{self!r}: the object does not exist")
        return found

    async def _whole_document(self) -> Document:
        """Return the object with its kind and status, which a partial cache may lack. Raises NotFound."""
        if self._written is None and self._member.view.is_partial(self.kind):
            self._written = await self.read(self.kind, self.name, self.namespace)
        return self._document()

    def _metadata(self) -> Document:
        return cast(Document, self._document()["metadata"])

    async def _prepared(self, kind: AnyKind, body: object, *, owned: bool = False) -> tuple[Kind[Any], Document]:
        found, kind = document(body), kind_of(kind)
        if not (found.get("metadata") or {}).get("name") and not (found.get("metadata") or {}).get("generateName"):
            raise ValueError(f"the object of kind {kind.resource} has neither metadata.name nor metadata.generateName")
        if "apiVersion" not in found:
            found = {"apiVersion": kind.api_version, **found}
        if owned and self.namespace and self._namespace(found) != self.namespace:
            # The garbage collector would delete the object: it looks for the owner in the object's namespace.
            raise ValueError(
                f"{self!r} cannot own an object outside of its namespace; delete that object in a finalizer"
            )
        return kind, with_owner(found, owner_reference(await self._whole_document())) if owned else found

    def _namespace(self, body: Document) -> str:
        return self._default(body["metadata"].get("namespace"))

    def _default(self, namespace: str | None) -> str:
        return self.namespace if namespace is None else namespace

    @property
    def _manager(self) -> builtins.list[tuple[str, str]]:
        return [("fieldManager", self._field_manager)]

    def _noted(self, kind: Kind[Any], written: Document) -> Document:
        """Record the write, and the object if it is the one that is reconciled."""
        write = Write.of_response(kind.resource, written)
        if write is not None:
            self.writes[kind.resource, *write.place] = write
            if kind.resource == self.kind.resource and write.place == (self.namespace, self.name):
                self._written = written
        return written
