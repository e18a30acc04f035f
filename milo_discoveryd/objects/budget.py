"""The memory budget of the objects of one source.

An API server that is broken, or an attacker's, can list pages and send watch events without end. Pure.
"""

from typing import Any

import msgspec

OVER_BUDGET = "OverBudget"
"""The status reason of a source with more objects than the daemon keeps."""
UNLIMITED = 1 << 62
OBJECT_OVERHEAD = 512
"""Weight of each object besides its content, in bytes."""
_FREE_PAIRS = 8
PAIR_OVERHEAD = 160
"""Weight of each further label and annotation besides its content, in bytes: a tuple and two strings."""
_PAIR = b"\x92"
"""The prefix of a two-item array in MessagePack. A string that contains this byte weighs more than it takes."""
_encode = msgspec.msgpack.Encoder(enc_hook=repr).encode


def weigh(content: Any) -> int:
    """Return the object's weight in the memory budget, in bytes; `content` is what the daemon keeps of the object.

    A multiple of 16: most objects weigh one of a few small integers, which take no memory of their own.
    """
    encoded = _encode(content)
    return (OBJECT_OVERHEAD + len(encoded) + PAIR_OVERHEAD * max(0, encoded.count(_PAIR) - _FREE_PAIRS)) & ~15


class ObjectBudget:
    """The budget of one source, over all of its collections."""

    def __init__(self, limit: int = UNLIMITED) -> None:
        self.limit = limit
        self.used = 0


class CollectionWeight:
    """The total weight of one collection's objects in the budget: a sum that each change adjusts.

    A list in progress counts instead of the known objects: a source at its limit is repaired by a shorter list.
    """

    def __init__(self, budget: ObjectBudget) -> None:
        self._budget = budget
        self._known = 0
        self._listed: int | None = None
        self.problem = ""
        """Why an object did not fit; empty if all did since the last list started."""

    @property
    def used(self) -> int:
        return self._known if self._listed is None else self._listed

    def fits(self, more: int) -> bool:
        """Return whether the budget has room for `more` bytes. If not, set `problem`."""
        if more <= 0 or self._budget.used + more <= self._budget.limit:
            return True
        self.problem = (
            f"the API server has sent more objects than the daemon keeps of one source ({self._budget.limit} bytes, "
            "watch.objects_limit): the clusters stay as they are, and the objects are listed again later"
        )
        return False

    def add(self, more: int) -> None:
        """Add the weight of a change of the known objects."""
        self._known += more
        if self._listed is None:
            self._budget.used += more

    def list_started(self) -> None:
        self._budget.used -= self.used
        self._listed, self.problem = 0, ""

    def add_listed(self, weight: int) -> bool:
        """Add the weight of an object of the list in progress, unless the budget is exhausted."""
        assert self._listed is not None, "a list started"
        if not self.fits(weight):
            return False
        self._listed += weight
        self._budget.used += weight
        return True

    def list_ended(self) -> None:
        assert self._listed is not None, "a list started"
        self._budget.used += self._known - self._listed
        self._listed = None
