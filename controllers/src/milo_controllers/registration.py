"""The reconcilers, their options, and the informers that they need, registered before the controllers run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from milo_controllers.informer import InformerSpec
from milo_controllers.kinds import CacheKey, Kind
from milo_controllers.object_cache import Index, object_decoder
from milo_controllers.reconcile_call import Reconciler
from milo_controllers.watched import OwnedKind, Predicate, WatchedKind
from milo_controllers.work_queue import QueuePolicy


class ControllerSpec(NamedTuple):
    """The arguments of `Controllers.reconcile`."""

    name: str
    kind: Kind[Any]
    owns: tuple[OwnedKind, ...] = ()
    watches: tuple[WatchedKind, ...] = ()
    on: tuple[Predicate[Any], ...] = ()
    on_cluster_change: bool = False
    while_deleting: bool = False
    workers: int = 256
    per_cluster: int = 4
    policy: QueuePolicy = QueuePolicy()
    timeout_s: float | None = None


class BackgroundTask(NamedTuple):
    """An async function that runs beside the reconcilers."""

    function: Callable[[], Coroutine[Any, Any, object]]
    leader_only: bool


class Registration:
    """The reconcilers and informers of a set of controllers. Read-only once the controllers run."""

    def __init__(self) -> None:
        self.reconcilers: list[tuple[ControllerSpec, Reconciler[Any]]] = []
        self.informers: dict[CacheKey, InformerSpec] = {}
        self.read: set[CacheKey] = set()
        """The kinds whose caches are kept for reads."""
        self.background: list[BackgroundTask] = []
        self._is_closed = False

    def close(self) -> None:
        """Accept no more registrations. Raises RuntimeError if called twice."""
        self.require_open()
        self._is_closed = True

    def require_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                "the controllers have already started: register everything before, or create a new Controllers object"
            )

    def require_new_name(self, name: str) -> None:
        if any(name == other.name for other, _ in self.reconcilers):
            raise ValueError(f"a controller {name!r} already exists: pass another name=")

    def require_informer(self, kind: Kind[Any], indexes: Mapping[str, Index]) -> None:
        """Add an informer of the kind for each cluster, or extend the existing one, with these indexes. Raises
        ValueError."""
        cached, held = kind, self.informers.get(kind.key)
        if held is not None:
            for name in held.indexes.keys() & indexes.keys():
                if held.indexes[name].function != indexes[name].function:
                    raise ValueError(f"{kind.key} already has another index {name!r}: choose another name")
            cached, indexes = _shared(held.kind, kind), {**held.indexes, **indexes}
        decoder = object_decoder(metadata_only=cached.metadata_only, transform=cached.transform)
        self.informers[kind.key] = InformerSpec(cached, dict(indexes), decoder)


def _shared(held: Kind[Any], wanted: Kind[Any]) -> Kind[Any]:
    """Return the kind to cache for two registrations: whole objects if one needs them. Raises ValueError."""
    if held.transform is not wanted.transform:
        raise ValueError(f"{held.key} is already cached with another transform=: use the same Kind")
    return wanted if held.metadata_only else held
