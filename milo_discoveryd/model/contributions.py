"""The contributions of objects to clusters, for sources whose objects and clusters have different names, or in which
several objects share a cluster.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, Observation

ObjectReference = tuple[int, str]
"""Index of a watched resource in the list of the source's kind, and the key of an object: NAME or NAMESPACE/NAME."""


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """The contribution of one object to one cluster."""

    cluster: str
    """The cluster's name."""
    content: Any
    """An `Observation`, or a value for the kind's `reduce`. Equal contents mean that nothing changed."""
    needs: tuple[ObjectReference, ...] = ()
    """Other objects whose contents `reduce` needs together with the contribution."""


class ObjectContribution(msgspec.Struct, frozen=True, gc=False):
    """A contribution and the object that it comes from, or the content of an object that a contribution needs."""

    watch: int
    """Index of the watched resource in the list of the source's kind."""
    object: str
    """The object's name, or NAMESPACE/NAME."""
    uid: str
    version: str
    order: int
    """Increases in the order in which contributions were first observed. Equal if that order is unknown, as for the
    contributions in one list."""
    content: Any
    needs: tuple[ObjectReference, ...] = ()


Reduce = Callable[[str, Sequence[ObjectContribution], str], Observation | None]
"""Returns the observation of a cluster from all its objects, or None if it is to be reported as deleted.

The first argument is the name of the cluster. The second has the contributions of all objects that name the cluster,
the earliest first (none after the confirmed deletion of the last such object), followed by the contents of the existing
objects to which `Contribution.needs` refers; `watch` and `object` show to which object an item belongs. The last
argument is the UID of the current engagement if at least one of its objects remains, and otherwise empty. An
observation with another UID replaces the cluster.
"""


class ObjectContent(msgspec.Struct, frozen=True, gc=False):
    """The content of an object that is not itself a cluster. Equal contents mean that nothing changed."""

    contributions: tuple[Contribution, ...] = ()
    value: Any = None
    """The value that `reduce` receives when a contribution needs this object; None if the object supplies no value."""


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
"""An object as the kind of its source decoded it."""


class Unread:
    """Stands for the content of an object that is known only from the state file, and was not received again yet."""


UNREAD = Unread()


def earliest(cluster: str, contributions: Sequence[ObjectContribution], _uid: str = "") -> Observation | None:
    """Return the observation of the earliest contribution; a malformed observation if several contributions are equally
    early.

    If a later contribution counted, a user who can create objects could take over the cluster of another object.
    """
    if not contributions:
        return None
    first, *others = contributions
    if others and others[0].order == first.order:
        both = f"{first.object} and {others[0].object}"
        return Malformed(cluster, first.uid, first.version, f"cluster {cluster!r} is claimed by two objects: {both}")
    observation: Observation = first.content
    return observation
