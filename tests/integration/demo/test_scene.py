"""The state that the demo displays, computed from events."""

from milo_discovery import (
    Cluster,
    Connectivity,
    ConnectivityState,
    DisengageReason,
    Event,
    EventType,
    SourceState,
    SourceStatus,
)
from milo_sandbox.demo.scene import HIGHLIGHTED_S, Scene, describe, describe_source


def event(kind: EventType, name: str = "alpha", **fields: object) -> Event:
    return Event(type=kind, cluster=Cluster(name=name, **fields))  # type: ignore[arg-type]


def test_demo_orders_clusters_by_name() -> None:
    scene = Scene()
    for name in ("gamma", "alpha", "beta"):
        scene.add(event(EventType.ENGAGED, name), 0.0)
    assert [row.cluster.name for row in scene.rows(0.0)] == ["alpha", "beta", "gamma"]


def test_demo_shows_a_disengaged_cluster_for_a_few_seconds() -> None:
    scene = Scene()
    scene.add(event(EventType.ENGAGED), 0.0)
    scene.add(event(EventType.DISENGAGED), 1.0)
    assert scene.engaged == 0
    assert [row.last for row in scene.rows(1.0)] == [EventType.DISENGAGED]
    assert scene.rows(1.1 + HIGHLIGHTED_S) == []


def test_demo_keeps_recent_events_latest_first_and_counts_events_by_type() -> None:
    scene = Scene()
    scene.add(event(EventType.ENGAGED), 0.0)
    scene.add(event(EventType.UPDATED, suspended=True), 1.0)
    assert [recent.event.type for recent in scene.recent] == [EventType.UPDATED, EventType.ENGAGED]
    assert (scene.counts[EventType.ENGAGED], scene.counts[EventType.UPDATED]) == (1, 1)


def test_first_successful_probe_is_shown_in_the_row_of_its_cluster_but_not_as_an_event() -> None:
    scene = Scene()
    unknown, reachable = (
        Connectivity(state=state) for state in (ConnectivityState.UNKNOWN, ConnectivityState.REACHABLE)
    )
    assert scene.add(event(EventType.ENGAGED), 0.0)
    assert not scene.add(event(EventType.UPDATED, connectivity=unknown), 0.5)
    assert not scene.add(event(EventType.UPDATED, connectivity=reachable), 1.0)
    assert (len(scene.recent), scene.counts) == (1, {EventType.ENGAGED: 1})
    [row] = scene.rows(1.0)
    assert (row.cluster.connectivity, row.last, row.at) == (reachable, EventType.ENGAGED, 0.0)
    unreachable = Connectivity(state=ConnectivityState.UNREACHABLE)
    assert scene.add(event(EventType.UPDATED, connectivity=unreachable), 2.0)
    assert scene.add(event(EventType.UPDATED, connectivity=reachable, suspended=True), 3.0)


def test_description_of_an_event_has_state_reason_and_no_labels_of_milo() -> None:
    labels = {"tier": "gold", "env": "prod", "resourcemanager.miloapis.com/organization-name": "acme"}
    assert describe(event(EventType.ENGAGED, labels=labels)) == "Ready  env=prod,tier=gold"
    assert describe(event(EventType.UPDATED, suspended=True)) == "Suspended"
    probed = Connectivity(state=ConnectivityState.REACHABLE)
    assert describe(event(EventType.UPDATED, connectivity=probed)) == "Ready, reachable"
    ended = Event(
        type=EventType.DISENGAGED, cluster=Cluster(name="alpha"), reason=DisengageReason.DELETED, message="it is gone"
    )
    assert describe(ended) == "DELETED: it is gone"


def test_description_of_a_stale_source_contains_the_reason() -> None:
    stale = SourceStatus(state=SourceState.STALE, reason="Unauthorized", message="401 from https://milo")
    assert describe_source(stale) == "STALE: Unauthorized: 401 from https://milo"
    assert describe_source(SourceStatus(state=SourceState.STREAMING, reason="x")) == "STREAMING"
