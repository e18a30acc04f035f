"""What a project control plane is, to the daemon and to its subscribers."""

import enum

import msgspec

Pairs = tuple[tuple[str, str], ...]
"""Labels or annotations, sorted by key."""


class DisengageReason(enum.Enum):
    DELETED = "DELETED"
    NOT_READY = "NOT_READY"
    REPLACED = "REPLACED"
    LABELS_CHANGED = "LABELS_CHANGED"
    UNREACHABLE = "UNREACHABLE"
    REVOKED = "REVOKED"
    MOVED = "MOVED"
    REMOVED = "REMOVED"


# There are as many of these as there are clusters, and none is ever part of a cycle: the garbage collector need not
# look at them.
class Target(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The cluster that an object stands for: all of it that a subscriber can see and that comes from upstream.

    Two equal targets mean that nothing changed, so what a subscriber can't see has no place here.
    """

    name: str
    uid: str
    place: tuple[str, ...]
    """What its endpoint is made of, with the name between. All clusters that a mode finds by their names share one."""
    organization: str = ""
    labels: Pairs = ()
    annotations: Pairs = ()
    deletion_requested_at: float | None = None
    deletion_message: str = ""
    suspended: bool = False

    @property
    def endpoint(self) -> str:
        return self.name.join(self.place)


class ConnectivityState(enum.Enum):
    UNKNOWN = "UNKNOWN"
    REACHABLE = "REACHABLE"
    UNREACHABLE = "UNREACHABLE"


class Connectivity(msgspec.Struct, frozen=True, gc=False):
    state: ConnectivityState
    since: float | None = None
    message: str = ""


UNPROBED = Connectivity(ConnectivityState.UNKNOWN)


class Cluster(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A target while it is engaged."""

    target: Target
    source_version: str
    engaged_at: float
    incarnation: int
    """The revision that engaged it: unique within a run of the daemon."""
    object_uid: str = ""
    """Of the object itself, while `target.uid` may come from a label. Credentials are kept by this one."""
    connectivity: Connectivity = UNPROBED
