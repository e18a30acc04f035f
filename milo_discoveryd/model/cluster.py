"""Project control planes, as the daemon tracks them and subscribers see them."""

import enum
from typing import Any, ClassVar

import msgspec

Pairs = tuple[tuple[str, str], ...]
"""Labels or annotations, sorted by key."""


SOURCE_SEPARATOR = "#"
"""Separates the names of a source and of its cluster, as in multicluster-runtime's `multi` provider."""


def key_of(name: str, source: str) -> str:
    """Return the key of a cluster: SOURCE#NAME, or its name if the daemon has one source."""
    return f"{source}{SOURCE_SEPARATOR}{name}" if source else name


def local_name(key: str) -> str:
    """Return the name of a cluster within its source. No name that a mode accepts contains the separator."""
    return key.rpartition(SOURCE_SEPARATOR)[2]


class DisengageReason(enum.Enum):
    DELETED = "DELETED"
    NOT_READY = "NOT_READY"
    REPLACED = "REPLACED"
    LABELS_CHANGED = "LABELS_CHANGED"
    UNREACHABLE = "UNREACHABLE"
    REVOKED = "REVOKED"
    MOVED = "MOVED"
    REMOVED = "REMOVED"
    OWNERSHIP_LOST = "OWNERSHIP_LOST"


class Suspension(msgspec.Struct, frozen=True, gc=False):
    """A reason for which a cluster is suspended."""

    reason: str
    suspended_at: float | None
    reinstate_authority: str


# One instance per cluster, never part of a reference cycle: gc=False keeps the garbage collector from traversing them.
class Target(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A cluster as an upstream object describes it, limited to what subscribers see.

    Equal targets mean that there is nothing to send, so fields that subscribers do not see are not part of it.
    """

    name: str
    """The cluster's key: see `local_name`."""
    uid: str
    place: tuple[str, ...]
    """Endpoint without the local name, split where it belongs. Clusters whose endpoints differ only by it share it."""
    organization: str = ""
    labels: Pairs = ()
    annotations: Pairs = ()
    deletion_requested_at: float | None = None
    deletion_message: str = ""
    suspensions: tuple[Suspension, ...] | None = None
    """Why it is suspended, as far as the source says; None if it is not."""

    @property
    def suspended(self) -> bool:
        return self.suspensions is not None

    @property
    def source(self) -> str:
        """Name of the source, in a daemon with several."""
        return self.name.partition(SOURCE_SEPARATOR)[0] if SOURCE_SEPARATOR in self.name else ""

    @property
    def local_name(self) -> str:
        """The name within the source."""
        return local_name(self.name)

    @property
    def endpoint(self) -> str:
        name = self.name
        # The common case, without a call: this is part of every encoded event.
        return (local_name(name) if SOURCE_SEPARATOR in name else name).join(self.place)


class ConnectivityState(enum.Enum):
    UNKNOWN = "UNKNOWN"
    REACHABLE = "REACHABLE"
    UNREACHABLE = "UNREACHABLE"


class Connectivity(msgspec.Struct, frozen=True, gc=False):
    state: ConnectivityState
    since: float | None = None
    message: str = ""


UNPROBED = Connectivity(ConnectivityState.UNKNOWN)


class Draining(msgspec.Struct, frozen=True, gc=False):
    """The planned end of an engagement, which waits for subscribers that confirm releases."""

    reason: DisengageReason
    message: str
    deadline: float
    """When it ends in any case, in Unix time."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An engaged target."""

    target: Target
    source_version: str
    engaged_at: float
    incarnation: int
    """The revision that engaged it: unique within a run of the daemon."""
    object_uid: str = ""
    """UID of the upstream object; `target.uid` may come from a label. Credentials are cached by this one."""
    connectivity: Connectivity = UNPROBED
    draining: ClassVar[Draining | None] = None
    """No field, because nearly no cluster drains: see `DrainingCluster`."""


class DrainingCluster(Cluster, frozen=True, kw_only=True, gc=False):
    """A cluster whose engagement is about to end. A drain that has begun is never taken back."""

    draining: Draining  # type: ignore[misc]  # instead of the class's None


def with_draining(cluster: Cluster, draining: Draining) -> DrainingCluster:
    return DrainingCluster(**_fields(cluster), draining=draining)


def without_draining(cluster: Cluster) -> Cluster:
    return cluster if cluster.draining is None else Cluster(**_fields(cluster))


def _fields(cluster: Cluster) -> dict[str, Any]:
    return {name: getattr(cluster, name) for name in Cluster.__struct_fields__}
