"""The claims of objects about clusters, where an object's name is not its cluster's, or several objects share a
cluster.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Malformed, Observation

ObjectReference = tuple[int, str]
"""Position of a watched resource among those of the kind, and the key of an object: NAME or NAMESPACE/NAME."""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The claim of one object about one cluster."""

    cluster: str
    """The cluster's name."""
    content: Any
    """An `Observation`, or a value for the kind's `reduce`. Equal contents mean that nothing changed."""
    needs: tuple[ObjectReference, ...] = ()
    """Other objects that decide what the claim means."""


class ObjectClaim(msgspec.Struct, frozen=True, gc=False):
    """A claim, with the object that makes it; or the content of an object that a claim needs."""

    watch: int
    """Position of the watched resource among those of the kind."""
    object: str
    """The object's name, or NAMESPACE/NAME."""
    uid: str
    version: str
    order: int
    """Grows with the time at which the claim was first seen. Equal for claims of which none is known to be earlier,
    because one list contained them."""
    content: Any
    needs: tuple[ObjectReference, ...] = ()


class ClaimingObject(Target, frozen=True, kw_only=True, gc=False):
    """An object with its claims, tracked by a registry under the object's key, as if it were a cluster."""

    claims: tuple[Claim, ...] = ()
    content: Any = None
    """The content of claims that need the object; None if no claim does."""
    is_terminating: bool = False
    """Whether its deletion was requested."""


class Unread:
    """The content of an object that is known from the state file, until the object is seen again."""


UNREAD = Unread()


def earliest(cluster: str, claims: Sequence[ObjectClaim], _uid: str = "") -> Observation | None:
    """Reduce claims whose contents are observations: the earliest stands, and none if two of them are the earliest.

    A user who can create objects could otherwise take over a cluster by an object that names it too.
    """
    if not claims:
        return None
    first, *others = claims
    if others and others[0].order == first.order:
        both = f"{first.object} and {others[0].object}"
        return Malformed(cluster, first.uid, first.version, f"cluster {cluster!r} is claimed by two objects: {both}")
    observation: Observation = first.content
    return observation
