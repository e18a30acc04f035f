"""Tests of reading one cluster's objects, with an API server that answers what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from milo_discovery_cli import cluster_objects
from milo_discovery_cli.cluster_objects import ClusterReader, FailedRead, FoundPage, KnownResources, Lacking, Unanswered
from milo_discovery_cli.object_page import TABLE, DocumentPage, RowPage
from milo_discovery_cli.object_request import ObjectScope, parse
from milo_kube.api_request import JSON, Answer
from milo_kube.http.errors import TransportError

Query = Mapping[str, str]
Reply = Answer | TransportError | Callable[[Query], "Answer | TransportError"]

RESOURCES = {
    "resources": [
        {
            "name": "pods",
            "singularName": "pod",
            "namespaced": True,
            "kind": "Pod",
            "verbs": ["list"],
            "shortNames": ["po"],
        }
    ]
}
STATUS = {"kind": "Status", "status": "Failure"}


def answer(content: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, headers, content if isinstance(content, bytes) else json.dumps(content).encode())


def rows(*names: str, more: str = "") -> Answer:
    found = [{"cells": [name], "object": {"metadata": {"name": name}}} for name in names]
    return answer(
        {"kind": "Table", "columnDefinitions": [{"name": "Name"}], "rows": found, "metadata": {"continue": more}}
    )


class Server:
    """An API server with the core group, which answers each path as it is told, or with 404."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        self.replies = {
            "/api": answer({"kind": "APIVersions", "versions": ["v1"]}),
            "/apis": answer({"kind": "APIGroupList", "groups": []}),
            "/api/v1": answer(RESOURCES),
            **replies,
        }
        self.requests: list[tuple[str, Query]] = []

    async def get(
        self, path: str, query: Sequence[tuple[str, str]] = (), *, timeout_s: float, accept: str = JSON
    ) -> Answer:
        await asyncio.sleep(0)
        self.requests.append((path, dict(query)))
        reply = self.replies.get(path, answer(b"404 page not found", 404))
        if callable(reply):
            reply = reply(dict(query))
        if isinstance(reply, TransportError):
            raise reply
        return reply

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


async def read(
    server: Server, *arguments: str, known: KnownResources | None = None, namespace: str = "", accept: str = TABLE
) -> list[FoundPage | Lacking | FailedRead]:
    reader = ClusterReader(
        server, "alpha", ObjectScope(namespace=namespace), known or KnownResources(1.0), accept=accept, timeout_s=1.0
    )
    return [found async for found in reader.read(parse(arguments))]


def names(found: list[FoundPage | Lacking | FailedRead]) -> list[str]:
    cells: list[str] = []
    for each in found:
        assert isinstance(each, FoundPage)
        assert isinstance(each.page, RowPage)
        cells += [row.cells[0] for row in each.page.rows]
    return cells


async def cause(server: Server, *arguments: str, **options: Any) -> str:
    try:
        failed = (await read(server, *arguments, **options))[-1]
    except Unanswered as error:
        return str(error)
    assert isinstance(failed, FailedRead)
    return failed.cause


class TestPages:
    async def test_list_is_read_in_pages(self):
        pages = {"": rows("a", more="2"), "2": rows("b", more="3"), "3": rows("c")}
        server = Server({"/api/v1/pods": lambda query: pages[query.get("continue", "")]})
        assert names(await read(server, "pods")) == ["a", "b", "c"]
        assert server.requests[-1] == ("/api/v1/pods", {"limit": "500", "continue": "3"})

    async def test_expired_list_is_continued_with_the_rest_as_it_is_now(self):
        expired = answer({**STATUS, "code": 410, "metadata": {"continue": "now"}}, 410)
        pages = {"": rows("a", more="2"), "2": expired, "now": rows("b")}
        server = Server({"/api/v1/pods": lambda query: pages[query.get("continue", "")]})
        assert names(await read(server, "pods")) == ["a", "b"]

    async def test_list_that_expires_without_a_rest_is_an_error(self):
        expired = answer({**STATUS, "code": 410, "message": "the token is too old"}, 410)
        server = Server({"/api/v1/pods": lambda query: expired if query.get("continue") else rows("a", more="2")})
        assert await cause(server, "pods") == "410 the token is too old"

    async def test_pages_that_are_too_large_are_requested_smaller(self):
        def page(query: Query) -> Answer | TransportError:
            return rows("a") if int(query["limit"]) <= 5 else TransportError("too_large", "more than 8 MiB")

        server = Server({"/api/v1/pods": page})
        assert names(await read(server, "pods")) == ["a"]
        assert [query["limit"] for path, query in server.requests if path == "/api/v1/pods"] == ["500", "50", "5"]

    async def test_object_that_is_too_large_is_an_error(self):
        server = Server({"/api/v1/pods": TransportError("too_large", "more than 8 MiB")})
        assert await cause(server, "pods") == "more than 8 MiB"

    @pytest.mark.parametrize("status", [200, 410])
    async def test_endless_list_is_an_error(self, status):
        page = rows("a", more="again") if status == 200 else answer({"metadata": {"continue": "again"}}, 410)
        assert "did not end in 2000 pages" in await cause(Server({"/api/v1/pods": page}), "pods")

    async def test_overloaded_server_is_asked_again(self, monkeypatch):
        monkeypatch.setattr(cluster_objects, "_BACKOFF", cluster_objects.Backoff(first_s=0.0, cap_s=0.0))
        replies = iter([answer(b"busy", 429), answer(b"busy", 429, **{"Retry-After": "0"}), rows("a")])
        assert names(await read(Server({"/api/v1/pods": lambda _: next(replies)}), "pods")) == ["a"]
        assert await cause(Server({"/api/v1/pods": answer(b"busy", 429)}), "pods") == "429 busy"


class TestFailures:
    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (answer({**STATUS, "message": "pods is forbidden"}, 403), "403 pods is forbidden"),
            (answer(b"<html><b>Bad Gateway</b></html>", 502), "502 Bad Gateway"),
            (answer(b"", 500), "500 Internal Server Error"),
            (answer(b"", 302), "302 Found"),
            (answer(b"", 599), "599"),
            (answer(b"<html>"), "GET /api/v1/pods: the response is not what was asked for"),
            (answer(b'{"rows":[{"cells":' + b"[" * 100_000), "nested too deeply"),
            (TransportError("timeout", "https://a did not answer within 1 s"), "did not answer within 1 s"),
        ],
    )
    async def test_failure_of_a_request_is_the_cause(self, reply, words):
        assert words in await cause(Server({"/api/v1/pods": reply}), "pods")

    @pytest.mark.parametrize("path", ["/api", "/apis", "/api/v1"])
    @pytest.mark.parametrize("reply", [answer(b"<html>"), answer(b"no", 403), TransportError("connect", "refused")])
    async def test_failure_of_discovery_is_the_cause(self, path, reply):
        assert await cause(Server({path: reply}), "podz")

    async def test_address_without_an_api_is_no_cluster_that_lacks_the_resource(self):
        missing = answer(b"404 page not found", 404)
        assert "no API is served" in await cause(Server({"/api": missing, "/apis": missing}), "pods")
        assert names(await read(Server({"/apis": missing, "/api/v1/pods": rows("a")}), "pods")) == ["a"]

    async def test_group_whose_discovery_fails_does_not_matter_if_another_serves_the_resource(self):
        version = {"version": "v1", "groupVersion": "broken/v1"}
        groups = {"kind": "APIGroupList", "groups": [{"name": "broken", "versions": [version]}]}
        server = Server({"/apis": answer(groups), "/apis/broken/v1": answer(b"", 503), "/api/v1/pods": rows("a")})
        assert names(await read(server, "po")) == ["a"]
        assert "503" in await cause(server, "podz")

    @pytest.mark.parametrize(
        ("reply", "arguments"),
        [
            (answer(b"no", 403), ("pods,nodes",)),
            (answer(b"no", 403), ("nodes,pods",)),
            (answer(b"<html>"), ("pods,nodes",)),
            (TransportError("timeout", "silent"), ("pods,nodes",)),
        ],
    )
    async def test_failure_of_one_kind_does_not_affect_others(self, reply, arguments):
        nodes = {"name": "nodes", "singularName": "node", "kind": "Node", "verbs": ["list"]}
        resources = answer({"resources": [*RESOURCES["resources"], nodes]})
        server = Server({"/api/v1": resources, "/api/v1/pods": reply, "/api/v1/nodes": rows("n")})
        found = await read(server, *arguments)
        assert [each.subject for each in found if isinstance(each, FailedRead)] == ["pods"]
        assert names([each for each in found if not isinstance(each, FailedRead)]) == ["n"]

    async def test_failure_of_one_name_does_not_affect_others(self):
        pods = "/api/v1/namespaces/work/pods"
        server = Server({f"{pods}/a": answer(b"no", 403), f"{pods}/b": rows("b")})
        failed, *rest = await read(server, "pods", "a", "b", namespace="work")
        assert failed == FailedRead("pods/a", "403 no")
        assert names(rest) == ["b"]

    async def test_kind_that_does_not_answer_in_time_is_requested_once(self):
        pods = "/api/v1/namespaces/work/pods"
        server = Server({f"{pods}/{name}": TransportError("timeout", "silent") for name in "ab"})
        assert await read(server, "pods", "a", "b", namespace="work") == [FailedRead("pods/a", "silent")]

    async def test_failure_of_a_groups_discovery_does_not_affect_other_kinds(self):
        version = {"version": "v1", "groupVersion": "broken/v1"}
        groups = {"kind": "APIGroupList", "groups": [{"name": "broken", "versions": [version]}]}
        server = Server({"/apis": answer(groups), "/apis/broken/v1": answer(b"", 503), "/api/v1/pods": rows("a")})
        failed, *rest = await read(server, "things.broken,pods")
        assert failed == FailedRead("things.broken", "503 Service Unavailable")
        assert names(rest) == ["a"]


class TestRepetition:
    @pytest.mark.parametrize("arguments", [("po,pods,Pod",), ("pods", "a", "a"), ("po/a", "pods/a", "pod/a")])
    async def test_what_several_arguments_mean_is_read_once(self, arguments):
        replies = {"/api/v1/namespaces/work/pods": rows("a"), "/api/v1/namespaces/work/pods/a": rows("a")}
        assert names(await read(Server(replies), *arguments, namespace="work")) == ["a"]


class TestAbsence:
    async def test_resource_that_is_not_served_is_absent(self):
        assert await read(Server({}), "podz") == [Lacking("podz")]

    async def test_object_that_does_not_exist_is_absent(self):
        missing = answer({**STATUS, "code": 404, "details": {"name": "web", "kind": "pods"}}, 404)
        server = Server({"/api/v1/namespaces/work/pods/web": missing, "/api/v1/pods": rows()})
        assert await read(server, "pods", "web", namespace="work") == [Lacking("pods", "web")]
        found = await read(server, "pods", "web")
        assert found[-1] == Lacking("pods", "web")


class TestKnownResources:
    async def test_other_clusters_are_asked_for_one_version_of_their_resources(self):
        known = KnownResources(1.0)
        first, second = (Server({"/api/v1/pods": rows("a")}) for _ in range(2))
        assert await asyncio.gather(read(first, "po", known=known), read(second, "po", known=known))
        assert second.paths == ["/api/v1", "/api/v1/pods"]

    @pytest.mark.parametrize("lie", ["secrets", "pods.example.com"])
    async def test_no_cluster_decides_what_is_read_from_another(self, lie):
        # A hostile cluster could let users read the Secrets of all others, or hide their objects.
        plural, _, group = lie.partition(".")
        path, lies = f"/apis/{group}/v1" if group else "/api/v1", {**RESOURCES["resources"][0], "name": plural}
        groups = {"kind": "APIGroupList", "groups": [{"name": group, "versions": [{"version": "v1"}]}] if group else []}
        served = {path: answer({"resources": [lies]}), f"{path}/{plural}": rows("wrong")}
        lying, known = (
            Server({"/api/v1": answer({"resources": []}), "/apis": answer(groups), **served}),
            KnownResources(1.0),
        )
        assert names(await read(lying, "po", known=known)) == ["wrong"]
        honest = Server(
            {**served, "/api/v1": answer(RESOURCES), "/api/v1/secrets": rows("s"), "/api/v1/pods": rows("a")}
        )
        assert names(await read(honest, "po", known=known)) == ["a"]

    @pytest.mark.parametrize("resources", [{"resources": [RESOURCES["resources"][0]] * 10_001}, {"resources": []}])
    async def test_cluster_with_millions_of_resources_or_versions_is_refused(self, resources):
        versions = [f"v{number}" for number in range(1 if resources["resources"] else 1_001)]
        server = Server({"/api": answer({"kind": "APIVersions", "versions": versions}), "/api/v0": answer(resources)})
        assert "10000 resources" in (problem := await cause(server, "pods")) or "1001 versions" in problem
        assert len(server.paths) <= 3

    async def test_cluster_whose_versions_have_too_many_resources_together_is_refused(self):
        many = answer({"resources": RESOURCES["resources"] * 6_000})
        versions = answer({"kind": "APIVersions", "versions": ["v1", "v2"]})
        assert await cause(Server({"/api": versions, "/api/v1": many, "/api/v2": many}), "web") == (
            "it serves more than 10000 resources"
        )

    async def test_cluster_that_lacks_the_resource_is_asked_for_its_own(self):
        known = KnownResources(1.0)
        await read(Server({"/api/v1/pods": rows("a")}), "po", known=known)
        lacking = Server({"/api/v1": answer({"resources": []})})
        assert await read(lacking, "po", known=known) == [Lacking("po")]
        other = {"resources": [{**RESOURCES["resources"][0], "name": "pods2", "kind": "Pod2"}]}
        differing = Server({"/api/v1": answer(other), "/api/v1/pods2": rows("b")})
        assert names(await read(differing, "po", known=known)) == ["b"]

    async def test_failure_of_the_first_cluster_does_not_affect_others(self):
        known = KnownResources(1.0)
        failing, working = Server({"/api": TransportError("connect", "refused")}), Server({"/api/v1/pods": rows("a")})
        results = await asyncio.gather(
            read(failing, "po", known=known), read(working, "po", known=known), return_exceptions=True
        )
        assert isinstance(results[0], Unanswered)
        assert isinstance(results[1], list)
        assert names(results[1]) == ["a"]

    async def test_first_cluster_that_hangs_does_not_delay_others_for_long(self, monkeypatch):
        monkeypatch.setattr(cluster_objects, "_LEADER_S", 0.01)
        known = KnownResources(1.0)
        reading = asyncio.Event()

        class Hanging(Server):
            async def get(self, *_: Any, **__: Any) -> Answer:
                reading.set()
                await asyncio.Event().wait()
                raise AssertionError

        hanging = asyncio.create_task(read(Hanging({}), "po", known=known))
        await reading.wait()
        assert names(await read(Server({"/api/v1/pods": rows("a")}), "po", known=known)) == ["a"]
        hanging.cancel()


async def test_documents_are_read_as_objects():
    server = Server({"/api/v1/pods": answer({"items": [{"metadata": {"name": "web"}}]})})
    [found] = await read(server, "pods", accept=JSON)
    assert isinstance(found, FoundPage)
    assert isinstance(found.page, DocumentPage)
    assert found.page.objects[0]["kind"] == "Pod"
