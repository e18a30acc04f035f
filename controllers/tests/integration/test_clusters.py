"""Controllers while clusters are engaged, disengaged, suspended, unresponsive, or lack a kind."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from milo_controllers import (
    Kind,
    NotCached,
    NotLeading,
    NotSynced,
    Permanent,
    ProjectSuspended,
    QueuePolicy,
    ReconcileTarget,
    Request,
    Watched,
    watches,
)
from milo_controllers.engaged_clusters import EngagedClusters
from milo_controllers.informer import Informer
from milo_controllers.logs import current_object
from milo_discovery import ClusterNotFound, DisengageReason, EngagedCluster, UnusableKubeconfig
from milo_discovery.leader_election import LeadershipLost
from milo_discovery.testing import ControlPlane, MiloSandbox, eventually, fake_discovery
from milo_kube.http.client import Client
from milo_objects.scope import NotServed

from .widgets import (
    DEFINITION,
    FINALIZER,
    WIDGETS,
    Log,
    Running,
    reconciling,
    widget,
    with_widgets,
)


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


@pytest.mark.parametrize("is_drained", [True, False])
async def test_plain_reconciler_may_write_in_its_cleanup_in_a_drain(plane: ControlPlane, *, is_drained: bool) -> None:
    """Found by a reader: an async one could, and the cleanup of a plain one was canceled too."""
    history: list[str] = []
    running = Running(plane, confirm_releases=True)

    @running.controllers.reconcile(WIDGETS)
    def reconcile(request: Request) -> None:
        history.append("begins")
        try:
            request.wait(asyncio.Event().wait())
        finally:
            try:
                request.wait(request.patch_status({"released": "yes"}))
            finally:
                history.append("ends")

    plane.create(widget("one"))
    async with running.controllers:
        await eventually(lambda: history == ["begins"])
        if is_drained:
            running.discovery.drain(plane.project)
            await eventually(lambda: running.discovery.released == [plane.project])
        else:
            running.discovery.disengage(plane.project)
            await eventually(lambda: history == ["begins", "ends"])
    assert history == ["begins", "ends"]
    assert plane.get(WIDGETS, "one").get("status") == ({"released": "yes"} if is_drained else None)


async def test_controllers_of_the_same_kind_share_one_informer(plane: ControlPlane) -> None:
    plane.create(widget("one"))
    log, other = Log(), Log()
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(log)
    running.controllers.reconcile(WIDGETS, name="other", owns=[WIDGETS])(other)
    async with running.controllers:
        await eventually(lambda: log.seen == other.seen == [(plane.project, "one", {})])
        assert running.metric("milo_controllers_informers", resource=WIDGETS, state="synced") == 1


async def test_unresponsive_cluster_does_not_delay_reconciles_of_other_clusters(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
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


async def test_reconciles_start_after_read_only_caches_have_synced(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_list, follow = asyncio.Event(), Informer.run
    found: list[Any] = []

    async def follow_late(informer: Informer, *arguments: Any) -> None:
        if informer.key.resource == "v1/configmaps":
            await may_list.wait()
        await follow(informer, *arguments)

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


async def test_cache_read_before_its_first_complete_list_raises_not_synced(
    plane: ControlPlane, bare: ControlPlane
) -> None:
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


async def test_cache_of_unserved_kind_does_not_delay_reconciles(plane: ControlPlane) -> None:
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


async def test_informer_waits_until_its_kind_is_served(plane: ControlPlane, bare: ControlPlane) -> None:
    plane.create(widget("here"))
    log = Log()
    async with reconciling(log, plane, bare) as running:
        await eventually(lambda: log.seen == [(plane.project, "here", {})])
        [problem] = await eventually(lambda: running.controllers.health().problems)
        assert (problem.cluster, problem.kind, problem.is_synced) == (bare.project, WIDGETS, False)
        assert not running.controllers.health().synced
        await eventually(
            lambda: running.metric("milo_controllers_informers", resource=WIDGETS, state="not_served") == 1
        )
        bare.install(DEFINITION)
        bare.create(widget("late"))
        await eventually(lambda: (bare.project, "late", {}) in log.seen, within_s=60)


async def test_write_refused_by_suspended_project_is_retried_after_the_suspension(
    sandbox: MiloSandbox, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "milo_controllers")
    refused: list[str] = []

    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is not None and not found.get("status"):
            try:
                await request.patch_status({"seen": True})
            except ProjectSuspended:
                refused.append(request.name)
                raise

    plane.create(widget("one"))
    plane.create(widget("two"))
    sandbox.suspend_project(plane.project)
    running = Running()
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        running.discovery.engage(plane, suspended=True)
        await eventually(lambda: sorted(refused) == ["one", "two"])
        sandbox.lift_suspension(plane.project)
        running.discovery.update(plane.project, suspended=False)
        await eventually(lambda: all(plane.get(WIDGETS, name).get("status") for name in ("one", "two")))
        assert sorted(refused) == ["one", "two"]
    [waits] = [line for line in caplog.messages if "waits until the project is no longer suspended" in line]
    assert waits.startswith(f"widgets: {plane.project}: default/")


async def test_suspended_project_allows_deletions_and_changes_of_terminating_objects(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is None:
            return
        if found["metadata"].get("deletionTimestamp"):
            await request.patch_status({"cleaned": True})
            await request.remove_finalizer(FINALIZER)
            return
        await request.delete(WIDGETS, request.name)

    plane.create({**widget("one"), "metadata": {"name": "one", "finalizers": [FINALIZER]}})
    sandbox.suspend_project(plane.project)
    running = Running()
    running.controllers.reconcile(WIDGETS)(reconcile)
    async with running.controllers:
        running.discovery.engage(plane, suspended=True)
        await eventually(lambda: plane.find(WIDGETS, "one") is None)


async def test_object_parked_by_suspension_is_reconciled_when_project_deletion_is_requested(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    attempts: list[bool] = []

    async def reconcile(request: Request) -> None:
        found = await request.get()
        if found is None:
            return
        is_terminating = "deletionTimestamp" in found["metadata"]
        attempts.append(is_terminating)
        # The other object is not terminating, so the server refuses to change it while the project is suspended.
        await request.patch(WIDGETS, "other", {"spec": {"used": False}})
        await request.remove_finalizer(FINALIZER)

    plane.create(widget("other"))
    plane.create({**widget("one"), "metadata": {"name": "one", "finalizers": [FINALIZER], "labels": {"on": "yes"}}})
    plane.delete(WIDGETS, "one")
    sandbox.suspend_project(plane.project)
    running = Running()
    running.controllers.reconcile(Kind(WIDGETS, selector="on=yes"))(reconcile)
    async with running.controllers:
        running.discovery.engage(plane, suspended=True)
        await eventually(lambda: len(attempts) == 1)
        running.discovery.update(plane.project, deletion_requested_at=datetime.now(UTC))
        await eventually(lambda: len(attempts) > 2)  # refused writes are retried with backoff; the object is not parked
        sandbox.lift_suspension(plane.project)
        await eventually(lambda: plane.find(WIDGETS, "one") is None)


@pytest.mark.parametrize("while_deleting", [False, True])
async def test_project_deletion_limits_reconciles_to_terminating_objects_unless_while_deleting_is_set(
    plane: ControlPlane, *, while_deleting: bool
) -> None:
    seen: list[str] = []

    async def reconcile(request: Request) -> None:
        found = await request.get()
        seen.append(request.name)
        if found is not None and "deletionTimestamp" in found["metadata"]:
            await request.remove_finalizer(FINALIZER)
            return
        await request.apply("v1/configmaps", {"kind": "ConfigMap", "metadata": {"name": "made"}}, owned=True)

    plane.create({**widget("ending"), "metadata": {"name": "ending", "finalizers": [FINALIZER]}})
    async with reconciling(reconcile, plane, owns=["v1/configmaps"], while_deleting=while_deleting) as running:
        await eventually(lambda: plane.find("v1/configmaps", "made"))
        running.discovery.update(plane.project, deletion_requested_at=datetime.now(UTC))
        seen.clear()
        plane.delete("v1/configmaps", "made")  # as Milo's project controller does
        plane.create(widget("late"))
        if while_deleting:
            await eventually(lambda: "late" in seen and plane.find("v1/configmaps", "made"))
        plane.delete(WIDGETS, "ending")
        await eventually(lambda: plane.find(WIDGETS, "ending") is None)
        if not while_deleting:
            assert set(seen) == {"ending"}
            assert plane.find("v1/configmaps", "made") is None


@pytest.mark.parametrize("error", [OSError("no reconcile succeeds"), Permanent("no reconcile succeeds")])
async def test_failed_object_that_is_left_to_the_deletion_of_its_project_is_not_failing(
    plane: ControlPlane, error: Exception
) -> None:
    async def reconcile(_request: Request) -> None:
        raise error

    plane.create(widget("one"))
    async with reconciling(reconcile, plane) as running:
        await eventually(lambda: list(running.controllers.failing()))
        running.discovery.update(plane.project, deletion_requested_at=datetime.now(UTC))
        await eventually(lambda: not running.controllers.health().failing)


async def test_mapper_enqueues_objects_of_other_clusters(sandbox: MiloSandbox) -> None:
    first, second = with_widgets(sandbox), with_widgets(sandbox)
    for plane in (first, second):
        plane.create(widget("copy"))
    log = Log()

    def everywhere(change: Watched[dict[str, Any]]) -> Iterator[ReconcileTarget]:
        if change.name == "shared":
            for cluster, found in change.clusters.list(WIDGETS):
                yield ReconcileTarget(found["metadata"]["name"], "default", cluster.name)

    async with reconciling(log, first, second, watches=[watches("v1/configmaps", map=everywhere)]) as running:
        await eventually(lambda: sorted(log.seen) == sorted([(p.project, "copy", {}) for p in (first, second)]))
        first.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}})
        await eventually(lambda: sorted(log.seen[2:]) == sorted([(p.project, "copy", {}) for p in (first, second)]))
        view = running.controllers.view
        assert sorted(view.names()) == sorted([first.project, second.project])
        assert len(list(view.list(WIDGETS))) == 2
        assert first.project in view
        assert view.cluster("unknown") is None


async def test_view_outside_of_reconcilers_names_the_clusters_that_were_not_read(
    plane: ControlPlane, bare: ControlPlane
) -> None:
    plane.create(widget("here"))
    running = Running(bare, plane)
    running.controllers.reconcile(WIDGETS)(Log())
    before = running.controllers.view.view(WIDGETS)
    assert (before.known, before.is_complete) == (0, False)
    async with running.controllers:
        caches = running.controllers.view
        await eventually(lambda: isinstance(caches.view(WIDGETS).missing[bare.project], NotServed))
        view = await eventually(lambda: (view := caches.view(WIDGETS)).synced == 1 and view)
        assert (view.resource, view.known, view.is_complete, [*view.missing]) == (WIDGETS, 2, False, [bare.project])
        assert [cluster.name for cluster, _ in caches.list(WIDGETS)] == [plane.project]
        with pytest.raises(NotCached, match="v1/secrets is not cached"):
            caches.view("v1/secrets")
        bare.install(DEFINITION)
        await eventually(lambda: caches.view(WIDGETS).is_complete)
        assert caches.view(WIDGETS).stale_since is None


async def test_cluster_whose_caches_do_not_exist_yet_is_missing_in_the_view(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_begin = asyncio.Event()
    operate = EngagedClusters.operate

    async def operate_late(engaged: EngagedClusters, cluster: EngagedCluster) -> None:
        await may_begin.wait()
        await operate(engaged, cluster)

    monkeypatch.setattr(EngagedClusters, "operate", operate_late)
    async with reconciling(Log(), plane) as running:
        await running.fleet.synced()
        view = running.controllers.view.view(WIDGETS)
        assert (view.known, view.is_complete, [*view.missing]) == (1, False, [plane.project])
        may_begin.set()
        await eventually(lambda: running.controllers.view.view(WIDGETS).is_complete)


@pytest.mark.parametrize("raised", [OSError, SystemExit, GeneratorExit])
async def test_disengage_handler_is_called_with_the_reason_between_two_engagements(
    plane: ControlPlane, raised: type[BaseException]
) -> None:
    history: list[str] = []

    async def reconcile(request: Request) -> None:
        history.append("begins")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            history.append(f"ends: {request.cluster.disengage_reason}")

    plane.create(widget("one"))
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(reconcile)

    @running.controllers.on_disengage
    async def disengaged(cluster: EngagedCluster) -> None:
        history.append(f"called: {cluster.disengage_reason}")
        raise raised("the handler failed")

    async with running.controllers:
        await eventually(lambda: history == ["begins"])
        running.discovery.disengage(plane.project, DisengageReason.NOT_READY)
        running.discovery.engage(plane)
        reason = DisengageReason.NOT_READY
        await eventually(lambda: history == ["begins", f"ends: {reason}", f"called: {reason}", "begins"])
    assert history[4:] == ["ends: None"]


async def test_background_task_runs_with_the_controllers_and_its_error_ends_them(plane: ControlPlane) -> None:
    history: list[str] = []
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(Log())

    @running.controllers.background()
    async def poll() -> None:
        history.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            history.append("ended")

    @running.controllers.background(leader_only=False)
    async def fail() -> None:
        await eventually(lambda: history)
        raise OSError("the task failed")

    with pytest.raises(OSError, match="the task failed"):
        await running.controllers.run()
    assert history == ["began", "ended"]


async def test_background_task_that_a_task_of_its_own_cancels_ends_the_controllers(plane: ControlPlane) -> None:
    running = Running(plane)

    @running.controllers.background()
    async def poll() -> None:
        reading = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        reading.cancel()
        await reading

    with pytest.raises(RuntimeError, match="canceled, but not by the controllers"):
        async with asyncio.timeout(10):
            await running.controllers.run()


class Panic(BaseException):
    """As an extension in Rust raises it."""


@pytest.mark.parametrize("raised", [SystemExit, Panic])
async def test_background_task_that_raises_no_exception_ends_the_controllers_as_others_do(
    plane: ControlPlane, raised: type[BaseException]
) -> None:
    """Found by a reader: the process waited without a limit for a thread that hung."""
    running = Running(plane)

    @running.controllers.background()
    async def poll() -> None:
        raise raised("a library ends the process")

    ending = asyncio.create_task(running.controllers.run())
    async with asyncio.timeout(10):
        assert str(await running.controllers.failed()) == f"{raised.__name__}: a library ends the process"
    with pytest.raises(RuntimeError, match="a library ends the process"):
        await ending


async def test_lost_lead_is_known_before_background_tasks_have_cleaned_up(plane: ControlPlane) -> None:
    """Found by a reader: the process waited for one that hung, rather than exit."""
    running, may_end, ends = Running(plane), asyncio.Event(), asyncio.Event()

    class LostElection:
        async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            del work
            await ends.wait()
            raise LeadershipLost("lost")

    @running.controllers.background(leader_only=False)
    async def poll() -> None:
        ends.set()
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    ending = asyncio.create_task(running.controllers.run(election=LostElection()))
    async with asyncio.timeout(10):
        assert isinstance(await running.controllers.failed(), LeadershipLost)
    assert not ending.done()
    may_end.set()
    with pytest.raises(LeadershipLost):
        await ending


async def test_leader_only_background_task_runs_while_this_replica_leads(plane: ControlPlane) -> None:
    history: list[str] = []

    class Election:
        def __init__(self) -> None:
            self.leads = asyncio.Event()

        async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            history.append("waits")
            await self.leads.wait()
            await work()

    running, election = Running(plane), Election()
    for name, leader_only in (("everywhere", False), ("leader", True)):

        @running.controllers.background(leader_only=leader_only)
        async def record(name: str = name) -> None:
            history.append(name)

    ending = asyncio.create_task(running.controllers.run(election=election))
    await eventually(lambda: sorted(history) == ["everywhere", "waits"])
    election.leads.set()
    await eventually(lambda: history[2:] == ["leader"])
    ending.cancel()
    await asyncio.wait([ending])


async def test_objects_do_not_count_as_waiting_on_a_replica_that_does_not_lead(plane: ControlPlane) -> None:
    """Each such replica fired an alert."""
    leads, log, running = asyncio.Event(), Log(), Running(plane)

    class Election:
        async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            await leads.wait()
            await work()

    plane.create(widget("one"))
    running.controllers.reconcile(WIDGETS)(log)
    ending = asyncio.create_task(running.controllers.run(election=Election()))
    labels = {"controller": "widgets", "name": "widgets", "priority": "-100"}
    await eventually(lambda: running.controllers.health().synced and running.metric("workqueue_depth", **labels) == 1)
    assert running.metric("milo_controllers_oldest_queued_seconds", controller="widgets") == 0
    assert running.controllers.health().oldest_queued == timedelta()
    leads.set()
    await eventually(lambda: log.seen)
    ending.cancel()
    await asyncio.wait([ending])


async def test_lost_lead_ends_reconciles_before_background_tasks_have_cleaned_up(plane: ControlPlane) -> None:
    history: list[str] = []
    began, lost, cleaned_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Election:
        async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            working = asyncio.create_task(work())
            await lost.wait()
            working.cancel()
            await asyncio.wait([working])

    async def reconcile(_request: Request) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            history.append("reconcile ended")

    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(reconcile)

    @running.controllers.background()
    async def clean_up_late() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned_up.wait()
            history.append("background task ended")

    plane.create(widget("one"))
    ending = asyncio.create_task(running.controllers.run(election=Election()))
    await began.wait()
    lost.set()
    await eventually(lambda: history == ["reconcile ended"])
    cleaned_up.set()
    await eventually(lambda: history == ["reconcile ended", "background task ended"])
    ending.cancel()
    await asyncio.wait([ending])


@pytest.mark.parametrize("grace_s", [60, 0], ids=["end in time", "are canceled"])
async def test_events_of_the_last_reconciles_are_written_before_the_lease_is_released(
    plane: ControlPlane, grace_s: int
) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()
    reasons: list[list[str]] = []

    class Election:
        is_leader = True

        async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            try:
                await work()
            finally:
                self.is_leader = False
                reasons.append(sorted(event["reason"] for event in plane.list("v1/events")))

    async def reconcile(request: Request) -> None:
        began.set()
        try:
            await may_end.wait()
        finally:
            for number in range(5):
                await request.event(f"Step{number}", "done")

    plane.create(widget("one"))
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(reconcile)
    ending = asyncio.create_task(running.controllers.run(election=Election()))
    await began.wait()
    draining = asyncio.create_task(running.controllers.drain(timedelta(seconds=grace_s)))
    await asyncio.sleep(0)
    if grace_s:
        may_end.set()
    await draining
    ending.cancel()
    await asyncio.wait([ending])
    assert reasons == [[f"Step{number}" for number in range(5)]]


async def test_replica_whose_lease_has_expired_writes_and_reconciles_nothing_before_it_notices(
    plane: ControlPlane,
) -> None:
    began: list[str] = []
    refused: list[str] = []

    class Election:
        is_leader = True

        async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            await work()

    election = Election()

    async def reconcile(request: Request) -> None:
        began.append(request.name)
        if request.name == "one":
            election.is_leader = False
            with pytest.raises(NotLeading, match="was not sent: this replica no longer holds the Lease") as error:
                await request.patch(WIDGETS, "one", {"spec": {"size": 2}})
            await request.read(WIDGETS, "one")
            refused.append(str(error.value))

    plane.create(widget("one", size=1))
    log = Log()
    running = Running(plane)
    running.controllers.reconcile(WIDGETS)(reconcile)
    running.controllers.reconcile("v1/configmaps")(log)
    ending = asyncio.create_task(running.controllers.run(election=election))
    await eventually(lambda: refused)
    plane.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}})
    added = "workqueue_adds_total"
    await eventually(lambda: running.metric(added, controller="configmaps", name="configmaps"))
    await eventually(
        lambda: running.metric("workqueue_depth", controller="configmaps", name="configmaps", priority="0") == 0
    )
    ending.cancel()
    await asyncio.wait([ending])
    assert (began, log.seen) == (["one"], [])
    assert plane.get(WIDGETS, "one")["spec"] == {"size": 1}


async def test_replica_whose_ownership_has_expired_writes_and_reconciles_nothing_before_it_notices(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    refused: list[str] = []
    owns = True
    monkeypatch.setattr(fake_discovery._Feed, "is_owner", property(lambda _: owns), raising=False)

    async def reconcile(request: Request) -> None:
        nonlocal owns
        began.append(request.name)
        owns = False
        with pytest.raises(ClusterNotFound, match="is no longer engaged") as error:
            await request.patch(WIDGETS, request.name, {"spec": {"size": 2}})
        refused.append(str(error.value))

    for name in ("one", "two"):
        plane.create(widget(name, size=1))
    async with reconciling(reconcile, plane, workers=1) as running:
        await eventually(lambda: refused)
        await eventually(
            lambda: running.metric("workqueue_depth", controller="widgets", name="widgets", priority="-100") == 0
        )
        assert len(began) == 1
    assert [plane.get(WIDGETS, name)["spec"] for name in ("one", "two")] == [{"size": 1}] * 2


async def test_cluster_state_that_the_stream_has_not_delivered_is_read_from_the_daemon(plane: ControlPlane) -> None:
    read: list[bool] = []

    async def reconcile(request: Request) -> None:
        if await request.get() is None:
            assert request.cluster.current.deletion_requested_at is None
            read.append((await request.cluster.read()).deletion_requested_at is not None)

    plane.create(widget("one"))
    async with reconciling(reconcile, plane) as running:
        await eventually(lambda: running.controllers.health().ready)
        cluster, _ = running.discovery._engaged[plane.project]
        running.discovery._engaged[plane.project] = replace(cluster, deletion_requested_at=datetime.now(UTC)), plane
        plane.delete(WIDGETS, "one")
        await eventually(lambda: read == [True])


async def test_project_that_is_replaced_under_its_name_ends_the_reconciles_of_the_former_one(
    plane: ControlPlane,
) -> None:
    history: list[tuple[str, str]] = []

    async def reconcile(request: Request) -> None:
        history.append(("began", request.cluster.uid))
        try:
            await asyncio.Event().wait()
        finally:
            history.append(("ended", request.cluster.uid))

    plane.create(widget("one"))
    async with reconciling(reconcile, plane) as running:
        before = running.discovery.update(plane.project, labels={"a": "b"}).uid
        await eventually(lambda: history == [("began", before)])
        running.discovery.engage(plane, uid="another")
        await eventually(lambda: history[1:] == [("ended", before), ("began", "another")])


@pytest.mark.parametrize("is_write", [True, False])
async def test_request_is_not_sent_to_the_former_endpoint_if_it_changes_while_it_waits_for_a_connection(
    sandbox: MiloSandbox, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, is_write: bool
) -> None:
    moved, connection = with_widgets(sandbox), Client._connection
    endpoint = moved.access().server
    outcomes: list[str] = []

    async def connected_late(client: Client, *given: Any) -> Any:
        found = await connection(client, *given)
        if current_object.get() and not outcomes:
            monkeypatch.setattr(plane, "access", moved.access)
            running.discovery.update(plane.project, endpoint=endpoint)
            engaged = running.fleet.get(plane.project)
            assert engaged is not None
            await eventually(lambda: engaged.current.endpoint == endpoint)
        return found

    async def reconcile(request: Request) -> None:
        try:
            if is_write:
                await request.create("v1/configmaps", {"metadata": {"name": "made"}})
            else:
                await request.read("v1/configmaps", "there")
        except (NotLeading, UnusableKubeconfig):
            outcomes.append("refused")
            raise
        outcomes.append("done")

    moved.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "there", "namespace": "default"}})
    plane.create(widget("one"))
    monkeypatch.setattr(Client, "_connection", connected_late)
    async with reconciling(reconcile, plane) as running:
        await eventually(lambda: outcomes == ["refused", "done"])
    assert plane.find("v1/configmaps", "made") is None
    assert (moved.find("v1/configmaps", "made") is not None) is is_write


async def test_cluster_whose_endpoint_changes_is_listed_and_watched_there(
    sandbox: MiloSandbox, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = with_widgets(sandbox)
    plane.create(widget("before"))
    moved.create(widget("after"))
    log = Log()
    async with reconciling(log, plane) as running:
        await eventually(lambda: [name for _, name, _ in log.seen] == ["before"])
        monkeypatch.setattr(plane, "access", moved.access)
        running.discovery.update(plane.project, endpoint=moved.access().server)
        await eventually(lambda: {name: spec for _, name, spec in log.seen} == {"before": None, "after": {}})
        plane.create(widget("elsewhere"))
        moved.create(widget("late"))
        await eventually(lambda: "late" in [name for _, name, _ in log.seen])
        assert len(log.seen) == 4
        assert running.controllers.health().synced


async def test_lost_ownership_ends_all_reconciles_and_a_restart_begins_them_again(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    other = with_widgets(sandbox)
    for each in (plane, other):
        each.create(widget("one"))
    log, reasons = Log(), []
    running = Running(plane, other)
    running.controllers.reconcile(WIDGETS)(log)

    @running.controllers.on_disengage
    async def disengaged(cluster: EngagedCluster) -> None:
        reasons.append(cluster.disengage_reason)

    async with running.controllers:
        await eventually(lambda: len(log.seen) == 2)
        running.discovery.restart()
        await eventually(lambda: running.fleet.get(plane.project).current.incarnation == "3")
        running.discovery.lose_ownership()
        await eventually(lambda: reasons == [DisengageReason.OWNERSHIP_LOST] * 2)
        assert not running.fleet.clusters
        assert not running.controllers.health().discovery.connected
        assert not running.controllers.view.view(WIDGETS).is_complete
        running.discovery.restart()
        await eventually(lambda: len(log.seen) == 4)
        assert running.controllers.health().discovery.connected
        await eventually(lambda: running.controllers.view.view(WIDGETS).is_complete)
