"""Clusters, as the daemon tracks them and subscribers see them."""

import enum
from typing import ClassVar

import msgspec

Pairs = tuple[tuple[str, str], ...]
"""Labels or annotations, sorted by key."""


SOURCE_SEPARATOR = "#"
"""Separates the names of a source and of its cluster, as in multicluster-runtime's `multi` provider."""


def key_of(name: str, source: str) -> str:
    """Return the key of a cluster: SOURCE#NAME, or NAME if the source has no name."""
    return f"{source}{SOURCE_SEPARATOR}{name}" if source else name


def source_of(key: str) -> str:
    """Return the source in the key of a cluster; empty if the key contains none."""
    return key.rpartition(SOURCE_SEPARATOR)[0]


class ClusterIdentity(msgspec.Struct, frozen=True, gc=False):
    """The identity of a cluster, independent of the name and the fields of its object.

    The UID is unique only within the source: the API server of another source may use the same UID.
    """

    source: str
    uid: str
    """The UID of the upstream object."""

    def __str__(self) -> str:
        return key_of(self.uid, self.source)


class DisengageReason(enum.Enum):
    __hash__ = object.__hash__  # Enum defines `__hash__` in Python, which is several times slower

    DELETED = "DELETED"
    NOT_READY = "NOT_READY"
    REPLACED = "REPLACED"
    LABELS_CHANGED = "LABELS_CHANGED"
    UNREACHABLE = "UNREACHABLE"
    REVOKED = "REVOKED"
    MOVED = "MOVED"
    REMOVED = "REMOVED"
    OWNERSHIP_LOST = "OWNERSHIP_LOST"


class SuspensionReason(msgspec.Struct, frozen=True, gc=False):
    """One reason why a cluster is suspended."""

    reason: str
    suspended_at: float | None
    reinstate_authority: str
    message: str = ""
    """The source's message about the suspension as a whole."""


# There is one instance per cluster. With gc=False, the garbage collector does not traverse them; cycles cannot occur.
class Target(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A cluster as an upstream object describes it, limited to what subscribers see.

    Equal targets mean that there is nothing to send, so a target does not contain fields that subscribers do not see.
    """

    name: str
    """The cluster's key: see `key_of`."""
    source: str = ""
    """The name of the source; empty if the only source has none."""
    uid: str
    place: tuple[str, ...]
    """The parts of the endpoint around the local name. Clusters whose endpoints differ only in the name share one
    tuple."""
    organization: str = ""
    labels: Pairs = ()
    annotations: Pairs = ()
    deletion_requested_at: float | None = None
    deletion_message: str = ""
    suspensions: tuple[SuspensionReason, ...] | None = None
    """Why the cluster is suspended, as far as the source reports it; None if it is not suspended."""
    states_address: ClassVar[bool] = False
    """Whether the address is in the object itself, so that the object's author chooses where the daemon connects."""

    @property
    def suspended(self) -> bool:
        return self.suspensions is not None

    @property
    def tenant(self) -> str:
        """The namespace of the object, or else its organization; empty if neither is known."""
        return self.organization

    @property
    def local_name(self) -> str:
        """The name within the source."""
        return self.name[len(self.source) + len(SOURCE_SEPARATOR) :] if self.source else self.name

    @property
    def endpoint(self) -> str:
        # Calls `local_name` only if the source has a name: this property is read for every encoded event.
        return (self.local_name if self.source else self.name).join(self.place)


class Reachability(enum.Enum):
    __hash__ = object.__hash__  # Enum defines `__hash__` in Python, which is several times slower

    UNKNOWN = "UNKNOWN"
    REACHABLE = "REACHABLE"
    UNREACHABLE = "UNREACHABLE"


class ConnectivityStatus(msgspec.Struct, frozen=True, gc=False):
    state: Reachability
    since: float | None = None
    message: str = ""


UNPROBED = ConnectivityStatus(Reachability.UNKNOWN)


class Drain(msgspec.Struct, frozen=True, gc=False):
    """The planned end of an engagement, which waits for subscribers that confirm releases."""

    reason: DisengageReason
    message: str
    deadline: float
    """When the drain ends at the latest, in Unix time."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An engaged cluster: its target, and the state of the engagement."""

    target: Target
    source_version: str
    engaged_at: float
    incarnation: int
    """The revision that engaged the cluster: unique within a run of the daemon."""
    object_uid: str = ""
    """UID of the upstream object; `target.uid` may come from a label."""
    connectivity: ConnectivityStatus = UNPROBED
    draining: Drain | None = None
    """Set while the cluster drains, before its engagement ends. A drain that has begun is never canceled."""

    @property
    def identity(self) -> ClusterIdentity:
        return ClusterIdentity(self.target.source, self.object_uid)


def without_draining(cluster: Cluster) -> Cluster:
    return cluster if cluster.draining is None else msgspec.structs.replace(cluster, draining=None)


def without_content(cluster: Cluster) -> Cluster:
    """Return a cluster without what its object's author can make large."""
    its = cluster.target
    # By its organization, queues limit what they do for each tenant.
    target = Target(name=its.name, source=its.source, uid=its.uid, place=its.place, organization=its.tenant)
    return msgspec.structs.replace(cluster, target=target, draining=None, connectivity=UNPROBED)


class DeclaredTarget(Target, frozen=True, kw_only=True, gc=False):
    """A cluster that an object (kind `declarative`) or a kubeconfig file describes. Its API server has its own CA. The
    additional fields come from the object or file, and are used for credentials and connections."""

    object_namespace: str
    """Empty for an object without a namespace, and for a cluster in a file."""
    object_name: str
    secret: tuple[str, str] = ("", "")
    """Namespace and name of the Secret to which the object refers, if the source has the setting `secret`."""
    secret_key: str = ""
    """Key in that Secret, if the source has the setting `secret.key`."""
    authorities: bytes | None = None
    """CA certificates of the API server as PEM, if the object, its Secret or its file contains them."""
    states_address: ClassVar[bool] = True

    @property
    def tenant(self) -> str:
        return self.object_namespace or self.organization


class FileTarget(DeclaredTarget, frozen=True, kw_only=True, gc=False):
    """A cluster in a kubeconfig file. The file's author also configures the daemon, so the address is trusted."""

    states_address: ClassVar[bool] = False
