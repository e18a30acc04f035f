"""What a look at an upstream object told: one of four things, by a mode's judgement."""

import msgspec

from milo_discoveryd.model.cluster import Pairs, Target


class Ready(msgspec.Struct, frozen=True, gc=False):
    """The object stands for a cluster that is to be engaged."""

    uid: str
    """The object's own, by which a re-created one is told from its predecessor; `target.uid` is the project's."""
    version: str
    target: Target

    @property
    def name(self) -> str:
        return self.target.name


class ObjectFields(msgspec.Struct, frozen=True, gc=False):
    """What scopes go by, of an object that is not to be engaged."""

    name: str
    organization: str
    labels: Pairs


class NotReady(msgspec.Struct, frozen=True, gc=False):
    """The condition that engages it isn't True."""

    name: str
    uid: str
    version: str
    message: str
    project_uid: str = ""
    """The project's, if the object claims one besides its own."""
    fields: ObjectFields | Target | None = None


class Outside(msgspec.Struct, frozen=True, gc=False):
    """The daemon's selector doesn't cover it."""

    name: str
    uid: str
    version: str
    message: str
    fields: ObjectFields | Target | None = None


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """It can't be used as it is. Its last good state stays."""

    name: str
    uid: str
    """Empty where even that couldn't be read."""
    version: str
    message: str


Observation = Ready | NotReady | Outside | Malformed


def fields(seen: Observation) -> ObjectFields | Target | None:
    """Return what scopes go by; None where only the object's name is known."""
    match seen:
        case Ready():
            return seen.target
        case Malformed():
            return None
        case _:
            return seen.fields
