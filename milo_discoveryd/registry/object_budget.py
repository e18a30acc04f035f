"""The limit of the memory that the objects of one source may take.

An API server that is broken, or an attacker's, can list pages and send watch events without end. Pure.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from milo_discoveryd.model.observation import Observation
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent

OVER_BUDGET = "OverBudget"
"""The status reason of a source with more objects than the daemon keeps."""
OBJECT_OVERHEAD = 512
"""Bytes that each object counts besides its content."""
_FREE_PAIRS = 8
PAIR_OVERHEAD = 160
"""Bytes that each further label and annotation counts besides its content: a tuple and two strings."""
_PAIR = b"\x92"
"""An array of two items in MessagePack. The byte can be within a text as well, which then counts for more."""
_ROOM = 0.9
"""Objects that still take more than this share when they are counted again are too many: counting them takes time."""

_encode = msgspec.msgpack.Encoder(enc_hook=repr).encode


def kept_bytes(content: Any) -> int:
    """Return what an object counts; `content` is what is kept of it."""
    encoded = _encode(content)
    return OBJECT_OVERHEAD + len(encoded) + PAIR_OVERHEAD * max(0, encoded.count(_PAIR) - _FREE_PAIRS)


class ObjectBudget:
    """The budget of one source, over all of its collections."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._collections: list[CollectionBudget] = []

    def collection(self, count: Callable[[], int]) -> "CollectionBudget":
        """Return the budget of one collection; `count` returns the bytes of its objects."""
        self._collections.append(CollectionBudget(self, count))
        return self._collections[-1]

    @property
    def used(self) -> int:
        return sum(each.used for each in self._collections)


class CollectionBudget:
    """What the objects of one collection take."""

    def __init__(self, source: ObjectBudget, count: Callable[[], int]) -> None:
        self._source = source
        self._count = count
        self._kept = 0
        """What the known objects take at most: a changed object counts again until all are counted."""
        self._listed = 0
        """What the objects of the list take that is being read."""
        self.problem = ""
        """Why source events were dropped; empty if none was."""

    @property
    def used(self) -> int:
        return max(self._kept, self._listed)

    def within(self, source_events: Iterable[SourceEvent[Observation]]) -> Iterator[SourceEvent[Observation]]:
        """Yield the source events up to the first one that exceeds the budget."""
        applying = 0
        """What the changes take that were yielded, but may not be applied yet."""
        for event in source_events:
            match event:
                case ListStarted():
                    self._listed = 0
                case Listed(seen):
                    self._listed += kept_bytes(seen)
                case ObjectChanged(seen):
                    size = kept_bytes(seen)
                    self._kept, applying = self._kept + size, applying + size
                case ListEnded():
                    self._kept, self._listed = self._listed, 0
            if self._source.used > self._source.limit and self._exceeds(applying):
                self.problem = (
                    f"the API server has sent more objects than the daemon keeps of one source ({self._source.limit} "
                    "bytes, watch.objects_limit): the clusters stay as they are, and the objects are listed again later"
                )
                return
            yield event

    def _exceeds(self, applying: int) -> bool:
        if self._listed <= self._kept:
            self._kept = self._count() + applying
        return self._source.used > _ROOM * self._source.limit
