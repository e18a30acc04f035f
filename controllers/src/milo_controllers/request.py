"""The request that a reconciler receives: one object of one cluster, with reads and writes there."""

from __future__ import annotations

import builtins
import json
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, cast, overload

import msgspec

from milo_controllers.conditions import (
    ConditionStatus,
    is_terminating,
    owner_reference,
    with_condition,
    with_owner,
)
from milo_controllers.errors import ControllerError
from milo_controllers.event_log import EventContent, EventType
from milo_controllers.event_loop import EventLoop, ThreadCalls
from milo_controllers.event_recorder import EventRecorder
from milo_controllers.fleet_view import FleetView, RequestCaches
from milo_controllers.kinds import (
    AnyKind,
    Document,
    Kind,
    MetadataDocument,
    ObjectT,
    copied,
    document,
    kind_of,
    retyped,
)
from milo_controllers.object_cache import Place
from milo_controllers.object_patch import merge_patch
from milo_controllers.options import check_options
from milo_controllers.own_object import (
    UNWRITTEN,
    Deleted,
    Outdated,
    OwnObject,
    Written,
    after_deletion,
    after_write,
    deleted_uid,
)
from milo_controllers.own_writes import Write
from milo_controllers.work_queue import Work
from milo_controllers.write_holds import WrittenCluster
from milo_discovery.api_errors import ClusterApiError, Conflict, NotFound
from milo_discovery.cluster_api import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_MERGE_PATCH,
    ClusterApi,
)
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import DiscoveryError
from milo_kube.api_request import JSON

log = logging.getLogger("milo_controllers")

Other = TypeVar("Other")

Subresource = Literal["", "status"]
PatchType = Literal["merge", "json", "strategic"]
Propagation = Literal["Background", "Foreground", "Orphan"]
"""What happens to the objects that a deleted object owns: they are deleted after it or before it, or stay."""
_PATCHES: Mapping[PatchType, str] = {"merge": MERGE_PATCH, "json": JSON_PATCH, "strategic": STRATEGIC_MERGE_PATCH}
_CONFLICT_RETRIES = 4


@dataclass(frozen=True, slots=True)
class Result:
    """The result that a reconciler may return."""

    requeue_after: timedelta | None = None
    """Reconcile the object again after this time, unless it changes earlier."""

    def __post_init__(self) -> None:
        check_options("", requeue_after=self.requeue_after)


class _ReadMetadata(msgspec.Struct, rename="camel"):
    generation: int | None = None
    deletion_timestamp: str | None = None


class _ReadObject(msgspec.Struct):
    metadata: _ReadMetadata


_OBJECT = msgspec.json.Decoder(_ReadObject)


class _WholeMetadata(Document):
    """The metadata of an object as the API server sent it, with all fields, also if some of them are changed since."""


class _Observed(NamedTuple):
    """The object that `get` last returned, with its UID, which `transform=` may have removed."""

    raw: bytes
    uid: str

    @property
    def generation(self) -> int | None:
        return _OBJECT.decode(self.raw).metadata.generation

    @property
    def is_terminating(self) -> bool:
        return bool(_OBJECT.decode(self.raw).metadata.deletion_timestamp)


class RequestedCluster(WrittenCluster, Protocol):
    """The parts of an engaged cluster that a request uses."""

    @property
    def api(self) -> ClusterApi: ...
    @property
    def view(self) -> RequestCaches: ...
    @property
    def loop(self) -> EventLoop: ...
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
        self._calls = ThreadCalls(member.loop)
        self._own: OwnObject = UNWRITTEN
        self._observed: _Observed | None = None

    def __repr__(self) -> str:
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"<Request {self.cluster.name}: {self.kind.resource} {place}>"

    @property
    def cluster(self) -> EngagedCluster:
        """The cluster that the object is in. `cluster.api_client()` opens a client of the kubernetes package."""
        return self._member.view.cluster

    def wait(self, call: Coroutine[Any, Any, Other]) -> Other:
        """Run a call in the event loop and return its result, for a reconciler that is a plain function.

        For example `request.wait(request.get())`. Raises asyncio.CancelledError if the reconcile was canceled, and
        RuntimeError in an async reconciler.
        """
        return self._calls.wait(call)

    def end(self, *, is_canceled: bool = False) -> None:
        """Cancel the calls of `wait`. Called by the controller at the end of the reconcile, or when it is canceled."""
        if is_canceled:  # in a drain, its cleanup may write
            self._calls.cancel(lambda: self.cluster.engaged and self.cluster.draining is not None)
        else:
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
        if kind is None and name is None:
            return await self._own_object()
        if kind is None or name is None:
            raise TypeError(f"request.get({kind!r}, {name!r}): pass a kind and a name, or neither")
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

        Raises NotCached or NotSynced, and with `owned` NotFound if this object does not exist, or Conflict if another
        one has its name since `get` returned it, as do all other methods that concern this object.
        """
        owner = self._uid() if owned else None
        return self._member.view.list(kind, namespace, owner=owner, index=index)

    async def read(self, kind: AnyKind, name: str, namespace: str | None = None) -> Document:
        """Read an object from the API server. Raises NotFound, or NotServed for an unknown kind."""
        return _whole(await self._member.api.send("GET", kind_of(kind).path(name, self._default(namespace))))

    async def read_list(
        self, kind: AnyKind, namespace: str | None = None, *, selector: str = "", field_selector: str = ""
    ) -> builtins.list[Document]:
        """Read the objects of one namespace, or of all, from the API server; a Kind with selectors limits them too."""
        kind = kind_of(kind)
        limits = {
            "labelSelector": (kind.key.selector, selector),
            "fieldSelector": (kind.key.field_selector, field_selector),
        }
        joined = ((name, ",".join(filter(None, selectors))) for name, selectors in limits.items())
        found = await self._member.api.read_list(
            kind.collection(kind.key.namespace if namespace is None else namespace),
            [(name, value) for name, value in joined if value],
        )
        return [_whole(one) for one in found]

    # --- writes ---

    async def create(self, kind: AnyKind, body: object, *, owned: bool = False, dry_run: bool = False) -> Document:
        """Create an object, with the reconciled object as its controller if `owned`. Raises AlreadyExists.

        `dry_run`, here and below: the API server checks the write and returns its result, but does not store it.
        """
        kind, body = await self._prepared(kind, body, owned=owned)
        namespace = self._namespace(body)
        created = await self._send("POST", kind.collection(namespace), body, dry_run=dry_run)
        if not dry_run and self._is_own(kind, (namespace, body["metadata"].get("name", ""))):
            self._observed = None
        return self._noted(kind, created, dry_run=dry_run)

    async def update(
        self, kind: AnyKind, body: object, *, subresource: Subresource = "", dry_run: bool = False
    ) -> Document:
        """Replace an object, or its status. Raises Conflict if `metadata.resourceVersion` is not the current one.

        An object that has a type, or was read from a cache with `transform=` or `metadata_only=`, may lack fields of
        the stored one. They are kept: the change since it was read is sent as a patch. Pass the `Kind` under which it
        was read.
        """
        (kind, document), is_typed = await self._prepared(kind, body), not isinstance(body, dict)
        path = kind.path(_name_of(kind, document), self._namespace(document), subresource)
        is_metadata = isinstance(body, MetadataDocument)  # also if the kind is cached whole too
        cached = Kind(kind.resource, metadata_only=True) if is_metadata else self._member.view.partial_kind(kind)
        metadata = document["metadata"]
        # A cache drops managedFields: a document that has them is as the API server sent it, with all fields.
        is_sent = isinstance(metadata, _WholeMetadata) or "managedFields" in metadata
        is_whole = cached is None or (is_sent and not is_metadata)
        if not is_typed and is_whole:
            written = await self._send("PUT", path, document, dry_run=dry_run)
            return self._noted(kind, written, subresource, dry_run=dry_run)
        whole = await self._as_read(kind, document)
        before = cached.cached_part(whole) if cached else whole
        if is_typed:
            before = retyped(kind, type(body), before)
        changed = merge_patch(before, document, whole)
        changed = {name: value for name, value in changed.items() if name not in ("apiVersion", "kind")}
        if not changed:
            return _whole(copied(whole))
        written = await self._send("PATCH", path, _locked(changed, whole), content_type=MERGE_PATCH, dry_run=dry_run)
        return self._noted(kind, written, subresource, dry_run=dry_run)

    async def apply(
        self,
        kind: AnyKind,
        body: object,
        *,
        owned: bool = False,
        force: bool = True,
        subresource: Subresource = "",
        dry_run: bool = False,
    ) -> Document:
        """Create or change an object, or change its status, by server-side apply.

        `owned`: with the reconciled object as its controller. The field manager is the name of the controller. `force`
        takes over fields of other managers; without it, such fields raise Conflict.
        """
        kind, body = await self._prepared(kind, body, owned=owned)
        path = kind.path(_name_of(kind, body), self._namespace(body), subresource)
        force_query = [("force", str(force).lower())]
        written = await self._send("PATCH", path, body, force_query, content_type=APPLY_PATCH, dry_run=dry_run)
        return self._noted(kind, written, subresource, dry_run=dry_run)

    async def patch(
        self,
        kind: AnyKind,
        name: str,
        patch: object,
        *,
        namespace: str | None = None,
        subresource: str = "",
        type: PatchType = "merge",  # noqa: A002
        dry_run: bool = False,
    ) -> Document:
        """Patch an object, or a subresource of it. Raises Conflict if `patch` has an old `metadata.resourceVersion`.

        `type`: merge, json or strategic.
        """
        if type not in _PATCHES:
            raise ValueError(
                f"type={type!r} is not one of {', '.join(_PATCHES)}; for a server-side apply, call `apply`"
            )
        kind, body = kind_of(kind), patch if isinstance(patch, Sequence) else document(patch)
        path = kind.path(name, self._default(namespace), subresource)
        written = await self._send("PATCH", path, body, content_type=_PATCHES[type], dry_run=dry_run)
        place = self._default(namespace), name
        return self._noted(kind, written, subresource, dry_run=dry_run, place=place)

    async def delete(
        self,
        kind: AnyKind,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation | None = None,
        dry_run: bool = False,
    ) -> None:
        """Delete an object; it is not an error if it does not exist.

        With `uid` or `resource_version`, only the object that has them; another one raises Conflict. `propagation`: by
        default, that of the kind, mostly "Background".
        """
        check_options("delete", propagation=propagation)
        body: Document = {"apiVersion": "v1", "kind": "DeleteOptions"}
        conditions = (("uid", uid), ("resourceVersion", resource_version))
        if required := {name: value for name, value in conditions if value is not None}:
            body["preconditions"] = required
        if propagation is not None:
            body["propagationPolicy"] = propagation
        if dry_run:
            body["dryRun"] = ["All"]  # in the query, kube-apiserver ignores it beside a body
        kind, place = kind_of(kind), (self._default(namespace), name)
        cached_uid, last = self._cached_uid(kind, place), self._last_known() if self._is_own(kind, place) else None
        try:
            answer: Document | None = await self._member.api.send("DELETE", kind.path(name, place[0]), body=body)
        except NotFound:
            answer = None
        if dry_run:
            return
        left = after_deletion(answer, last)
        if isinstance(left, Written):
            self._noted(kind, left.document)
        elif answer is not None:
            before = self.writes.get((kind.resource, *place))
            deleted = deleted_uid(answer) or uid or (before.uid if before else cached_uid)
            self.writes[kind.resource, *place] = Write.of_deletion(kind.resource, place, deleted, before)
        if self._is_own(kind, place):
            self._own = left
            if isinstance(left, Deleted):
                self._observed = None  # the next one is of this reconcile's own creation

    # --- the object itself ---

    async def patch_status(self, status: Mapping[str, Any]) -> None:
        """Merge `status` into the status of the object: the last writer wins, but nothing is written to another object
        that has its name now. Conflicts are retried as in `set_condition`."""
        await self._change(lambda _: {"status": dict(status)}, subresource="status")

    async def set_condition(
        self,
        type_: str,
        status: ConditionStatus,
        reason: str,
        message: str = "",
        *,
        observed_generation: int | None = None,
    ) -> bool:
        """Set a condition in the status of the object. Return whether it was changed.

        The condition's observedGeneration is by default that of the object that `get` last returned. lastTransitionTime
        changes only if `status` changes. A conflict is retried with the newer object, up to four times.
        """
        observed = observed_generation or (self._observed and self._observed.generation)

        def changed(found: Document) -> Document | None:
            conditions = (found.get("status") or {}).get("conditions") or ()
            generation = observed or found["metadata"].get("generation")
            wanted = with_condition(conditions, type_, status, reason, message, generation=generation, now=self._now())
            return None if wanted is None else {"status": {"conditions": wanted}}

        return await self._change(changed, subresource="status")

    async def ensure_finalizer(self, finalizer: str) -> bool:
        """Add the finalizer unless the object has it or is terminating. Return whether it was added.

        Raises Conflict if the deletion was requested after `get` returned the object: nothing may be created that the
        finalizer was for. Other conflicts are retried as in `set_condition`.
        """

        def changed(found: Document) -> Document | None:
            finalizers: builtins.list[str] = found["metadata"].get("finalizers") or []
            if finalizer in finalizers:
                return None
            if is_terminating(found):
                if self._observed is not None and not self._observed.is_terminating:
                    raise Conflict(409, "Conflict", f"{self!r}: its deletion was requested since `get` returned it")
                return None
            return {"metadata": {"finalizers": [*finalizers, finalizer]}}

        return changed(self._document()) is not None and await self._change(changed)

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
        """Record an event of the object, which is written in the background. Repetitions become a series.

        A failure is logged, and not raised.
        """
        check_options("event", reason=reason, note=note, type=type, action=action)
        try:
            if isinstance(self._own, Outdated):
                await self._read_own()
            ended = self._own.last if isinstance(self._own, Deleted) else None
            regarding = ended or await self._whole_document()
        except (ControllerError, ClusterApiError, DiscoveryError) as error:
            self._member.events.lost(reason, self.name, error)
        else:
            await self._member.events.record(regarding, EventContent(type, reason, action, note), self._now())

    # --- internals ---

    async def _change(self, changed: Callable[[Document], Document | None], *, subresource: str = "") -> bool:
        """Send the patch that `changed` returns, with the resourceVersion it is based on, and retry conflicts."""
        # What `transform=` leaves of the metadata may lack finalizers, which the patch would remove.
        is_part = bool(subresource) or self.kind.transform is not None
        found = await self._whole_document() if is_part else self._document()
        for attempt in range(_CONFLICT_RETRIES + 1):
            patch = changed(found)
            if patch is None:
                return False
            try:
                path = self.kind.path(self.name, self.namespace, subresource)
                written = await self._send("PATCH", path, _locked(patch, found), content_type=MERGE_PATCH)
                self._noted(self.kind, written)
            except Conflict:
                current = await self.read(self.kind, self.name, self.namespace)
                if attempt == _CONFLICT_RETRIES or current["metadata"]["uid"] != found["metadata"]["uid"]:
                    raise
                found = current
            else:
                return True
        raise AssertionError("no attempt returned or raised")

    async def _own_object(self) -> ObjectT | None:
        """Return the object with what this reconcile wrote."""
        if isinstance(self._own, Written) and self._is_superseded(self._own.document):
            self._own = UNWRITTEN
        if self._own is UNWRITTEN:
            found = self._member.view.cached(self.kind, self.name, self.namespace)
            self._observed = None if found is None else _Observed(found.raw, found.uid)
            return None if found is None else self._member.view.decoded(self.kind, found.raw)
        if isinstance(self._own, Outdated):
            await self._read_own()
        match self._own:
            case Written(document):
                cached = self.kind if self.kind.metadata_only else self._member.view.partial_kind(self.kind)
                part = cached.cached_part(document) if cached else document
                self._observed = _Observed(msgspec.json.encode(part), document.get("metadata", {}).get("uid", ""))
                return self.kind.decode(self._observed.raw)
            case _:
                return None

    def _is_superseded(self, known: Document) -> bool:
        """Return whether the cache has at least as much of the object as what is known from a write or read."""
        informer, write = self._member.informers[self.kind.key], Write.of_response(self.kind.resource, known)
        if write is None or not self._member.own_writes.is_past(write, informer):
            return False
        cached = informer.cache.get(*write.place)
        return cached is None or cached.version != write.version or not self._member.view.is_partial(self.kind)

    async def _read_own(self) -> None:
        before = self._own
        found: OwnObject = Deleted(before.last if isinstance(before, Outdated) else None)
        with suppress(NotFound):
            found = Written(await self.read(self.kind, self.name, self.namespace))
        if self._own is before or isinstance(self._own, Outdated):  # nothing newer was written meanwhile
            self._own = found

    def _document(self) -> Document:
        """Return the object as a dict. Raises NotFound and Conflict as `_uid`."""
        self._uid()
        if isinstance(self._own, Written):
            return self._own.document
        found = self._member.view.document(self.kind, self.name, self.namespace)
        assert found is not None
        return found

    def _uid(self) -> str:
        """Return the UID of the object, which `transform=` may have removed. Raises NotFound if it does not exist, and
        Conflict if it is another one than `get` returned: what the author does is meant for that one."""
        uid: str | None = None
        if isinstance(self._own, Written):
            uid = self._own.document["metadata"]["uid"]
        elif not isinstance(self._own, Deleted):
            cached = self._member.view.cached(self.kind, self.name, self.namespace)
            uid = None if cached is None else cached.uid
        if uid is None:
            raise NotFound(404, "NotFound", f"{self!r}: the object does not exist")
        if self._observed is not None and self._observed.uid not in ("", uid):
            raise Conflict(409, "Conflict", f"{self!r}: another object has this name since `get` returned it")
        return uid

    def _last_known(self) -> Document | None:
        """Return the object as it is known before it is deleted, with what an event says of it; None if that is not
        known."""
        if isinstance(self._own, Deleted | Outdated):
            return self._own.last
        try:
            found = self._document()
        except (ControllerError, ClusterApiError):
            return None
        # What is cached of a part may lack them, or have the kind of the representation with metadata alone.
        is_described = found.get("apiVersion") == self.kind.api_version and found.get("kind")
        return found if is_described and found["metadata"].get("uid") else None

    def _cached_uid(self, kind: Kind[Any], place: Place) -> str:
        caches = (held.cache for held in self._member.informers.values() if held.key.resource == kind.resource)
        return next((found.uid for cache in caches if (found := cache.get(*place)) is not None), "")

    async def _whole_document(self) -> Document:
        """Return the object with its kind and status, which a partial cache may lack. Raises NotFound."""
        is_partial = self._own is UNWRITTEN and self._member.view.is_partial(self.kind)
        if is_partial or isinstance(self._own, Outdated):
            await self._read_own()
        return self._document()

    async def _as_read(self, kind: Kind[Any], part: Document) -> Document:
        """Return the whole object that a part of it was read from. Raises Conflict if it has changed since."""
        metadata = part["metadata"]
        version, what = metadata.get("resourceVersion"), f"{kind.resource} {metadata['name']}"
        if not version:
            raise ValueError(
                f"update of {what} without metadata.resourceVersion: the object may lack fields of the stored one, "
                "which would be removed. Pass the object that `get` returned, with a type that has resourceVersion, or "
                "call apply or patch"
            )
        place = self._namespace(part), metadata["name"]
        whole = self._own.document if isinstance(self._own, Written) and self._is_own(kind, place) else None
        whole = whole or self._member.view.whole_document(kind, place[1], place[0])
        if whole is None or whole["metadata"]["resourceVersion"] != version:
            whole = await self.read(kind, place[1], place[0])
        if whole["metadata"]["resourceVersion"] != version:
            raise Conflict(409, "Conflict", f"update of {what}: the object has changed since it was read")
        return whole

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

    def _is_own(self, kind: Kind[Any], place: Place) -> bool:
        return kind.resource == self.kind.resource and place == (self.namespace, self.name)

    async def _send(
        self,
        method: str,
        path: str,
        body: object,
        query: Sequence[tuple[str, str]] = (),
        *,
        content_type: str = JSON,
        dry_run: bool = False,
    ) -> Document:
        query = [("fieldManager", self._field_manager), *query, *_dry_run(dry_run)]
        try:
            json.dumps(body, allow_nan=False, default=str, skipkeys=True, ensure_ascii=False)
        except ValueError as error:  # NaN, for example, would be sent as null, which may remove the field
            raise ValueError(f"{method} {path} was not sent: {error}") from None
        try:
            return _whole(await self._member.api.send(method, path, query, body, content_type=content_type))
        except NotFound as error:
            if not path.endswith("/status"):
                raise
            # The answer for the status of an object that exists, too, if its kind has no such subresource.
            why = "if it exists, the CustomResourceDefinition of its kind lacks `subresources: {status: {}}`"
            raise NotFound(error.status, error.reason, f"{error}; {why}", retry_after_s=error.retry_after_s) from None

    def _noted(
        self,
        kind: Kind[Any],
        written: Document,
        subresource: str = "",
        *,
        dry_run: bool = False,
        place: Place | None = None,
    ) -> Document:
        """Record the write, and what is known of the object if it is the one that is reconciled."""
        if dry_run:
            return written
        left = after_write(subresource, written)
        write = Write.of_response(kind.resource, written, self._member.informers)
        if write is not None:
            before = self.writes.get((kind.resource, *write.place))
            if before is not None and before.is_newer(write):
                return written  # of two writes that overlap, the response of the first came last
            place = write.place
            if isinstance(left, Deleted):  # the cache never has this version
                write = Write.of_deletion(kind.resource, place, write.uid, before)
            self.writes[kind.resource, *place] = write
        if place is not None and self._is_own(kind, place):
            # A copy, since the author may change what is returned: it must not be taken for what is stored.
            self._own = after_write(subresource, copied(written))
            if isinstance(left, Deleted):
                self._observed = None
        return written


def _whole(sent: Document) -> Document:
    if isinstance(metadata := sent.get("metadata"), dict):
        sent["metadata"] = _WholeMetadata(metadata)
    return sent


def _dry_run(is_on: bool) -> builtins.list[tuple[str, str]]:
    return [("dryRun", "All")] if is_on else []


def _name_of(kind: Kind[Any], body: Document) -> str:
    name = body["metadata"].get("name")
    if not name:
        raise ValueError(
            f"the object of kind {kind.resource} has no metadata.name: only create accepts generateName instead"
        )
    return cast(str, name)


def _locked(patch: Document, found: Document) -> Document:
    """Return the patch with the fields by which the server refuses it if the object has changed or was replaced."""
    metadata = found["metadata"]
    locked = {"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]}
    return {**patch, "metadata": {**patch.get("metadata", {}), **locked}}
