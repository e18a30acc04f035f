"""The memory budget of the objects of one source.

A broken or malicious API server can list pages and send watch events without end. Pure.
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
"""Weight of each label or annotation beyond the first `_FREE_PAIRS`, besides its content, in bytes: a tuple and two
strings."""
_PAIR = b"\x92"
"""The prefix of a two-item array in MessagePack. Strings that contain this byte increase the weight too."""
_GRAIN = 16
_USUAL = tuple(range(0, 4096, _GRAIN))
"""The usual weights: objects of equal weight share an int object."""
_encode = msgspec.msgpack.Encoder(enc_hook=repr).encode


def weigh(content: Any) -> int:
    """Return the object's weight in the memory budget, in bytes; `content` is what the daemon keeps of the object.

    It is rounded down to a multiple of `_GRAIN`.
    """
    encoded = _encode(content)
    grains = (OBJECT_OVERHEAD + len(encoded) + PAIR_OVERHEAD * max(0, encoded.count(_PAIR) - _FREE_PAIRS)) // _GRAIN
    return _USUAL[grains] if grains < len(_USUAL) else grains * _GRAIN


class ObjectBudget:
    """The budget of one source, over all of its collections."""

    def __init__(self, limit: int = UNLIMITED) -> None:
        self.limit = limit
        self.used = 0


class CollectionWeight:
    """The total weight of one collection's objects in the budget: a sum that each change adjusts.

    A list in progress counts instead of the known objects, so that a source at its limit recovers with a shorter list.
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
            f"the API server sent objects beyond watch.objects_limit ({self._budget.limit} bytes per source): the "
            "clusters stay as they are, and the objects are listed again later; raise the limit for a larger source"
        )
        return False

    def add(self, more: int) -> None:
        """Add a change in the weight of the known objects."""
        self._known += more
        if self._listed is None:
            self._budget.used += more

    def list_started(self) -> None:
        self._budget.used -= self.used
        self._listed, self.problem = 0, ""

    def add_listed(self, weight: int) -> bool:
        """Add the weight of an object of the list in progress, unless the budget is exhausted."""
        assert self._listed is not None, "no list was started"
        if not self.fits(weight):
            return False
        self._listed += weight
        self._budget.used += weight
        return True

    def list_ended(self) -> None:
        assert self._listed is not None, "no list was started"
        self._budget.used += self._known - self._listed
        self._listed = None
