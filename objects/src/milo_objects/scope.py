"""Scopes: one kind in one engagement of one cluster, with its state; and the changes in them. Pure.

A source of changes promises this order: the objects of a scope's first list precede its `Synced`; all that is of an
engagement precedes its end; and what is of the next engagement of the same cluster comes after that. It promises
nothing between clusters, or between kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from milo_objects.kinds import Kind
from milo_objects.projection import Place, ProjectedObject


class FleetCluster(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An engaged cluster, as those who read its objects know it."""

    name: str
    """The cluster's key: the project's name or, if its source has a name, SOURCE#NAME."""
    incarnation: str
    """The engagement. Objects of another engagement of the same name are those of another cluster."""
    uid: str = ""
    source: str = ""
    organization: str = ""
    endpoint: str = ""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, self.incarnation))


class Scope(msgspec.Struct, frozen=True, rename="camel"):
    """The identity of a scope. State, first list, reset and end belong to it; nothing is ever that of all clusters."""

    cluster: str
    incarnation: str
    resource: str


# --- states ---


class Pending(msgspec.Struct, frozen=True, tag_field="state", tag="PENDING"):
    """The first list is not complete: an object that is not known may exist."""

    since: datetime

    @property
    def problem(self) -> str:
        return "the first list is not complete"


class Synced(msgspec.Struct, frozen=True, tag_field="state", tag="SYNCED"):
    """A complete list was applied, and each change since then."""

    since: datetime

    @property
    def problem(self) -> str:
        """Empty: there is none."""
        return ""


class Stale(msgspec.Struct, frozen=True, tag_field="state", tag="STALE"):
    """The cluster cannot be followed at present. What was known of it stays."""

    since: datetime
    problem: str


class Forbidden(msgspec.Struct, frozen=True, tag_field="state", tag="FORBIDDEN"):
    """The cluster refuses the list (403). What was known of it stays."""

    since: datetime
    problem: str


class NotServed(msgspec.Struct, frozen=True, tag_field="state", tag="NOT_SERVED"):
    """The cluster does not serve the kind (404). What was known of it stays."""

    since: datetime
    problem: str


class OverBudget(msgspec.Struct, frozen=True, tag_field="state", tag="OVER_BUDGET"):
    """The objects take more memory than they may, and were dropped. They are listed again later."""

    since: datetime
    problem: str


ScopeState: TypeAlias = Pending | Synced | Stale | Forbidden | NotServed | OverBudget
FleetState: TypeAlias = Pending | Synced | Stale
"""Whether all engaged clusters are known."""


# --- changes ---


class Gone(Enum):
    """Why an object is gone."""

    OBJECT_DELETED = "OBJECT_DELETED"
    OUT_OF_SELECTOR = "OUT_OF_SELECTOR"
    """It exists, and its labels no longer match."""
    WITHDRAWN = "WITHDRAWN"
    """It may exist, and the declaration of the kind no longer covers it."""
    MISSING = "MISSING"
    """It went while nobody watched: it was deleted, or left the selector."""


class ScopeEnd(Enum):
    """Why a scope ended while its cluster stays engaged."""

    OVER_BUDGET = "OVER_BUDGET"
    """Its objects exceed a limit; the next scope of the kind in the cluster begins when they are listed again."""
    WITHDRAWN = "WITHDRAWN"
    """The kind is no longer declared."""


class FleetChanged(msgspec.Struct, frozen=True):
    """Whether all engaged clusters are known has changed."""

    state: FleetState


class ClusterChanged(msgspec.Struct, frozen=True):
    """A cluster was engaged, or what is known of it has changed."""

    cluster: FleetCluster


class ClusterEnded(msgspec.Struct, frozen=True):
    """An engagement ended, and with it all of its scopes and objects. It is said once."""

    cluster: FleetCluster
    reason: str
    """A name of DisengageReason, such as DELETED or REVOKED."""


class ScopeChanged(msgspec.Struct, frozen=True):
    """A scope began, or its state has changed."""

    scope: Scope
    state: ScopeState


class ScopeEnded(msgspec.Struct, frozen=True):
    """A scope ended, and with it all of its objects. It is said once."""

    scope: Scope
    reason: ScopeEnd


class ObjectChanged(msgspec.Struct, frozen=True):
    """An object appeared, or a field of it that is kept has changed."""

    scope: Scope
    object: ProjectedObject
    before: ProjectedObject | None = None
    """What was known of it. It has another UID if the object was deleted and created again."""


class ObjectGone(msgspec.Struct, frozen=True):
    """An object is gone."""

    scope: Scope
    object: ProjectedObject
    """What was known of it."""
    reason: Gone


Change: TypeAlias = (
    FleetChanged | ClusterChanged | ClusterEnded | ScopeChanged | ScopeEnded | ObjectChanged | ObjectGone
)


# --- between a source of changes and who keeps them ---


class ObjectStore(Protocol):
    """What a source of changes fills, and asks for what it has."""

    def apply(self, change: Change) -> None:
        """Apply a change. What changes nothing is ignored, so a source may repeat itself; so is what belongs to no
        present scope: a cluster precedes its scopes, and the first state of a scope precedes its objects."""

    def objects(self, scope: Scope) -> Mapping[Place, ProjectedObject]:
        """Return the objects of a scope: a live view, empty if the scope is unknown."""

    def index_bytes(self, scope: Scope) -> int:
        """Return approximately how many bytes the values of a scope's objects take in indexes."""


@runtime_checkable
class ObjectSource(Protocol):
    """A source of the changes of some kinds in all engaged clusters."""

    async def run(self, kinds: Sequence[Kind], store: ObjectStore) -> None:
        """Apply the changes to the store until canceled. Raises errors that a retry cannot fix."""
