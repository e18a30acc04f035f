"""The observed states of an upstream object, as a kind of source distinguishes them."""

from typing import Any, ClassVar

import msgspec

from milo_discoveryd.model.cluster import Pairs, Target
from milo_discoveryd.model.object_state import ObjectState


class Ready(msgspec.Struct, frozen=True, gc=False):
    """A ready object. Its cluster is engaged unless something else prevents that, such as another object's claim."""

    uid: str
    """The object's own UID, which distinguishes a re-created object; `target.uid` is the project's."""
    version: str
    target: Target
    readiness: tuple[str, str] | None = None
    """When the object was created and when its condition became True, according to the object."""
    state: ClassVar = ObjectState.READY
    message: ClassVar = ""

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def content(self) -> Target:
        return self.target

    @property
    def fields(self) -> Target:
        """The fields that authorization scopes match."""
        return self.target

    @property
    def is_terminating(self) -> bool:
        return self.target.deletion_requested_at is not None


class Unready(msgspec.Struct, frozen=True, gc=False):
    """The base class of all observations except `Ready`.

    The row of the state in `MEANINGS` decides what an observation means; the class of the observation decides which
    fields it has. Derive a class for a new state from `NotReady` if the object keeps its claim on a UID (see
    `engagement/claims.py`), from `Withdrawn` if the observation says how long the cluster may drain, and otherwise from
    `Outside`.
    """

    content: ClassVar[Any] = None
    is_terminating: ClassVar = False


class ObjectFields(msgspec.Struct, frozen=True, gc=False):
    """The fields that authorization scopes match, for an object whose cluster is not engaged."""

    name: str
    organization: str
    labels: Pairs


class NotReady(Unready, frozen=True, gc=False):
    """An object that is not ready."""

    name: str
    uid: str
    version: str
    message: str
    project_uid: str = ""
    """UID of the project, if the object contains one in addition to its own UID."""
    fields: ObjectFields | Target | None = None
    state: ClassVar = ObjectState.NOT_READY


class Outside(Unready, frozen=True, gc=False):
    """An object that the daemon's label selector or field selector does not match."""

    name: str
    uid: str
    version: str
    message: str
    fields: ObjectFields | Target | None = None
    state: ClassVar = ObjectState.OUTSIDE


class Refused(Outside, frozen=True, gc=False):
    """An object that the API server should not have sent: it belongs to an organization other than that of the
    context."""

    state: ClassVar = ObjectState.REFUSED


class Withdrawn(Unready, frozen=True, gc=False):
    """An object that the rules of the source exclude. Its cluster is disengaged, but may drain first."""

    name: str
    uid: str
    version: str
    message: str
    drain_s: float = 0.0
    """How long subscribers that confirm releases may take to release the cluster."""
    fields: ObjectFields | Target | None = None
    state: ClassVar = ObjectState.WITHDRAWN


class Malformed(Unready, frozen=True, gc=False):
    """An object that cannot be used. Its cluster stays in its last good state."""

    name: str
    uid: str
    """Empty if it could not be read."""
    version: str
    message: str
    state: ClassVar = ObjectState.MALFORMED
    fields: ClassVar = None


NotWanted = NotReady | Withdrawn | Outside | Malformed
Observation = Ready | NotWanted
