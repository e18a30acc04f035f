"""The conversations with a server; each begins with a server without objects."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from tests.integration.sandbox_conformance.speaker import Speaker

Conversation: TypeAlias = Callable[[Speaker], Awaitable[None]]

CONVERSATIONS: dict[str, Conversation] = {}


def conversation(function: Conversation) -> Conversation:
    CONVERSATIONS[function.__name__.replace("_", " ")] = function
    return function


_STREAMING_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
_NOON = "2026-01-01T12:00:00Z"
_FUTURE = "999999999"


@conversation
async def object_lifecycle(speaker: Speaker) -> None:
    await speaker.ask("GET")
    await speaker.create("alpha", labels={"env": "prod"}, annotations={"example.com/note": "one"})
    await speaker.ask("GET", "/alpha")
    await speaker.ask("GET")
    await speaker.set_condition("alpha", "True")
    await speaker.ask("PATCH", "/alpha", {"metadata": {"labels": {"env": None, "tier": "gold"}}})
    await speaker.ask("PATCH", "/alpha", {"metadata": {"labels": {"tier": "gold"}}})
    await speaker.ask("DELETE", "/alpha")
    await speaker.ask("GET", "/alpha")


@conversation
async def status_is_a_subresource(speaker: Speaker) -> None:
    await speaker.ask("POST", "", speaker.minimal_object("alpha") | {"status": {"conditions": []}})
    if speaker.mode == "project":  # a ProjectControlPlane has this default already: only managedFields would change
        await speaker.ask("PATCH", "/alpha/status", {"status": {}})
    condition = {"type": "Ready", "status": "True", "reason": "Told", "message": "", "lastTransitionTime": _NOON}
    change = {"metadata": {"labels": {"ignored": "yes"}}, "status": {"conditions": [condition]}}
    await speaker.ask("PATCH", "/alpha/status", change)
    await speaker.ask("PATCH", "/alpha", {"status": {"conditions": []}})
    await speaker.ask("GET", "/alpha/status")


@conversation
async def watch_sends_changes(speaker: Speaker) -> None:
    version = await speaker.version()
    async with speaker.watch(resourceVersion=version) as watch:
        await speaker.create("alpha")
        await watch.read()
        await speaker.set_condition("alpha", "True")
        await watch.read()
        await speaker.set_condition("alpha", "True")  # no change, so no event
        await speaker.ask("DELETE", "/alpha")
        await watch.read()
        await speaker.create("alpha")
        await watch.read()
    async with speaker.watch(resourceVersion=version) as again:
        await again.read(4)


@conversation
async def finalizers_delay_deletion(speaker: Speaker) -> None:
    await speaker.create("alpha", finalizers=["example.com/one", "example.com/two"])
    async with speaker.watch(resourceVersion=await speaker.version()) as watch:
        await speaker.ask("DELETE", "/alpha")
        await watch.read()
        await speaker.ask("DELETE", "/alpha")
        await speaker.ask("PATCH", "/alpha", {"metadata": {"finalizers": ["example.com/one", "example.com/new"]}})
        await speaker.ask("PATCH", "/alpha", {"metadata": {"finalizers": ["example.com/one"]}})
        await watch.read()
        await speaker.ask("PATCH", "/alpha", {"metadata": {"finalizers": None}})
        await watch.read()
    await speaker.ask("GET", "/alpha")


@conversation
async def labels_move_objects_across_a_selector(speaker: Speaker) -> None:
    await speaker.create("alpha", labels={"env": "prod"})
    await speaker.create("beta", labels={"env": "dev"})
    await speaker.ask("GET", labelSelector="env=prod")
    await speaker.ask("GET", labelSelector="env in (prod, dev),tier notin (gold)")
    await speaker.ask("GET", labelSelector="!env")
    async with speaker.watch(labelSelector="env=prod", resourceVersion=await speaker.version()) as watch:
        await speaker.ask("PATCH", "/beta", {"metadata": {"labels": {"tier": "gold"}}})
        await speaker.ask("PATCH", "/alpha", {"metadata": {"labels": {"env": "dev"}}})
        await watch.read()
        await speaker.ask("PATCH", "/alpha", {"metadata": {"labels": {"env": "prod"}}})
        await watch.read()
        await speaker.ask("PATCH", "/alpha", {"metadata": {"labels": {"tier": "gold"}}})
        await watch.read()
        await speaker.ask("DELETE", "/alpha")
        await watch.read()


@conversation
async def streaming_list_begins_with_existing_objects(speaker: Speaker) -> None:
    await speaker.create("alpha", labels={"env": "prod"})
    await speaker.create("beta")
    async with speaker.watch(**_STREAMING_LIST) as watch:
        await watch.read(3)
        await speaker.create("gamma")
        await watch.read()
    async with speaker.watch(**_STREAMING_LIST, labelSelector="env=prod") as watch:
        await watch.read(2)
    async with speaker.watch(**_STREAMING_LIST, labelSelector="env=nothing") as watch:
        await watch.read()
    async with speaker.watch(sendInitialEvents="true", resourceVersionMatch="NotOlderThan") as watch:
        await watch.read(3)
        await speaker.create("delta")  # the end of the list is not sent without bookmarks
        await watch.read()


@conversation
async def streaming_list_requires_its_options(speaker: Speaker) -> None:
    for query in (
        {"sendInitialEvents": "true"},
        {"sendInitialEvents": "true", "resourceVersionMatch": "Exact"},
        {"resourceVersionMatch": "NotOlderThan"},
    ):
        async with speaker.watch(**query):
            pass
    await speaker.ask("GET", sendInitialEvents="true", resourceVersionMatch="NotOlderThan")


@conversation
async def watch_without_version_begins_with_existing_objects(speaker: Speaker) -> None:
    await speaker.create("alpha")
    for query in ({}, {"resourceVersion": "0"}):
        async with speaker.watch(**query) as watch:
            await watch.read()


@conversation
async def watch_ends_at_its_timeout(speaker: Speaker) -> None:
    await speaker.create("alpha")
    async with speaker.watch(resourceVersion=await speaker.version(), timeoutSeconds="1") as watch:
        await watch.to_the_end()
    async with speaker.watch(
        resourceVersion=await speaker.version(), timeoutSeconds="1", allowWatchBookmarks="true"
    ) as watch:
        await watch.to_the_end()


@conversation
async def list_is_paged(speaker: Speaker) -> None:
    for name in ("alpha", "beta", "gamma", "delta", "epsilon"):
        await speaker.create(name, labels={"env": "prod" if name == "gamma" else "dev"})
    first = await speaker.ask("GET", limit="2")
    await speaker.create("beta-2")  # written between two pages
    second = await speaker.ask("GET", limit="2", **_on(first))
    await speaker.ask("GET", limit="2", **_on(second))
    await speaker.ask("GET", **_on(first))
    await speaker.ask("GET", limit="2", labelSelector="env=dev")
    await speaker.ask("GET", limit="5")
    await speaker.ask("GET", limit="7", resourceVersion="0")
    await speaker.ask("GET", **{"continue": "junk"})
    await speaker.ask("GET", **_on(first), resourceVersion=first["metadata"]["resourceVersion"])


@conversation
async def list_at_a_version(speaker: Speaker) -> None:
    await speaker.create("alpha")
    version = await speaker.version()
    await speaker.create("beta")
    await speaker.ask("GET", resourceVersion=version, resourceVersionMatch="Exact")
    await speaker.ask("GET", resourceVersion=version, resourceVersionMatch="NotOlderThan")
    await speaker.ask("GET", resourceVersion=version)
    await speaker.ask("GET", resourceVersion="0", resourceVersionMatch="Exact")
    await speaker.ask("GET", resourceVersionMatch="Exact")
    await speaker.ask("GET", resourceVersion=version, resourceVersionMatch="Nearly")
    await speaker.ask("GET", resourceVersion="abc")
    async with speaker.watch(resourceVersion="abc"):
        pass


@conversation
async def future_version_is_awaited(speaker: Speaker) -> None:
    await speaker.create("alpha")
    await speaker.ask("GET", resourceVersion=_FUTURE)
    await speaker.ask("GET", resourceVersion=_FUTURE, resourceVersionMatch="Exact")
    async with speaker.watch(**_STREAMING_LIST, resourceVersion=_FUTURE) as watch:
        await watch.to_the_end()
    async with speaker.watch(resourceVersion=_FUTURE, timeoutSeconds="1", allowWatchBookmarks="true") as watch:
        await watch.to_the_end()


@conversation
async def compacted_version_is_gone(speaker: Speaker) -> None:
    for name in ("alpha", "beta", "gamma"):
        await speaker.create(name)
    first = await speaker.ask("GET", limit="1")
    version = first["metadata"]["resourceVersion"]
    await speaker.server.compact()
    async with speaker.watch(resourceVersion=version) as watch:
        await watch.to_the_end()
    await speaker.ask("GET", resourceVersion=version, resourceVersionMatch="Exact")
    refused = await speaker.ask("GET", limit="1", **_on(first))
    await speaker.ask("GET", limit="1", **_on(refused))
    async with speaker.watch(resourceVersion="1") as watch:
        await watch.to_the_end()


@conversation
async def missing_objects_are_not_found(speaker: Speaker) -> None:
    await speaker.ask("GET", "/nobody")
    await speaker.ask("DELETE", "/nobody")
    await speaker.ask("PATCH", "/nobody", {"metadata": {"labels": {"a": "b"}}})
    await speaker.ask("GET", "/nobody/nothing")
    group = f"/apis/{speaker.kind.group}"
    await speaker.ask("GET", f"{group}/v1alpha1/nothings")
    await speaker.ask("GET", f"{group}/v9/{speaker.kind.plural}")
    await speaker.ask("GET", "/apis/nothing.example.com/v1/nothings")


@conversation
async def invalid_requests_are_rejected(speaker: Speaker) -> None:
    await speaker.create("alpha")
    await speaker.create("alpha")
    await speaker.create("Not_A_Name")
    await speaker.create("beta", labels={"a": "not a value"})
    await speaker.ask("POST", "", "no JSON")
    await speaker.ask("POST", "", {**speaker.minimal_object("beta"), "kind": "Another"})
    await speaker.ask("PATCH", "/alpha", {"metadata": {}}, content_type="application/json")
    await speaker.ask("PATCH", "/alpha", "no JSON")
    await speaker.ask("PATCH", "/alpha/status", {"status": {"conditions": [{"type": "Ready"}]}})
    await speaker.ask("PUT", "/alpha", speaker.minimal_object("alpha"))
    await speaker.ask("PUT", "/alpha", speaker.minimal_object("alpha", resourceVersion="1"))
    await speaker.ask("PUT", "", speaker.minimal_object("alpha"))
    await speaker.ask("POST", "/alpha", speaker.minimal_object("alpha"))
    await speaker.ask("GET", labelSelector="env in")
    await speaker.ask("GET", limit="many")
    await speaker.ask("GET", token="nobody-s")


@conversation
async def collection_is_deleted(speaker: Speaker) -> None:
    for name in ("alpha", "beta"):
        await speaker.create(name)
    async with speaker.watch(resourceVersion=await speaker.version()) as watch:
        await speaker.unrecorded("DELETE")
        await watch.read(2)
    await speaker.ask("GET")


_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_WIDGETS = "/apis/conformance.example.com/v1/widgets"
_CONDITIONS = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"type": "string"}, "status": {"type": "string"}},
    },
}
_SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 9},
        "color": {"type": "string", "default": "blue"},
        "port": {"x-kubernetes-int-or-string": True},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set", "maxItems": 3},
        "pair": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 2},
        "maybe": {"type": "string", "nullable": True},
    },
}
_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.conformance.example.com"},
    "spec": {
        "group": "conformance.example.com",
        "scope": "Cluster",
        "names": {"kind": "Widget", "plural": "widgets"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "metadata": {"type": "object"},
                            "spec": _SPEC,
                            "status": {
                                "type": "object",
                                "properties": {"conditions": _CONDITIONS, "note": {"type": "string"}},
                            },
                        },
                    }
                },
            }
        ],
    },
}


def _widget(spec: Any = None, status: Any = None, **metadata: Any) -> dict[str, Any]:
    widget = {"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "one", **metadata}}
    return widget | ({"spec": spec} if spec is not None else {}) | ({"status": status} if status is not None else {})


@asynccontextmanager
async def _widgets(speaker: Speaker) -> AsyncIterator[None]:
    """Define the kind `Widget` for the duration of the block."""
    await speaker.unrecorded_status("POST", _DEFINITIONS, _DEFINITION)
    await speaker.until(200, _WIDGETS)
    try:
        yield
    finally:
        await speaker.unrecorded_status("DELETE", f"{_DEFINITIONS}/widgets.conformance.example.com")
        await speaker.until(404, _WIDGETS)


@conversation
async def definition_adds_a_kind(speaker: Speaker) -> None:
    speaker.visit_control_plane()
    await speaker.ask("GET", _WIDGETS)
    async with _widgets(speaker):
        one = f"{_WIDGETS}/one"
        await speaker.ask("POST", _WIDGETS, _widget({"size": 1, "unknown": 2}, {"note": "ignored"}))
        await speaker.ask("GET", _WIDGETS)
        await speaker.ask("PATCH", f"{one}/status", {"status": {"note": "seen", "other": 1}, "spec": {"size": 9}})
        await speaker.ask("PATCH", one, {"spec": {"size": 2}, "status": {"note": "ignored"}})
        await speaker.ask("PATCH", one, {"spec": {"free": {"a": {"b": [1]}}, "port": "http", "maybe": None}})
        for wrong in ({"size": 0}, {"size": 10}, {"size": "1"}, {"color": 1}):
            await speaker.ask("PATCH", one, {"spec": wrong})
        await speaker.ask("PATCH", one, {"spec": {"port": True}})
        await speaker.ask("PATCH", one, {"spec": {"tags": ["a", "b", "c", "d"]}})
        await speaker.ask("PATCH", one, {"spec": {"pair": {"a": "1", "b": "2", "c": "3"}}})
        await speaker.ask("POST", _WIDGETS, _widget({}))
        await speaker.ask("GET", f"{one}/scale")
        await speaker.ask("DELETE", one)
    await speaker.ask("GET", _WIDGETS)


@conversation
async def fields_have_managers(speaker: Speaker) -> None:
    speaker.visit_control_plane()
    async with _widgets(speaker):
        one = f"{_WIDGETS}/one"
        await speaker.apply(one, _widget({"size": 1, "tags": ["a"], "pair": {"x": "1"}}, labels={"a": "1"}), "first")
        await speaker.apply(one, _widget({"size": 1, "tags": ["a"], "pair": {"x": "1"}}, labels={"a": "1"}), "first")
        await speaker.apply(one, _widget({"tags": ["b"], "pair": {"y": "2"}}, labels={"b": "2"}), "second")
        await speaker.apply(one, _widget({"size": 2}), "second")
        await speaker.apply(one, _widget({"size": 2}), "second", force="true")
        await speaker.ask("PATCH", one, {"spec": {"color": "red"}}, fieldManager="editor")
        await speaker.apply(one, _widget({"color": "green"}), "first")
        await speaker.apply(one, _widget({"tags": ["a"]}), "first")
        await speaker.apply(f"{one}/status", _widget(status={"conditions": [{"type": "A", "status": "True"}]}), "first")
        await speaker.apply(
            f"{one}/status", _widget(status={"conditions": [{"type": "B", "status": "True"}]}), "second"
        )
        await speaker.apply(f"{one}/status", _widget(status={"note": "only"}), "first")
        await speaker.apply(one, _widget(finalizers=["example.com/hold"]), "third")
        await speaker.apply(one, _widget(), "third")
        await speaker.ask("PATCH", one, _widget(), content_type="application/apply-patch+yaml")
        await speaker.apply(f"{_WIDGETS}/two/status", _widget() | {"metadata": {"name": "two"}}, "first")
        await speaker.apply(one, _widget(resourceVersion="1"), "first")


def _on(page: Any) -> dict[str, str]:
    return {"continue": page["metadata"]["continue"]}
