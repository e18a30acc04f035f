"""The HTTP API of one store, such as the Milo API or a project's control plane."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import yaml
from aiohttp import web

from milo_sandbox import (
    admission,
    answers,
    calls,
    discovery,
    openapi,
    options,
    patches,
    protobuf,
    refusals,
    reviews,
    tables,
)
from milo_sandbox.admission import Part, Preconditions
from milo_sandbox.calls import Call
from milo_sandbox.collection import CollectionPage
from milo_sandbox.faults import Approach, Faults
from milo_sandbox.history import CompactedError
from milo_sandbox.options import Continue
from milo_sandbox.records import SandboxRecord, decode, encode
from milo_sandbox.resources import EVENTS, NAMESPACES, PROXIED_EVENTS, Document, ResourceDefinition
from milo_sandbox.rights import SubjectRights
from milo_sandbox.server_side_apply import Writer
from milo_sandbox.store import Store
from milo_sandbox.streams import Streams
from milo_sandbox.tables import Table
from milo_sandbox.tokens import Tokens
from milo_sandbox.watch import ObjectWatch, Pace, Plain
from milo_sandbox.webhooks import ReviewedWrite, RootWebhooks

_REVIEWS = {(review.group, review.plural): review for review in discovery.REVIEWS}
_IMMORTAL_NAMESPACES = {"default", "kube-public", "kube-system"}
_PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    patches.MERGE: patches.merge,
    patches.JSON: patches.apply_operations,
    patches.STRATEGIC: patches.strategic,
}


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """Optional behavior of the server."""

    pace: Pace = Pace()
    streaming_lists: bool = True
    organization_watches: bool = False
    """Whether watches in an organization's context return only its projects. Milo v0.32.5 limits only lists to them."""
    events_proxy: bool = False
    """Whether projects serve events.k8s.io, and events cannot be patched, as with Milo's feature gate EventsProxy."""


class Api:
    """The HTTP API of one store: it parses requests, calls the store, and writes responses."""

    def __init__(
        self, store: Store, *, features: Features, rights: SubjectRights, tokens: Tokens, faults: Faults
    ) -> None:
        self.store = store
        self.streams = Streams()
        self._features = features
        self._rights = rights
        self._tokens = tokens
        self._faults = faults
        self._handlers = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }
        store.listen(self.streams.wake)
        self.project = ""
        """The project whose control plane this is; empty for other APIs."""
        self.admit: Callable[[Call, Document | None], None] = lambda *_: None
        """Called before a client creates or changes an object, with its current state, or None for a new object. Raises
        RefusalError to refuse the write."""
        self.webhooks: RootWebhooks | None = None
        """The webhooks that review writes."""

    async def answer(self, request: web.BaseRequest, segments: list[str], subject: str) -> web.StreamResponse:
        """Answer a request to this API, given the path segments below its root."""
        match segments:
            case ("version",):
                return answers.document(discovery.VERSION)
            case ("livez" | "readyz" | "healthz",):
                return answers.text("ok")
            case [] | ["api"] | ["api", _] | ["apis"] | ["apis", _] | ["apis", _, _]:
                return answers.document(discovery.document(segments, self.store.resources))
            case ("openapi", *_):
                return answers.document(openapi.document(segments, self.store.resources))
            case ("apis", group, _, plural) if review := _REVIEWS.get((group, plural)):
                if request.method != "POST":
                    raise refusals.method_not_allowed()
                question = await _object(request)
                return answers.document(reviews.answer(review, question, subject, self._rights, self._tokens), 201)
        call = calls.read(request.method, segments, request.query, self.store.resources)
        self._rights.demand(subject, call.action)
        self._faults.check(Approach(segments=tuple(segments), query=request.query, project=self.project, call=call))
        await self._faults.held(self.project, call, self._verbs(request, call))
        if call.verb != "watch":  # a real server opens watches from its cache, without etcd
            await self._faults.thawed(call)
        unknown: list[str] = []
        collecting = admission.WARNINGS.set(unknown)
        try:
            response = await self._handlers[call.verb](request, msgspec.structs.replace(call, subject=subject))
        finally:
            admission.WARNINGS.reset(collecting)
        if request.query.get("fieldValidation", "Warn") == "Warn":
            for warning in unknown:
                response.headers.add("Warning", f"299 - {json.dumps(warning)}")
        return response

    def _verbs(self, request: web.BaseRequest, call: Call) -> frozenset[str]:
        """Return the verbs of a call: an apply can also create, and a watch that streams a list also lists."""
        if call.verb == "patch" and request.content_type == patches.APPLY and not call.subresource:
            is_new = self.store[call.resource].get(call.name, call.namespace) is None
            return frozenset({"patch", "create"} if is_new else {"patch"})
        if call.verb == "watch" and options.wants_streaming_list(request.query):
            return frozenset({"watch", "list"})
        return frozenset({call.verb})

    # Reading

    async def _get(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        record = self.store.get(call.resource, call.name, call.namespace)
        if table := _table(request, call):
            metadata = {"resourceVersion": str(record.version)}
            return await answers.parts(request, table.listing(iter([record]), metadata))
        return answers.body(record.body)

    async def _list(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        page = self._faults.seen(await self._page(request, call))
        if table := _table(request, call):
            return await answers.parts(request, table.listing(iter(page.records), _list_metadata(call.resource, page)))
        return await answers.parts(request, _listing(call.resource, page))

    async def _watch(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        wanted = options.watch_options(
            request.query,
            namespace=call.namespace,
            streaming_lists=self._features.streaming_lists,
            selectable=call.resource.selectable_fields,
        )
        now = asyncio.get_running_loop().time()
        rendering = _table(request, call) or Plain()
        watch = ObjectWatch(self.store, call.resource, wanted, rendering=rendering, pace=self._features.pace, now=now)
        return await self.streams.send(request, watch)

    async def _page(self, request: web.BaseRequest, call: Call) -> CollectionPage:
        resource = call.resource
        wanted = options.list_options(request.query, namespace=call.namespace, selectable=resource.selectable_fields)
        version = wanted.continued.rv if wanted.continued else wanted.version
        if version is not None and version > self.store.version:
            await self._wait_for(version)
        current = self.store.version
        exact = version is not None and (wanted.continued is not None or wanted.match == options.EXACT)
        try:
            return self.store[resource].page(
                version=version if exact and version is not None and version != options.INCONSISTENT else current,
                current=current,
                selector=wanted.selector,
                limit=wanted.limit,
                after=wanted.continued.start if wanted.continued else "",
            )
        except CompactedError as error:
            if wanted.continued is None:
                raise refusals.gone(f"The resourceVersion for the provided list is too old: {error}") from error
            raise _page_expired(wanted.continued) from error

    async def _wait_for(self, version: int) -> None:
        try:
            async with asyncio.timeout(self._features.pace.patience):
                while self.store.version < version:
                    await self.streams.wait()
        except TimeoutError as error:
            raise refusals.version_too_large(version, self.store.version) from error

    # Writing

    async def _create(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        document = await _object(request)
        _require_kind(call, document)
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        self.admit(msgspec.structs.replace(call, name=str(name or "")), None)
        record = await self._reviewed(
            request,
            call,
            "CREATE",
            partial(
                self.store.create, call.resource, document, namespace=call.namespace, writer=_writer(request, call)
            ),
        )
        return answers.body(record.body, 201)

    async def _update(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        document = await _object(request)
        _require_kind(call, document)
        self.admit(call, self.store.read(call.resource, call.name, call.namespace))
        record = await self._reviewed(
            request,
            call,
            "UPDATE",
            partial(
                self.store.replace,
                call.resource,
                call.name,
                document,
                namespace=call.namespace,
                part=_part(call),
                writer=_writer(request, call),
            ),
        )
        return answers.body(record.body)

    async def _patch(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        if self._features.events_proxy and call.resource in (EVENTS, PROXIED_EVENTS):
            if request.content_type == patches.APPLY and request.transport is not None:
                request.transport.abort()
            raise refusals.not_found(call.resource, call.name)
        if request.content_type == patches.APPLY:
            return await self._apply(request, call)
        known = [kind for kind in _PATCHES if kind != patches.STRATEGIC or call.resource.takes_strategic_patches]
        if request.content_type not in known:
            raise refusals.unsupported_media_type(request.content_type, [*known, patches.APPLY])
        apply, change = _PATCHES[request.content_type], await _json(request)
        self.admit(call, self.store.read(call.resource, call.name, call.namespace))
        record = await self._reviewed(
            request,
            call,
            "UPDATE",
            partial(
                self.store.modify,
                call.resource,
                call.name,
                lambda document: apply(document, change),
                namespace=call.namespace,
                part=_part(call),
                writer=_writer(request, call),
            ),
        )
        return answers.body(record.body)

    async def _apply(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        document = await _yaml_object(request)
        manager = request.query.get("fieldManager", "")
        if not manager:
            raise refusals.missing_field_manager()
        if not document.get("kind"):
            raise refusals.bad_request(f"invalid object type: {document.get('apiVersion', '')}, Kind=")
        before = self.store[call.resource].get(call.name, call.namespace)
        self.admit(call, None if before is None else before.document())
        record = await self._reviewed(
            request,
            call,
            "CREATE" if before is None else "UPDATE",
            partial(
                self.store.apply,
                call.resource,
                call.name,
                document,
                namespace=call.namespace,
                part=_part(call),
                manager=manager,
                force=request.query.get("force") == "true",
            ),
        )
        return answers.body(record.body, 201 if before is None else 200)

    async def _reviewed(
        self, request: web.BaseRequest, call: Call, operation: str, write: Callable[..., SandboxRecord]
    ) -> SandboxRecord:
        """Write an object as the webhooks leave it. Raises RefusalError."""
        wanted = _write_options(request.query)
        matching = self.webhooks.matching(call, operation) if self.webhooks is not None else []
        if not matching or self.webhooks is None:
            return write(**wanted)
        before = self.store[call.resource].get(call.name, call.namespace) if call.name else None
        draft = write(**(wanted | {"dry_run": True})).document()
        reviewed = await self.webhooks.reviewed(
            matching,
            ReviewedWrite(
                call=call,
                operation=operation,
                project=self.project,
                document=draft,
                before=None if before is None else before.document(),
                dry_run=wanted["dry_run"],
            ),
        )
        if reviewed is None or reviewed == draft:
            return write(**wanted)
        changed = {**reviewed, "metadata": {**reviewed["metadata"], "resourceVersion": ""}}
        writer = _writer(request, call)
        if operation == "CREATE":
            return self.store.create(call.resource, changed, namespace=call.namespace, writer=writer, **wanted)
        where, part = call.namespace, _part(call)
        return self.store.replace(
            call.resource, call.name, changed, namespace=where, part=part, writer=writer, **wanted
        )

    async def _delete(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        wanted = await _deletion_options(request)
        preconditions = wanted.get("preconditions", {})
        if not isinstance(preconditions, dict):
            raise refusals.bad_request("preconditions must be a JSON object")
        if call.resource == NAMESPACES and call.name in _IMMORTAL_NAMESPACES:
            raise refusals.undeletable_namespace(call.resource, call.name)
        before = self.store[call.resource].get(call.name, call.namespace)
        await self._review_deletion(call, before, dry_run=bool(wanted.get("dryRun")))
        record, gone = self.store.delete(
            call.resource,
            call.name,
            namespace=call.namespace,
            preconditions=Preconditions(preconditions.get("uid", ""), preconditions.get("resourceVersion", "")),
            propagation=wanted.get("propagationPolicy", ""),
            dry_run=bool(wanted.get("dryRun")),
        )
        return answers.document(_deleted(call, record)) if gone else answers.body(record.body)

    async def _review_deletion(self, call: Call, before: SandboxRecord | None, *, dry_run: bool) -> None:
        """Raises RefusalError if a webhook denies the deletion of an object."""
        matching = self.webhooks.matching(call, "DELETE") if self.webhooks is not None else []
        if self.webhooks is not None and matching and before is not None:
            write = ReviewedWrite(
                call=call,
                operation="DELETE",
                project=self.project,
                document=None,
                before=before.document(),
                dry_run=dry_run,
            )
            await self.webhooks.reviewed(matching, write)

    async def _delete_collection(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        page = await self._page(request, call)
        dry_run = bool((await _deletion_options(request)).get("dryRun"))
        for record in page.records:
            await self._review_deletion(call, record, dry_run=dry_run)
            if not dry_run:
                self.store.discard(call.resource, record.key)
        return await answers.parts(request, _listing(call.resource, page))


def _writer(request: web.BaseRequest, call: Call) -> Writer:
    """Return the field manager of a write: the one in the request, or else the program in its user agent."""
    program = request.headers.get("User-Agent", "").partition("/")[0]
    return Writer(name=request.query.get("fieldManager") or program or "unknown", subresource=call.subresource)


def _part(call: Call) -> Part:
    return Part.STATUS if call.subresource == "status" else Part.MAIN


async def _deletion_options(request: web.BaseRequest) -> dict[str, Any]:
    """Return the options of a deletion. As in kube-apiserver, those in the query are ignored beside a body."""
    return await _object(request) if request.can_read_body else {**request.query}


def _is_dry_run(query: Mapping[str, str]) -> bool:
    return "dryRun" in query


def _write_options(query: Mapping[str, str]) -> dict[str, bool]:
    """Return the options of a write: dry run, and strictness about unknown fields."""
    return {"dry_run": _is_dry_run(query), "strict": query.get("fieldValidation") == "Strict"}


async def _json(request: web.BaseRequest) -> Any:
    try:
        return decode(await request.read())
    except (msgspec.DecodeError, RecursionError) as error:
        raise refusals.bad_request(f"the body of the request is not JSON: {error}") from error


async def _object(request: web.BaseRequest) -> Document:
    if request.content_type == protobuf.CONTENT_TYPE:
        return protobuf.read(await request.read())
    if request.content_type not in {"application/json", "application/octet-stream"}:
        raise refusals.unsupported_media_type(request.content_type, ["application/json", protobuf.CONTENT_TYPE])
    document = await _json(request)
    if not isinstance(document, dict):
        raise refusals.bad_request("the body of the request must be a JSON object")
    return document


async def _yaml_object(request: web.BaseRequest) -> Document:
    try:
        document = yaml.safe_load(await request.read())
    except yaml.YAMLError as error:
        raise refusals.bad_request(f"error decoding YAML: {error}") from error
    if not isinstance(document, dict):
        raise refusals.bad_request("the body of the request must be an object")
    return document


def _require_kind(call: Call, document: Document) -> None:
    """Raises RefusalError if the kind of a custom resource is missing: only of others it is known by the path."""
    if call.resource.is_custom and not document.get("kind"):
        problem = f"Object 'Kind' is missing in '{encode(document).decode()}'"
        wanted = f"must be of type {call.resource.kind}"
        raise refusals.bad_request(f"the object provided is unrecognized ({wanted}): {problem}")


def _table(request: web.BaseRequest, call: Call) -> Table | None:
    if not tables.is_wanted(request.headers.get("Accept", "")):
        return None
    return Table(call.resource, clock=lambda: datetime.now(UTC), include=request.query.get("includeObject", ""))


def _list_metadata(resource: ResourceDefinition, page: CollectionPage) -> Document:
    metadata: Document = {"resourceVersion": str(page.version)}
    if resource.is_custom:
        metadata["continue"] = ""
    if page.last_key:
        metadata["continue"] = Continue(page.version, page.last_key).token()
        if page.remaining:
            metadata["remainingItemCount"] = page.remaining
    return metadata


def _listing(resource: ResourceDefinition, page: CollectionPage) -> Iterator[bytes]:
    head = {
        "apiVersion": resource.api_version,
        "kind": f"{resource.kind}List",
        "metadata": _list_metadata(resource, page),
    }
    yield encode(head)[:-1] + b',"items":['
    for i, record in enumerate(page.records):
        yield b"," + record.body if i else record.body
    yield b"]}\n"


def _page_expired(continued: Continue) -> refusals.RefusalError:
    return refusals.gone(
        "The provided continue parameter is too old to display a consistent list result. Start a new list without "
        "it, or continue with the token in this response; later pages may be inconsistent with the earlier ones.",
        continue_token=Continue(options.INCONSISTENT, continued.start).token(),
    )


def _deleted(call: Call, record: SandboxRecord) -> Document:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {
            "name": record.name,
            "group": call.resource.group,
            "kind": call.resource.plural,
            "uid": record.uid,
        },
    }
