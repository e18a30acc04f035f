"""The objects of a scope that are gone, as long as the stream has the message that says so. Pure."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Container
from typing import Final

from milo_kube.cache_budget import CacheBudget
from milo_kube.tenants import Tenant
from milo_objects.messages import ObjectMessage
from milo_objects.publication_records import SubjectRecord
from milo_objects.subjects import ObjectSubject

MOST_GONE: Final = 20_000
"""How many objects of a scope may go within the time that the stream keeps these messages. After more, the scope begins
again, which purges them: an API server chooses how many objects come and go, and each takes memory here and in the
stream. So does the largest scope of the largest tenant if those of all scopes exceed their budget."""
_RECORD_BYTES: Final = 600
"""Estimated memory of a record besides its texts."""


class GoneObjects:
    """When the stream has deleted the message of each object that went, in this order."""

    __slots__ = ("_budget", "_exceeded", "_is_exceeded", "_queue", "_tenant", "counted_bytes")

    def __init__(self, budget: CacheBudget, tenant: Callable[[], Tenant], exceeded: Callable[[], None]) -> None:
        """`budget`: that of all scopes. `exceeded`: called when the scope has to begin again for it."""
        self.counted_bytes = 0
        self._budget = budget
        self._tenant = tenant
        self._exceeded = exceeded
        self._is_exceeded = False
        self._queue: deque[tuple[float, ObjectSubject, int]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def tenant(self) -> Tenant:
        return self._tenant()

    @property
    def are_too_many(self) -> bool:
        """Whether the scope is to begin again."""
        return self._is_exceeded or len(self._queue) > MOST_GONE

    @property
    def next_at(self) -> float:
        return self._queue[0][0]

    def add(self, until: float, subject: ObjectSubject, record: SubjectRecord) -> None:
        self._append((until, subject, _weight(record)))

    def pop(self) -> ObjectSubject:
        """Forget the first one."""
        _, subject, size = self._queue.popleft()
        self._grow(-size)
        return subject

    def clear(self) -> None:
        """Forget all of them."""
        self._budget.forget(self)
        self.counted_bytes = 0
        self._queue.clear()

    def begin_again(self, remaining: Container[ObjectSubject]) -> None:
        """Forget those of the former scope."""
        kept = [each for each in self._queue if each[1] in remaining]
        self.clear()
        self._is_exceeded = False
        for each in kept:
            self._append(each)

    def exceed(self, problem: str) -> None:
        """Have the scope begin again. It counts no longer, since its memory is about to be free."""
        self._budget.forget(self)
        self.counted_bytes = 0
        self._is_exceeded = True
        self._exceeded()

    def _append(self, each: tuple[float, ObjectSubject, int]) -> None:
        self._queue.append(each)
        self._grow(each[2])

    def _grow(self, size: int) -> None:
        if not self._is_exceeded:
            self.counted_bytes += size
            self._budget.grown(self, size)


def _weight(record: SubjectRecord) -> int:
    message = record.published
    assert isinstance(message, ObjectMessage)
    found = message.object
    return _RECORD_BYTES + sum(map(sys.getsizeof, (found.namespace, found.name, found.uid, found.version)))
