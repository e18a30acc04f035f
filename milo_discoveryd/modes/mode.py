"""The interfaces of modes, and the lookup of a mode by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import msgspec

from milo_discoveryd.model.claims import Claim, ObjectClaim
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.modes.context import ContextKind, MiloContext

GROUP = "milo_discoveryd.modes"
"""Entry point group of modes from other packages."""
_OWN = {
    "project": ("milo_discoveryd.modes.project", "ProjectMode"),
    "project-control-plane": ("milo_discoveryd.modes.project_control_plane", "ProjectControlPlaneMode"),
    "service-consumer": ("milo_discoveryd.modes.service_consumer", "ServiceConsumerMode"),
    "single": ("milo_discoveryd.modes.single", "SingleMode"),
    "declarative": ("milo_discoveryd.modes.declarative", "DeclarativeMode"),
    "kubeconfig-directory": ("milo_discoveryd.modes.kubeconfig_files", "KubeconfigDirectoryMode"),
    "kind": ("milo_discoveryd.modes.kubeconfig_files", "KindMode"),
}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that a mode may depend on."""

    project_endpoint: str
    """Scheme, host and port of the project API server: `https://api.example.com`."""
    context: MiloContext = MiloContext()
    """The context of Milo that the discovery kubeconfig leads to."""
    internal_address_template: str = "milo-apiserver.project-{name}.svc.cluster.local:6443"
    internal_namespace_template: str = "project-{name}"
    annotation_prefixes: tuple[str, ...] = ()
    """Prefixes of the annotations that are sent to subscribers."""
    clusters: tuple[Target, ...] = ()
    """The clusters of a `FixedMode`."""
    definition: Any = None
    """The `Definition` that mode `declarative` reads."""
    settings: Any = None
    """The settings of the kind: an instance of its `settings_type`, if it has one."""


@runtime_checkable
class WatchedMode(Protocol):
    """A mode in which each object of a cluster-scoped resource stands for the cluster of its name."""

    @property
    def resource(self) -> Resource: ...

    @property
    def object_type(self) -> Any:
        """`KubeObject`, or a type derived from it."""

    def __init__(self, setting: Setting) -> None: ...

    def observe(self, obj: Any) -> Observation: ...

    def place_of(self, name: str, project_uid: str) -> tuple[str, ...]:
        """Return `Target.place` of a cluster. Raises MalformedError for a name that is unsafe in a URL."""


class Watch(msgspec.Struct, frozen=True):
    """A resource that a `ReducedMode` watches, and the claims of its objects."""

    resource: Resource
    object_type: Any
    """`KubeObject`, or a type derived from it."""
    claims: Callable[[Any], Iterable[Claim]]
    """Returns the claims that an object makes on clusters, which may be none. Raises MalformedError for an object that
    cannot be used: its previous claims remain valid."""


class ReferencedWatch(msgspec.Struct, frozen=True):
    """A resource whose objects do not stand for clusters, but which claims refer to (`Claim.needs`)."""

    resource: Resource
    object_type: Any
    """See `Watch.object_type`."""
    content: Callable[[Any], Any]
    """Returns the content of an object for the claims that need it, or None if the object has no such content. Equal
    contents mean that nothing changed. Raises MalformedError for an object that cannot be used: its previous content
    remains valid."""


@runtime_checkable
class ReducedMode(Protocol):
    """A mode that watches several resources, or namespaced ones, or whose objects are not named as their clusters.

    Several objects may stand for one cluster: `reduce` decides what they mean together.
    """

    @property
    def watches(self) -> Sequence[Watch | ReferencedWatch]: ...

    def __init__(self, setting: Setting) -> None: ...

    def reduce(self, cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
        """Return the observation of a cluster from all its objects, or None if it is to be reported as deleted.

        `claims` are the claims of all objects that name the cluster, the earliest first; empty after the confirmed
        deletion of the last of them. They are followed by the contents of the existing objects that they need; `watch`
        and `object` distinguish them. `uid` is the UID of the current engagement if at least one of its objects
        remains, and otherwise empty. An observation with another UID replaces the cluster.
        """

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        """Return `Target.place` of a cluster from the state file, whose content is not trusted.

        Raises MalformedError for a cluster that must not be served before the source reports it again.
        """


class FileObject(msgspec.Struct, frozen=True):
    """The content of a file, or of a part of it that stands for a cluster."""

    key: str
    """Unique in the source."""
    uid: str = ""
    """UID of the cluster: another UID under the same key means another cluster."""
    claims: tuple[Claim, ...] = ()
    """The object's claims on clusters, as in `Watch.claims`."""
    problem: str = ""
    """Why the object cannot be used; its previous claims remain valid. Empty if it can."""


@runtime_checkable
class FileMode(Protocol):
    """A mode whose objects are in files of this machine, which the daemon follows instead of an API server."""

    @property
    def path(self) -> str:
        """The directory or the file; `~` is the home directory of the daemon's user."""

    @property
    def is_directory(self) -> bool: ...

    def __init__(self, setting: Setting) -> None: ...

    def read_file(self, file: str, content: bytes) -> Iterable[FileObject]:
        """Return the clusters that a file describes. Raises MalformedError if it is the only one and describes none."""

    def context_of(self, key: str) -> tuple[str, str]:
        """Return the name of an object's file in the directory, and the name of its context. An empty file name means
        the only file; an empty context means the current one."""

    def reduce(self, cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
        """See `ReducedMode.reduce`."""

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        """See `ReducedMode.restored_place`."""


@runtime_checkable
class FixedMode(Protocol):
    """A mode with a fixed set of clusters."""

    def __init__(self, setting: Setting) -> None: ...

    def targets(self) -> Iterable[Target]: ...


Mode = WatchedMode | ReducedMode | FileMode | FixedMode
ModeType = type[WatchedMode] | type[ReducedMode] | type[FileMode] | type[FixedMode]


def names() -> list[str]:
    return sorted({*_OWN, *(entry.name for entry in _others())})


def is_installed(name: str) -> bool:
    return name in _OWN or any(entry.name == name for entry in _others())


def load(name: str) -> ModeType:
    """Import the mode of this name. Raises LookupError, which lists the installed modes."""
    mode: ModeType
    if name in _OWN:
        module, attribute = _OWN[name]
        mode = getattr(import_module(module), attribute)
        return mode
    for entry in _others():
        if entry.name == name:
            mode = entry.load()
            return mode
    raise LookupError(f"there is no mode {name!r}; installed are {', '.join(names())}")


def reads_files(name: str) -> bool:
    """Return whether a mode's clusters are in files of this machine."""
    return hasattr(load(name), "read_file")


def is_fixed(name: str) -> bool:
    """Return whether a mode knows its clusters from the start, and watches nothing."""
    return hasattr(load(name), "targets")


def contexts(name: str) -> tuple[ContextKind, ...]:
    """Return the contexts of Milo in which a mode can work; empty for a mode that does not depend on them."""
    found: tuple[ContextKind, ...] = getattr(load(name), "contexts", ())
    return found


def has_own_authorities(name: str) -> bool:
    """Return whether each cluster of a mode has its own CA, instead of the CA of the project kubeconfig."""
    return bool(getattr(load(name), "has_own_authorities", False))


def settings_type(name: str) -> type[msgspec.Struct] | None:
    """Return the type of a kind's own settings: the attribute `settings_type` of its class, if it has one."""
    found: type[msgspec.Struct] | None = getattr(load(name), "settings_type", None)
    return found


def parse_settings(kind: type[msgspec.Struct], given: Mapping[str, object]) -> msgspec.Struct:
    """Return the settings of a kind. Raises ValueError, which names the setting."""
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`$.", "`")) from None


def _others() -> Iterable[Any]:
    # Imported here: reading the metadata of all installed packages is slow, and built-in modes do not need it.
    from importlib.metadata import entry_points  # noqa: PLC0415

    return entry_points(group=GROUP)
