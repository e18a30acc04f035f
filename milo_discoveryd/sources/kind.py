"""The protocol of a kind of source, and the kinds by name."""

import enum
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.contributions import Contribution, Reduce, earliest
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.schema.fields import Group
from milo_discoveryd.schema.registry import Registry
from milo_discoveryd.sources.context import ContextKind
from milo_discoveryd.sources.reading import KubeObject

SENT_WHERE_OBJECTS_SAY = "objects decide where the issuer's credential is sent, and other clusters accept it too"

RestoredPlace = Callable[[Target], tuple[str, ...]]
"""Returns `Target.place` of a cluster from the state file, whose content is not trusted. `Target.name` is the name
within the source.

Raises MalformedError for a cluster that must not be served before the source reports it again.
"""


class OneResource(msgspec.Struct, frozen=True):
    """Objects of a cluster-scoped resource, each of which represents the cluster of the same name."""

    resource: Resource
    observe: Callable[[Any], Observation]
    restored_place: RestoredPlace
    object_type: Any = KubeObject
    """`KubeObject`, or another msgspec.Struct with a field `metadata: Metadata`."""


class ContributionWatch(msgspec.Struct, frozen=True):
    """A resource, and the contributions of its objects to clusters."""

    resource: Resource
    object_type: Any
    """`KubeObject`, or another msgspec.Struct with a field `metadata: Metadata`."""
    contributions: Callable[[Any], Iterable[Contribution]]
    """Returns the contributions of an object to clusters, which may be none. Raises MalformedError for an object that
    cannot be used: its previous contributions remain valid."""


class ReferencedWatch(msgspec.Struct, frozen=True):
    """A resource whose objects represent no clusters, but are referred to by contributions (`Contribution.needs`)."""

    resource: Resource
    object_type: Any
    """See `ContributionWatch.object_type`."""
    content: Callable[[Any], Any]
    """Returns the part of an object that `reduce` uses, or None if the object lacks it. If it equals the previous part,
    nothing has changed. Raises MalformedError for an object that cannot be used: its previous content remains
    valid."""
    server: str = ""
    """URL of the API server, or of the context of Milo, that has the objects. Default: the source's."""


class SeveralResources(msgspec.Struct, frozen=True):
    """The resources of a source whose objects state, in their contributions, the names of the clusters they belong to.

    Several objects may represent one cluster: `reduce` decides what they mean together.
    """

    watches: tuple[ContributionWatch | ReferencedWatch, ...]
    reduce: Reduce
    restored_place: RestoredPlace
    objects: Resource | None = None
    """The resource of the clusters' objects, if the target of each is a `DeclaredTarget`, which names its object, or
    has the object's name and UID."""
    objects_server: str = ""
    """URL of the API server, or of the context of Milo, that has these objects. Default: the source's."""


class FileObject(msgspec.Struct, frozen=True):
    """The content of a file, or of a part of it that represents a cluster."""

    key: str
    """A key that is unique in the source."""
    uid: str = ""
    """UID of the cluster: another UID under the same key means another cluster."""
    contributions: tuple[Contribution, ...] = ()
    """The object's contributions to clusters, as in `ContributionWatch.contributions`."""
    problem: str = ""
    """Why the object cannot be used, so that its previous contributions remain valid. Empty if it can be used."""


class Files(msgspec.Struct, frozen=True):
    """Kubeconfig files of this machine."""

    path: str
    """The directory or the file; `~` is the home directory of the daemon's user."""
    is_directory: bool
    read_file: Callable[[str, bytes], Iterable[FileObject]]
    """Returns the clusters that a file describes. Raises MalformedError if the only file of a source is malformed."""
    context_of: Callable[[str], tuple[str, str]]
    """Returns, for an object's key, the name of its file in the directory and the name of its context. An empty file
    name means the only file; an empty context means the current one."""
    restored_place: RestoredPlace
    reduce: Reduce = earliest


class FixedClusters(msgspec.Struct, frozen=True):
    """A source that watches nothing: its clusters are known from the start."""

    targets: tuple[Target, ...]


Follows = OneResource | SeveralResources | Files | FixedClusters
"""A description of what a source follows."""


class ProjectServer(enum.Enum):
    """How the kubeconfig `project_kubeconfig` of a source is used."""

    SERVES = "serves"
    """The API server of the kubeconfig serves the clusters."""
    IDENTITY = "identity"
    """The identity and CA of the kubeconfig are used at the clusters' own addresses. Its server is not contacted."""
    NONE = "none"
    """There is no such kubeconfig."""


class ProjectUids(enum.Enum):
    """Where a source finds the UIDs of Milo's projects.

    If one source reads the Projects, and the objects of another state their UIDs, only one of the two engages a
    project: see `milo_discoveryd/engagement/claims.py`.
    """

    READ = "read"
    """The source reads the UIDs from the Projects."""
    STATED = "stated"
    """The source reads other objects, which state the UIDs of their projects."""
    NONE = "none"
    """The source does not know the UIDs of projects: its clusters have other UIDs."""


class SourceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Values of the daemon's configuration that a kind may use in addition to its own settings."""

    project_server: str = ""
    """URL of the API server of the project kubeconfig."""
    discovery_server: str = ""
    """URL of the watched API server."""
    annotation_prefixes: tuple[str, ...] = ()
    """Prefixes of the annotations that are sent to subscribers."""

    @property
    def project_endpoint(self) -> str:
        """Scheme, host and port of the project server: `https://api.example.com`."""
        parts = urlsplit(self.project_server)
        return f"{parts.scheme}://{parts.netloc}"


class IssuerTraits(msgspec.Struct, frozen=True):
    """The properties of a credential issuer that a kind may depend on."""

    type: str
    templates: tuple[str, ...] = ()
    """The issuer's templates for the namespace, name and key of each cluster's Secret, with placeholders such as
    `{secret}`."""
    is_of_cluster: bool = False
    """Whether a cluster's credential comes from its own object or Secret, so that no other cluster accepts it."""


class SourceKind(Group, frozen=True, kw_only=True):
    """A kind of source. A class for each kind derives from this one; its fields are the kind's settings."""

    is_watched: ClassVar[bool] = True
    """Whether the source watches the API server of `discovery_kubeconfig`."""
    project_server: ClassVar[ProjectServer] = ProjectServer.SERVES
    shares_host: ClassVar[bool] = False
    """Whether all clusters are paths of the project server, so that one probe shows whether the server is reachable."""
    addresses_are_configured: ClassVar[bool] = False
    """Whether the addresses of all clusters follow from the configuration, so that they have the CA and accept the
    credential of the project kubeconfig. Otherwise each cluster has its own CA, and none is sent that credential."""
    states_addresses: ClassVar[bool] = False
    """Whether the objects contain the addresses of their clusters: see `Target.states_address`."""
    contexts: ClassVar[tuple[ContextKind, ...]] = ()
    """The contexts of Milo in which the kind can work; empty if it does not depend on them."""

    @property
    def project_uids(self) -> ProjectUids:
        """Where the source finds the UIDs of Milo's projects. Claims use them to recognize a project in two sources."""
        return ProjectUids.NONE

    @property
    def unseen(self) -> str:
        """The changes that the source cannot notice with these settings, as `check` reports them; empty if none."""
        return ""

    @property
    def ready_when(self) -> str:
        """The criterion for the readiness of a cluster as `explain` prints it, such as `condition Ready is True`; empty
        if there is none, or if several objects determine readiness."""
        return ""

    @property
    def has_fixed_hosts(self) -> bool:
        """Whether a credential that several clusters accept is sent only to configured hosts."""
        return self.addresses_are_configured

    @property
    def authorities_file(self) -> Path | None:
        """The file with the CA certificates of clusters whose objects and kubeconfigs contain none."""
        return None

    def follow(self, options: SourceOptions) -> Follows:
        """Return what a source of this kind follows."""
        raise NotImplementedError

    def refusal(self, issuer: IssuerTraits) -> str:
        """Return why an issuer must not serve the clusters; empty if it may."""
        if issuer.type == "kubeconfig-file":
            return (
                "an issuer of type kubeconfig-file serves only sources that read kubeconfig files, such as those of "
                "kind kubeconfig-directory"
            )
        if issuer.type == "kubeconfig-request":
            return "an issuer of type kubeconfig-request serves only sources of kind declarative"
        if not self.has_fixed_hosts and not issuer.is_of_cluster:
            return SENT_WHERE_OBJECTS_SAY
        return ""


KINDS = Registry[SourceKind](
    "milo_discoveryd.sources",
    {
        "project": "milo_discoveryd.sources.project:ProjectKind",
        "project-control-plane": "milo_discoveryd.sources.project_control_plane:ProjectControlPlaneKind",
        "service-consumer": "milo_discoveryd.sources.service_consumer:ServiceConsumerKind",
        "declarative": "milo_discoveryd.sources.declarative:DeclarativeKind",
        "kubeconfig-directory": "milo_discoveryd.sources.kubeconfig_files:KubeconfigDirectoryKind",
        "kind": "milo_discoveryd.sources.kubeconfig_files:KindKind",
        "single": "milo_discoveryd.sources.single:SingleKind",
    },
)
