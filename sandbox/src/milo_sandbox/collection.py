"""The objects of one resource, in order, at the current and at earlier versions."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice

import msgspec

from milo_sandbox.history import ObjectHistory
from milo_sandbox.records import RecordedChange, SandboxRecord, key_of
from milo_sandbox.resources import ResourceDefinition
from milo_sandbox.selectors import LabelSelector


class CollectionPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a list; the next page starts after `last_key`, which is empty on the last page."""

    records: list[SandboxRecord]
    version: int
    last_key: str = ""
    remaining: int = 0


class StoredCollection:
    """The objects of one resource. A read at an old version reverts the later events."""

    def __init__(
        self, resource: ResourceDefinition, history_limit: int, records: Iterable[SandboxRecord] = (), version: int = 0
    ) -> None:
        self.resource = resource
        self.history = ObjectHistory(history_limit)
        self.history.compact(version)
        self._records = {record.key: record for record in records}
        self._order = sorted(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SandboxRecord]:
        return (self._records[key] for key in self._order)

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the records in order; callers must not change the list."""
        return self._order

    def get(self, name: str, namespace: str = "") -> SandboxRecord | None:
        return self._records.get(key_of(name, namespace))

    def apply(self, event: RecordedChange) -> None:
        key = event.record.key
        if event.deleted:
            del self._records[key]
            del self._order[bisect_left(self._order, key)]
        else:
            if key not in self._records:
                insort(self._order, key)
            self._records[key] = event.record
        self.history.append(event)

    def extend(self, events: Iterable[RecordedChange]) -> None:
        """Apply the creation of many new objects."""
        for event in events:
            self._records[event.record.key] = event.record
            self._order.append(event.record.key)
            self.history.append(event)
        self._order.sort()

    def page(
        self, *, version: int, current: int, selector: LabelSelector, limit: int = 0, after: str = ""
    ) -> CollectionPage:
        """Return the objects as of `version`, after the key `after`. Raises `CompactedError`."""
        undone = self._undone_since(version) if version < current else {}
        found: list[SandboxRecord] = []
        scanned = self._scan(after, undone)
        for record in scanned:
            if not record.selected_by(selector):
                continue
            if limit and len(found) == limit:
                remaining = 1 + sum(1 for _ in scanned) if selector.is_everything else 0
                return CollectionPage(records=found, version=version, last_key=found[-1].key, remaining=remaining)
            found.append(record)
        return CollectionPage(records=found, version=version)

    def _undone_since(self, version: int) -> dict[str, SandboxRecord | None]:
        undone: dict[str, SandboxRecord | None] = {}
        for event in self.history.since(version):
            undone.setdefault(event.record.key, event.before)
        return undone

    def _scan(self, after: str, undone: dict[str, SandboxRecord | None]) -> Iterator[SandboxRecord]:
        order = self._order
        keys: Iterator[str] = islice(order, bisect_right(order, after), None)
        if undone:
            back = sorted(key for key, record in undone.items() if record and key not in self._records and key > after)
            keys = merge(keys, back)
        for key in keys:
            record = undone[key] if key in undone else self._records[key]
            if record is not None:
                yield record
