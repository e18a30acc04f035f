from milo_discovery import Cluster, Connectivity, ConnectivityState, DisengageReason, Event, EventType
from milo_sandbox.demo.scene import FADES_AFTER_S, Scene, about


def event(kind: EventType, name: str = "alpha", **fields: object) -> Event:
    return Event(type=kind, cluster=Cluster(name=name, **fields))  # type: ignore[arg-type]


def test_clusters_are_shown_by_name() -> None:
    scene = Scene()
    for name in ("gamma", "alpha", "beta"):
        scene.happened(event(EventType.ENGAGED, name), 0.0)
    assert [row.cluster.name for row in scene.rows(0.0)] == ["alpha", "beta", "gamma"]


def test_a_disengaged_cluster_is_seen_going_for_a_moment() -> None:
    scene = Scene()
    scene.happened(event(EventType.ENGAGED), 0.0)
    scene.happened(event(EventType.DISENGAGED), 1.0)
    assert scene.engaged == 0
    assert [row.last for row in scene.rows(1.0)] == [EventType.DISENGAGED]
    assert scene.rows(1.1 + FADES_AFTER_S) == []


def test_what_happened_is_told_latest_first_and_counted() -> None:
    scene = Scene()
    scene.happened(event(EventType.ENGAGED), 0.0)
    scene.happened(event(EventType.UPDATED, suspended=True), 1.0)
    assert [happening.event.type for happening in scene.feed] == [EventType.UPDATED, EventType.ENGAGED]
    assert (scene.counts[EventType.ENGAGED], scene.counts[EventType.UPDATED]) == (1, 1)


def test_an_event_is_explained_by_what_a_person_asks_first() -> None:
    labels = {"env": "prod", "resourcemanager.miloapis.com/organization-name": "acme"}
    assert about(event(EventType.ENGAGED, labels=labels)) == "ready  env=prod"
    assert about(event(EventType.UPDATED, suspended=True)) == "suspended"
    reached = Connectivity(state=ConnectivityState.REACHABLE)
    assert about(event(EventType.UPDATED, connectivity=reached)) == "ready, reachable"
    ended = Event(
        type=EventType.DISENGAGED, cluster=Cluster(name="alpha"), reason=DisengageReason.DELETED, message="it is gone"
    )
    assert about(ended) == "DELETED: it is gone"
