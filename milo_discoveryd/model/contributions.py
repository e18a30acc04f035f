"""The contributions of objects to clusters, where an object's name is not its cluster's, or several objects share a
cluster.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, Observation

ObjectReference = tuple[int, str]
"""Index of a watched resource among those of the kind of source, and the key of an object: NAME or NAMESPACE/NAME."""


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """The contribution of one object to one cluster."""

    cluster: str
    """The cluster's name."""
    content: Any
    """An `Observation`, or a value for the kind's `reduce`. Equal contents mean that nothing changed."""
    needs: tuple[ObjectReference, ...] = ()
    """Other objects that decide what the contribution means."""


class ObjectContribution(msgspec.Struct, frozen=True, gc=False):
    """A contribution, with its object; or the content of an object that a contribution needs."""

    watch: int
    """Index of the watched resource among those of the kind of source."""
    object: str
    """The object's name, or NAMESPACE/NAME."""
    uid: str
    version: str
    order: int
    """Grows with the time at which the contribution was first seen. Equal for those of which none is known to be
    earlier, because one list contained them."""
    content: Any
    needs: tuple[ObjectReference, ...] = ()


class ObjectContent(msgspec.Struct, frozen=True, gc=False):
    """The content of an object that is not itself a cluster. Equal contents mean that nothing changed."""

    contributions: tuple[Contribution, ...] = ()
    value: Any = None
    """The content of the object for contributions that need it; None if no contribution needs it."""


class ContributingObject(msgspec.Struct, frozen=True, gc=False):
    """An object that is not itself a cluster."""

    name: str
    """The object's key: NAME or NAMESPACE/NAME."""
    uid: str
    version: str
    content: ObjectContent
    is_terminating: bool = False
    """Whether the deletion of the object was requested."""
    state: ClassVar = ObjectState.READY
    message: ClassVar = ""
    fields: ClassVar = None


ObservedObject = Observation | ContributingObject
"""An object as a source's kind decodes it."""


class Unread:
    """The value of an object that is known from the state file, until the object is seen again."""


UNREAD = Unread()


def earliest(cluster: str, contributions: Sequence[ObjectContribution], _uid: str = "") -> Observation | None:
    """Reduce contributions that are observations: the earliest stands, and none if two of them are the earliest.

    A user who can create objects could otherwise take over a cluster by an object that names it too.
    """
    if not contributions:
        return None
    first, *others = contributions
    if others and others[0].order == first.order:
        both = f"{first.object} and {others[0].object}"
        return Malformed(cluster, first.uid, first.version, f"cluster {cluster!r} is claimed by two objects: {both}")
    observation: Observation = first.content
    return observation
