"""A list that is being read. Nothing of it is applied before it is complete."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.objects.store import ObjectStore


class StagedList:
    """The names of all listed objects, and the objects that differ from the known ones, with their weights."""

    def __init__(self, store: ObjectStore, pending_deletions: PendingDeletions) -> None:
        self._store = store
        self._pending_deletions = pending_deletions
        self._uids: dict[str, str] = {}
        self._staged: dict[str, tuple[ObservedObject, int]] = {}
        self._suspects: dict[str, None] = {}
        """Staged objects that may be older than the known ones, or other objects of the same name. They are found
        while the list is read, since looking for them at its end would block the event loop."""

    @property
    def uids(self) -> Mapping[str, str]:
        """The UIDs of the listed objects, by name."""
        return self._uids

    def start(self) -> None:
        self.drop()
        self._store.weight.list_started()

    def drop(self) -> None:
        self._uids, self._staged, self._suspects = {}, {}, {}

    def add(self, listed: ObservedObject) -> None:
        """Add an object, unless it exceeds the budget of the source."""
        name, store = listed.name, self._store
        self._uids[name] = listed.uid
        record = store[name]
        if record is not None and not store.would_change(listed):
            store.weight.add_listed(record.weight)
            return
        weight = store.weight_of(listed)
        if store.weight.add_listed(weight):
            self._staged[name] = listed, weight
            if record is not None and self._is_suspect(listed, record.uid):
                self._suspects[name] = None

    def remove(self, name: str) -> None:
        """Remove an object: it is not in the list after all."""
        self._uids.pop(name, None)
        self._staged.pop(name, None)

    def remove_changes(self, names: Iterable[str]) -> None:
        """Leave known objects as they are, although the list may show other states of them."""
        for name in names:
            self._staged.pop(name, None)

    def suspect(self, name: str) -> None:
        """Record that a read of an object was answered, so that the known state may be newer than the list."""
        if name in self._uids:
            self._suspects[name] = None

    def suspects(self) -> Iterator[ObservedObject]:
        """Yield the staged objects that may be older than the known ones, or other objects of the same name."""
        return (self._staged[name][0] for name in [*self._suspects] if name in self._staged)

    def differing(self) -> Iterator[ObservedObject]:
        """Yield all objects that differ from the known ones."""
        return (listed for listed, _ in [*self._staged.values()])

    def portions(self, size: int) -> Iterator[list[tuple[ObservedObject, int]]]:
        """Yield the differing objects with their weights, at most `size` at once."""
        staged = iter(self._staged.values())
        while portion := [*islice(staged, size)]:
            yield portion

    def _is_suspect(self, staged: ObservedObject, known_uid: str) -> bool:
        return (
            staged.uid not in ("", known_uid)
            or self._store.is_older_than_known(staged)
            or self._pending_deletions.explain(staged.name) is not None
        )
