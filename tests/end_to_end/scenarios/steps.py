"""The steps of the scenario format as types. A field that is not here is not part of the format."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

Mode: TypeAlias = Literal["project", "project-control-plane"]
MODES: tuple[Mode, ...] = ("project", "project-control-plane")

MAIN = "main"
"""The subscriber that is there without being asked for."""

Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
Reason: TypeAlias = Literal[
    "DELETED", "NOT_READY", "REPLACED", "LABELS_CHANGED", "UNREACHABLE", "REVOKED", "MOVED", "REMOVED", "UNSPECIFIED"
]
Happening: TypeAlias = Literal["ENGAGED", "DISENGAGED"]


# --- what happens upstream ---


class Create(msgspec.Struct, frozen=True):
    name: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    ready: bool = False


class Condition(msgspec.Struct, frozen=True):
    name: Name
    status: Literal["True", "False", "Unknown"]
    type: str = ""
    """Empty: the one that the mode requires."""
    message: str = ""


class Label(msgspec.Struct, frozen=True):
    name: Name
    put: dict[str, str] = msgspec.field(name="set", default_factory=dict)
    unset: tuple[str, ...] = ()


class Annotate(msgspec.Struct, frozen=True):
    name: Name
    put: dict[str, str] = msgspec.field(name="set", default_factory=dict)
    unset: tuple[str, ...] = ()


class Delete(msgspec.Struct, frozen=True):
    name: Name


class Unfinalize(msgspec.Struct, frozen=True):
    name: Name


class Replace(msgspec.Struct, frozen=True):
    name: Name


class Burst(msgspec.Struct, frozen=True):
    prefix: Name
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    labels: dict[str, str] = {}


class OnApi(msgspec.Struct, frozen=True):
    action: Literal["stop", "start", "restart", "compact", "drop-watches"]


class OnDaemon(msgspec.Struct, frozen=True):
    action: Literal["restart", "kill"]


# --- subscribers ---


class Subscribe(msgspec.Struct, frozen=True):
    who: Name = msgspec.field(name="as", default=MAIN)
    label_selector: str = ""
    names: tuple[Name, ...] = ()
    organizations: tuple[Name, ...] = ()


class Unsubscribe(msgspec.Struct, frozen=True):
    who: Name = msgspec.field(name="as", default=MAIN)


class Reconnect(msgspec.Struct, frozen=True):
    who: Name = msgspec.field(name="as", default=MAIN)


# --- what is to be seen ---


class Expected(msgspec.Struct, frozen=True):
    """One event: of this cluster, for this reason and at this endpoint where they are given."""

    happening: Happening
    cluster: str
    reason: Reason | Literal[""] = ""
    endpoint: str = ""


class Expect(msgspec.Struct, frozen=True):
    events: tuple[Expected, ...]
    by: str = MAIN


class ExpectUpdated(msgspec.Struct, frozen=True):
    name: str
    fields: dict[str, Any]
    """Each with the value that it must show; UNSET for any that it may."""
    by: str = MAIN


class ExpectNoUpdates(msgspec.Struct, frozen=True):
    name: str
    by: str = MAIN


class ExpectEngaged(msgspec.Struct, frozen=True):
    """All the names, or, where these are not given, their number."""

    names: frozenset[str] | None
    count: int


class ExpectSource(msgspec.Struct, frozen=True):
    state: Literal["STREAMING", "CATCHING_UP", "STALE"]
    by: str = MAIN


Write: TypeAlias = Create | Condition | Label | Annotate | Delete | Unfinalize | Replace | Burst
Act: TypeAlias = (
    Write
    | OnApi
    | Subscribe
    | Unsubscribe
    | Reconnect
    | Expect
    | ExpectUpdated
    | ExpectNoUpdates
    | ExpectEngaged
    | ExpectSource
)
Step: TypeAlias = Act | OnDaemon


class Scenario(msgspec.Struct, frozen=True):
    name: str
    about: str
    modes: tuple[Mode, ...]
    settings: dict[str, Any]
    steps: tuple[tuple[str, Step], ...]
    """Each with its word in the file."""


class Malformed(msgspec.Struct, frozen=True):
    """A scenario that can't be played. It fails; it is never skipped."""

    name: str
    modes: tuple[Mode, ...]
    problem: str
