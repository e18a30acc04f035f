"""A list that is being read. None of its objects is applied before the list is complete."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.object_state import ABSENT_STATES
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.objects.store import ObjectStore, Weighed


class StepLimit(Protocol):
    @property
    def clusters_per_step(self) -> int:
        """How many clusters may change in one step, or the objects that describe them."""


class _Unlimited:
    clusters_per_step = sys.maxsize


UNLIMITED = _Unlimited()


class StagedList:
    """The names of all listed objects, and those objects that differ from the known ones, with their weights."""

    def __init__(
        self,
        store: ObjectStore,
        pending_deletions: PendingDeletions,
        step_limit: StepLimit = UNLIMITED,
    ) -> None:
        self._store = store
        self.step_limit = step_limit
        self._pending_deletions = pending_deletions
        self._uids: dict[str, str] = {}
        self._staged: dict[str, Weighed] = {}
        self._known: int | None = 0
        """The number of listed objects that are also known as present; None if objects may have changed since then."""
        self._suspects: dict[str, None] = {}
        """Staged objects that may be older than the known objects, or different objects of the same name. They are
        found while the list is read, because a search at the end of the list would block the event loop."""
        self.is_compared = False
        """Whether the list is complete and is being compared with the known objects, in steps between which these must
        not change."""

    @property
    def uids(self) -> Mapping[str, str]:
        """The UIDs of the listed objects, by name."""
        return self._uids

    def start(self) -> None:
        self.drop()
        self._store.weight.list_started()

    def drop(self) -> None:
        self._uids, self._staged, self._suspects, self._known = {}, {}, {}, 0

    def drop_staged(self, size: int) -> Iterator[None]:
        """Drop the differing objects, `size` at once: freeing a long list at once would block the event loop."""
        while self._staged:
            for _ in range(min(size, len(self._staged))):
                self._staged.popitem()
            yield

    def add(self, listed: ObservedObject) -> None:
        """Add an object. Its state is not staged if it exceeds the budget of the source; a new one is not kept at all
        then."""
        store = self._store
        record = store[listed.name]
        listed = store.sharing_content(listed)
        name = listed.name
        if record is None or record.state in ABSENT_STATES:
            self._uids[name] = listed.uid
        else:
            if self._known is not None and name not in self._uids:
                self._known += 1
            # Share the record's string if they are equal: freeing the strings of a long list would block the event
            # loop.
            self._uids[name] = record.uid if record.uid == listed.uid else listed.uid
        if record is not None and not store.would_change(listed):
            store.weight.add_unchanged(record.owner, record.weight)
            return
        if (admitted := store.admit(listed, is_listed=True)) is None:
            if record is None and name not in self._staged:
                del self._uids[name]
            return
        _, weight, owner = self._staged[name] = admitted
        store.weight.add_listed(owner, weight, weight if record is None else weight - record.weight)
        if record is not None and self._is_suspect(listed, record.uid):
            self._suspects[name] = None

    def remove(self, name: str) -> None:
        """Remove an object from the list, for example because the server deleted it before the list ended."""
        self._known = None
        self._uids.pop(name, None)
        self._staged.pop(name, None)

    def remove_changes(self, names: Iterable[str]) -> None:
        """Drop the listed states of these objects, so that their known states are kept."""
        for name in names:
            self._staged.pop(name, None)

    def suspect(self, name: str) -> None:
        """Record that a read of an object was answered, so that the known state may be newer than the list."""
        self._known = None
        if name in self._uids:
            self._suspects[name] = None

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield the names and UIDs of the present objects that are missing from the list."""
        if self._known == self._store.present_count:
            return iter(())  # the usual case; comparing the names of a long list would block the event loop
        return self._store.missing_from(self._uids)

    def suspects(self) -> Iterator[ObservedObject]:
        """Yield the staged objects that may be older than the known objects, or different objects of the same name."""
        return (self._staged[name][0] for name in [*self._suspects] if name in self._staged)

    def differing(self) -> Iterator[ObservedObject]:
        """Yield all objects that differ from the known objects."""
        return (listed for listed, _, _ in [*self._staged.values()])

    def portions(self, size: int) -> Iterator[list[Weighed]]:
        """Yield the differing objects with their weights, at most `size` at once, and drop them, as `drop_staged`
        does."""
        rest, self._staged = deque(self._staged.values()), {}
        while rest:
            yield [rest.popleft() for _ in range(min(size, self.step_limit.clusters_per_step, len(rest)))]

    def _is_suspect(self, staged: ObservedObject, known_uid: str) -> bool:
        return (
            staged.uid not in ("", known_uid)
            or self._store.is_older_than_known(staged)
            or self._pending_deletions.explain(staged.name) is not None
        )
