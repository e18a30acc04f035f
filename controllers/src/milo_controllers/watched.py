"""Changes of objects, as passed to mappers and predicates, and the objects to reconcile because of a change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from milo_controllers.fleet_view import FleetView
from milo_controllers.kinds import Kind, ObjectT
from milo_controllers.object_cache import CachedObject, Change, changed
from milo_discovery.engaged_cluster import EngagedCluster

T = TypeVar("T")


class ReconcileTarget(NamedTuple):
    """An object to reconcile, as a mapper returns it.

    `cluster` is the name of its cluster; by default the one in which the watched object changed.
    """

    name: str
    namespace: str = ""
    cluster: str | None = None


def checked_target(target: ReconcileTarget) -> ReconcileTarget:
    """Return the target; its namespace may be None, as read from an object that has none. Raises TypeError."""
    name, namespace, cluster = cast("tuple[object, object, object]", target)
    if not (isinstance(name, str) and isinstance(namespace, str | None) and isinstance(cluster, str | None)):
        raise TypeError(f"{target!r} has a name, namespace or cluster that is no string")
    return target._replace(namespace=namespace or "")


class Watched(Generic[ObjectT]):
    """A change of an object, for mappers and predicates. A mapper is called for both states of a changed object, each
    as `object`: so an object is also reconciled when the changed one no longer refers to it.

    `name` and `namespace` are those of the object, and `cluster` is the EngagedCluster that it is in. `is_deleted` is
    True if it was deleted, and `clusters` contains the caches of all clusters.
    """

    def __init__(
        self,
        kind: Kind[ObjectT],
        change: Change,
        cluster: EngagedCluster,
        clusters: FleetView,
        *,
        state: CachedObject | None = None,
    ) -> None:
        """`state`: the state that is `object`; by default the current one."""
        self.cluster = cluster
        self.clusters = clusters
        self.name = change.current.name
        self.namespace = change.current.namespace
        self.is_deleted = change.new is None
        self._kind = kind
        self._change = change
        self._state = state or change.current

    @property
    def object(self) -> ObjectT:
        """The current object, or its last state if it was deleted."""
        return self._kind.decode(self._state.raw)

    @property
    def before(self) -> ObjectT | None:
        """The object before the change; None if it is new."""
        return None if self._change.old is None else self._kind.decode(self._change.old.raw)

    def matters(self, on: tuple[Predicate[ObjectT], ...]) -> bool:
        """Return whether one of the predicates selects the change, or may: the cache does not have the new state of an
        object that cannot be cached. Raises what a predicate raises."""
        return (
            not on
            or bool(self._change.current.problem)
            or any(
                changed(predicate, self._change) if isinstance(predicate, str) else predicate(self) for predicate in on
            )
        )


Mapper = Callable[[Watched[T]], Iterable[ReconcileTarget]]
Predicate = Literal["generation", "labels", "annotations"] | Callable[[Watched[T]], bool]
"""Which updates of an object matter: those of its generation (its spec), labels or annotations, or those for which the
function returns true. Without a function, creations and deletions always matter."""


class OwnedKind(NamedTuple):
    """A kind whose changes lead to reconciles of their owner. Made by `owns`."""

    kind: Kind[Any]
    on: tuple[Predicate[Any], ...] = ()


class WatchedKind(NamedTuple):
    """A kind whose changes lead to reconciles of other objects. Made by `watches`."""

    kind: Kind[Any]
    map: Mapper[Any]
    on: tuple[Predicate[Any], ...]

    def targets(self, watched: Watched[Any]) -> list[ReconcileTarget]:
        """Return the targets that the mapper returns. Raises the mapper's errors, and TypeError if it returns anything
        else."""
        found: object = self.map(watched)
        if isinstance(found, ReconcileTarget | str) or not isinstance(found, Iterable):
            raise TypeError(
                f"the mapper returned {found!r}: return an iterable of targets, such as "
                "[ReconcileTarget(name, namespace)]"
            )
        targets = list(found)
        for target in targets:
            if not isinstance(target, ReconcileTarget):
                raise TypeError(
                    f"the mapper returned {target!r} among its targets: return ReconcileTarget(name, namespace)"
                )
        return [checked_target(target) for target in targets]
