"""Objects of control planes of the sandbox: found with their clusters, and "not found" told apart from "not read"."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from milo_discovery import DisengageReason
from milo_discovery import events as discovery_events
from milo_discovery.cluster_api import ClusterApi
from milo_discovery.testing import ControlPlane, MiloSandbox, eventually, fake_clock
from milo_kube.api_request import METADATA_LIST_ONLY, METADATA_ONLY
from milo_kube.rate_limit import Rate
from milo_objects import (
    CacheLimits,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    Forbidden,
    Kind,
    NotServed,
    ObjectChanged,
    Objects,
    OverBudget,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    Stale,
    Synced,
    first_lists,
)
from milo_objects.follow import ScopeFollower
from tests.support.tcp_proxy import TcpProxy

from .running import CONFIG_MAPS, NAMESPACES, Running, config_map, names, namespace, running

LABELS = Kind(NAMESPACES, ["metadata.labels"])


def is_complete(objects: Objects, resource: str = NAMESPACES) -> bool:
    return objects.view(resource).is_complete


async def test_objects_of_all_clusters_are_found_with_their_clusters(alpha: ControlPlane, beta: ControlPlane) -> None:
    for plane in (alpha, beta):
        plane.create(namespace("shop", of=plane.project))
    uid = beta.get(NAMESPACES, "shop")["metadata"]["uid"]
    async with running(alpha, beta) as found:
        await eventually(lambda: is_complete(found.objects))
        [hit] = found.objects.find("uid", uid)
        assert (hit.cluster.name, hit.cluster.uid) == (beta.project, f"uid-{beta.project}")
        assert hit.object.fields == {"metadata": {"labels": beta.get(NAMESPACES, "shop")["metadata"]["labels"]}}
        assert hit.object.created_at is not None
        assert found.objects.get(alpha.project, NAMESPACES, "shop") is not None
        assert found.objects.find("uid", "another") == []


async def test_view_names_clusters_that_were_not_read_and_why(
    sandbox: MiloSandbox, alpha: ControlPlane, beta: ControlPlane
) -> None:
    sandbox.fail(alpha.project, "list", NAMESPACES, status=403)
    try:
        async with running(alpha, beta) as found:
            await eventually(lambda: found.objects.view(NAMESPACES).synced == 1)
            await eventually(lambda: isinstance(found.objects.view(NAMESPACES).missing[alpha.project], Forbidden))
            view = found.objects.view(NAMESPACES)
            assert (view.known, view.is_complete, list(view.missing)) == (2, False, [alpha.project])
            assert "403" in view.missing[alpha.project].problem
            sandbox.stop_failing()
            await eventually(lambda: is_complete(found.objects))
    finally:
        sandbox.stop_failing()


async def test_kind_that_is_not_served_is_a_state_of_its_scope_alone(alpha: ControlPlane) -> None:
    gadgets = "example.com/v1/gadgets"
    async with running(alpha, kinds=(LABELS, Kind(gadgets))) as found:
        await eventually(lambda: isinstance(found.objects.view(gadgets).missing.get(alpha.project), NotServed))
        assert is_complete(found.objects)


async def test_cluster_that_does_not_answer_delays_no_other(
    sandbox: MiloSandbox, alpha: ControlPlane, beta: ControlPlane
) -> None:
    sandbox.fail(alpha.project, "list", NAMESPACES, status="hang")
    try:
        async with running(alpha, beta) as found:
            view = await eventually(lambda: (view := found.objects.view(NAMESPACES)).synced == 1 and view)
            assert isinstance(view.missing[alpha.project], Pending)
    finally:
        sandbox.stop_failing()


async def test_process_that_has_not_read_the_fleet_says_so(alpha: ControlPlane) -> None:
    found = Running(alpha, kinds=(LABELS,))
    view = found.objects.view(NAMESPACES)

    assert (view.known, view.is_complete) == (0, False)
    assert isinstance(view.fleet, Pending)


async def test_synced_fleet_is_reported_after_all_of_its_clusters(planes: list[ControlPlane]) -> None:
    async with running(*planes) as found:
        await eventually(lambda: is_complete(found.objects))
    synced = next(
        n
        for n, change in enumerate(found.changes)
        if isinstance(change, FleetChanged) and isinstance(change.state, Synced)
    )
    known = [change.cluster.name for change in found.changes[:synced] if isinstance(change, ClusterChanged)]
    assert sorted(known) == sorted(plane.project for plane in planes)


# --- changes ---


async def test_objects_of_first_list_precede_synced_of_their_scope(planes: list[ControlPlane]) -> None:
    for plane in planes:
        plane.create(namespace("shop"))
    async with running(*planes) as found:
        await eventually(
            lambda: (
                sum(isinstance(each, ScopeChanged) and isinstance(each.state, Synced) for each in found.changes) == 2
            )
        )
    for plane in planes:
        of_plane = [
            change
            for change in found.changes
            if not isinstance(change, FleetChanged | ClusterChanged | ClusterEnded | ScopeEnded)
            and change.scope.cluster == plane.project
        ]
        assert isinstance(of_plane[0], ScopeChanged)
        assert isinstance(of_plane[0].state, Pending)
        assert all(isinstance(change, ObjectChanged) for change in of_plane[1:-1])
        assert "shop" in {change.object.name for change in of_plane[1:-1] if isinstance(change, ObjectChanged)}


async def test_change_of_fields_that_are_not_named_sends_nothing(alpha: ControlPlane) -> None:
    alpha.create(config_map("noisy", color="red"))
    async with running(alpha, kinds=(Kind(CONFIG_MAPS, ["metadata.labels"]),)) as found:
        await eventually(lambda: is_complete(found.objects, CONFIG_MAPS))
        for number in range(5):
            alpha.patch(CONFIG_MAPS, "noisy", {"data": {"color": f"{number}"}})
        alpha.patch(CONFIG_MAPS, "noisy", {"metadata": {"labels": {"size": "big"}}})
        await eventually(lambda: len(found.of("noisy")) == 2)
        assert found.of("noisy") == ["{}", '{"metadata":{"labels":{"size":"big"}}}']
        [hit] = [each for each in found.objects.list(CONFIG_MAPS) if each.object.name == "noisy"]
        assert hit.object.version == alpha.get(CONFIG_MAPS, "noisy")["metadata"]["resourceVersion"]


async def test_object_that_leaves_the_selector_is_told_apart_from_a_deleted_one(alpha: ControlPlane) -> None:
    alpha.create({**config_map("leaves"), "metadata": {"name": "leaves", "labels": {"team": "a"}}})
    alpha.create({**config_map("dies"), "metadata": {"name": "dies", "labels": {"team": "a"}}})
    alpha.create(config_map("never"))
    async with running(alpha, kinds=(Kind(CONFIG_MAPS, label_selector="team=a"),)) as found:
        await eventually(lambda: is_complete(found.objects, CONFIG_MAPS))
        alpha.patch(CONFIG_MAPS, "leaves", {"metadata": {"labels": {"team": "b"}}})
        alpha.delete(CONFIG_MAPS, "dies")
        await eventually(lambda: len(found.of("dies")) == 2)
        assert found.of("leaves") == ["{}", "OUT_OF_SELECTOR"]
        assert found.of("dies") == ["{}", "OBJECT_DELETED"]
        assert found.of("never") == []


async def test_reader_that_begins_later_gets_what_is_known(alpha: ControlPlane) -> None:
    alpha.create(namespace("shop"))
    async with running(alpha) as found:
        await eventually(lambda: is_complete(found.objects))
        seen = []
        async for change in found.objects.changes():
            seen.append(change)
            if isinstance(change, FleetChanged) and isinstance(change.state, Synced):
                break
        assert "shop" in {change.object.name for change in seen if isinstance(change, ObjectChanged)}


# --- what is read ---


class Counted:
    """Counts what is requested from control planes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lists: list[str] = []
        self.accepts: set[str] = set()
        get, stream = ClusterApi.get, ClusterApi.stream

        async def counted_get(api: ClusterApi, path: str, query: Any = (), **options: Any) -> Any:
            self.lists.append(f"{api.name}{path}")
            self.accepts.add(options["accept"])
            return await get(api, path, query, **options)

        def counted_stream(api: ClusterApi, path: str, query: Any = (), **options: Any) -> Any:
            if ("sendInitialEvents", "true") in query:
                self.lists.append(f"{api.name}{path}")
            self.accepts.add(options["accept"])
            return stream(api, path, query, **options)

        monkeypatch.setattr(ClusterApi, "get", counted_get)
        monkeypatch.setattr(ClusterApi, "stream", counted_stream)


async def test_each_scope_is_listed_once(planes: list[ControlPlane], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    async with running(*planes, kinds=(LABELS, Kind(CONFIG_MAPS))) as found:
        await eventually(lambda: is_complete(found.objects) and is_complete(found.objects, CONFIG_MAPS))
        found.discovery.restart()
        await eventually(lambda: found.discoveries > 1)
        planes[0].create(namespace("late"))
        await eventually(lambda: found.of("late"))
    paths = ("/api/v1/namespaces", "/api/v1/configmaps")
    assert sorted(counted.lists) == sorted(f"{plane.project}{path}" for plane in planes for path in paths)


async def test_scope_that_is_listed_again_keeps_its_objects(
    alpha: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha.create(namespace("shop"))
    counted = Counted(monkeypatch)
    async with running(alpha) as found:
        await eventually(lambda: is_complete(found.objects))
        await found.source.relist(Scope(alpha.project, "1", NAMESPACES))
        await found.source.relist(Scope("unknown", "1", NAMESPACES))
        assert len(counted.lists) == 2
        # The first call is replaced before the second, and the second while it is being canceled.
        calls = [asyncio.create_task(found.source.relist(Scope(alpha.project, "1", NAMESPACES))) for _ in "12"]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.gather(*calls, found.source.relist(Scope(alpha.project, "1", NAMESPACES)))
        assert is_complete(found.objects)
        alpha.create(namespace("late"))
        await eventually(lambda: found.of("late"))
    assert len(found.of("shop")) == 1


async def test_cluster_whose_endpoint_changes_is_read_there(
    alpha: ControlPlane, beta: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha.create(namespace("before"))
    beta.create(namespace("after"))
    async with running(alpha) as found:
        await eventually(lambda: found.of("before"))
        monkeypatch.setattr(alpha, "access", beta.access)
        found.discovery.update(alpha.project, endpoint=beta.access().server)
        await eventually(lambda: found.of("after"))
        await eventually(lambda: found.objects.get(alpha.project, NAMESPACES, "before") is None)


@pytest.mark.parametrize(
    ("kind", "accepts"),
    [
        (Kind(NAMESPACES, ["metadata.labels"]), {METADATA_ONLY, METADATA_LIST_ONLY}),
        (Kind(NAMESPACES, ["metadata.labels", "status.phase"]), {"application/json"}),
    ],
)
async def test_kind_without_fields_outside_of_metadata_is_read_as_metadata(
    alpha: ControlPlane, monkeypatch: pytest.MonkeyPatch, kind: Kind, accepts: set[str]
) -> None:
    counted = Counted(monkeypatch)
    async with running(alpha, kinds=(kind,)) as found:
        await eventually(lambda: is_complete(found.objects))
    assert counted.accepts
    assert counted.accepts <= accepts


async def test_first_lists_of_scopes_are_paced(planes: list[ControlPlane], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_lists, "FIRST_LISTS", Rate(per_second=1 / 3600, burst=1.0))
    with fake_clock() as clock:
        async with running(*planes) as found:
            await eventually(lambda: found.objects.view(NAMESPACES).synced == 1)
            assert len(found.objects.view(NAMESPACES).missing) == 1
            clock.advance(timedelta(hours=1))
            await eventually(lambda: is_complete(found.objects))


async def test_first_lists_of_one_organization_delay_none_of_another(
    sandbox: MiloSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_lists, "FIRST_LISTS", Rate(per_second=1 / 3600, burst=1.0))
    shop, *evil = sandbox.create_control_planes(*(next(names) for _ in range(5)))
    with fake_clock() as clock:
        async with running() as found:
            for plane in evil:
                found.discovery.engage(plane, organization="evil")
            await eventually(lambda: found.objects.view(NAMESPACES).synced == 1)
            found.discovery.engage(shop, organization="shop")
            await eventually(lambda: len(found.source._following._first_lists._waiting._waiting) == 2)
            for synced in (2, 3):
                clock.advance(timedelta(hours=1))
                await eventually(lambda synced=synced: found.objects.view(NAMESPACES).synced == synced)  # type: ignore[misc]
            assert shop.project not in found.objects.view(NAMESPACES).missing


# --- ends ---


@pytest.mark.parametrize("reason", [DisengageReason.DELETED, DisengageReason.REVOKED])
async def test_end_of_a_cluster_is_said_once_with_its_reason(
    alpha: ControlPlane, beta: ControlPlane, reason: DisengageReason
) -> None:
    async with running(alpha, beta, kinds=(LABELS, Kind(CONFIG_MAPS))) as found:
        await eventually(lambda: is_complete(found.objects) and is_complete(found.objects, CONFIG_MAPS))
        found.discovery.disengage(alpha.project, reason)
        await eventually(lambda: any(isinstance(change, ClusterEnded) for change in found.changes))
        assert list(found.objects.list(NAMESPACES, alpha.project)) == []
        assert is_complete(found.objects)
    ends = [change for change in found.changes if isinstance(change, ClusterEnded | ScopeEnded)]
    assert [(end.cluster.name, end.reason) for end in ends if isinstance(end, ClusterEnded)] == [
        (alpha.project, reason.name)
    ]
    assert len(ends) == 1
    assert found.of("default") == found.of("default")[:2], "no object of the ended cluster is said to be gone"


async def test_reason_of_an_end_that_a_snapshot_shows_is_unknown(alpha: ControlPlane) -> None:
    """Found by a reader: the snapshot may be that of another fleet with clusters of the same names."""
    async with running(alpha) as found:
        await eventually(lambda: is_complete(found.objects))
        found.discovery._feed.put_nowait(discovery_events.Connected(resumed=False))
        found.discovery.engage(alpha)
        found.discovery._feed.put_nowait(discovery_events.Synced(clusters=1))
        await eventually(lambda: found.objects.clusters[alpha.project].uid != f"uid-{alpha.project}")
    [end] = [change for change in found.changes if isinstance(change, ClusterEnded)]
    assert (end.cluster.uid, end.reason) == (f"uid-{alpha.project}", "UNSPECIFIED")


async def test_clusters_are_not_known_until_a_lost_ownership_is_regained(planes: list[ControlPlane]) -> None:
    async with running(*planes) as found:
        await eventually(lambda: is_complete(found.objects))
        found.discovery.lose_ownership()
        await eventually(lambda: not found.objects.clusters)
        assert not is_complete(found.objects)
        assert found.source.problems == {}
        found.discovery.restart()
        await eventually(lambda: is_complete(found.objects))
        assert found.objects.clusters.keys() == {plane.project for plane in planes}


async def test_objects_of_a_replaced_project_follow_the_end_of_its_predecessor(alpha: ControlPlane) -> None:
    async with running(alpha) as found:
        await eventually(lambda: is_complete(found.objects))
        found.discovery.engage(alpha, uid="another")
        await eventually(lambda: is_complete(found.objects) and found.objects.clusters[alpha.project].uid == "another")
        await eventually(lambda: len(found.of("default")) == 2)
    order = [
        change.scope.incarnation if isinstance(change, ObjectChanged) else "end"
        for change in found.changes
        if isinstance(change, ObjectChanged | ClusterEnded)
    ]
    end = order.index("end")
    assert set(order[:end]) == {"1"}
    assert set(order[end + 1 :]) == {"2"}


async def test_restart_of_the_daemon_ends_nothing(planes: list[ControlPlane]) -> None:
    async with running(*planes) as found:
        await eventually(lambda: is_complete(found.objects))
        known = dict(found.objects.clusters)
        found.discovery.restart()
        await eventually(lambda: found.discoveries > 1)
        found.discovery.update(planes[0].project, labels={"team": "a"})
        await eventually(lambda: found.objects.clusters[planes[0].project].labels)
        assert found.objects.clusters[planes[1].project] == known[planes[1].project]
        assert is_complete(found.objects)
    assert not [change for change in found.changes if isinstance(change, ClusterEnded | ScopeEnded)]


async def test_process_that_stops_ends_no_scope(alpha: ControlPlane) -> None:
    async with running(alpha) as found:
        await eventually(lambda: is_complete(found.objects))
    assert list(found.objects.clusters) == [alpha.project]
    assert list(found.objects.list(NAMESPACES))


async def test_unexpected_error_in_one_cluster_ends_no_scope_and_no_other_cluster(
    alpha: ControlPlane, beta: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = asyncio.Event()
    fails.set()
    run = ScopeFollower.run

    async def failing(follower: ScopeFollower) -> None:
        if follower.scope.cluster == alpha.project and fails.is_set():
            raise RuntimeError("a defect")
        await run(follower)

    monkeypatch.setattr(ScopeFollower, "run", failing)
    async with running(alpha, beta) as found:
        view = await eventually(lambda: (view := found.objects.view(NAMESPACES)).synced == 1 and view)
        state = view.missing[alpha.project]
        assert isinstance(state, Stale)
        assert "a defect" in state.problem
        fails.clear()
        await eventually(lambda: is_complete(found.objects))
    assert not [change for change in found.changes if isinstance(change, ClusterEnded | ScopeEnded)]


async def test_outage_of_a_cluster_keeps_its_objects_and_says_since_when(alpha: ControlPlane) -> None:
    alpha.create(namespace("stays"))
    alpha.create(namespace("dies"))
    access = alpha.access()
    server = urlsplit(access.server)
    assert server.port is not None
    async with TcpProxy(server.port) as proxy:
        through = access.server.replace(f":{server.port}", f":{proxy.port}")
        alpha.access = lambda: replace(access, server=through)  # type: ignore[method-assign]
        async with running(alpha) as found:
            await eventually(lambda: is_complete(found.objects))
            before = datetime.now(UTC)
            await proxy.shut()
            view = await eventually(lambda: (view := found.objects.view(NAMESPACES)).outdated and view)
            assert view.is_complete
            assert view.stale_since == view.outdated[alpha.project].since
            assert view.stale_since <= before  # what was deleted since may be known only from then on
            assert found.of("stays") == ['{"metadata":{"labels":{"kubernetes.io/metadata.name":"stays"}}}']
            alpha.patch(NAMESPACES, "dies", {"spec": {"finalizers": []}})
            alpha.delete(NAMESPACES, "dies")
            proxy.open()
            await eventually(lambda: found.of("dies")[1:] == ["OBJECT_DELETED"])
            await eventually(lambda: found.objects.view(NAMESPACES).stale_since is None)
    assert not [change for change in found.changes if isinstance(change, ClusterEnded | ScopeEnded)]


# --- budgets ---


async def test_cache_over_budget_ends_its_scope_and_begins_another_one(alpha: ControlPlane, beta: ControlPlane) -> None:
    for number in range(4):
        alpha.create(config_map(f"many-{number}"))
    limits = CacheLimits(objects=4, retry_s=3600.0)
    with fake_clock() as clock:
        async with running(alpha, beta, kinds=(Kind(CONFIG_MAPS),), limits=limits) as found:
            await eventually(lambda: found.objects.view(CONFIG_MAPS).is_complete)
            alpha.create(config_map("one-more"))
            view = await eventually(lambda: (view := found.objects.view(CONFIG_MAPS)).missing and view)
            assert isinstance(view.missing[alpha.project], OverBudget)
            assert view.missing[alpha.project].problem.startswith("OverBudget: the cluster has more than 4")
            assert list(found.objects.list(CONFIG_MAPS, alpha.project)) == []
            alpha.delete(CONFIG_MAPS, "many-0")
            clock.advance(timedelta(hours=1))
            await eventually(lambda: found.objects.view(CONFIG_MAPS).is_complete)
            assert "one-more" in {each.object.name for each in found.objects.list(CONFIG_MAPS, alpha.project)}
            assert "many-0" not in {each.object.name for each in found.objects.list(CONFIG_MAPS)}
    ends = [change for change in found.changes if isinstance(change, ScopeEnded)]
    assert [(end.scope.cluster, end.reason) for end in ends] == [(alpha.project, ScopeEnd.OVER_BUDGET)]


async def test_organization_with_many_small_caches_drops_no_larger_cache_of_another_one(sandbox: MiloSandbox) -> None:
    acme, *evil = sandbox.create_control_planes(*(next(names) for _ in range(8)))
    for number in range(60):
        acme.create(config_map(f"small-{number}"))
    limits = CacheLimits(total_bytes=150_000, retry_s=3600.0)
    async with running(kinds=(Kind(CONFIG_MAPS, ["data"]),), limits=limits) as found:
        found.discovery.engage(acme, organization="acme")
        for number, plane in enumerate(evil):
            found.discovery.engage(plane, organization=f"evil-{number % 2}")
        await eventually(lambda: (view := found.objects.view(CONFIG_MAPS)).known == 8 and view.is_complete)
        for plane in evil:
            plane.create(config_map("large", blob="x" * 30_000))
            await eventually(
                lambda plane=plane: (
                    plane.project in found.objects.view(CONFIG_MAPS).missing  # type: ignore[misc]
                    or found.objects.get(plane.project, CONFIG_MAPS, "large", "default")
                )
            )
        missing = found.objects.view(CONFIG_MAPS).missing
        assert 0 < len(missing) < len(evil)
        assert all(isinstance(state, OverBudget) and name != acme.project for name, state in missing.items())
        acme.create(config_map("one-more"))
        await eventually(lambda: found.objects.get(acme.project, CONFIG_MAPS, "one-more", "default"))


def test_two_kinds_of_one_resource_are_refused() -> None:
    with pytest.raises(ValueError, match="v1/configmaps: followed under several kinds"):
        Objects(Running(kinds=()).discovery, [Kind(CONFIG_MAPS), Kind(CONFIG_MAPS, ["data"])])


async def test_index_that_fails_is_logged_once(alpha: ControlPlane, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> list[str]:
        raise OSError("broken")

    alpha.create(namespace("shop"))
    async with running(alpha, indexes={"broken": broken}) as found:
        await eventually(lambda: is_complete(found.objects))
        assert found.objects.find("broken", "x") == []
    lines = [line for line in caplog.messages if "index broken failed" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{alpha.project}: index broken failed for v1/namespaces ")
