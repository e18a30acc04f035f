"""Controllers against control planes of the sandbox: the guarantees for a reconciler."""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from kubernetes.client import V1ConfigMap
from prometheus_client import CollectorRegistry

from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.controllers import (
    AlreadyExists,
    ApiError,
    ClusterFilter,
    Conflict,
    Controllers,
    Kind,
    NotCached,
    NotFound,
    NotSynced,
    Permanent,
    ProjectSuspended,
    QueuePolicy,
    Request,
    Result,
    SingleCluster,
    Target,
    Watched,
    watches,
)
from milo_discovery.controllers.connections import Connections
from milo_discovery.controllers.informer import Informer
from milo_discovery.testing import ControlPlane, FakeDiscovery, MiloSandbox, eventually, fake_clock

WIDGETS = "example.com/v1/widgets"
FINALIZER = "example.com/account"
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}

Reconciler = Callable[[Request], Coroutine[Any, Any, Result | None]]
names = (f"plane-{number}" for number in itertools.count())


def widget(name: str, **spec: object) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[MiloSandbox]:
    with MiloSandbox.start() as sandbox:
        yield sandbox


@pytest.fixture
def plane(sandbox: MiloSandbox) -> ControlPlane:
    """A control plane that serves widgets."""
    return with_widgets(sandbox)


def with_widgets(sandbox: MiloSandbox) -> ControlPlane:
    [made] = sandbox.create_control_planes(next(names))
    made.install(DEFINITION)
    return made


class Running:
    """Running controllers in the fleet of a FakeDiscovery."""

    def __init__(self, *planes: ControlPlane, confirm_releases: bool = False) -> None:
        self.discovery = FakeDiscovery(*planes)
        self.fleet = Fleet(cast(DiscoveryClient, self.discovery), confirm_releases=confirm_releases)
        self.registry = CollectorRegistry()
        self.controllers = Controllers(self.fleet, registry=self.registry)

    def metric(self, metric: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(metric, labels)


@asynccontextmanager
async def reconciling(reconciler: Reconciler, *planes: ControlPlane, **options: Any) -> AsyncIterator[Running]:
    running = Running(*planes)
    running.controllers.reconcile(WIDGETS, **options)(reconciler)
    async with running.controllers:
        yield running


class Log:
    """A reconciler that records what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []

    async def __call__(self, request: Request) -> Result | None:
        found = await request.get()
        self.seen.append((request.cluster.name, request.name, found and found.get("spec")))
        return None


async def test_objects_are_reconciled_when_listed_changed_and_deleted(plane: ControlPlane) -> None:
    plane.create(widget("one", size=1))
    log = Log()
    async with reconciling(log, plane):
        await eventually(lambda: log.seen == [(plane.project, "one", {"size": 1})])
        plane.patch(WIDGETS, "one", {"spec": {"size": 2}})
        await eventually(lambda: log.seen[1:] == [(plane.project, "one", {"size": 2})])
        plane.delete(WIDGETS, "one")
        await eventually(lambda: log.seen[2:] == [(plane.project, "one", None)])


async def test_owned_object_is_restored(plane: ControlPlane) -> None:
    async def reconcile(request: Request) -> None:
        if await request.get() is not None:
            body = {"kind": "ConfigMap", "metadata": {"name": request.name}, "data": {"a": "b"}}
            await request.apply("v1/configmaps", body, owned=True)

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, owns=["v1/configmaps"]):
        made = await eventually(lambda: plane.find("v1/configmaps", "one"))
        assert made["metadata"]["ownerReferences"][0]["kind"] == "Widget"
        plane.delete("v1/configmaps", "one")
        await eventually(lambda: plane.find("v1/configmaps", "one"))
        plane.patch("v1/configmaps", "one", {"data": {"a": "changed"}})
        await eventually(lambda: plane.get("v1/configmaps", "one")["data"] == {"a": "b"})


async def test_finalizer_condition_and_event(plane: ControlPlane) -> None:
    cleaned: list[bool] = []

    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is None:
            return
        if found["metadata"].get("deletionTimestamp"):
            # The object is reconciled again if the cache has not seen the deletion yet.
            cleaned.append(await request.remove_finalizer(FINALIZER))
            assert not await request.remove_finalizer(FINALIZER)
            return
        await request.ensure_finalizer(FINALIZER)
        assert not await request.ensure_finalizer(FINALIZER)
        await request.patch_status({"size": 3})
        if await request.set_condition("Ready", "True", "Done", "all is made"):
            await request.event("Done", "made it")
        assert not await request.set_condition("Ready", "True", "Done", "all is made")

    plane.create(widget("one"))
    async with reconciling(reconcile, plane):
        await eventually(lambda: plane.get(WIDGETS, "one").get("status", {}).get("conditions"))
        made = plane.get(WIDGETS, "one")
        assert made["metadata"]["finalizers"] == [FINALIZER]
        [condition] = made["status"]["conditions"]
        assert (condition["type"], condition["observedGeneration"]) == ("Ready", 1)
        assert made["status"]["size"] == 3
        [event] = await eventually(lambda: plane.list("events.k8s.io/v1/events"))
        assert (event["reason"], event["regarding"]["name"]) == ("Done", "one")
        plane.delete(WIDGETS, "one")
        await eventually(lambda: plane.find(WIDGETS, "one") is None)
        await eventually(lambda: cleaned)  # its response arrives after the object is gone
        assert cleaned[0]
        assert not any(cleaned[1:])


async def test_reconciled_kind_may_be_cached_by_its_metadata(plane: ControlPlane) -> None:
    cached: list[dict[str, Any]] = []

    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is None:
            return
        cached.append(found)
        await request.ensure_finalizer(FINALIZER)
        await request.set_condition("Ready", "True", "Done")
        await request.apply("v1/configmaps", {"kind": "ConfigMap", "metadata": {"name": "owned"}}, owned=True)

    plane.create({**widget("one", size=1), "status": {"conditions": []}})
    plane.patch(WIDGETS, "one", {"status": {"conditions": [{"type": "Other", "status": "True"}]}}, subresource="status")
    async with reconciling(reconcile, plane, metadata_only=True):
        made = await eventually(lambda: plane.find("v1/configmaps", "owned"))
        assert "spec" not in cached[0]
        assert made["metadata"]["ownerReferences"][0]["kind"] == "Widget"
        found = plane.get(WIDGETS, "one")
        assert found["metadata"]["finalizers"] == [FINALIZER]
        assert [each["type"] for each in found["status"]["conditions"]] == ["Other", "Ready"]


async def test_writes_and_reads_of_other_objects(plane: ControlPlane) -> None:
    done: list[str] = []

    async def reconcile(request: Request) -> None:
        if request.name in done:
            return
        body = {"kind": "ConfigMap", "metadata": {"name": "made"}, "data": {"color": "red"}}
        made = await request.create("v1/configmaps", body)
        with pytest.raises(AlreadyExists):
            await request.create("v1/configmaps", body)
        with pytest.raises(ValueError, match=r"metadata\.name"):
            await request.create("v1/configmaps", {"kind": "ConfigMap"})
        await request.patch("v1/configmaps", "made", {"data": {"color": "blue"}})
        with pytest.raises(Conflict):
            await request.update("v1/configmaps", made)
        current = await request.read("v1/configmaps", "made")
        await request.update("v1/configmaps", {**current, "data": {"color": "green"}})
        typed = Kind("v1/configmaps", V1ConfigMap)
        cached = await eventually(lambda: next(request.list(typed, index=("color", "green")), None))
        assert cached.metadata.name == "made"
        assert await request.get("v1/configmaps", "unknown") is None
        with pytest.raises(NotCached):
            await request.get("v1/secrets", "unknown")
        await request.delete("v1/configmaps", "made")
        await request.delete("v1/configmaps", "made")
        with pytest.raises(NotFound):
            await request.read("v1/configmaps", "made")
        done.append(request.name)

    plane.create(widget("one"))
    running = Running(plane)
    running.controllers.cache("v1/configmaps", indexes={"color": lambda found: [found.get("data", {}).get("color")]})
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        await eventually(lambda: done == ["one"])


async def test_failure_is_retried_and_permanent_failure_waits_for_a_change(plane: ControlPlane) -> None:
    attempts: list[int] = []

    async def reconcile(request: Request) -> None:
        attempts.append(request.failures)
        found = await request.get()
        if found is None or found["spec"].get("valid"):
            return
        if len(attempts) < 3:
            raise OSError("not yet")
        raise Permanent("the widget is not valid")

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, queue=QueuePolicy(first_delay_s=0.01)) as running:
        await eventually(lambda: running.controllers.health().stopped)
        assert attempts == [0, 1, 2]
        [(key, problem)] = running.controllers.health().stopped
        assert (key.name, problem) == ("one", "the widget is not valid")
        plane.patch(WIDGETS, "one", {"spec": {"valid": True}})
        await eventually(lambda: attempts == [0, 1, 2, 0])
        await eventually(
            lambda: running.metric("controller_runtime_reconcile_total", controller="widgets", result="success")
        )
        assert running.metric("controller_runtime_reconcile_errors_total", controller="widgets") == 3
        assert running.metric("controller_runtime_terminal_reconcile_errors_total", controller="widgets") == 1
        assert running.metric("workqueue_retries_total", controller="widgets", name="widgets") == 2
        assert running.metric("workqueue_depth", controller="widgets", name="widgets", priority="0") == 0
        assert running.metric("milo_controllers_informers", resource=WIDGETS, state="synced") == 1
        assert running.metric("milo_controllers_clusters") == 1


async def test_retry_waits_as_long_as_the_server_asks(plane: ControlPlane) -> None:
    attempts: list[int] = []

    async def reconcile(request: Request) -> None:
        attempts.append(request.failures)
        if not request.failures:
            raise ApiError(429, "TooManyRequests", "too many requests", retry_after_s=60.0)

    plane.create(widget("one"))
    with fake_clock() as clock:
        async with reconciling(reconcile, plane, queue=QueuePolicy(jitter=0.0)) as running:
            retries = "workqueue_retries_total"
            await eventually(lambda: running.metric(retries, controller="widgets", name="widgets") == 1)
            clock.advance(timedelta(seconds=30))
            plane.create(widget("other"))
            await eventually(lambda: len(attempts) == 2)
            assert attempts == [0, 0]
            clock.advance(timedelta(seconds=31))
            await eventually(lambda: 1 in attempts)


async def test_requeue_after_reconciles_again(plane: ControlPlane) -> None:
    times: list[str] = []

    async def reconcile(request: Request) -> Result | None:
        times.append(request.name)
        return Result(requeue_after=timedelta(milliseconds=20)) if len(times) < 3 else None

    plane.create(widget("one"))
    async with reconciling(reconcile, plane):
        await eventually(lambda: len(times) == 3)


async def test_disengagement_cancels_and_awaits_reconciles_before_the_next_engagement(plane: ControlPlane) -> None:
    history: list[str] = []

    async def reconcile(_request: Request) -> None:
        history.append("begins")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            history.append("ends")

    plane.create(widget("one"))
    async with reconciling(reconcile, plane) as running:
        await eventually(lambda: history == ["begins"])
        running.discovery.disengage(plane.project)
        running.discovery.engage(plane)
        await eventually(lambda: history == ["begins", "ends", "begins"])


async def test_draining_cluster_is_released_after_its_reconciles_have_ended(plane: ControlPlane) -> None:
    history: list[str] = []
    running = Running(plane, confirm_releases=True)

    @running.controllers.reconcile(WIDGETS)
    async def reconcile(_request: Request) -> None:
        history.append("begins")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            assert running.discovery.released == []
            history.append("ends")

    plane.create(widget("one"))
    async with running.controllers:
        await eventually(lambda: history == ["begins"])
        running.discovery.drain(plane.project)
        await eventually(lambda: running.discovery.released == [plane.project])
        assert history == ["begins", "ends"]


async def test_resync_reconciles_every_object_again(plane: ControlPlane) -> None:
    plane.create(widget("one"))
    log = Log()
    fleet = Fleet(cast(DiscoveryClient, FakeDiscovery(plane)))
    controllers = Controllers(fleet, registry=CollectorRegistry(), resync=timedelta(hours=1))
    controllers.reconcile(WIDGETS)(log)
    with fake_clock() as clock:
        async with controllers:
            await eventually(lambda: len(log.seen) == 1)
            clock.advance(timedelta(hours=1))
            await eventually(lambda: log.seen == [(plane.project, "one", {})] * 2)


async def test_reconcile_over_its_time_limit_is_retried(plane: ControlPlane) -> None:
    attempts: list[int] = []

    async def reconcile(request: Request) -> None:
        attempts.append(request.failures)
        if not request.failures:
            await asyncio.Event().wait()

    plane.create(widget("one"))
    limits = {"timeout": timedelta(milliseconds=50), "queue": QueuePolicy(first_delay_s=0.01)}
    async with reconciling(reconcile, plane, **limits):
        await eventually(lambda: attempts == [0, 1])


async def test_controllers_of_a_kind_share_its_informer(plane: ControlPlane) -> None:
    plane.create(widget("one"))
    log, other = Log(), Log()
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(log)
    running.controllers.reconcile(WIDGETS, name="other", owns=[WIDGETS])(other)
    async with running.controllers:
        await eventually(lambda: log.seen == other.seen == [(plane.project, "one", {})])
        assert running.metric("milo_controllers_informers", resource=WIDGETS, state="synced") == 1


async def test_health_says_how_long_the_oldest_object_has_been_queued(plane: ControlPlane) -> None:
    free = asyncio.Event()

    async def reconcile(_request: Request) -> None:
        await free.wait()

    for name in ("one", "two"):
        plane.create(widget(name))
    async with reconciling(reconcile, plane, workers=1) as running:
        health = running.controllers.health
        await eventually(lambda: health().oldest_queued > timedelta())
        assert running.metric("milo_controllers_oldest_queued_seconds", controller="widgets")
        free.set()
        await eventually(lambda: health().oldest_queued == timedelta())


async def test_cluster_that_does_not_answer_costs_the_others_nothing(sandbox: MiloSandbox, plane: ControlPlane) -> None:
    silent = with_widgets(sandbox)
    opened: list[asyncio.StreamWriter] = []
    plane.create(widget("one"))
    async with await asyncio.start_server(lambda _, writer: opened.append(writer), "127.0.0.1", 0) as server:
        address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        access = silent.access()
        silent.access = lambda: replace(access, server=address)  # type: ignore[method-assign]
        log = Log()
        async with reconciling(log, plane, silent) as running:
            await eventually(lambda: opened)
            await eventually(lambda: log.seen == [(plane.project, "one", {})])
            plane.patch(WIDGETS, "one", {"spec": {"size": 2}})
            await eventually(lambda: log.seen[1:] == [(plane.project, "one", {"size": 2})])
            assert not running.controllers.health().synced
        for writer in opened:
            writer.close()


async def test_reconciles_begin_after_the_kinds_that_are_only_read_have_synced(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_list, follow = asyncio.Event(), Informer.run
    found: list[Any] = []

    async def follow_late(informer: Informer) -> None:
        if informer.key.resource == "v1/configmaps":
            await may_list.wait()
        await follow(informer)

    async def reconcile(request: Request) -> None:
        found.append(await request.get("v1/configmaps", "there"))

    monkeypatch.setattr(Informer, "run", follow_late)
    plane.create(widget("one"))
    plane.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "there"}})
    running = Running(plane)
    running.controllers.cache("v1/configmaps")
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        await eventually(lambda: running.metric("milo_controllers_informers", resource=WIDGETS, state="synced") == 1)
        assert found == []
        may_list.set()
        await eventually(lambda: found)
    assert found[0] is not None


async def test_cache_without_a_complete_list_is_not_read(sandbox: MiloSandbox, plane: ControlPlane) -> None:
    [bare] = sandbox.create_control_planes(next(names))
    plane.create(widget("here"))
    outcomes: list[str] = []

    async def reconcile(request: Request) -> None:
        others = request.clusters.cluster(bare.project)
        assert others is not None
        try:
            found = others.get(WIDGETS, "late", "default")
        except NotSynced:
            outcomes.append("not synced")
            raise
        outcomes.append("not found" if found is None else "found")

    running = Running(bare, plane)
    running.controllers.reconcile(WIDGETS, queue=QueuePolicy(max_delay_s=0.2))(reconcile)
    async with running.controllers:
        await eventually(lambda: outcomes)
        bare.install(DEFINITION)
        bare.create(widget("late"))
        await eventually(lambda: "found" in outcomes, within_s=60)
    assert "not found" not in outcomes
    assert outcomes[0] == "not synced"


async def test_kind_that_is_only_read_and_not_served_delays_no_reconcile(plane: ControlPlane) -> None:
    plane.create(widget("one"))
    outcomes: list[str] = []

    async def reconcile(request: Request) -> None:
        with pytest.raises(NotSynced, match="gadgets"):
            await request.get("example.com/v1/gadgets", "any")
        outcomes.append("not synced")

    running = Running(plane)
    running.controllers.cache("example.com/v1/gadgets")
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        await eventually(lambda: outcomes == ["not synced"])


async def test_kind_that_is_not_served_yet_is_awaited(sandbox: MiloSandbox, plane: ControlPlane) -> None:
    [bare] = sandbox.create_control_planes(next(names))
    plane.create(widget("here"))
    log = Log()
    async with reconciling(log, plane, bare) as running:
        await eventually(lambda: log.seen == [(plane.project, "here", {})])
        [problem] = await eventually(lambda: running.controllers.health().problems)
        assert (problem.cluster, problem.kind, problem.is_synced) == (bare.project, WIDGETS, False)
        assert not running.controllers.health().synced
        assert running.metric("milo_controllers_informers", resource=WIDGETS, state="not_served") == 1
        bare.install(DEFINITION)
        bare.create(widget("late"))
        await eventually(lambda: (bare.project, "late", {}) in log.seen, within_s=60)


async def test_suspended_project_parks_writes_until_the_suspension_ends(plane: ControlPlane) -> None:
    outcomes: list[str] = []

    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is None:
            return
        if found["metadata"].get("deletionTimestamp"):
            await request.remove_finalizer(FINALIZER)
            return
        try:
            await request.patch_status({"seen": True})
        except ProjectSuspended:
            outcomes.append("refused")
            raise
        outcomes.append("written")

    plane.create({**widget("ending"), "metadata": {"name": "ending", "finalizers": [FINALIZER]}})
    plane.delete(WIDGETS, "ending")
    plane.create(widget("one"))
    running = Running()
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        running.discovery.engage(plane, suspended=True)
        await eventually(lambda: outcomes == ["refused"])
        await eventually(lambda: plane.find(WIDGETS, "ending") is None)
        running.discovery.update(plane.project, suspended=False)
        await eventually(lambda: "written" in outcomes)
        assert outcomes[0] == "refused"
        assert outcomes.count("refused") == 1


async def test_mapper_enqueues_objects_of_other_clusters(sandbox: MiloSandbox) -> None:
    first, second = with_widgets(sandbox), with_widgets(sandbox)
    for each in (first, second):
        each.create(widget("copy"))
    log = Log()

    def everywhere(change: Watched[dict[str, Any]]) -> Iterator[Target]:
        if change.name == "shared":
            for cluster, found in change.clusters.list(WIDGETS):
                yield Target(found["metadata"]["name"], "default", cluster.name)

    async with reconciling(log, first, second, watches=[watches("v1/configmaps", map=everywhere)]) as running:
        await eventually(lambda: sorted(log.seen) == sorted([(p.project, "copy", {}) for p in (first, second)]))
        first.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}})
        await eventually(lambda: sorted(log.seen[2:]) == sorted([(p.project, "copy", {}) for p in (first, second)]))
        view = running.controllers.view
        assert sorted(view.names()) == sorted([first.project, second.project])
        assert len(list(view.list(WIDGETS))) == 2
        assert first.project in view
        assert view.cluster("unknown") is None


async def test_selector_restricts_the_objects(plane: ControlPlane) -> None:
    for name, labels in (("inside", {"env": "prod"}), ("outside", {})):
        plane.create({**widget(name), "metadata": {"name": name, "labels": labels}})
    log = Log()
    async with reconciling(log, plane, selector="env=prod"):
        await eventually(lambda: log.seen)
        plane.patch(WIDGETS, "inside", {"metadata": {"labels": {"env": "test"}}})
        await eventually(lambda: log.seen == [(plane.project, "inside", {}), (plane.project, "inside", None)])


async def test_single_cluster_needs_no_daemon(plane: ControlPlane, tmp_path: Path) -> None:
    plane.create(widget("one"))
    kubeconfig = plane.write_kubeconfig(tmp_path / "kubeconfig")
    controllers = Controllers(SingleCluster(kubeconfig, name="here"), registry=CollectorRegistry())
    log = Log()
    controllers.reconcile(WIDGETS)(log)
    async with controllers:
        await eventually(lambda: log.seen == [("here", "one", {})])


async def test_kubeconfig_of_a_single_cluster_may_name_a_proxy(plane: ControlPlane, tmp_path: Path) -> None:
    plane.create(widget("one"))
    async with tunnel() as (proxy, asked):
        kubeconfig = plane.write_kubeconfig(tmp_path / "kubeconfig")
        document = json.loads(kubeconfig.read_text())
        document["clusters"][0]["cluster"]["proxy-url"] = proxy
        kubeconfig.write_text(json.dumps(document))
        controllers = Controllers(SingleCluster(kubeconfig), registry=CollectorRegistry())

        @controllers.reconcile(WIDGETS)
        async def reconcile(request: Request) -> None:
            await request.patch(WIDGETS, request.name, {"metadata": {"labels": {"seen": "yes"}}})

        async with controllers:
            await eventually(lambda: plane.get(WIDGETS, "one")["metadata"].get("labels") == {"seen": "yes"})
        server = document["clusters"][0]["cluster"]["server"].split("/")[2]
        assert set(asked) == {f"CONNECT {server} HTTP/1.1"}


@pytest.mark.parametrize(("excepted", "is_used"), [("", True), ("api.example.com", False)])
def test_environment_names_the_proxy_for_other_kubeconfigs(excepted: str, is_used: bool) -> None:
    connections = Connections(environ={"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": excepted})
    assert connections.proxy("https://api.example.com:6443/apis") == ("http://proxy:3128" if is_used else None)


@asynccontextmanager
async def tunnel() -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy, and the request lines that it was sent. Its clients have left before the end of the block."""
    asked: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, _, _ = (await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")
        asked.append(request)
        host, _, port = request.split()[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(pass_on(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
        await asyncio.gather(*tasks)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_log_records_name_the_cluster_and_the_object(plane: ControlPlane) -> None:
    records: list[tuple[str, str]] = []

    async def reconcile(_request: Request) -> None:
        record = logging.LogRecord("test", logging.INFO, "", 0, "hello", None, None)
        assert ClusterFilter().filter(record)
        records.append((record.cluster, record.object))  # type: ignore[attr-defined]

    plane.create(widget("one"))
    async with reconciling(reconcile, plane):
        await eventually(lambda: records == [(plane.project, "default/one")])


async def test_registration_ends_when_the_controllers_run(plane: ControlPlane) -> None:
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(Log())
    with pytest.raises(ValueError, match="name="):
        running.controllers.reconcile(WIDGETS)
    async with running.controllers:
        await running.fleet.synced()
        with pytest.raises(RuntimeError):
            running.controllers.cache("v1/secrets")
