"""What is asked of a server. Each conversation begins with one that holds no object."""

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
async def an_object_s_life(say: Speaker) -> None:
    await say.ask("GET")
    await say.create("alpha", labels={"env": "prod"}, annotations={"example.com/note": "one"})
    await say.ask("GET", "/alpha")
    await say.ask("GET")
    await say.set_condition("alpha", "True")
    await say.ask("PATCH", "/alpha", {"metadata": {"labels": {"env": None, "tier": "gold"}}})
    await say.ask("PATCH", "/alpha", {"metadata": {"labels": {"tier": "gold"}}})
    await say.ask("DELETE", "/alpha")
    await say.ask("GET", "/alpha")


@conversation
async def a_status_is_its_own(say: Speaker) -> None:
    await say.ask("POST", "", say.thing("alpha") | {"status": {"conditions": []}})
    if say.mode == "project":  # the other's has its default already: such a write leaves a mark in managedFields only
        await say.ask("PATCH", "/alpha/status", {"status": {}})
    condition = {"type": "Ready", "status": "True", "reason": "Told", "message": "", "lastTransitionTime": _NOON}
    change = {"metadata": {"labels": {"ignored": "yes"}}, "status": {"conditions": [condition]}}
    await say.ask("PATCH", "/alpha/status", change)
    await say.ask("PATCH", "/alpha", {"status": {"conditions": []}})
    await say.ask("GET", "/alpha/status")


@conversation
async def a_watch_tells_what_happens(say: Speaker) -> None:
    version = await say.version()
    async with say.watch(resourceVersion=version) as watch:
        await say.create("alpha")
        await watch.read()
        await say.set_condition("alpha", "True")
        await watch.read()
        await say.set_condition("alpha", "True")  # no change, so no event
        await say.ask("DELETE", "/alpha")
        await watch.read()
        await say.create("alpha")
        await watch.read()
    async with say.watch(resourceVersion=version) as again:
        await again.read(4)


@conversation
async def finalizers_hold_an_object(say: Speaker) -> None:
    await say.create("alpha", finalizers=["example.com/one", "example.com/two"])
    async with say.watch(resourceVersion=await say.version()) as watch:
        await say.ask("DELETE", "/alpha")
        await watch.read()
        await say.ask("DELETE", "/alpha")
        await say.ask("PATCH", "/alpha", {"metadata": {"finalizers": ["example.com/one", "example.com/new"]}})
        await say.ask("PATCH", "/alpha", {"metadata": {"finalizers": ["example.com/one"]}})
        await watch.read()
        await say.ask("PATCH", "/alpha", {"metadata": {"finalizers": None}})
        await watch.read()
    await say.ask("GET", "/alpha")


@conversation
async def labels_lead_out_of_a_selector_and_back(say: Speaker) -> None:
    await say.create("alpha", labels={"env": "prod"})
    await say.create("beta", labels={"env": "dev"})
    await say.ask("GET", labelSelector="env=prod")
    await say.ask("GET", labelSelector="env in (prod, dev),tier notin (gold)")
    await say.ask("GET", labelSelector="!env")
    async with say.watch(labelSelector="env=prod", resourceVersion=await say.version()) as watch:
        await say.ask("PATCH", "/beta", {"metadata": {"labels": {"tier": "gold"}}})
        await say.ask("PATCH", "/alpha", {"metadata": {"labels": {"env": "dev"}}})
        await watch.read()
        await say.ask("PATCH", "/alpha", {"metadata": {"labels": {"env": "prod"}}})
        await watch.read()
        await say.ask("PATCH", "/alpha", {"metadata": {"labels": {"tier": "gold"}}})
        await watch.read()
        await say.ask("DELETE", "/alpha")
        await watch.read()


@conversation
async def a_streaming_list_begins_with_what_is_there(say: Speaker) -> None:
    await say.create("alpha", labels={"env": "prod"})
    await say.create("beta")
    async with say.watch(**_STREAMING_LIST) as watch:
        await watch.read(3)
        await say.create("gamma")
        await watch.read()
    async with say.watch(**_STREAMING_LIST, labelSelector="env=prod") as watch:
        await watch.read(2)
    async with say.watch(**_STREAMING_LIST, labelSelector="env=nothing") as watch:
        await watch.read()
    async with say.watch(sendInitialEvents="true", resourceVersionMatch="NotOlderThan") as watch:
        await watch.read(3)
        await say.create("delta")  # without bookmarks, no end of the list is told
        await watch.read()


@conversation
async def streaming_lists_want_their_options(say: Speaker) -> None:
    for query in (
        {"sendInitialEvents": "true"},
        {"sendInitialEvents": "true", "resourceVersionMatch": "Exact"},
        {"resourceVersionMatch": "NotOlderThan"},
    ):
        async with say.watch(**query):
            pass
    await say.ask("GET", sendInitialEvents="true", resourceVersionMatch="NotOlderThan")


@conversation
async def a_watch_without_a_version_begins_with_what_is_there(say: Speaker) -> None:
    await say.create("alpha")
    for query in ({}, {"resourceVersion": "0"}):
        async with say.watch(**query) as watch:
            await watch.read()


@conversation
async def a_watch_ends_when_its_time_is_up(say: Speaker) -> None:
    await say.create("alpha")
    async with say.watch(resourceVersion=await say.version(), timeoutSeconds="1") as watch:
        await watch.to_the_end()
    async with say.watch(resourceVersion=await say.version(), timeoutSeconds="1", allowWatchBookmarks="true") as watch:
        await watch.to_the_end()


@conversation
async def a_list_comes_in_pages(say: Speaker) -> None:
    for name in ("alpha", "beta", "gamma", "delta", "epsilon"):
        await say.create(name, labels={"env": "prod" if name == "gamma" else "dev"})
    first = await say.ask("GET", limit="2")
    await say.create("beta-2")  # between two pages
    second = await say.ask("GET", limit="2", **_on(first))
    await say.ask("GET", limit="2", **_on(second))
    await say.ask("GET", **_on(first))
    await say.ask("GET", limit="2", labelSelector="env=dev")
    await say.ask("GET", limit="5")
    await say.ask("GET", limit="7", resourceVersion="0")
    await say.ask("GET", **{"continue": "junk"})
    await say.ask("GET", **_on(first), resourceVersion=first["metadata"]["resourceVersion"])


@conversation
async def a_list_may_name_its_version(say: Speaker) -> None:
    await say.create("alpha")
    version = await say.version()
    await say.create("beta")
    await say.ask("GET", resourceVersion=version, resourceVersionMatch="Exact")
    await say.ask("GET", resourceVersion=version, resourceVersionMatch="NotOlderThan")
    await say.ask("GET", resourceVersion=version)
    await say.ask("GET", resourceVersion="0", resourceVersionMatch="Exact")
    await say.ask("GET", resourceVersionMatch="Exact")
    await say.ask("GET", resourceVersion=version, resourceVersionMatch="Nearly")
    await say.ask("GET", resourceVersion="abc")
    async with say.watch(resourceVersion="abc"):
        pass


@conversation
async def a_version_from_the_future_is_waited_for(say: Speaker) -> None:
    await say.create("alpha")
    await say.ask("GET", resourceVersion=_FUTURE)
    await say.ask("GET", resourceVersion=_FUTURE, resourceVersionMatch="Exact")
    async with say.watch(**_STREAMING_LIST, resourceVersion=_FUTURE) as watch:
        await watch.to_the_end()
    async with say.watch(resourceVersion=_FUTURE, timeoutSeconds="1", allowWatchBookmarks="true") as watch:
        await watch.to_the_end()


@conversation
async def what_was_compacted_is_gone(say: Speaker) -> None:
    for name in ("alpha", "beta", "gamma"):
        await say.create(name)
    first = await say.ask("GET", limit="1")
    version = first["metadata"]["resourceVersion"]
    await say.server.compact()
    async with say.watch(resourceVersion=version) as watch:
        await watch.to_the_end()
    await say.ask("GET", resourceVersion=version, resourceVersionMatch="Exact")
    refused = await say.ask("GET", limit="1", **_on(first))
    await say.ask("GET", limit="1", **_on(refused))
    async with say.watch(resourceVersion="1") as watch:
        await watch.to_the_end()


@conversation
async def what_is_not_there_can_t_be_had(say: Speaker) -> None:
    await say.ask("GET", "/nobody")
    await say.ask("DELETE", "/nobody")
    await say.ask("PATCH", "/nobody", {"metadata": {"labels": {"a": "b"}}})
    await say.ask("GET", "/nobody/nothing")
    group = f"/apis/{say.kind.group}"
    await say.ask("GET", f"{group}/v1alpha1/nothings")
    await say.ask("GET", f"{group}/v9/{say.kind.plural}")
    await say.ask("GET", "/apis/nothing.example.com/v1/nothings")


@conversation
async def what_is_wrong_is_refused(say: Speaker) -> None:
    await say.create("alpha")
    await say.create("alpha")
    await say.create("Not_A_Name")
    await say.create("beta", labels={"a": "not a value"})
    await say.ask("POST", "", "no JSON")
    await say.ask("POST", "", {**say.thing("beta"), "kind": "Another"})
    await say.ask("PATCH", "/alpha", {"metadata": {}}, content_type="application/json")
    await say.ask("PATCH", "/alpha", "no JSON")
    await say.ask("PATCH", "/alpha/status", {"status": {"conditions": [{"type": "Ready"}]}})
    await say.ask("PUT", "/alpha", say.thing("alpha"))
    await say.ask("PUT", "/alpha", say.thing("alpha", resourceVersion="1"))
    await say.ask("PUT", "", say.thing("alpha"))
    await say.ask("POST", "/alpha", say.thing("alpha"))
    await say.ask("GET", labelSelector="env in")
    await say.ask("GET", limit="many")
    await say.ask("GET", token="nobody-s")


@conversation
async def a_collection_is_deleted_at_once(say: Speaker) -> None:
    for name in ("alpha", "beta"):
        await say.create(name)
    async with say.watch(resourceVersion=await say.version()) as watch:
        await say.aside("DELETE")
        await watch.read(2)
    await say.ask("GET")


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
async def _widgets(say: Speaker) -> AsyncIterator[None]:
    """The kind, for as long as the block runs."""
    await say.silently("POST", _DEFINITIONS, _DEFINITION)
    await say.until(200, _WIDGETS)
    try:
        yield
    finally:
        await say.silently("DELETE", f"{_DEFINITIONS}/widgets.conformance.example.com")
        await say.until(404, _WIDGETS)


@conversation
async def a_definition_brings_a_kind(say: Speaker) -> None:
    say.visit_control_plane()
    await say.ask("GET", _WIDGETS)
    async with _widgets(say):
        one = f"{_WIDGETS}/one"
        await say.ask("POST", _WIDGETS, _widget({"size": 1, "unknown": 2}, {"note": "ignored"}))
        await say.ask("GET", _WIDGETS)
        await say.ask("PATCH", f"{one}/status", {"status": {"note": "seen", "other": 1}, "spec": {"size": 9}})
        await say.ask("PATCH", one, {"spec": {"size": 2}, "status": {"note": "ignored"}})
        await say.ask("PATCH", one, {"spec": {"free": {"a": {"b": [1]}}, "port": "http", "maybe": None}})
        for wrong in ({"size": 0}, {"size": 10}, {"size": "1"}, {"color": 1}):
            await say.ask("PATCH", one, {"spec": wrong})
        await say.ask("PATCH", one, {"spec": {"port": True}})
        await say.ask("PATCH", one, {"spec": {"tags": ["a", "b", "c", "d"]}})
        await say.ask("PATCH", one, {"spec": {"pair": {"a": "1", "b": "2", "c": "3"}}})
        await say.ask("POST", _WIDGETS, _widget({}))
        await say.ask("GET", f"{one}/scale")
        await say.ask("DELETE", one)
    await say.ask("GET", _WIDGETS)


@conversation
async def fields_have_managers(say: Speaker) -> None:
    say.visit_control_plane()
    async with _widgets(say):
        one = f"{_WIDGETS}/one"
        await say.apply(one, _widget({"size": 1, "tags": ["a"], "pair": {"x": "1"}}, labels={"a": "1"}), "first")
        await say.apply(one, _widget({"size": 1, "tags": ["a"], "pair": {"x": "1"}}, labels={"a": "1"}), "first")
        await say.apply(one, _widget({"tags": ["b"], "pair": {"y": "2"}}, labels={"b": "2"}), "second")
        await say.apply(one, _widget({"size": 2}), "second")
        await say.apply(one, _widget({"size": 2}), "second", force="true")
        await say.ask("PATCH", one, {"spec": {"color": "red"}}, fieldManager="editor")
        await say.apply(one, _widget({"color": "green"}), "first")
        await say.apply(one, _widget({"tags": ["a"]}), "first")
        await say.apply(f"{one}/status", _widget(status={"conditions": [{"type": "A", "status": "True"}]}), "first")
        await say.apply(f"{one}/status", _widget(status={"conditions": [{"type": "B", "status": "True"}]}), "second")
        await say.apply(f"{one}/status", _widget(status={"note": "only"}), "first")
        await say.apply(one, _widget(finalizers=["example.com/hold"]), "third")
        await say.apply(one, _widget(), "third")
        await say.ask("PATCH", one, _widget(), content_type="application/apply-patch+yaml")
        await say.apply(f"{_WIDGETS}/two/status", _widget() | {"metadata": {"name": "two"}}, "first")
        await say.apply(one, _widget(resourceVersion="1"), "first")


def _on(page: Any) -> dict[str, str]:
    return {"continue": page["metadata"]["continue"]}
