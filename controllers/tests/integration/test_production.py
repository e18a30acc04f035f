"""Controllers under production conditions: tenants that misbehave, caches that lag, and reconcilers with bugs."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from milo_controllers import (
    CacheLimits,
    CacheProblem,
    Controllers,
    Health,
    Kind,
    NotCached,
    OwnedKind,
    Permanent,
    QueuePolicy,
    ReconcileTarget,
    Request,
    Result,
    Watched,
    owns,
    watches,
)
from milo_controllers.informer import Informer
from milo_discovery import Fleet, PermissionDenied, Unavailable
from milo_discovery.credentials import AsyncRenewer
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.testing import ControlPlane, FakeDiscovery, MiloSandbox, eventually

from .widgets import FINALIZER, WIDGETS, Log, Running, reconciling, widget, with_widgets

CONFIG_MAPS = "v1/configmaps"


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


# --- tenants ---


async def test_clusters_whose_servers_hang_leave_threads_to_others(
    sandbox: MiloSandbox, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milo_controllers.controllers.THREADS", 8)
    answer, began = threading.Event(), list[str]()

    def reconcile(request: Request) -> None:
        began.append(request.cluster.name)
        if request.cluster.name != plane.project:
            answer.wait()

    hanging = [with_widgets(sandbox) for _ in range(2)]  # which would take all threads
    for other in hanging:
        for number in range(9):
            other.create(widget(f"w{number}"))
    async with reconciling(reconcile, *hanging, plane) as running:  # type: ignore[arg-type]  # a plain function
        try:
            await eventually(lambda: len(began) >= 7 and running.controllers.health().synced)
            plane.create(widget("one"))
            await eventually(lambda: plane.project in began)
        finally:
            answer.set()


async def test_object_that_cannot_be_cached_is_not_taken_for_a_deleted_one(plane: ControlPlane) -> None:
    plane.create(widget("one"))
    found: list[object] = []

    def transform(_widget: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("not this one")

    async def reconcile(request: Request) -> None:
        try:
            found.append(await request.get())
        except NotCached as error:
            found.append(str(error))

    async with reconciling(reconcile, plane, kind=Kind(WIDGETS, transform=transform)) as running:
        await eventually(lambda: running.controllers.health().synced)
        problems = running.controllers.health().problems
        view = running.controllers.view.view(WIDGETS)
        running.controllers.enqueue(ReconcileTarget("one", "default", plane.project))
        await eventually(lambda: found)
    assert found == [
        f"{WIDGETS} one of {plane.project} exists, but is invalid, and so is not cached: "
        "transform= raised ValueError: not this one"
    ]
    assert [(problem.state, problem.problem) for problem in problems] == [
        ("synced", "1 of its objects cannot be cached, such as one: transform= raised ValueError: not this one")
    ]
    assert not view.is_complete  # which said that what is not found did not exist
    assert view.missing[plane.project].problem == problems[0].problem


async def test_object_whose_newest_state_cannot_be_cached_is_reconciled(plane: ControlPlane) -> None:
    """Found by a reader: neither the change nor the request to delete the object was, and health showed nothing."""
    made = widget("one")
    plane.create({**made, "metadata": {**made["metadata"], "finalizers": [FINALIZER]}})
    seen: list[tuple[object, bool]] = []

    def transform(found: dict[str, Any]) -> dict[str, Any]:
        if found["spec"]:
            raise ValueError("not this one")
        return found

    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is not None:
            seen.append((found["spec"], "deletionTimestamp" in found["metadata"]))
            if "deletionTimestamp" in found["metadata"]:
                await request.remove_finalizer(FINALIZER)

    async with reconciling(reconcile, plane, kind=Kind(WIDGETS, transform=transform), on="generation") as running:
        await eventually(lambda: seen == [({}, False)])
        plane.patch(WIDGETS, "one", {"spec": {"size": 1}})
        await eventually(lambda: seen == [({}, False)] * 2)
        assert [problem.problem for problem in running.controllers.health().problems] == [
            "1 of its objects cannot be cached, such as one: transform= raised ValueError: not this one"
        ]
        view = running.controllers.view.view(WIDGETS)
        assert (view.is_complete, [*view.outdated]) == (True, [plane.project])
        running.discovery.update(plane.project, deletion_requested_at=datetime.now(UTC))
        plane.delete(WIDGETS, "one")
        await eventually(lambda: plane.find(WIDGETS, "one") is None)
        await eventually(lambda: not running.controllers.health().problems)
        assert running.controllers.view.view(WIDGETS).stale_since is None
    assert seen[2] == ({}, True)


async def test_hanging_reconciles_do_not_delay_other_clusters(sandbox: MiloSandbox) -> None:
    *hanging, healthy = [with_widgets(sandbox) for _ in range(5)]
    for plane in hanging:
        for number in range(8):
            plane.create(widget(f"w{number}"))
    hung: list[str] = []
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        if request.cluster.name != healthy.project:
            hung.append(request.name)
            await asyncio.Event().wait()
        reconciled.append(request.name)

    async with reconciling(reconcile, *hanging, healthy):
        await eventually(lambda: len(hung) == 16)
        healthy.create(widget("one"))
        await eventually(lambda: reconciled == ["one"])


async def test_cache_that_exceeds_its_limit_is_dropped_and_delays_no_other_cluster(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    large = with_widgets(sandbox)
    for number in range(3):
        large.create(widget(f"w{number}"))
    plane.create(widget("one"))
    discovery = FakeDiscovery(plane, large)
    registry = CollectorRegistry()
    log = Log()
    controllers = Controllers(Fleet(discovery), registry=registry, cache_limits=CacheLimits(objects=2, retry_s=0.2))
    controllers.reconcile(WIDGETS)(log)
    async with controllers:

        def exceeding() -> list[CacheProblem]:
            return [
                cache_problem for cache_problem in controllers.health().problems if cache_problem.state == "over_budget"
            ]

        [problem] = await eventually(exceeding)
        assert problem.cluster == large.project
        assert "more than 2 of these objects" in problem.problem
        await eventually(lambda: (plane.project, "one", {}) in log.seen)
        labels = {"resource": WIDGETS, "state": "over_budget"}
        assert registry.get_sample_value("milo_controllers_informers", labels) is not None
        large.delete(WIDGETS, "w0")
        await eventually(lambda: (large.project, "w1", {}) in log.seen)
        await eventually(lambda: controllers.health().synced)
        assert registry.get_sample_value("milo_controllers_cached_bytes", {"resource": WIDGETS})


async def test_owner_is_reconciled_if_an_owned_object_was_deleted_while_the_cache_was_dropped(
    plane: ControlPlane,
) -> None:
    plane.create(widget("one"))
    owner = plane.get(WIDGETS, "one")["metadata"]
    reference = {"apiVersion": "example.com/v1", "kind": "Widget", "name": "one", "uid": owner["uid"]}
    owned = config_map("owned")
    owned["metadata"]["ownerReferences"] = [reference]
    for obj in (owned, config_map("other")):
        plane.create(obj)
    log = Log()
    discovery = FakeDiscovery(plane)
    limits = CacheLimits(objects=2, retry_s=0.5)
    controllers = Controllers(Fleet(discovery), registry=CollectorRegistry(), cache_limits=limits)
    controllers.reconcile(WIDGETS, owns=[CONFIG_MAPS])(log)
    async with controllers:
        await eventually(lambda: log.seen and controllers.health().synced)
        plane.create(config_map("third"))
        await eventually(lambda: controllers.health().problems)
        for name in ("owned", "third"):
            plane.delete(CONFIG_MAPS, name)
        log.seen.clear()
        await eventually(lambda: controllers.health().synced)
        await eventually(lambda: log.seen == [(plane.project, "one", {})])


async def test_object_of_another_cluster_is_reconciled_if_one_that_named_it_was_deleted_while_the_cache_was_dropped(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    other = with_widgets(sandbox)
    other.create(widget("one"))
    plane.create(config_map("shared"))
    log = Log()

    def of_shared(change: Watched) -> Iterable[ReconcileTarget]:
        return [ReconcileTarget("one", "default", other.project)] if change.name == "shared" else []

    limits = CacheLimits(objects=1, retry_s=0.5)
    controllers = Controllers(Fleet(FakeDiscovery(plane, other)), registry=CollectorRegistry(), cache_limits=limits)
    controllers.reconcile(WIDGETS, watches=[watches(CONFIG_MAPS, map=of_shared)])(log)
    async with controllers:
        await eventually(lambda: log.seen and controllers.health().synced)
        plane.create(config_map("second"))
        await eventually(lambda: controllers.health().problems)
        for name in ("shared", "second"):
            plane.delete(CONFIG_MAPS, name)
        log.seen.clear()
        await eventually(lambda: controllers.health().synced)
        await eventually(lambda: log.seen == [(other.project, "one", {})])


async def test_change_that_a_mapper_could_not_map_leads_to_reconciles_once_the_cache_that_it_reads_is_complete(
    plane: ControlPlane,
) -> None:
    plane.create(widget("one"))
    log = Log()
    secrets = "v1/secrets"

    def of_secrets(change: Watched) -> Iterable[ReconcileTarget]:
        caches = change.clusters.cluster(change.cluster.name)
        assert caches is not None
        return [ReconcileTarget("one", "default") for found in caches.list(secrets) if found["data"] == {}]

    controllers = Controllers(
        Fleet(FakeDiscovery(plane)), registry=CollectorRegistry(), cache_limits=CacheLimits(objects=1, retry_s=0.5)
    )
    controllers.cache(secrets)
    controllers.reconcile(WIDGETS, watches=[watches(CONFIG_MAPS, map=of_secrets)])(log)
    async with controllers:
        await eventually(lambda: log.seen and controllers.health().synced)
        for name in ("a", "b"):
            plane.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {}})
        await eventually(lambda: controllers.health().problems)
        log.seen.clear()
        plane.create(config_map("changed"))
        await eventually(lambda: controllers.view.cluster(plane.project).get(CONFIG_MAPS, "changed", "default"))
        plane.delete(secrets, "b")
        await eventually(lambda: controllers.health().synced)
        await eventually(lambda: log.seen == [(plane.project, "one", {})])


async def test_object_deleted_while_its_cache_was_dropped_is_reconciled(plane: ControlPlane) -> None:
    for name in ("a", "b"):
        plane.create(widget(name))
    log = Log()
    limits = CacheLimits(objects=2, retry_s=0.5)
    controllers = Controllers(Fleet(FakeDiscovery(plane)), registry=CollectorRegistry(), cache_limits=limits)
    controllers.reconcile(WIDGETS)(log)
    async with controllers:
        await eventually(lambda: len(log.seen) == 2)
        plane.create(widget("c"))
        await eventually(lambda: controllers.health().problems)
        for name in ("a", "c"):
            plane.delete(WIDGETS, name)
        await eventually(lambda: (plane.project, "a", None) in log.seen)


async def test_objects_that_both_states_of_a_changed_object_refer_to_are_reconciled(plane: ControlPlane) -> None:
    seen: list[str] = []

    async def reconcile(request: Request) -> None:
        seen.append(request.name)

    def target(change: Watched[dict[str, Any]]) -> list[ReconcileTarget]:
        assert not change.is_deleted
        return [ReconcileTarget(change.object["data"]["target"], "default")]

    for name in ("old", "new"):
        plane.create(widget(name))
    plane.create({**config_map("pointer"), "data": {"target": "old"}})
    async with reconciling(reconcile, plane, watches=[watches(CONFIG_MAPS, map=target)]):
        await eventually(lambda: sorted(seen) == ["new", "old"])
        plane.patch(CONFIG_MAPS, "pointer", {"data": {"target": "new"}})
        await eventually(lambda: sorted(seen) == ["new", "new", "old", "old"])


@pytest.mark.parametrize("others", [[], [owns(CONFIG_MAPS, on=lambda _: False)]])
async def test_predicates_select_the_changes_of_owned_objects(plane: ControlPlane, others: list[OwnedKind]) -> None:
    log = Log()

    async def reconcile(request: Request) -> None:
        await log(request)
        body = {"kind": "ConfigMap", "metadata": {"name": "owned"}}
        if request.name == "one" and await request.get(CONFIG_MAPS, "owned") is None:
            await request.create(CONFIG_MAPS, body, owned=True)

    def has_color(change: Watched[dict[str, Any]]) -> bool:
        return change.is_deleted or "color" in change.object.get("data", {})

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, owns=[owns(CONFIG_MAPS, on=has_color), *others]):
        await eventually(lambda: plane.find(CONFIG_MAPS, "owned"))
        for number, data in enumerate(({"size": "1"}, {"color": "red"})):
            plane.patch(CONFIG_MAPS, "owned", {"data": data})
            plane.create(widget(f"after-{number}"))
            await eventually(lambda: log.seen[-1][1] == f"after-{number}")  # noqa: B023  (awaited)
        plane.delete(CONFIG_MAPS, "owned")
        await eventually(lambda: plane.find(CONFIG_MAPS, "owned"))
        await eventually(lambda: [name for _, name, _ in log.seen].count("one") == 3)


async def test_delay_function_that_fails_does_not_restart_the_cluster(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    async def reconcile(request: Request) -> None:
        attempts.append(request.failures)
        raise OSError("no reconcile succeeds")

    def in_time(failures: int) -> timedelta:
        return timedelta(seconds=failures)

    plane.create(widget("one"))
    policy = QueuePolicy(delay_s=in_time, first_delay_s=0.01)  # type: ignore[arg-type]
    async with reconciling(reconcile, plane, queue=policy) as running:
        await eventually(lambda: attempts[:3] == [0, 1, 2])
        assert running.controllers.health().crashing == ()
    assert "QueuePolicy.delay_s failed (the default backoff applies): QueuePolicy.delay_s returned" in caplog.text


@pytest.mark.parametrize(
    "found",
    [
        ["a"],
        ReconcileTarget("a"),
        ReconcileTarget("a", "b", "c"),
        5,
        None,
        [("a", "b", None)],
        [ReconcileTarget(["a"])],  # type: ignore[arg-type]
        [ReconcileTarget("a", "b", {})],  # type: ignore[arg-type]
    ],
    ids=str,
)
async def test_invalid_mapper_result_is_logged_and_does_not_stop_reconciles(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture, found: Any
) -> None:
    def mapper(_change: Watched[Any]) -> Iterable[ReconcileTarget]:
        return found  # type: ignore[no-any-return]

    log = Log()
    async with reconciling(log, plane, watches=[watches(CONFIG_MAPS, map=mapper)]) as running:
        plane.create(config_map("any"))
        await eventually(lambda: "the mapper of v1/configmaps failed" in caplog.text)
        plane.create(widget("one"))
        await eventually(lambda: log.seen == [(plane.project, "one", {})])
        assert running.controllers.health().crashing == ()


@pytest.mark.parametrize("raised", [SystemExit, asyncio.CancelledError])
async def test_function_of_a_kind_that_raises_no_exception_stops_no_informer(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture, raised: type[BaseException]
) -> None:
    """Such as the panic of an extension in Rust: it ended the process, or the informer without a sign."""

    def mapper(change: Watched) -> list[ReconcileTarget]:
        if change.name == "bad":
            raise raised(2)
        return [ReconcileTarget("one", "default")]

    def predicate(_change: Watched) -> bool:
        raise raised(2)

    def transform(found: dict[str, Any]) -> dict[str, Any]:
        if found["metadata"]["name"] == "bad":
            raise raised(2)
        return found

    log, watched = Log(), watches(CONFIG_MAPS, map=mapper, on=predicate)
    async with reconciling(log, plane, kind=Kind(WIDGETS, transform=transform), watches=[watched]) as running:
        await eventually(lambda: running.controllers.health().synced)
        plane.create(config_map("bad"))
        plane.create(widget("bad"))
        logged = ("the mapper of v1/configmaps", "a predicate (on=) of v1/configmaps", "transform= raised")
        await eventually(lambda: all(what in caplog.text for what in logged))
        plane.create(config_map("later"))
        plane.create(widget("later"))
        await eventually(lambda: {"one", "later"} <= {name for _, name, _ in log.seen})
        assert running.controllers.health().crashing == ()


async def test_health_reports_crashing_cluster(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Informer, "run", fail)
    async with reconciling(Log(), plane) as running:
        [problem] = await eventually(lambda: running.controllers.health().crashing)
        assert (problem.cluster, problem.problem) == (plane.project, "a bug")
        await eventually(lambda: running.controllers.health().crashing[0].failures > 1)
        # Disengaged before its handler is restarted.
        running.discovery.disengage(plane.project)
        await eventually(lambda: running.controllers.health().crashing == ())


async def test_health_and_metrics_are_thread_safe_while_clusters_are_engaged_and_disengaged(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    other = with_widgets(sandbox)
    for cluster in (plane, other):
        for number in range(20):
            cluster.create(widget(f"w{number}"))
    ending = threading.Event()

    async def fail(_request: Request) -> None:
        raise OSError("no reconcile succeeds")

    def read(controllers: Controllers) -> int:
        readings = 0
        while not ending.is_set():
            readings += controllers.health().failing + len(list(controllers.failing()))
            generate_latest(controllers.registry)
        return readings

    async with reconciling(fail, plane, other, queue=QueuePolicy(first_delay_s=0.01)) as running:
        health = running.controllers.health
        await eventually(lambda: asyncio.to_thread(lambda: health().ready))
        reading = [asyncio.create_task(asyncio.to_thread(read, running.controllers)) for _ in range(3)]
        for _ in range(20):
            await eventually(lambda: health().clusters == 2 and health().failing)
            running.discovery.disengage(other.project)
            running.discovery.engage(other)
            await eventually(
                lambda: not {failing.cluster for failing in running.controllers.failing()} - {plane.project}
            )
        ending.set()
        assert all([await task for task in reading])


async def test_cluster_that_does_not_serve_the_kind_does_not_make_controllers_unready(
    plane: ControlPlane, bare: ControlPlane
) -> None:
    async with reconciling(Log(), plane, bare) as running:
        await eventually(lambda: running.controllers.health().ready)
        [problem] = await eventually(lambda: running.controllers.health().problems)
        assert (problem.state, problem.is_synced) == ("not_served", False)
        assert f"bare does not serve {WIDGETS}: check its group, version and plural" in problem.problem
        assert not running.controllers.health().synced


@pytest.mark.parametrize("fails", [False, True], ids=["waits for", "fails without"])
async def test_cluster_that_has_no_credential_yet_delays_readiness(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    asked, issued, access = asyncio.Event(), asyncio.Event(), AsyncRenewer.access

    async def late(renewer: AsyncRenewer) -> KubeconfigAccess:
        asked.set()
        if fails and not issued.is_set():
            raise Unavailable("the issuer restarts", code="UNAVAILABLE")
        await issued.wait()
        return await access(renewer)

    monkeypatch.setattr(AsyncRenewer, "access", late)
    running, healths = Running(plane), list[Health]()
    running.controllers.reconcile(WIDGETS)(log := Log())
    health = running.controllers.health

    async def check_at_each_step() -> None:
        while not running.fleet.clusters or not asked.is_set() or (fails and not health().crashing):
            await asyncio.sleep(0)
            healths.append(health())

    plane.create(widget("one"))
    checking = asyncio.create_task(check_at_each_step())
    async with running.controllers:
        await checking
        assert health().discovery.synced
        assert [found for found in healths if found.ready or found.synced] == []
        monkeypatch.setattr("milo_controllers.health_check.FIRST_LIST_S", 0.0)
        assert health().ready
        assert not health().synced
        issued.set()
        await eventually(lambda: log.seen and health().ready and health().synced)


async def test_error_of_the_fleet_is_known_before_its_handlers_have_ended(plane: ControlPlane) -> None:
    plane.create(widget("one"))
    has_begun, may_end, ends = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def reconcile(_request: Request) -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    class Discovery(FakeDiscovery):
        def watch(self, **_options: Any) -> Any:
            async def feed() -> AsyncGenerator[Any, None]:
                while not self._feed.empty():
                    yield self._feed.get_nowait()
                await ends.wait()
                raise PermissionDenied("no right", code="PERMISSION_DENIED")

            return nullcontext(SimpleNamespace(subscriber="", feed=feed))

    controllers = Controllers(Fleet(Discovery(plane)), registry=CollectorRegistry())
    controllers.reconcile(WIDGETS)(reconcile)
    running = asyncio.create_task(controllers.run())
    await has_begun.wait()
    ends.set()
    assert isinstance(await controllers.failed(), PermissionDenied)
    assert not running.done()
    may_end.set()
    with pytest.raises(PermissionDenied):
        await running


# --- caches ---


async def test_owned_objects_are_cached_with_all_fields(plane: ControlPlane) -> None:
    seen: list[Any] = []

    async def reconcile(request: Request) -> None:
        await request.apply(CONFIG_MAPS, {"kind": "ConfigMap", **config_map(request.name)}, owned=True)
        seen.extend(found.get("data") for found in request.list(CONFIG_MAPS, owned=True))

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, owns=[CONFIG_MAPS]):
        await eventually(lambda: plane.find(CONFIG_MAPS, "one"))
        plane.patch(CONFIG_MAPS, "one", {"data": {"ready": "yes"}})
        await eventually(lambda: {"ready": "yes"} in seen)


async def test_reading_a_field_that_is_not_cached_raises(plane: ControlPlane) -> None:
    errors: list[str] = []

    async def reconcile(request: Request) -> None:
        found = await request.get(CONFIG_MAPS, "any")
        assert found is not None
        for read in (lambda: found["data"], lambda: found.get("data")):
            with pytest.raises(NotCached, match="metadata_only"):
                read()
        errors.append(found["metadata"]["name"])

    plane.create(config_map("any", color="red"))
    plane.create(widget("one"))
    async with reconciling(reconcile, plane, owns=[Kind(CONFIG_MAPS, metadata_only=True)]):
        await eventually(lambda: errors == ["any"])


async def test_caches_are_restricted_by_namespace_field_selector_and_transform(plane: ControlPlane) -> None:
    plane.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    plane.create(config_map("here", a="b"))
    plane.create({**config_map("there"), "metadata": {"name": "there", "namespace": "team"}})
    plane.create(widget("one"))
    team = Kind(CONFIG_MAPS, namespace="team")
    named = Kind(CONFIG_MAPS, field_selector="metadata.name=here")
    small = Kind("v1/namespaces", transform=lambda found: {**found, "spec": None})
    seen: list[Any] = []

    async def reconcile(request: Request) -> None:
        seen.append([found["metadata"]["name"] for kind in (team, named) for found in request.list(kind)])
        seen.append({found["spec"] for found in request.list(small)})
        with pytest.raises(NotCached, match="pass that Kind"):
            request.list(CONFIG_MAPS)

    running = Running(plane)
    for kind in (team, named, small):
        running.controllers.cache(kind)
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        await eventually(lambda: seen == [["there", "here"], {None}])


async def test_object_is_reconciled_again_only_after_caches_contain_writes_of_its_last_reconcile(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Informer._apply

    async def late(informer: Informer, events: Any) -> None:
        if informer.key.resource == CONFIG_MAPS and informer.cache.synced:
            await asyncio.sleep(0.3)
        await apply(informer, events)

    monkeypatch.setattr(Informer, "_apply", late)
    reconciles: dict[str, int] = {}

    async def reconcile(request: Request) -> None:
        if await request.get() is None:
            return
        reconciles[request.name] = reconciles.get(request.name, 0) + 1
        if not list(request.list(CONFIG_MAPS, owned=True)):
            body = {"kind": "ConfigMap", "metadata": {"generateName": f"{request.name}-"}}
            await request.create(CONFIG_MAPS, body, owned=True)
        await request.patch_status({"seen": reconciles[request.name] > 1})

    names = [f"w{number}" for number in range(10)]
    for name in names:
        plane.create(widget(name))
    async with reconciling(reconcile, plane, owns=[CONFIG_MAPS], per_cluster=16):
        await eventually(lambda: [reconciles.get(name, 0) > 2 for name in names] == [True] * len(names))
    owners = [found["metadata"]["ownerReferences"][0]["name"] for found in plane.list(CONFIG_MAPS)]
    assert sorted(owners) == names


# --- reconcilers ---


async def test_object_changed_by_each_of_its_reconciles_is_throttled(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    reconciles = 0

    async def reconcile(request: Request) -> None:
        nonlocal reconciles
        reconciles += 1
        await request.patch_status({"at": time.time_ns()})

    plane.create(widget("one"))
    began = time.monotonic()
    async with reconciling(reconcile, plane):
        await eventually(lambda: reconciles > 25)
    assert reconciles <= 20 + 5 * (time.monotonic() - began) + 1
    assert f"{plane.project}: default/one is reconciled at most 5 times per second" in caplog.text


async def test_predicates_select_the_changes_to_reconcile(plane: ControlPlane) -> None:
    seen: list[str] = []

    def by(name: str) -> Callable[[Request], Any]:
        async def reconcile(request: Request) -> None:
            if await request.get() is not None:
                seen.append(name)

        return reconcile

    def is_large(change: Watched[dict[str, Any]]) -> bool:
        return bool(change.object["spec"].get("size", 0) > 5)

    running = Running(plane)
    predicates: dict[str, Any] = {
        "generation": "generation",
        "labels": "labels",
        "large": is_large,
        "both": ["labels", is_large],
    }
    for name, on in predicates.items():
        running.controllers.reconcile(WIDGETS, name=name, on=on)(by(name))
    async with running.controllers:
        await eventually(lambda: running.controllers.health().ready)
        for change, expected in (
            (lambda: plane.create(widget("one")), ["both", "generation", "labels"]),
            (lambda: plane.patch(WIDGETS, "one", {"status": {"a": 1}}, subresource="status"), []),
            (lambda: plane.patch(WIDGETS, "one", {"metadata": {"labels": {"a": "b"}}}), ["both", "labels"]),
            (lambda: plane.patch(WIDGETS, "one", {"spec": {"size": 9}}), ["both", "generation", "large"]),
        ):
            seen.clear()
            change()
            await eventually(lambda expected=expected: sorted(seen) == expected)  # type: ignore[misc]


async def test_deleted_object_is_not_failing_if_a_predicate_ignores_its_deletion(plane: ControlPlane) -> None:
    async def reconcile(_request: Request) -> None:
        raise Permanent("no")

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, on=lambda change: not change.is_deleted) as running:
        await eventually(lambda: running.controllers.health().failing == 1)
        plane.delete(WIDGETS, "one")
        await eventually(lambda: running.controllers.health().failing == 0)


async def test_on_cluster_change_option_reconciles_objects_of_a_changed_project(plane: ControlPlane) -> None:
    plane.create(widget("one"))
    seen: list[Any] = []

    async def reconcile(request: Request) -> None:
        seen.append((dict(request.cluster.current.labels), request.cluster.current.suspended))

    async with reconciling(reconcile, plane, on_cluster_change=True) as running:
        await eventually(lambda: seen == [({}, False)])
        running.discovery.update(plane.project, labels={"env": "prod"})
        await eventually(lambda: seen[1:] == [({"env": "prod"}, False)])
        running.discovery.update(plane.project, suspended=True)
        await eventually(lambda: seen[2:] == [({"env": "prod"}, True)])


async def test_object_is_enqueued_from_another_thread(plane: ControlPlane) -> None:
    log = Log()
    async with reconciling(log, plane) as running:
        await eventually(lambda: running.controllers.health().ready)
        await asyncio.to_thread(running.controllers.enqueue, ReconcileTarget("any", "default", plane.project))
        running.controllers.enqueue(ReconcileTarget("any", "default", "unknown"))
        await eventually(lambda: log.seen == [(plane.project, "any", None)])


async def test_object_enqueued_after_the_controllers_have_ended_is_ignored(plane: ControlPlane) -> None:
    target = ReconcileTarget("any", "default", plane.project)
    controllers = Controllers(Fleet(FakeDiscovery(plane)), registry=CollectorRegistry())
    controllers.reconcile(WIDGETS)(Log())

    async def run() -> None:
        async with controllers:
            await eventually(lambda: controllers.health().ready)
        controllers.enqueue(target)

    await asyncio.to_thread(asyncio.run, run())
    controllers.enqueue(target)


async def test_plain_function_reconciler_runs_in_a_thread(plane: ControlPlane) -> None:
    loop_thread = threading.get_ident()
    seen: list[Any] = []

    def reconcile(request: Request) -> Result | None:
        found = request.wait(request.get())
        request.wait(request.patch_status({"seen": True}))
        seen.append((found and found["spec"], request.cluster.name, threading.get_ident() != loop_thread))
        return None

    plane.create(widget("one", size=1))
    running = Running(plane)
    running.controllers.reconcile(WIDGETS, on="generation")(reconcile)
    async with running.controllers:
        await eventually(lambda: seen == [({"size": 1}, plane.project, True)])
    assert plane.get(WIDGETS, "one")["status"] == {"seen": True}


async def test_plain_function_reconciler_is_canceled_at_its_next_wait_after_disengagement(plane: ControlPlane) -> None:
    history: list[str] = []
    may_end = threading.Event()

    def reconcile(request: Request) -> None:
        history.append("begins")
        try:
            may_end.wait(60)
            request.wait(request.get())
        finally:
            history.append("ends")

    plane.create(widget("one"))
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        await eventually(lambda: history == ["begins"])
        running.discovery.disengage(plane.project)
        running.discovery.engage(plane)
        await asyncio.sleep(0)
        assert history == ["begins"]
        may_end.set()
        await eventually(lambda: history[:3] == ["begins", "ends", "begins"])


async def test_plain_function_reconciler_is_not_called_after_disengagement(plane: ControlPlane) -> None:
    called: list[str] = []
    may_end = threading.Event()

    def reconcile(request: Request) -> None:
        called.append(request.name)
        may_end.wait(60)

    for number in range(70):
        plane.create(widget(f"w{number}"))
    running = Running(plane)
    running.controllers.reconcile(WIDGETS, per_cluster=100)(reconcile)
    async with running.controllers:
        await eventually(lambda: len(called) == 64)
        running.discovery.disengage(plane.project)
        await eventually(lambda: not running.fleet.clusters)
        may_end.set()
        await eventually(lambda: running.metric("controller_runtime_active_workers", controller="widgets") == 0)
    assert len(called) == 64


async def test_plain_function_reconcilers_read_complete_lists_and_indexes(plane: ControlPlane) -> None:
    read: list[tuple[int, int, int]] = []
    all_begun = threading.Barrier(20)

    def slow_index(_found: dict[str, Any]) -> list[str]:
        time.sleep(0.002)
        return ["any"]

    def reconcile(request: Request) -> None:
        all_begun.wait(60)
        every = request.clusters.list(WIDGETS, index=("slow", "any"))
        indexed, listed = request.list(WIDGETS, index=("slow", "any")), request.list(WIDGETS)
        read.append((len(list(indexed)), len(list(listed)), len(list(every))))

    for number in range(20):
        plane.create(widget(f"w{number}"))
    running = Running(plane)
    running.controllers.cache(WIDGETS, indexes={"slow": slow_index})
    running.controllers.reconcile(WIDGETS, per_cluster=20)(reconcile)
    async with running.controllers:
        await eventually(lambda: len(read) == 20)
    assert set(read) == {(20, 20, 20)}


async def test_blocked_threads_of_one_controller_do_not_delay_another(plane: ControlPlane) -> None:
    blocked: list[str] = []
    reconciled: list[str] = []
    may_end = threading.Event()

    def block(request: Request) -> None:
        blocked.append(request.name)
        may_end.wait(60)

    def reconcile(request: Request) -> None:
        reconciled.append(request.name)

    for number in range(64):
        plane.create(widget(f"w{number}"))
    running = Running(plane)
    running.controllers.reconcile(WIDGETS, per_cluster=64)(block)
    running.controllers.reconcile(CONFIG_MAPS, timeout=timedelta(seconds=1))(reconcile)
    async with running.controllers:
        await eventually(lambda: len(blocked) == 64)
        plane.create(config_map("any"))
        await eventually(lambda: reconciled == ["any"])
        assert not list(running.controllers.failing())
        may_end.set()


async def test_request_wait_in_an_async_reconciler_raises_and_does_not_block_the_event_loop(
    plane: ControlPlane,
) -> None:
    async def reconcile(request: Request) -> None:
        request.wait(request.get())

    plane.create(widget("one"))
    async with reconciling(reconcile, plane) as running:
        [failing] = await eventually(lambda: list(running.controllers.failing()))
    assert "await the call instead" in failing.error


async def test_call_that_blocks_the_event_loop_is_logged_with_its_stack_and_measured(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    def a_blocking_call() -> None:
        time.sleep(2.0)  # a blocked event loop cannot wait for a state

    async def reconcile(_request: Request) -> None:
        a_blocking_call()

    plane.create(widget("one"))
    async with reconciling(reconcile, plane) as running:
        await eventually(lambda: "the event loop was blocked" in caplog.text)
        assert "a_blocking_call" in caplog.text
        assert f"reconcile {plane.project}: default/one" in caplog.text
        total = "milo_controllers_event_loop_delay_seconds_sum"
        assert (running.metric(total) or 0.0) > 1.0


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ("a string", "the reconciler returned 'a string': return None or a Result"),
        (TimeoutError(), "TimeoutError()"),
        (None, "the reconcile was canceled after 0.05 s; pass timeout="),
    ],
)
async def test_reconcile_error_is_in_failing_objects_and_in_the_log(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture, outcome: Any, message: str
) -> None:
    async def reconcile(_request: Request) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            await asyncio.Event().wait()
        return outcome

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, timeout=timedelta(seconds=0.05)) as running:
        [failing] = await eventually(lambda: list(running.controllers.failing()))
        assert failing.error.startswith(message)
        assert (failing.cluster, failing.namespace, failing.name) == (plane.project, "default", "one")
        assert failing.next_try is not None
    assert f"widgets: {plane.project}: reconciling default/one failed" in caplog.text
    assert message in caplog.text


async def test_same_failure_of_two_clusters_is_logged_for_each_cluster(
    sandbox: MiloSandbox, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    other = with_widgets(sandbox)
    for cluster in (plane, other):
        cluster.create(widget("one"))

    async def reconcile(request: Request) -> None:
        await request.read(CONFIG_MAPS, "missing")

    with caplog.at_level(logging.ERROR):
        async with reconciling(reconcile, plane, other, queue=QueuePolicy(first_delay_s=0.01)) as running:
            await eventually(
                lambda: [failing.attempts > 2 for failing in running.controllers.failing()] == [True, True]
            )
    for cluster in (plane, other):
        assert caplog.text.count(f"{cluster.project}: reconciling default/one failed") == 1
    assert "GET /api/v1/namespaces/default/configmaps/missing: 404 " in caplog.text


async def test_each_reconcile_is_a_span_with_its_requests_as_children(plane: ControlPlane) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def reconcile(request: Request) -> None:
        await request.patch(WIDGETS, request.name, {"status": {"seen": True}}, subresource="status")
        await request.read(CONFIG_MAPS, "missing")

    def reconcile_in_a_thread(request: Request) -> None:
        request.wait(reconcile(request))

    tracer = provider.get_tracer("tests")
    controllers = Controllers(Fleet(FakeDiscovery(plane)), registry=CollectorRegistry(), tracer=tracer)
    controllers.reconcile(WIDGETS, on="generation")(reconcile)
    controllers.reconcile(WIDGETS, on="generation", name="plain")(reconcile_in_a_thread)
    plane.create(widget("one"))
    async with controllers:
        await eventually(lambda: len({found.name for found in exporter.get_finished_spans()} & ROOT_SPANS) == 2)
        # At the end of the block a retry may be canceled.
        spans = {found.context and found.context.span_id: found for found in exporter.get_finished_spans()}
    for root in [found for found in spans.values() if found.name in ROOT_SPANS]:
        attributes = root.attributes or {}
        assert (attributes["milo.cluster"], attributes["milo.object"]) == (plane.project, "default/one")
        assert not root.status.is_ok
        of_reconcile = [found for found in spans.values() if found.parent and spans.get(found.parent.span_id) is root]
        assert [(found.name, found.status.is_ok) for found in of_reconcile] == [("PATCH", True), ("GET", False)]
        assert (of_reconcile[1].attributes or {})["url.path"] == "/api/v1/namespaces/default/configmaps/missing"


ROOT_SPANS = {"reconcile widgets", "reconcile plain"}
