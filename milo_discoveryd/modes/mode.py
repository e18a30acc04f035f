"""What a mode is."""

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, runtime_checkable

import msgspec

from milo_discoveryd.model.cluster import Pairs, Target
from milo_discoveryd.model.observation import Observation

GROUP = "milo_discoveryd.modes"


class Resource(msgspec.Struct, frozen=True):
    group: str
    version: str
    plural: str

    @property
    def path(self) -> str:
        """Of the collection; all resources that modes watch are cluster-scoped."""
        return f"/apis/{self.group}/{self.version}/{self.plural}"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a mode may depend on, besides the object it looks at."""

    project_endpoint: str
    """Scheme, host and port of the project API server: `https://api.example.com`."""
    internal_address_template: str = "milo-apiserver.project-{name}.svc.cluster.local:6443"
    internal_namespace_template: str = "project-{name}"
    annotation_prefixes: tuple[str, ...] = ()
    """Annotations that are passed on to subscribers."""
    clusters: tuple[Target, ...] = ()
    """For a mode that watches nothing."""


@runtime_checkable
class WatchedMode(Protocol):
    """Follows a resource of an API server."""

    resource: ClassVar[Resource]
    object_type: ClassVar[Any]
    """A `KubeObject`, or a type derived from it."""

    def __init__(self, setting: Setting) -> None: ...

    def observe(self, obj: Any) -> Observation: ...


@runtime_checkable
class FixedMode(Protocol):
    """Knows its clusters from the start."""

    def __init__(self, setting: Setting) -> None: ...

    def targets(self) -> Iterable[Target]: ...


def names() -> list[str]:
    return sorted(entry.name for entry in entry_points(group=GROUP))


def load(name: str) -> type[WatchedMode] | type[FixedMode]:
    """The mode of that name. Raises LookupError with the names there are."""
    for entry in entry_points(group=GROUP, name=name):
        mode: type[WatchedMode] | type[FixedMode] = entry.load()
        return mode
    raise LookupError(f"there is no mode {name!r}; installed are {', '.join(names())}")


def passed_on(annotations: dict[str, str] | None, prefixes: tuple[str, ...]) -> Pairs:
    if not prefixes or not annotations:
        return ()
    return tuple(sorted((key, value) for key, value in annotations.items() if key.startswith(prefixes)))
