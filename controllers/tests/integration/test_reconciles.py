"""Guarantees for reconcilers: which objects are reconciled, retries and requeues, and reads and writes."""

import asyncio
import logging
from datetime import timedelta
from typing import Any, cast

import pytest
from kubernetes.client import V1ConfigMap
from prometheus_client import CollectorRegistry

from milo_controllers import (
    AlreadyExists,
    ApiError,
    ClusterFilter,
    Conflict,
    Controllers,
    Kind,
    NotCached,
    NotFound,
    NotServed,
    Permanent,
    QueuePolicy,
    Request,
    Result,
)
from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.testing import ControlPlane, FakeDiscovery, MiloSandbox, eventually, fake_clock

from .widgets import (
    FINALIZER,
    WIDGETS,
    Log,
    Running,
    reconciling,
    widget,
)


async def test_objects_are_reconciled_when_listed_changed_and_deleted(plane: ControlPlane) -> None:
    plane.create(widget("one", size=1))
    log = Log()
    async with reconciling(log, plane):
        await eventually(lambda: log.seen == [(plane.project, "one", {"size": 1})])
        plane.patch(WIDGETS, "one", {"spec": {"size": 2}})
        await eventually(lambda: log.seen[1:] == [(plane.project, "one", {"size": 2})])
        plane.delete(WIDGETS, "one")
        await eventually(lambda: log.seen[2:] == [(plane.project, "one", None)])


async def test_owned_object_is_restored_after_deletion_or_change(plane: ControlPlane) -> None:
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


@pytest.mark.parametrize("kind", [WIDGETS, Kind(WIDGETS, metadata_only=True)], ids=["whole", "metadata_only"])
async def test_object_created_again_is_reconciled_when_the_object_that_its_predecessor_owned_is_deleted(
    plane: ControlPlane, kind: Any
) -> None:
    seen: list[str | None] = []

    async def reconcile(request: Request) -> None:
        found, child = await request.get(), await request.get("v1/configmaps", "child")
        if found is not None and child is None:
            await request.create("v1/configmaps", {"metadata": {"name": "child"}}, owned=True)
        seen.append(found and found["metadata"]["uid"])

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, kind=kind, owns=["v1/configmaps"]):
        former = await eventually(lambda: plane.find("v1/configmaps", "child"))
        plane.patch("v1/configmaps", "child", {"metadata": {"finalizers": ["example.com/slow"]}})
        plane.delete(WIDGETS, "one")
        plane.create(widget("one"))
        owner = plane.get(WIDGETS, "one")["metadata"]["uid"]
        await eventually(lambda: owner in seen)
        plane.patch("v1/configmaps", "child", {"metadata": {"finalizers": None}})

        def is_restored() -> bool:
            made = plane.find("v1/configmaps", "child")
            return made is not None and made["metadata"]["uid"] != former["metadata"]["uid"]

        await eventually(is_restored)
        assert plane.get("v1/configmaps", "child")["metadata"]["ownerReferences"][0]["uid"] == owner


@pytest.mark.parametrize("write", ["apply", "create"])
async def test_owned_object_deleted_during_the_reconcile_that_wrote_it_is_restored_at_once(
    plane: ControlPlane, write: str
) -> None:
    written, ended = asyncio.Event(), asyncio.Event()

    async def reconcile(request: Request) -> None:
        body = {"kind": "ConfigMap", "metadata": {"name": request.name}}
        if write == "apply":
            await request.apply("v1/configmaps", body, owned=True)
        elif await request.get("v1/configmaps", request.name) is None:
            await request.create("v1/configmaps", body, owned=True)
        written.set()
        await ended.wait()

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, owns=["v1/configmaps"], on="generation") as running:
        await written.wait()
        [member] = running.controllers._engaged.members.values()
        configmaps = next(informer for key, informer in member.informers.items() if key.resource == "v1/configmaps")
        await eventually(lambda: configmaps.cache.get("default", "one"))
        plane.delete("v1/configmaps", "one")
        await eventually(lambda: configmaps.cache.get("default", "one") is None)
        ended.set()
        await eventually(lambda: plane.find("v1/configmaps", "one"), within_s=5)


async def test_request_sets_finalizer_condition_and_status_and_records_event(plane: ControlPlane) -> None:
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
        [event] = await eventually(lambda: plane.list("v1/events"))
        assert (event["reason"], event["involvedObject"]["name"]) == ("Done", "one")
        plane.delete(WIDGETS, "one")
        await eventually(lambda: plane.find(WIDGETS, "one") is None)
        await eventually(lambda: cleaned)  # the response to the write that removed the finalizer may arrive later
        assert cleaned[0]
        assert not any(cleaned[1:])


@pytest.mark.parametrize(
    "kind", [WIDGETS, Kind(WIDGETS, transform=lambda found: {**found, "metadata": {"name": found["metadata"]["name"]}})]
)
async def test_observed_generation_of_condition_is_the_generation_that_the_reconcile_read(
    plane: ControlPlane, kind: str | Kind[dict[str, Any]]
) -> None:
    recorded: list[int] = []

    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is not None and found["metadata"]["generation"] == 1:
            plane.patch(WIDGETS, "one", {"spec": {"size": 2}})
            await request.ensure_finalizer(FINALIZER)  # its response contains the new generation
            await request.set_condition("Ready", "True", "Done")
            recorded.append(plane.get(WIDGETS, "one")["status"]["conditions"][0]["observedGeneration"])

    plane.create(widget("one", size=1))
    async with reconciling(reconcile, plane, kind=kind):
        await eventually(lambda: recorded)
    assert recorded[0] == 1


async def test_object_outside_of_the_owners_namespace_is_not_created_or_applied(plane: ControlPlane) -> None:
    refused: list[str] = []

    async def reconcile(request: Request) -> None:
        body = {"metadata": {"name": "child", "namespace": "elsewhere"}}
        for write in (request.create, request.apply):
            with pytest.raises(ValueError, match="cannot own an object outside of its namespace") as error:
                await write("v1/configmaps", body, owned=True)
            refused.append(str(error.value))

    plane.create(widget("one"))
    async with reconciling(reconcile, plane):
        await eventually(lambda: len(refused) >= 2)


async def test_event_of_missing_object_is_logged_as_not_recorded(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    recorded: list[str] = []

    async def reconcile(request: Request) -> None:
        await request.delete(WIDGETS, request.name)
        await request.event("Deleted", "deleted it")
        recorded.append(request.name)

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, kind=Kind(WIDGETS, metadata_only=True)):
        await eventually(lambda: len(recorded) > 1)  # of the deletion too
    assert "event Deleted of one was not recorded" in caplog.text


async def test_metadata_only_cache_supports_finalizers_conditions_and_apply(plane: ControlPlane) -> None:
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
    async with reconciling(reconcile, plane, kind=Kind(WIDGETS, metadata_only=True)):
        made = await eventually(lambda: plane.find("v1/configmaps", "owned"))
        assert "spec" not in {*cached[0]}
        assert made["metadata"]["ownerReferences"][0]["kind"] == "Widget"
        found = plane.get(WIDGETS, "one")
        assert found["metadata"]["finalizers"] == [FINALIZER]
        assert [condition["type"] for condition in found["status"]["conditions"]] == ["Other", "Ready"]


async def test_reconcile_request_can_read_and_write_objects_other_than_its_own(plane: ControlPlane) -> None:
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
        with pytest.raises(ValueError, match="'apply' is not one of merge, json, strategic"):
            await request.patch("v1/configmaps", "made", {}, type="apply")  # type: ignore[arg-type]
        with pytest.raises(Conflict):
            await request.update("v1/configmaps", made)
        current = await request.read("v1/configmaps", "made")
        await request.update("v1/configmaps", {**current, "data": {"color": "green"}})
        typed = Kind("v1/configmaps", V1ConfigMap)
        cached = await eventually(lambda: next(request.list(typed, index=("color", "green")), None))
        assert cached.metadata.name == "made"
        assert list(request.list(typed, index=("typed color", "green"))) == [cached]
        assert await request.get("v1/configmaps", "unknown") is None
        with pytest.raises(NotCached):
            await request.get("v1/secrets", "unknown")
        await request.delete("v1/configmaps", "made")
        await request.delete("v1/configmaps", "made")
        with pytest.raises(NotFound):
            await request.read("v1/configmaps", "made")
        with pytest.raises(NotServed, match=r"made: 404 page not found; check the group, version and plural"):
            await request.delete("example.org/v1/unknowns", "made")
        done.append(request.name)

    plane.create(widget("one"))
    running = Running(plane)
    running.controllers.cache("v1/configmaps", indexes={"color": lambda found: [found.get("data", {}).get("color")]})
    running.controllers.cache(
        Kind("v1/configmaps", V1ConfigMap), indexes={"typed color": lambda found: [(found.data or {}).get("color")]}
    )
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        await eventually(lambda: done == ["one"])


async def test_failed_reconcile_is_retried_and_permanent_failure_waits_for_a_change(plane: ControlPlane) -> None:
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
        [failing] = await eventually(
            lambda: [failing for failing in running.controllers.failing() if not failing.next_try]
        )
        assert attempts == [0, 1, 2]
        assert (failing.name, failing.error, failing.attempts) == ("one", "the widget is not valid", 3)
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


async def test_errors_of_a_task_group_have_the_outcome_of_their_type(sandbox: MiloSandbox, plane: ControlPlane) -> None:
    """Found by a reader: objects of a suspended project were retried, and those that failed permanently."""
    refused: list[str] = []

    async def refuse() -> None:
        raise Permanent("the widget is not valid")

    async def reconcile(request: Request) -> None:
        refused.append(request.name)
        async with asyncio.TaskGroup() as tasks:
            for number in range(2):
                made = {"metadata": {"name": f"made-{number}"}}
                tasks.create_task(refuse() if request.name == "invalid" else request.create("v1/configmaps", made))

    plane.create(widget("invalid"))
    plane.create(widget("suspended"))
    sandbox.suspend_project(plane.project)
    running = Running()
    running.controllers.reconcile(WIDGETS, queue=QueuePolicy(first_delay_s=0.01))(reconcile)
    async with running.controllers:
        running.discovery.engage(plane, suspended=True)
        [failing] = await eventually(lambda: list(running.controllers.failing()))
        await eventually(lambda: len(refused) >= 2)
        await asyncio.sleep(0.3)
        assert sorted(refused) == ["invalid", "suspended"]
        assert (failing.name, failing.error, failing.next_try) == ("invalid", "the widget is not valid", None)
    sandbox.lift_suspension(plane.project)


async def test_reconcile_retry_honors_retry_after_of_the_server(plane: ControlPlane) -> None:
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


async def test_requeue_after_reconciles_the_object_again(plane: ControlPlane) -> None:
    times: list[str] = []

    async def reconcile(request: Request) -> Result | None:
        times.append(request.name)
        return Result(requeue_after=timedelta(milliseconds=20)) if len(times) < 3 else None

    plane.create(widget("one"))
    async with reconciling(reconcile, plane, queue=QueuePolicy(min_requeue_s=0.0)):
        await eventually(lambda: len(times) == 3)


async def test_resync_reconciles_every_object_again_that_does_not_wait_for_a_change(plane: ControlPlane) -> None:
    for name in ("invalid", "one"):
        plane.create(widget(name))

    class Validating(Log):
        async def __call__(self, request: Request) -> Result | None:
            await super().__call__(request)
            if request.name == "invalid":
                raise Permanent("the widget is not valid")
            return None

    log = Validating()
    fleet = Fleet(cast(DiscoveryClient, FakeDiscovery(plane)))
    controllers = Controllers(fleet, registry=CollectorRegistry(), resync=timedelta(hours=1))
    controllers.reconcile(WIDGETS, workers=1)(log)
    with fake_clock() as clock:
        async with controllers:
            await eventually(lambda: [name for _, name, _ in log.seen] == ["invalid", "one"])
            clock.advance(timedelta(hours=1))
            await eventually(lambda: log.seen[-1] == (plane.project, "one", {}) and len(log.seen) > 2)
            plane.patch(WIDGETS, "invalid", {"spec": {"size": 1}})
            await eventually(lambda: log.seen[-1] == (plane.project, "invalid", {"size": 1}))
    assert [name for _, name, _ in log.seen] == ["invalid", "one", "one", "invalid"]


async def test_reconcile_that_exceeds_its_time_limit_is_retried(plane: ControlPlane) -> None:
    attempts: list[int] = []

    async def reconcile(request: Request) -> None:
        attempts.append(request.failures)
        if not request.failures:
            await asyncio.Event().wait()

    plane.create(widget("one"))
    limits = {"timeout": timedelta(milliseconds=50), "queue": QueuePolicy(first_delay_s=0.01)}
    async with reconciling(reconcile, plane, **limits):
        await eventually(lambda: attempts == [0, 1])


async def test_health_reports_how_long_the_oldest_object_has_been_queued(plane: ControlPlane) -> None:
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


async def test_label_selector_restricts_reconciled_objects(plane: ControlPlane) -> None:
    for name, labels in (("inside", {"env": "prod"}), ("outside", {})):
        plane.create({**widget(name), "metadata": {"name": name, "labels": labels}})
    log = Log()
    async with reconciling(log, plane, kind=Kind(WIDGETS, selector="env=prod")):
        await eventually(lambda: log.seen)
        plane.patch(WIDGETS, "inside", {"metadata": {"labels": {"env": "test"}}})
        await eventually(lambda: log.seen == [(plane.project, "inside", {}), (plane.project, "inside", None)])


async def test_log_records_contain_the_cluster_and_the_object(plane: ControlPlane) -> None:
    records: list[tuple[str, str]] = []

    async def reconcile(_request: Request) -> None:
        record = logging.LogRecord("test", logging.INFO, "", 0, "hello", None, None)
        assert ClusterFilter().filter(record)
        records.append((record.cluster, record.object))  # type: ignore[attr-defined]

    plane.create(widget("one"))
    async with reconciling(reconcile, plane):
        await eventually(lambda: records == [(plane.project, "default/one")])


async def test_controllers_reject_registration_after_their_start(plane: ControlPlane) -> None:
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(Log())
    with pytest.raises(ValueError, match="name="):
        running.controllers.reconcile(WIDGETS)
    async with running.controllers:
        await running.fleet.synced()
        with pytest.raises(RuntimeError):
            running.controllers.cache("v1/secrets")
