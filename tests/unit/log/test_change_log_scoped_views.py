"""The events that readers with a limited scope receive when a cluster is disengaged or leaves the scope."""

from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import Event
from milo_discoveryd.log.filter import EVERYTHING
from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.rights.scope import ClusterScope, scoped
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import NamedLog, cluster, disengaged, engaged, read, readable_log

PROD = scoped(EVERYTHING, ClusterScope(parse("env=prod")))
DELETED, REPLACED, LABELS_CHANGED = DisengageReason.DELETED, DisengageReason.REPLACED, DisengageReason.LABELS_CHANGED


def engage(log: NamedLog, env: str = "prod") -> Cluster:
    return log.engage(log.entry("a"), lambda revision: cluster("a", revision, labels={"env": env}))


def update(log: NamedLog, before: Cluster, env: str) -> Cluster:
    changed = cluster("a", before.incarnation, labels={"env": env})
    log.update(log.entry(changed.target.name), changed, 0.0)
    return changed


def replace(log: NamedLog, env: str) -> Cluster:
    def make(revision: int) -> Cluster:
        return cluster("a", revision, "u2", labels={"env": env})

    return log.replace(log.entry("a"), "UID u2, before u1", make, 0.0)


def following(log: NamedLog) -> Cursor:
    cursor = Cursor(log, PROD, None)
    cursor.next_batch()
    return cursor


def received(cursor: Cursor) -> list[Event]:
    return [event for batch in iter(cursor.next_batch, None) for event in read(batch.slice.frames)]


def test_cluster_leaving_scope_is_disengaged_in_its_last_visible_state() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    update(log, a, "secret")
    assert received(cursor) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]


def test_disengagement_reason_outside_scope_is_not_sent() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    update(log, a, "secret")
    log.disengage(log.entry("a"), DELETED, "because of what others may not know", 0.0)
    assert received(cursor) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter")]


def test_incarnation_outside_scope_between_two_visible_ones_is_not_sent() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    update(log, a, "secret")
    again = replace(log, "prod")
    assert received(cursor) == [disengaged(a, LABELS_CHANGED, "the cluster left the filter"), engaged(again)]


def test_replacement_outside_scope_is_sent_as_deletion() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    replace(log, "secret")
    assert received(cursor) == [disengaged(a, DELETED, "the object was deleted")]


def test_replacement_by_malformed_object_is_sent_as_deletion() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    log.disengage(log.entry("a"), REPLACED, "UID u2, before u1", 0.0)
    assert received(cursor) == [disengaged(a, DELETED, "the object was deleted")]


def test_replacement_inside_scope_is_sent_as_replaced() -> None:
    log = readable_log()
    a = engage(log)
    cursor = following(log)
    again = replace(log, "prod")
    assert received(cursor) == [disengaged(a, REPLACED, "UID u2, before u1"), engaged(again)]
