"""The workers of one reconciler."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from milo_controllers import Conflict, NotSynced, Permanent, ReconcileTarget, Watched, affected_objects, watches
from milo_controllers.controller import Controller, Shared
from milo_controllers.event_loop import EventLoop
from milo_controllers.fleet_view import FleetView
from milo_controllers.kinds import CacheKey, Kind
from milo_controllers.logs import current_cluster
from milo_controllers.metrics import ControllerMetrics
from milo_controllers.object_cache import CachedObject, Change, ObjectCache
from milo_controllers.own_writes import OwnWrites
from milo_controllers.registration import ControllerSpec
from milo_controllers.request import Request
from milo_controllers.waiting_limits import WaitingLimits
from milo_controllers.watched import WatchedKind
from milo_controllers.work_queue import ObjectKey, Parked
from milo_discovery.api_errors import NotLeading
from milo_discovery.model import DisengageReason
from milo_discovery.testing import eventually
from milo_kube.cache_budget import CacheLimits
from milo_kube.collection_follower import FollowerState
from milo_kube.failure_log import FailureLog
from milo_kube.reflect.messages import ListEnded, ObjectChanged
from milo_kube.tenants import Tenant, working_for


def engaged(controller: Controller, members: dict[str, Any], name: str, tasks: asyncio.TaskGroup) -> None:
    """Engage a cluster in which one object is ready."""
    kind = controller.spec.kind.key
    members[name] = SimpleNamespace(
        cluster=SimpleNamespace(
            name=name,
            engaged=True,
            current=SimpleNamespace(deletion_requested_at=None, suspended=False),
            draining=None,
            disengage_reason=None,
        ),
        incarnation=1,
        tenant=lambda: ("", name.partition("-")[0]),
        tasks=tasks,
        api=None,
        view=None,
        loop=EventLoop(),
        informers={kind: SimpleNamespace(key=kind, cache=ObjectCache())},
        own_writes=OwnWrites(),
    )
    controller.engage(members[name])
    controller.queue.open(name, 1)
    controller.queue.add(ObjectKey(name, 1, "default", "one"), 0.0)
    controller.pump_soon()


def controller_of(
    reconcile: Callable[[Request], Awaitable[None]],
    members: dict[str, Any],
    *watched: WatchedKind,
    may_reconcile: Callable[[], bool] = lambda: True,
    limits: CacheLimits = CacheLimits(),  # noqa: B008  (immutable)
    registry: CollectorRegistry | None = None,
    leads: bool = True,
    read: frozenset[CacheKey] = frozenset(),
) -> Controller:
    shared = Shared(
        members=members,
        clusters=FleetView({}),
        metrics=ControllerMetrics.of_registry(registry or CollectorRegistry(), max_clusters=1),
        failures=FailureLog(),
        waiting=WaitingLimits(limits),
        read=read,
        may_reconcile=may_reconcile,
    )
    spec = ControllerSpec("widgets", Kind("example.com/v1/widgets"), watches=watched, workers=1)
    controller = Controller(spec, reconcile, shared)
    if leads:
        controller.resume()
    return controller


async def test_reconcile_works_for_the_tenant_of_its_cluster() -> None:
    found = list[Tenant]()
    done = asyncio.Event()

    async def reconcile(_request: Request) -> None:
        found.append(working_for.get())
        if len(found) == 2:
            done.set()

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "acme-1", tasks)
        engaged(controller, members, "other-1", tasks)
        await done.wait()
    assert found == [("", "acme"), ("", "other")]


async def test_worker_is_free_for_other_clusters_after_the_tasks_of_a_cluster_have_failed() -> None:
    reconciled = asyncio.Event()

    async def reconcile(_request: Request) -> None:
        reconciled.set()

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)

    async def fail() -> None:
        raise RuntimeError("an informer has failed")

    async def run_until_failure() -> None:
        async with asyncio.TaskGroup() as failed:
            failed.create_task(fail())
            try:
                await asyncio.Event().wait()
            finally:
                engaged(controller, members, "alpha", failed)
                engaged(controller, members, "beta", healthy)
                await reconciled.wait()
                assert controller.queue.take_next(0.0) is None

    async with asyncio.TaskGroup() as healthy:
        with pytest.raises(ExceptionGroup):
            await run_until_failure()


@pytest.mark.parametrize("is_won_again", [False, True])
async def test_object_that_is_due_while_the_lease_is_lost_is_reconciled_once_this_replica_leads_again(
    is_won_again: bool,
) -> None:
    reconciled, asked = asyncio.Event(), asyncio.Event()
    leads = False

    async def reconcile(_request: Request) -> None:
        reconciled.set()

    def may_reconcile() -> bool:
        asked.set()
        return leads

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members, may_reconcile=may_reconcile)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        await asked.wait()
        if is_won_again:
            controller.pause()
        leads = True
        if is_won_again:
            controller.resume()
        await reconciled.wait()


async def test_object_that_is_due_while_the_ownership_has_expired_is_reconciled_once_it_is_renewed() -> None:
    reconciled, asked = asyncio.Event(), asyncio.Event()

    class Cluster(SimpleNamespace):
        owned = False

        @property
        def engaged(self) -> bool:
            asked.set()
            return self.owned

    async def reconcile(_request: Request) -> None:
        reconciled.set()

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        cluster = members["alpha"].cluster = Cluster(name="alpha", current=members["alpha"].cluster.current)
        await asked.wait()
        cluster.owned = True
        await reconciled.wait()


class Untold(Exception):  # noqa: N818
    """An error of an author that forgot to set its detail."""

    detail: Any = None

    def __str__(self) -> str:
        return self.detail  # type: ignore[no-any-return]


class UntoldPermanent(Untold, Permanent):
    pass


@pytest.mark.parametrize(
    ("error", "told"),
    [(Untold(), "Untold"), (UntoldPermanent(), "UntoldPermanent"), (OSError("a file named \udcff"), "\\udcff")],
)
async def test_error_that_cannot_be_told_ends_no_other_task_of_its_cluster(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-xdist cannot send a report whose captured log has an unpaired surrogate.
    monkeypatch.setattr(logging.getLogger("milo_controllers"), "propagate", False)

    async def reconcile(_request: Request) -> None:
        raise error

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(asyncio.Event().wait())
        engaged(controller, members, "alpha", tasks)
        members["alpha"].informers[controller.spec.kind.key] = SimpleNamespace(cache=ObjectCache())
        await eventually(lambda: len(controller.failures) == 1)
        [(_, failure)] = controller.failures
        assert told in failure.error
        assert msgspec.json.encode(failure)
        controller.pause()
        assert other.cancel()


@pytest.mark.parametrize("exists", [True, False])
async def test_object_that_is_gone_is_not_kept_after_a_permanent_failure(exists: bool) -> None:
    async def reconcile(_request: Request) -> None:
        raise Permanent("no")

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    cache = ObjectCache()
    if exists:
        cache.apply(ObjectChanged(CachedObject("one", "default", "uid", "1", b"{}")))
    cache.apply(ListEnded())
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        members["alpha"].informers[controller.spec.kind.key] = SimpleNamespace(cache=cache)
        await eventually(lambda: not controller.queue and not controller.tasks)
    assert (controller.queue.count("alpha", 1), len(controller.failures)) == ((1, 1) if exists else (0, 0))


async def test_conflict_on_changed_object_is_logged_at_info_level_with_immediate_retry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    attempts: list[int] = []

    async def reconcile(request: Request) -> None:
        attempts.append(request.failures)
        if len(attempts) == 1:
            controller.queue.add(ObjectKey("alpha", 1, "default", "one"), 0.0)
            raise Conflict(409, "Conflict", "the object has been modified")

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        await eventually(lambda: len(attempts) == 2)
    [record] = [record for record in caplog.records if "modified" in record.message]
    assert (
        "default/one failed with a conflict (retry at once, since the object changed): the object has been modified"
        in record.message
    )
    assert record.levelno == logging.INFO


async def test_mapper_that_reads_a_cache_before_its_first_list_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def reconcile(_request: Request) -> None: ...

    def mapper(_change: Watched[Any]) -> list[ReconcileTarget]:
        raise NotSynced("the cache of widgets of alpha is not complete; retry later")

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched)
    seen = CachedObject("a", "default", "uid", "1", b"{}")
    secrets: Any = SimpleNamespace(key=watched.kind.key)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        controller.changed(members["alpha"], secrets, Change(None, seen, is_live=True))
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_object_of_a_cluster_whose_incomplete_cache_a_mapper_has_read_is_reconciled_later() -> None:
    reconciled: list[str] = []

    async def reconcile(_request: Request) -> None:
        reconciled.append(current_cluster.get())

    def mapper(_change: Watched[Any]) -> list[ReconcileTarget]:
        raise NotSynced("the cache of secrets of hub is not complete; retry later", cluster="hub")

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched)
    widgets, seen = ObjectCache(), CachedObject("one", "default", "uid", "1", b"{}")
    widgets.apply(ObjectChanged(seen))
    secrets: Any = SimpleNamespace(key=watched.kind.key)
    async with asyncio.TaskGroup() as tasks:
        for name, cache in (("alpha", ObjectCache()), ("hub", widgets)):
            engaged(controller, members, name, tasks)
            members[name].informers[controller.spec.kind.key] = SimpleNamespace(cache=cache)
        await eventually(lambda: len(reconciled) == 2)
        controller.changed(members["alpha"], secrets, Change(None, seen, is_live=True))
        controller.resync_unmapped("hub")
        await eventually(lambda: len(reconciled) == 3)
    assert reconciled[-1] == "hub"


@pytest.mark.parametrize("ends", [False, True], ids=["is complete", "belongs to a cluster that ends"])
async def test_object_of_another_cluster_is_reconciled_once_the_cache_that_its_mapper_reads(ends: bool) -> None:
    reconciled: list[tuple[str, str]] = []
    missing = ["spoke"]

    async def reconcile(request: Request) -> None:
        reconciled.append((current_cluster.get(), request.name))

    def mapper(_change: Watched[Any]) -> list[ReconcileTarget]:
        for name in missing:
            raise NotSynced(f"the cache of sites of {name} is not complete; retry later", cluster=name)
        return [ReconcileTarget("named", "default", "hub")]

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched)
    secrets, seen = ObjectCache(), CachedObject("a", "default", "uid", "1", b"{}")
    secrets.apply(ObjectChanged(seen))
    informer: Any = SimpleNamespace(key=watched.kind.key, cache=secrets)
    async with asyncio.TaskGroup() as tasks:
        for name in ("spoke", "other", "hub"):
            engaged(controller, members, name, tasks)
            members[name].informers[controller.spec.kind.key] = SimpleNamespace(cache=ObjectCache())
        members["spoke"].informers[informer.key] = informer
        await eventually(lambda: len(reconciled) == 3)
        missing[:] = ["other"] if ends else ["spoke"]
        controller.changed(members["spoke"], informer, Change(None, seen, is_live=True))
        missing.clear()
        controller.resync_unmapped("hub")
        assert not controller.queue
        if ends:
            controller.drop(members.pop("other"))
        else:
            controller.resync_unmapped("spoke")
        await eventually(lambda: len(reconciled) == 4)
        controller.drop(members.pop("spoke"))
    assert reconciled[-1] == ("hub", "named")


@pytest.mark.parametrize("others", [1, 101], ids=["one cluster", "very many clusters"])
@pytest.mark.parametrize(
    ("reason", "is_draining"),
    [
        (DisengageReason.NOT_READY, False),
        (DisengageReason.REPLACED, False),
        (DisengageReason.DELETED, False),
        (DisengageReason.DELETED, True),
        (DisengageReason.UNSPECIFIED, False),
    ],
)
async def test_objects_that_a_cluster_has_named_are_reconciled_after_its_return_or_its_end(
    reason: DisengageReason, *, is_draining: bool, others: int
) -> None:
    """Found by a reader: an object of the former cluster may be deleted meanwhile, and then no mapper names them."""
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        reconciled.append(f"{current_cluster.get()}/{request.name}")

    def mapper(change: Watched[Any]) -> list[ReconcileTarget]:
        return [ReconcileTarget("named", "default", f"gone{number}") for number in range(1, others)] + [
            ReconcileTarget(change.name, "default", "hub")
        ]

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched)
    hubs = ObjectCache()
    for name in ("named", "other"):
        hubs.apply(ObjectChanged(CachedObject(name, "default", name, "1", b"{}")))
    secret = CachedObject("named", "default", "uid", "1", b"{}")
    informer: Any = SimpleNamespace(key=watched.kind.key, cache=ObjectCache(), state="starting")
    async with asyncio.TaskGroup() as tasks:
        for name in ("spoke", "hub", "third"):
            engaged(controller, members, name, tasks)
            members[name].informers[controller.spec.kind.key] = SimpleNamespace(
                cache=hubs if name == "hub" else ObjectCache(), state="starting"
            )
            members[name].informers[informer.key] = informer
        controller.changed(members["spoke"], informer, Change(None, secret, is_live=True))
        await eventually(lambda: len(reconciled) == 4)
        reconciled.clear()
        spoke = members.pop("spoke")
        if is_draining:
            spoke.cluster.draining = SimpleNamespace(reason=reason)
        else:
            spoke.cluster.disengage_reason = reason
        controller.drop(spoke)
        if reason not in (DisengageReason.DELETED, DisengageReason.UNSPECIFIED):
            members["spoke"] = spoke
            spoke.cluster.disengage_reason = None
            controller.listed(spoke)
            assert not controller.queue
            informer.cache.apply(ListEnded("1"))
            controller.listed(spoke)
        await eventually(lambda: sorted(reconciled) == ["hub/named", "hub/other"])
        reconciled.clear()
        controller.listed(spoke)
        assert not controller.queue


@pytest.mark.parametrize("state", ["starting", "stale", "synced"])
async def test_caches_of_other_reconcilers_are_not_awaited_and_those_to_read_only_until_they_fail(
    state: FollowerState,
) -> None:
    """Found by a reader: a kind of another reconciler whose list hung delayed each first reconcile by a minute."""

    async def reconcile(_request: Request) -> None: ...

    others, settings = Kind("v1/secrets").key, Kind("v1/configmaps").key
    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members, read=frozenset({settings}))
    controller.pause()
    widgets = ObjectCache()
    widgets.apply(ListEnded("1"))
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        controller.drop(members["alpha"])
        controller.engage(members["alpha"])
        members["alpha"].informers = {
            controller.spec.kind.key: SimpleNamespace(cache=widgets, state="synced"),
            others: SimpleNamespace(cache=ObjectCache(), state="starting"),
            settings: SimpleNamespace(cache=ObjectCache(), state=state),
        }
        controller.listed(members["alpha"])
        assert controller.queue.is_open("alpha", 1) is (state != "starting")


async def test_clusters_that_do_not_return_are_forgotten_after_what_they_named_was_reconciled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        reconciled.append(f"{current_cluster.get()}/{request.name}")

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=lambda _: [ReconcileTarget("one", "default", "hub")])
    controller = controller_of(reconcile, members, watched)
    hubs = ObjectCache()
    hubs.apply(ObjectChanged(CachedObject("two", "default", "two", "1", b"{}")))
    informer: Any = SimpleNamespace(key=watched.kind.key, cache=ObjectCache())
    monkeypatch.setattr(affected_objects, "_MOST_LOST", 1)
    async with asyncio.TaskGroup() as tasks:
        for name in ("hub", "a", "b"):
            engaged(controller, members, name, tasks)
        members["hub"].informers[controller.spec.kind.key] = SimpleNamespace(cache=hubs)
        for name in ("a", "b"):
            secret = CachedObject(name, "default", "uid", "1", b"{}")
            controller.changed(members[name], informer, Change(None, secret, is_live=True))
        await eventually(lambda: not controller.queue and not controller.tasks)
        reconciled.clear()
        controller.drop(members.pop("a"))
        assert not controller.queue
        controller.drop(members.pop("b"))
        await eventually(lambda: reconciled == ["hub/two"])


async def test_created_reconcile_task_does_not_run_if_its_cluster_is_disengaged_first() -> None:
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        reconciled.append(request.name)

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        controller._pump()
        members["alpha"].cluster.engaged = False
    assert reconciled == []
    assert controller.tasks == frozenset()


async def test_cache_that_is_dropped_while_its_cluster_ends_does_not_begin_reconciles_there() -> None:
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        reconciled.append(request.name)

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    cache = ObjectCache()
    cache.apply(ObjectChanged(CachedObject("one", "default", "uid", "1", b"{}")))
    cache.synced = True
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        ended = members.pop("alpha")
        ended.informers[controller.spec.kind.key] = SimpleNamespace(cache=cache, state="over_budget")
        controller.drop(ended)
        controller.listed(ended)
        controller.resync(ended)
        controller._pump()
    assert reconciled == []


async def test_reconciles_share_no_context() -> None:
    tenant = ContextVar("tenant", default="")
    seen: list[str] = []

    async def reconcile(_request: Request) -> None:
        seen.append(tenant.get())
        tenant.set("alpha")
        if len(seen) == 1:
            asyncio.get_running_loop().call_soon(engaged, controller, members, "beta", tasks)

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        await eventually(lambda: len(seen) == 2)
    assert seen == ["", ""]


async def test_reconcile_canceled_before_it_began_is_made_up_for_when_this_replica_leads_again() -> None:
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        reconciled.append(request.name)

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        controller._pump()
        controller.pause()
        [task] = controller.tasks
        task.cancel()
        await asyncio.wait([task])
        assert reconciled == []
        controller.resume()
        await eventually(lambda: reconciled == ["one"])


@pytest.mark.parametrize("is_canceled", [True, False])
async def test_reconcile_that_loses_the_lease_is_no_failure(
    is_canceled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[int] = []
    clock = asyncio.get_running_loop().time

    async def reconcile(request: Request) -> None:
        begun.append(request.failures)
        if len(begun) == 1:
            raise ValueError("before the Lease is lost")
        if len(begun) == 2:
            if is_canceled:
                await asyncio.Event().wait()
            raise NotLeading("PUT /apis was not sent")

    members: dict[str, Any] = {}
    registry = CollectorRegistry()
    controller = controller_of(reconcile, members, registry=registry)
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        await eventually(lambda: len(begun) == 2)
        if is_canceled:
            controller.pause()
            [task] = controller.tasks
            task.cancel()
            await asyncio.wait([task])
        await eventually(lambda: not controller.tasks)
        assert [failure.error for _, failure in controller.failures] == ["before the Lease is lost"]
        due = controller.queue.retry_at(ObjectKey("alpha", 1, "default", "one"))
        assert due is None or due < clock() + 1.0
        controller.resume()
        await eventually(lambda: begun == [0, 1, 1])
        await eventually(lambda: not controller.failures)
    assert registry.get_sample_value("controller_runtime_reconcile_errors_total", {"controller": "widgets"}) == 1.0
    assert len(caplog.records) == 1


async def test_object_with_undecodable_fields_ends_no_cluster_whose_project_is_being_deleted() -> None:
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        reconciled.append(request.name)

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    cache = ObjectCache()
    for name, more in (("one", b'"deletionTimestamp":"2026-11-28T00:00:00Z",'), ("two", b"")):
        raw = b'{"metadata":{%b"name":"%b","labels":[]},"spec":{"note":"\xff"}}' % (more, name.encode())
        cache.apply(ObjectChanged(CachedObject(name, "default", name, "1", raw)))
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        members["alpha"].informers[controller.spec.kind.key] = SimpleNamespace(cache=cache)
        members["alpha"].cluster.current.deletion_requested_at = datetime.now(UTC)
        controller.queue.add(ObjectKey("alpha", 1, "default", "two"), 0.0)
        controller.deletion_requested(members["alpha"])
        await eventually(lambda: not controller.queue and not controller.tasks)
    assert reconciled == ["one"]


class CachedPlaces(SimpleNamespace):
    """An informer whose cache is dropped when it exceeds a limit."""

    def exceed(self, problem: str) -> None:
        self.problems.append(problem)


@pytest.mark.parametrize(
    ("limits", "dropped"),
    [
        (CacheLimits(objects=100), {"alpha": 8, "beta": 0}),
        (CacheLimits(total_bytes=500 << 10), {"alpha": 1, "beta": 0}),
    ],
    ids=["of one cluster", "of all clusters"],
)
async def test_cache_is_dropped_if_more_uncached_objects_wait_than_may_be_cached(
    limits: CacheLimits, dropped: dict[str, int]
) -> None:
    async def reconcile(_request: Request) -> None: ...

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members, limits=limits)
    controller.pause()
    kind = controller.spec.kind.key
    async with asyncio.TaskGroup() as tasks:
        for name, waiting in (("beta", 0 if limits.objects == 100 else 400), ("alpha", 1000)):
            engaged(controller, members, name, tasks)
            members[name].informers[kind] = CachedPlaces(key=kind, cache=ObjectCache(), problems=[])
            for number in range(waiting):
                gone = Change(CachedObject(f"o{number}", "default", f"u{number}", "1"), None, is_live=True)
                controller.changed(members[name], members[name].informers[kind], gone)
    found = {name: len(member.informers[kind].problems) for name, member in members.items()}
    assert found == dropped


async def test_organization_in_which_many_objects_wait_in_many_clusters_drops_no_cache_of_another_one() -> None:
    async def reconcile(_request: Request) -> None: ...

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members, limits=CacheLimits(total_bytes=1000 << 10))
    controller.pause()
    kind = controller.spec.kind.key
    async with asyncio.TaskGroup() as tasks:
        for name in ("acme", *(f"evil-{number}" for number in range(4))):
            engaged(controller, members, name, tasks)
            members[name].informers[kind] = CachedPlaces(key=kind, cache=ObjectCache(), problems=[])
            for number in range(300 if name == "acme" else 200):
                gone = Change(CachedObject(f"o{number}", "default", f"u{number}", "1"), None, is_live=True)
                controller.changed(members[name], members[name].informers[kind], gone)
    dropped = [name for name, member in members.items() if member.informers[kind].problems]
    assert dropped == ["evil-0"]


async def test_deletions_wait_on_when_a_cache_is_dropped_for_the_objects_that_wait() -> None:
    """No list shows them again: what reconcilers were to clean up for these objects would stay forever."""

    async def reconcile(_request: Request) -> None: ...

    def mapper(_change: Watched[Any]) -> list[ReconcileTarget]:
        return [ReconcileTarget(f"named-{number}", "default") for number in range(30)]

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched, limits=CacheLimits(objects=10))
    controller.pause()
    kind = controller.spec.kind.key
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        alpha = members["alpha"]
        for key in (kind, watched.kind.key):
            alpha.informers[key] = CachedPlaces(key=key, cache=ObjectCache(), problems=[])
        gone, kept = (CachedObject(name, "default", f"uid of {name}", "1", b"{}") for name in ("gone", "kept"))
        alpha.informers[kind].cache.apply(ObjectChanged(kept))
        controller.changed(alpha, alpha.informers[kind], Change(gone, None, is_live=True))
        controller.changed(alpha, alpha.informers[kind], Change(None, kept, is_live=True))
        controller.changed(alpha, alpha.informers[watched.kind.key], Change(None, kept, is_live=True))
        assert [len(informer.problems) for informer in alpha.informers.values()] == [0, 1]
        assert controller.queue.waits(ObjectKey("alpha", 1, "default", "gone"))
        assert controller.queue.waits(ObjectKey("alpha", 1, "default", "kept"))
        assert controller.queue.count("alpha", 1) == 10 + 1


async def test_objects_that_also_wait_for_another_reason_wait_on_when_the_cluster_that_named_them_is_dropped() -> None:
    """A tenant decided which deletions another one's reconcilers were told of."""

    async def reconcile(_request: Request) -> None: ...

    def mapper(change: Watched[Any]) -> list[ReconcileTarget]:
        return [ReconcileTarget(name, "default", "hub") for name in named[change.cluster.name]]

    named = {"modest": ["shared"], "greedy": ["c"]}
    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched, limits=CacheLimits(objects=10))
    controller.pause()
    kind, seen = controller.spec.kind.key, CachedObject("a", "default", "uid", "1", b"{}")
    async with asyncio.TaskGroup() as tasks:
        for name in ("hub", "modest", "greedy"):
            engaged(controller, members, name, tasks)
            for key in (kind, watched.kind.key):
                members[name].informers[key] = CachedPlaces(key=key, cache=ObjectCache(), problems=[])

        def change(name: str, found: CachedObject) -> None:
            informer = members[name].informers[kind if name == "hub" else watched.kind.key]
            gone = (found, None) if name == "hub" else (None, found)
            controller.changed(members[name], informer, Change(*gone, is_live=True))

        change("hub", msgspec.structs.replace(seen, name="b"))
        change("greedy", seen)
        change("hub", msgspec.structs.replace(seen, name="c"))
        change("modest", seen)
        named["greedy"] = ["a", "b", "c", "shared", *map(str, range(30))]
        change("greedy", seen)
        assert len(members["greedy"].informers[watched.kind.key].problems) == 1
        is_waiting = {name: controller.queue.waits(ObjectKey("hub", 1, "default", name)) for name in named["greedy"]}
        assert {name for name, waits in is_waiting.items() if waits} == {"b", "c", "shared"}


async def test_objects_that_a_cluster_names_in_another_count_for_no_other_cluster() -> None:
    async def reconcile(_request: Request) -> None: ...

    def mapper(change: Watched[Any]) -> list[ReconcileTarget]:
        count = 15 if change.cluster.name == "greedy" else 9
        return [ReconcileTarget(f"{change.cluster.name}-{number}", "default", "hub") for number in range(count)]

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched, limits=CacheLimits(objects=10))
    controller.pause()
    kind, seen = controller.spec.kind.key, CachedObject("a", "default", "uid", "1", b"{}")
    async with asyncio.TaskGroup() as tasks:
        for name in ("hub", "modest", "greedy", "late"):
            engaged(controller, members, name, tasks)
            for key in (kind, watched.kind.key):
                members[name].informers[key] = CachedPlaces(key=key, cache=ObjectCache(), problems=[])
        for name in ("modest", "greedy", "late"):
            informer = members[name].informers[watched.kind.key]
            controller.changed(members[name], informer, Change(None, seen, is_live=True))
        for number in range(19):
            gone = Change(CachedObject(f"o{number}", "default", f"u{number}", "1"), None, is_live=True)
            controller.changed(members["hub"], members["hub"].informers[kind], gone)
        assert controller.queue.count("hub", 1) == 1 + 9 + 9 + 19
    problems = {name: [len(i.problems) for i in member.informers.values()] for name, member in members.items()}
    assert problems == {"hub": [0, 0], "modest": [0, 0], "greedy": [0, 1], "late": [0, 0]}


async def test_failing_objects_that_a_cluster_names_in_another_count_for_no_other_cluster() -> None:
    """Found by an audit: those whose retries were delayed stayed, and counted for the cluster that they are in."""

    async def reconcile(_request: Request) -> None:
        raise ValueError("not now")

    def mapper(_change: Watched[Any]) -> list[ReconcileTarget]:
        return [ReconcileTarget(name, "default", "hub") for name in named]

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched, limits=CacheLimits(objects=10))
    kind, seen = controller.spec.kind.key, CachedObject("a", "default", "uid", "1", b"{}")
    async with asyncio.TaskGroup() as tasks:
        for name in ("hub", "greedy"):
            engaged(controller, members, name, tasks)
            for key in (kind, watched.kind.key):
                members[name].informers[key] = CachedPlaces(
                    key=key, cache=ObjectCache(), problems=[], dropped=None, state="synced"
                )
        dropping = members["greedy"].informers[watched.kind.key]
        for number in range(5):
            for count in (9, 15):
                named = [f"{number}-{count}-{other}" for other in range(count)]
                controller.changed(members["greedy"], dropping, Change(None, seen, is_live=True))
                await eventually(lambda: not controller.tasks and not len(controller.queue))
        assert dropping.problems
        gone = Change(seen, None, is_live=True)
        controller.changed(members["hub"], members["hub"].informers[kind], gone)
        assert [informer.problems for informer in members["hub"].informers.values()] == [[], []]


@pytest.mark.parametrize("cause", ["deletion", "deletion in flight", "another mapper", "list", "enqueue"])
async def test_cluster_that_names_too_many_objects_drops_none_that_waits_for_another_reason(cause: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def reconcile(request: Request) -> None:
        if request.name == "shared":
            begun.set()
            await go_on.wait()

    named = 1

    def mapper(change: Watched[Any]) -> list[ReconcileTarget]:
        others = range(named - 1 if change.cluster.name == "greedy" else 0)
        return [ReconcileTarget(name, "default", "hub") for name in ("shared", *(f"o{other}" for other in others))]

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched, limits=CacheLimits(objects=10))
    controller.pause()
    kind, seen = controller.spec.kind.key, CachedObject("shared", "default", "uid", "1", b"{}")

    def change(name: str, key: CacheKey, changed: Change) -> None:
        controller.changed(members[name], members[name].informers[key], changed)

    async with asyncio.TaskGroup() as tasks:
        for name in ("hub", "modest", "greedy"):
            engaged(controller, members, name, tasks)
            for key in (kind, watched.kind.key):
                members[name].informers[key] = CachedPlaces(
                    key=key, cache=ObjectCache(), problems=[], dropped=None, state="synced"
                )
        created, deleted = Change(None, seen, is_live=True), Change(seen, None, is_live=True)
        match cause:
            case "deletion":
                change("hub", kind, deleted)
            case "deletion in flight":
                controller.resume()
                change("hub", kind, deleted)
                await begun.wait()
                controller.pause()
                change("hub", kind, deleted)
                change("greedy", watched.kind.key, created)
                go_on.set()
                await eventually(lambda: not controller.tasks)
            case "another mapper":
                change("greedy", watched.kind.key, created)
                change("modest", watched.kind.key, created)
            case "list":
                change("greedy", watched.kind.key, created)
                for listed in members["hub"].informers[kind].cache.apply(ObjectChanged(seen)):
                    change("hub", kind, listed)
            case _:
                change("greedy", watched.kind.key, created)
                controller.enqueue(ReconcileTarget("shared", "default", "hub"))
        named = 15
        change("greedy", watched.kind.key, created)
        assert len(members["greedy"].informers[watched.kind.key].problems) == 1
        assert controller.queue.waits(ObjectKey("hub", 1, "default", "shared"))


@pytest.mark.parametrize(
    ("leads", "is_open", "state", "waiting"),
    [
        (False, True, "synced", 0),
        (True, False, "not_served", 0),
        (True, False, "forbidden", 0),
        (True, False, "starting", 100),
        (True, True, "forbidden", 100),
    ],
)
async def test_deleted_object_waits_unless_the_wait_may_last_for_months(
    leads: bool, is_open: bool, state: FollowerState, waiting: int
) -> None:
    async def reconcile(_request: Request) -> None: ...

    def nothing(_change: Watched) -> Iterator[ReconcileTarget]:
        return iter(())

    members: dict[str, Any] = {}
    gadgets = Kind("example.com/v1/gadgets")
    controller = controller_of(reconcile, members, watches(gadgets, map=nothing), leads=leads)
    kind = controller.spec.kind.key
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        if not is_open:
            controller.queue.drop("alpha", 1)
            controller.engage(members["alpha"])
        informer: Any = SimpleNamespace(key=kind, cache=ObjectCache(), state="synced")
        members["alpha"].informers = {kind: informer, gadgets.key: SimpleNamespace(state=state)}
        before = controller.queue.count("alpha", 1)
        for number in range(100):
            found = CachedObject(f"o{number}", "default", f"u{number}", "1")
            for change in (Change(None, found, is_live=True), Change(found, None, is_live=True)):
                controller.changed(members["alpha"], informer, change)
        assert controller.queue.count("alpha", 1) == before + waiting


async def test_all_objects_are_reconciled_when_this_replica_leads_again() -> None:
    reconciled: list[str] = []

    async def reconcile(request: Request) -> None:
        reconciled.append(f"{current_cluster.get()}/{request.name}")

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members, leads=False)
    async with asyncio.TaskGroup() as tasks:
        for name in ("alpha", "beta"):
            engaged(controller, members, name, tasks)
            for found in ("one", "two"):
                cache = members[name].informers[controller.spec.kind.key].cache
                cache.apply(ObjectChanged(CachedObject(found, "default", found, "1", b"{}")))
        controller.resume()
        await eventually(lambda: sorted(reconciled) == ["alpha/one", "beta/one"])
        controller.pause()
        reconciled.clear()
        controller.resume()
        await eventually(lambda: sorted(reconciled) == ["alpha/one", "alpha/two", "beta/one", "beta/two"])


async def test_objects_of_a_large_cluster_are_enqueued_in_slices() -> None:
    async def reconcile(_request: Request) -> None: ...

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    controller.pause()
    cache = ObjectCache()
    for number in range(2500):
        cache.apply(ObjectChanged(CachedObject(f"o{number}", "default", f"u{number}", "1", b"{}")))
    async with asyncio.TaskGroup() as tasks:
        for name in ("alpha", "beta"):
            engaged(controller, members, name, tasks)
            members[name].informers[controller.spec.kind.key] = SimpleNamespace(cache=cache)
            controller.resync(members[name])
            assert controller.queue.count(name, 1) == 1001
        controller.queue.drop("beta", 1)
        del members["beta"]
        await eventually(lambda: controller.queue.count("alpha", 1) == 2501)


async def test_parked_failing_and_deleted_objects_of_a_large_cluster_are_handled_in_slices() -> None:
    async def reconcile(_request: Request) -> None: ...

    members: dict[str, Any] = {}
    controller = controller_of(reconcile, members)
    controller.pause()
    queue, failures, kind = controller.queue, controller.failures, controller.spec.kind.key
    async with asyncio.TaskGroup() as tasks:
        engaged(controller, members, "alpha", tasks)
        assert queue.take_next(0.0) is not None
        places = [("default", f"o{number}") for number in range(2500)]
        for place in places:
            key = ObjectKey("alpha", 1, *place)
            queue.add(key, 0.0)
            work = queue.take_next(0.0)
            assert work is not None
            queue.done(key, Parked(), 0.0)
            queue.freed(work)
            failures.record(key, ValueError("no"), is_stopped=False)
        informer = SimpleNamespace(key=kind, cache=ObjectCache(), dropped=frozenset(places))
        members["alpha"].informers[kind] = informer

        controller.unpark(members["alpha"])
        assert len(queue) == 1000
        await eventually(lambda: len(queue) == 2500)

        members["alpha"].cluster.current.deletion_requested_at = datetime.now(UTC)
        controller.deletion_requested(members["alpha"])
        assert len(failures) == 1500
        await eventually(lambda: not failures)

        queue.forget_waiting("alpha", 1)
        controller.listed_again(members["alpha"], cast(Any, informer))
        assert len(queue) == 1000
        await eventually(lambda: len(queue) == 2500)


async def test_clusters_whose_changes_could_not_be_mapped_are_enqueued_one_after_another() -> None:
    async def reconcile(_request: Request) -> None: ...

    def mapper(change: Watched[Any]) -> list[ReconcileTarget]:
        if change.cluster.name == "c1" and change.name == "a":
            return [ReconcileTarget("one", "default", cluster="c2")]
        raise NotSynced("the cache of secrets of hub is not complete; retry later", cluster="hub")

    members: dict[str, Any] = {}
    watched = watches("v1/secrets", map=mapper)
    controller = controller_of(reconcile, members, watched)
    controller.pause()
    objects = ObjectCache()
    objects.apply(ObjectChanged(CachedObject("two", "default", "uid", "1", b"{}")))
    secrets: Any = SimpleNamespace(key=watched.kind.key)
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            engaged(controller, members, f"c{number}", tasks)
            members[f"c{number}"].informers[controller.spec.kind.key] = SimpleNamespace(cache=objects)
        for name in ("a", "b"):
            change = Change(None, CachedObject(name, "default", "uid", "1", b"{}"), is_live=True)
            for number in range(10):
                controller.changed(members[f"c{number}"], secrets, change)
        before = len(controller.queue)
        controller.resync_unmapped("hub")
        assert len(controller.queue) == before + 1
        await eventually(lambda: len(controller.queue) == before + 20)
