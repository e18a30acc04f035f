"""Limits on the names, counts and messages that a caller may see in addition to the clusters themselves. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from milo_discoveryd.engagement.engagement import ClusterRecord, Engagements, RecordedTransition
from milo_discoveryd.model.cluster import Cluster, Reachability, Target
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.model.observation import ObjectFields
from milo_discoveryd.rights.scope import ClusterScope
from milo_kube.reflect.view_status import ViewStatus

_PLACEHOLDER = Target(name="", uid="", place=())


def visible_record(name: str, record: ClusterRecord | None, scope: ClusterScope) -> ClusterRecord | None:
    """Return the record if the scope covers the current fields of its object.

    If only the name is known, as for a malformed object, the scope must cover every object of that name.
    """
    fields = _fields(record)
    # Evaluate the scope for an unknown name too, so that both cases take the same time.
    is_covered = scope.covers(fields or _PLACEHOLDER)
    if record is None or scope.is_everything:
        return record
    return record if (is_covered if fields is not None else scope.covers_by_name(name)) else None


def visible_transitions(record: ClusterRecord, scope: ClusterScope) -> Iterable[RecordedTransition]:
    """Return the transitions; for a limited scope, only those of the current object's last incarnation, because earlier
    ones may belong to another tenant."""
    if scope.is_everything:
        return record.transitions
    cluster = _current(record)
    return [
        transition
        for transition in record.transitions
        if cluster is not None and transition.incarnation == cluster.incarnation
    ]


VisibleCounts = Counter[str]
"""The number of clusters that the caller may see, by the fields of `FleetCounts`."""


def total_counts(engagements: Engagements) -> VisibleCounts:
    states = {state: engagements.count(state) for state in ObjectState}
    return _counts(states, engagements.engaged, engagements.unreachable, engagements.draining_count)


def visible_counts(records: Iterable[tuple[str, ClusterRecord]], scope: ClusterScope) -> VisibleCounts:
    """Count the records that the scope covers."""
    visible = [record for name, record in records if visible_record(name, record, scope)]
    engaged = [record.cluster for record in visible if record.cluster is not None]
    unreachable = sum(cluster.connectivity.state is Reachability.UNREACHABLE for cluster in engaged)
    draining = sum(cluster.draining is not None for cluster in engaged)
    return _counts(Counter(record.state for record in visible), len(engaged), unreachable, draining)


def _counts(states: Mapping[ObjectState, int], engaged: int, unreachable: int, draining: int) -> VisibleCounts:
    """Return the counts by field of `FleetCounts`. `unreachable` and `draining` count engaged clusters only."""
    counts = Counter(engaged=engaged, unreachable=unreachable, draining=draining)
    for state, meaning in MEANINGS.items():
        if meaning.count:
            counts[meaning.count] += states[state]
    return counts


def visible_source(status: ViewStatus, scope: ClusterScope) -> ViewStatus:
    """Return the status; without its message for a limited scope, because messages contain counts and server names."""
    return status if scope.is_everything else msgspec.structs.replace(status, message="")


def visible_problem(problem: str, scope: ClusterScope) -> str:
    """Return why a deletion is not confirmed; empty for a limited scope, because the text may name other objects."""
    return problem if scope.is_everything else ""


def _fields(record: ClusterRecord | None) -> Target | ObjectFields | None:
    """Return the current fields of the object; None if only its name is known."""
    if record is None or (record.state is ObjectState.MALFORMED and not record.engaged):
        return None
    if record.present is not None:
        return record.present
    cluster = _current(record)
    return None if cluster is None else cluster.target


def _current(record: ClusterRecord) -> Cluster | None:
    """Return the cluster as it is or was last engaged, unless another object has its name now."""
    return record.latest if record.latest and record.latest.object_uid == record.uid else None
