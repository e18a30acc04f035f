"""Tests of what one cluster may do to the objects of the others: nothing."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from milo_discovery import (
    ClientCredentials,
    Cluster,
    EngagedCluster,
    Event,
    EventType,
    InvalidRequest,
    Listing,
    PermissionDenied,
    Synced,
)
from milo_discovery.errors import FieldViolation
from milo_discovery_cli import fleet_objects, object_watch, progress
from milo_discovery_cli.cluster_objects import KnownResources
from milo_discovery_cli.exit_status import CommandFailure, ExitStatus, describe
from milo_discovery_cli.fleet_objects import FleetObjects, naming_options, suggested
from milo_discovery_cli.names import why_not_selected
from milo_discovery_cli.object_output import form_of
from milo_discovery_cli.object_request import ObjectScope, parse
from milo_discovery_cli.object_watch import FleetWatch
from milo_discovery_cli.options import ConnectionOptions
from milo_discovery_cli.progress import Progress, bar
from milo_kube.api_request import Answer
from milo_kube.http.errors import TransportError

CONNECTION = ConnectionOptions(address="unix:///nowhere", timeout=timedelta(seconds=5), credentials=ClientCredentials())
PODS = {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["list"]}
NODES = {"name": "nodes", "singularName": "node", "namespaced": False, "kind": "Node", "verbs": ["list"]}
MISSING = {"kind": "Status", "status": "Failure", "code": 404, "details": {"name": "nosuch", "kind": "pods"}}
DOCUMENTS: dict[str, object] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "groups": []},
    "/api/v1": {"resources": [PODS, NODES]},
    "/api/v1/nodes": {"metadata": {"resourceVersion": "1"}, "items": []},
    "/api/v1/namespaces/work/pods": {"metadata": {"resourceVersion": "1"}, "items": []},
    "/api/v1/namespaces/work/pods/web": {"metadata": {"name": "web", "uid": "u"}},
    "/api/v1/pods": {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "web", "uid": "u"}}]},
}


class Api:
    """The API of a cluster; of the cluster "broken", each request raises an error that nobody expects."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def get(self, path: str, query: Any = (), **_: Any) -> Answer:
        if self.name == "broken":
            raise KeyError(path)
        if self.name == "unreachable":
            raise TransportError("connect", "refused")
        if self.name.startswith("forbidding") and "/pods" in path:
            return Answer(403, {}, b"no pods")
        if "refused" in self.name and query:
            return Answer(400, {}, b"field label not supported")
        if self.name == "lacking" and path == "/api/v1":
            return Answer(200, {}, b'{"resources":[]}')
        if self.name == "lacking-web" and path.endswith("/web"):
            return Answer(404, {}, json.dumps(MISSING).encode())
        if path not in DOCUMENTS:
            return Answer(404, {}, json.dumps(MISSING).encode())
        return Answer(200, {}, json.dumps(DOCUMENTS[path]).encode())

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    async def aclose(self) -> None: ...


class Client:
    """A client of a daemon with the clusters "broken" and "sound"."""

    clusters: tuple[Cluster, ...] = (Cluster(name="broken"), Cluster(name="sound"))
    api_clients = None

    async def list(self, **_: Any) -> Listing:
        return Listing(clusters=self.clusters, revision="1")

    @asynccontextmanager
    async def watch(self, **_: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(feed=self.feed)

    async def feed(self) -> AsyncIterator[Any]:
        for cluster in self.clusters:
            yield Event(type=EventType.ENGAGED, cluster=cluster)
        yield Synced(clusters=2)
        await asyncio.Event().wait()


async def test_unexpected_error_of_one_cluster_is_its_cause_and_others_are_printed(monkeypatch, capsys):
    @asynccontextmanager
    async def opened(_: object, cluster: Cluster, __: object) -> AsyncIterator[Api]:
        yield Api(cluster.name)

    monkeypatch.setattr(fleet_objects, "opened", opened)
    form = form_of("custom-columns=N:.metadata.name", namespaces=True, kinds=False, headers=False, watches=False)
    objects = FleetObjects(CONNECTION, ObjectScope(), parse(["pods"]), form)
    only: Any = {"names": ()}
    assert await objects.print(Client(), only) == 1  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert printed.out == "sound   web\n"
    assert printed.err.splitlines()[-1] == "broken    what it sent cannot be shown: KeyError: '/api'"


async def test_cluster_whose_answers_do_not_end_is_given_up(monkeypatch, capsys):
    class Endless(Api):
        async def get(self, path: str, query: Any = (), **_: Any) -> Answer:
            if self.name == "broken":
                await asyncio.Event().wait()
            return await super().get(path, query)

    @asynccontextmanager
    async def opened(_: object, cluster: Cluster, __: object) -> AsyncIterator[Api]:
        yield Endless(cluster.name)

    monkeypatch.setattr(fleet_objects, "opened", opened)
    monkeypatch.setattr(fleet_objects, "MAX_S", 2.0)
    form = form_of("custom-columns=N:.metadata.name", namespaces=True, kinds=False, headers=False, watches=False)
    objects = FleetObjects(CONNECTION, ObjectScope(), parse(["pods"]), form)
    only: Any = {"names": ()}
    assert await objects.print(Client(), only) == 1  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert printed.out == "sound   web\n"
    assert printed.err.splitlines()[-1] == "broken    what it sends did not end within 2 s"


@pytest.mark.parametrize(
    ("arguments", "clusters", "status", "printed"),
    [
        ("pods", "sound nosuch", ExitStatus.FAILED, "1 of 2 clusters did not answer:"),
        ("pods", "denied also-denied", ExitStatus.DENIED, "none of 2 clusters answered: the rule grants nothing"),
        ("pods", "denied", ExitStatus.DENIED, "1 of 1 cluster did not answer:"),
        ("pods", "sound denied", ExitStatus.FAILED, "1 of 2 clusters did not answer:"),
        ("pods", "denied broken", ExitStatus.FAILED, "2 of 2 clusters did not answer:"),
        (
            "pods",
            "forbidding sound",
            ExitStatus.FAILED,
            "1 of 2 clusters did not answer:\nCLUSTER      CAUSE\nforbidding   403 no pods",
        ),
        (
            "pods,nodes",
            "forbidding sound",
            ExitStatus.FAILED,
            "1 of 2 clusters did not answer in full:\nCLUSTER      CAUSE\nforbidding   pods: 403 no pods",
        ),
        (
            "pods a b",
            "forbidding sound",
            ExitStatus.FAILED,
            "1 of 2 clusters did not answer:\nCLUSTER      CAUSE\nforbidding   403 no pods",
        ),
        (
            "pods,nodes",
            "forbidding forbidding-too",
            ExitStatus.FAILED,
            "none of 2 clusters answered in full: pods: 403 no pods",
        ),
        (
            "pods,nodes",
            "unreachable sound",
            ExitStatus.FAILED,
            "1 of 2 clusters did not answer:\nCLUSTER       CAUSE\nunreachable   refused",
        ),
        ("pod", "forbidding lacking", ExitStatus.FAILED, "1 of 2 clusters do not serve pod: lacking"),
        (
            "podz",
            "unreachable sound",
            ExitStatus.FAILED,
            "1 of 2 clusters do not serve podz: sound; did you mean pods?",
        ),
        (
            "pods web",
            "unreachable lacking-web sound",
            ExitStatus.FAILED,
            "1 of 3 clusters have no pods/web: lacking-web",
        ),
        ("pods,podz", "forbidding sound", ExitStatus.FAILED, "no cluster serves a resource 'podz'; did you mean pods?"),
        ("pods", "sound", ExitStatus.OK, "no objects found in namespace work of 1 cluster"),
        ("nodes", "sound", ExitStatus.OK, "no objects found in 1 cluster"),
        ("pods,nodes", "sound", ExitStatus.OK, "no objects found in namespace work of 1 cluster"),
        ("pods web nosuch", "sound", ExitStatus.NOT_FOUND, "no cluster has pods/nosuch"),
        ("pod/web foo/bar", "sound", ExitStatus.NOT_FOUND, "no cluster serves a resource 'foo'"),
        ("pod/web foo/a foo/b", "sound", ExitStatus.NOT_FOUND, "no cluster serves a resource 'foo'"),
        ("pods web nosuch nosuch", "sound", ExitStatus.NOT_FOUND, "no cluster has pods/nosuch"),
    ],
)
async def test_report_tells_what_is_missing_of_which_clusters(
    monkeypatch, capsys, arguments, clusters, status, printed
):
    @asynccontextmanager
    async def opened(_: object, cluster: Cluster, __: object) -> AsyncIterator[Api]:
        if "denied" in cluster.name:
            raise PermissionDenied("the rule grants nothing", code="PERMISSION_DENIED")
        yield Api(cluster.name)

    client = Client()
    client.clusters = tuple(Cluster(name=name) for name in clusters.split() if name != "nosuch")
    monkeypatch.setattr(fleet_objects, "opened", opened)
    form = form_of("name", namespaces=False, kinds=False, headers=False, watches=False)
    objects = FleetObjects(CONNECTION, ObjectScope(namespace="work"), parse(arguments.split()), form)
    only: Any = {"names": tuple(clusters.split())}
    assert await objects.print(client, only) == status  # type: ignore[arg-type]
    assert f"milo-discovery: {printed}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("sound", "it does not match the other filters: --cluster-selector, --organization, --source"),
        ("sund", "it is not engaged; did you mean sound?"),
    ],
)
async def test_cluster_that_is_not_selected_has_a_cause(name, cause):
    assert await why_not_selected(Client(), name) == cause  # type: ignore[arg-type]


def test_resource_of_another_group_is_suggested():
    known = KnownResources(1.0)
    known.names = frozenset({"pods", "widgets"})
    assert suggested("widgets.v2.example.com", known).endswith("'widgets.v2.example.com'; did you mean widgets?")


def test_invalid_name_of_a_cluster_names_the_option():
    violation = FieldViolation("filter.names", "contains an empty string")
    with pytest.raises(InvalidRequest) as raised, naming_options():
        raise InvalidRequest("bad", code="INVALID_ARGUMENT", violations=(violation,))
    assert describe(raised.value, "unix:///d.sock") == "--cluster: contains an empty string"


async def test_unexpected_error_of_one_cluster_does_not_end_the_watch_of_others(monkeypatch, capsys):
    monkeypatch.setattr(EngagedCluster, "credentials", lambda _: nullcontext())
    monkeypatch.setattr(object_watch, "ClusterApi", lambda name, *_: Api(name))
    monkeypatch.setattr(object_watch, "exit_with_reader", lambda _: None)
    form = form_of("custom-columns=N:.metadata.name", namespaces=True, kinds=False, headers=False, watches=True)
    watch = FleetWatch(CONNECTION, ObjectScope(), parse(["pods"]), form)
    only: Any = {"names": ()}
    printing = asyncio.create_task(watch.print(Client(), only))  # type: ignore[arg-type]
    out = err = ""
    while not printing.done() and not (out and "KeyError" in err):
        await asyncio.sleep(0.01)
        printed = capsys.readouterr()
        out, err = out + printed.out, err + printed.err
    assert not printing.done()
    assert out == "ADDED      sound   web\n"
    assert "milo-discovery: broken: KeyError: '/api'; retrying\n" in err
    printing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await printing


async def test_watch_names_a_cluster_that_is_not_engaged(monkeypatch, capsys):
    monkeypatch.setattr(EngagedCluster, "credentials", lambda _: nullcontext())
    monkeypatch.setattr(object_watch, "ClusterApi", lambda name, *_: Api(name))
    monkeypatch.setattr(object_watch, "exit_with_reader", lambda _: None)
    form = form_of("name", namespaces=True, kinds=False, headers=False, watches=True)
    watch = FleetWatch(CONNECTION, ObjectScope(), parse(["pods"]), form)
    only: Any = {"names": ("sound", "sund")}
    printing = asyncio.create_task(watch.print(Client(), only))  # type: ignore[arg-type]
    err = ""
    while not printing.done() and "did you mean" not in err:
        await asyncio.sleep(0.01)
        err += capsys.readouterr().err
    assert "milo-discovery: sund: it is not engaged; did you mean sound?\n" in err
    assert "sound: it is not engaged" not in err
    printing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await printing


async def test_watch_tells_that_no_cluster_has_the_object_yet(monkeypatch, capsys):
    monkeypatch.setattr(EngagedCluster, "credentials", lambda _: nullcontext())
    monkeypatch.setattr(object_watch, "ClusterApi", lambda name, *_: Api(name))
    monkeypatch.setattr(object_watch, "exit_with_reader", lambda _: None)
    form = form_of("name", namespaces=False, kinds=False, headers=False, watches=True)
    watch = FleetWatch(CONNECTION, ObjectScope(namespace="work"), parse(["pod", "nosuch"]), form)
    only: Any = {"names": ()}
    printing = asyncio.create_task(watch.print(Client(), only))  # type: ignore[arg-type]
    err = ""
    async with asyncio.timeout(8):
        while "no cluster has pods/nosuch yet" not in err:
            await asyncio.sleep(0.01)
            err += capsys.readouterr().err
    assert not printing.done()
    printing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await printing


async def test_watch_ends_when_all_clusters_refuse_the_request(monkeypatch, capsys):
    monkeypatch.setattr(EngagedCluster, "credentials", lambda _: nullcontext())
    monkeypatch.setattr(object_watch, "ClusterApi", lambda name, *_: Api(name))
    monkeypatch.setattr(object_watch, "exit_with_reader", lambda _: None)
    client = Client()
    client.clusters = tuple(Cluster(name=name) for name in ("refused-one", "refused-two", "lacking"))
    form = form_of("name", namespaces=True, kinds=False, headers=False, watches=True)
    watch = FleetWatch(CONNECTION, ObjectScope(field_selector="a=b"), parse(["pods"]), form)
    only: Any = {"names": ()}
    with pytest.raises(
        CommandFailure, match="no cluster accepts the request: 400: field label not supported"
    ) as raised:
        await asyncio.wait_for(watch.print(client, only), 30)  # type: ignore[arg-type]
    assert raised.value.exit_code == ExitStatus.FAILED
    assert "1 of 3 clusters do not serve pods" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("counts", "width", "text"),
    [
        ((0, 0, 400), 80, f"[{'.' * 30}] 0 of 400 clusters"),
        ((200, 3, 400), 80, f"[{'#' * 15}{'.' * 15}] 200 of 400 clusters, 3 did not answer"),
        ((400, 0, 400), 80, f"[{'#' * 30}] 400 of 400 clusters"),
        ((0, 0, 0), 80, f"[{'#' * 30}] 0 of 0 clusters"),
        ((0, 0, 1), 80, f"[{'.' * 30}] 0 of 1 cluster"),
        ((1, 0, 2), 10, "[#########"),
    ],
)
def test_bar_shows_how_many_clusters_have_answered(counts, width, text):
    assert bar(*counts, width) == text


@pytest.mark.parametrize(("terminal", "is_drawn"), [("xterm", True), ("dumb", False)])
async def test_bar_is_drawn_on_terminals_that_can_erase_it(monkeypatch, terminal, is_drawn):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setattr(progress, "_BEGIN_S", 0.0)
    async with Progress(1):
        for _ in range(5):
            await asyncio.sleep(0)
    assert bool(stderr.getvalue()) == is_drawn
