"""What a caller may be told of names and numbers, beyond the clusters that are streamed and listed to them."""

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.model.source import SourceStatus
from milo_discoveryd.registry.registry import ClusterRecord, ObjectState, Registry, Transition
from milo_discoveryd.rights.scope import ClusterScope

_NOBODY = Cluster(target=Target(name="", uid="", place=()), source_version="", engaged_at=0.0, incarnation=0)


def seen(name: str, record: ClusterRecord | None, scope: ClusterScope) -> ClusterRecord | None:
    """The record, as far as it is there for who may see this scope.

    What was last engaged under the name speaks for it; of an object that never was, only its name is known.
    """
    cluster = _of(record)
    # A name that nobody has is judged like any other, so that it takes as long.
    is_covered = scope.matches(cluster or _NOBODY)
    if record is None or scope.is_everything:
        return record
    return record if (is_covered if cluster is not None else scope.covers_by_name(name)) else None


def transitions(record: ClusterRecord, scope: ClusterScope) -> Iterable[Transition]:
    """Those of the incarnation that is seen: to whom the name belonged before may not be theirs to know."""
    if scope.is_everything:
        return record.transitions
    cluster = _of(record)
    return [each for each in record.transitions if cluster is not None and each.incarnation == cluster.incarnation]


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    engaged: int = 0
    not_ready: int = 0
    outside: int = 0
    malformed: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


def counts(registry: Registry) -> Counts:
    """Of all there is."""
    return _counts({state: registry.count(state) for state in ObjectState}, registry.engaged)


def visible_counts(records: Iterable[tuple[str, ClusterRecord]], scope: ClusterScope) -> Counts:
    """Of what is there for who may see this scope, among some that are given by their names."""
    visible = [record for name, record in records if seen(name, record, scope)]
    return _counts(Counter(record.state for record in visible), sum(record.engaged for record in visible))


def _counts(standings: Mapping[ObjectState, int], engaged: int) -> Counts:
    return Counts(
        engaged=engaged,
        not_ready=standings[ObjectState.NOT_READY],
        outside=standings[ObjectState.OUTSIDE],
        malformed=standings[ObjectState.MALFORMED],
    )


def source(status: SourceStatus, scope: ClusterScope) -> SourceStatus:
    """Its words for people may count clusters, or name servers."""
    return status if scope.is_everything else msgspec.structs.replace(status, message="")


def _of(record: ClusterRecord | None) -> Cluster | None:
    """The cluster, unless the name belongs to another object by now, of which less is known."""
    if record is None or record.latest is None or record.latest.target.uid != record.uid:
        return None
    return record.latest
