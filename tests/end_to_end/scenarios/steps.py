"""The steps of the scenario format as types, which have all fields of the format."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

Mode: TypeAlias = Literal["project", "project-control-plane"]
MODES: tuple[Mode, ...] = ("project", "project-control-plane")

MAIN = "main"
"""The subscriber that a scenario has from its beginning, unless its first step is `subscribe`."""

Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
Reason: TypeAlias = Literal[
    "DELETED", "NOT_READY", "REPLACED", "LABELS_CHANGED", "UNREACHABLE", "REVOKED", "MOVED", "REMOVED", "UNSPECIFIED"
]
Happening: TypeAlias = Literal["ENGAGED", "DISENGAGED"]


# --- upstream ---


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
    """The condition; if empty, the one that the mode requires."""
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


# --- expectations ---


class Expected(msgspec.Struct, frozen=True):
    """An expected event of a cluster, with its reason and endpoint if given."""

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
    """The expected value of each field; UNSET for a field that may have any."""
    by: str = MAIN


class ExpectNoUpdates(msgspec.Struct, frozen=True):
    name: str
    by: str = MAIN


class ExpectEngaged(msgspec.Struct, frozen=True):
    """The expected engaged clusters, by name or by number."""

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
    """The steps, each with its keyword in the file."""

    @property
    def writes_conditions(self) -> bool:
        """Whether the steps write conditions, which conflict with those of Milo's own controllers."""
        steps = [step for _, step in self.steps]
        return any(isinstance(step, Condition) or (isinstance(step, Create) and not step.ready) for step in steps)


class Malformed(msgspec.Struct, frozen=True):
    """A scenario that cannot be run, and therefore fails; it is never skipped."""

    name: str
    modes: tuple[Mode, ...]
    problem: str
