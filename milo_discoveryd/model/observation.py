"""The states of an upstream object that a kind of source distinguishes."""

from typing import ClassVar

import msgspec

from milo_discoveryd.model.cluster import Pairs, Target
from milo_discoveryd.model.object_state import ObjectState


class Ready(msgspec.Struct, frozen=True, gc=False):
    """An object whose cluster must be engaged."""

    state: ClassVar = ObjectState.READY
    uid: str
    """The object's own UID, which distinguishes a re-created object; `target.uid` is the project's."""
    version: str
    target: Target
    readiness: tuple[str, str] | None = None
    """When the object was created and when its condition became True, as the object states them."""

    @property
    def name(self) -> str:
        return self.target.name


class ObjectFields(msgspec.Struct, frozen=True, gc=False):
    """The fields of an object that is not engaged which scopes filter by."""

    name: str
    organization: str
    labels: Pairs


class NotReady(msgspec.Struct, frozen=True, gc=False):
    """An object whose readiness condition is not True."""

    state: ClassVar = ObjectState.NOT_READY
    name: str
    uid: str
    version: str
    message: str
    project_uid: str = ""
    """UID of the project, if the object states one besides its own."""
    fields: ObjectFields | Target | None = None


class Outside(msgspec.Struct, frozen=True, gc=False):
    """An object that the daemon's label selector does not match."""

    state: ClassVar = ObjectState.OUTSIDE
    name: str
    uid: str
    version: str
    message: str
    fields: ObjectFields | Target | None = None


class Refused(Outside, frozen=True, gc=False):
    """An object that the API server must not have sent: it belongs to another organization than the context."""

    state: ClassVar = ObjectState.REFUSED


class Withdrawn(msgspec.Struct, frozen=True, gc=False):
    """An object that ends its cluster by the rules of the source: a planned end."""

    state: ClassVar = ObjectState.WITHDRAWN
    name: str
    uid: str
    version: str
    message: str
    drain_s: float = 0.0
    """How long subscribers that confirm releases may take."""
    fields: ObjectFields | Target | None = None


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """An object that cannot be used. Its last good state is kept."""

    state: ClassVar = ObjectState.MALFORMED
    name: str
    uid: str
    """Empty if it could not be read."""
    version: str
    message: str


NotWanted = NotReady | Withdrawn | Outside | Malformed
Observation = Ready | NotWanted


def fields(seen: Observation) -> ObjectFields | Target | None:
    """Return the fields that scopes filter by; None if only the object's name is known."""
    match seen:
        case Ready():
            return seen.target
        case Malformed():
            return None
        case _:
            return seen.fields
