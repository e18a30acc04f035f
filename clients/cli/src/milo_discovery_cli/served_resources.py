"""The resources that an API server serves, by its discovery documents, and the names that users give them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from milo_kube.api_request import is_segment


class ServedResource(msgspec.Struct, frozen=True, kw_only=True):
    """A resource of an API server."""

    plural: str
    version: str
    kind: str
    group: str = ""
    singular: str = ""
    is_namespaced: bool = False
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """The plural and the group, as in `deployments.apps`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def object_prefix(self) -> str:
        """What precedes the name of an object, as in `deployment.apps/web`."""
        kind = self.kind.lower()
        return f"{kind}.{self.group}/" if self.group else f"{kind}/"

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the path of the collection, in one namespace or in all, or of an object."""
        root = f"/apis/{self.group}" if self.group else "/api"
        within = f"/namespaces/{namespace}" if namespace and self.is_namespaced else ""
        return f"{root}/{self.version}{within}/{self.plural}{f'/{name}' if name else ''}"

    def is_called(self, name: str) -> bool:
        return name in {self.plural, self.singular.lower() or self.kind.lower(), self.kind.lower()}


class Version(msgspec.Struct, frozen=True):
    """A version of an API group, without its resources."""

    group: str
    version: str

    @property
    def path(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


def matching(wanted: str, served: Sequence[ServedResource]) -> tuple[ServedResource, ...]:
    """Return the resource that a user names, or the resources of a category; none if it is not served.

    `wanted`: a plural, singular, kind or short name, as in `deploy`, `deploy.apps` or `deployments.v1.apps`. `served`
    is in the order of preference: core group first, and the preferred version of a group before its others.
    """
    for name, version, group in _readings(wanted):
        fits = [
            resource
            for resource in served
            if version in (None, resource.version) and (group is None or resource.group == group)
        ]
        by_name = (resource for resource in fits if resource.is_called(name))
        by_short_name = (resource for resource in fits if name in resource.short_names)
        found = next(by_name, None) or next(by_short_name, None)
        if found is not None:
            return (found,)
    members: dict[str, ServedResource] = {}
    for resource in served:
        if wanted.lower() in resource.categories:
            members.setdefault(resource.full_name, resource)
    return tuple(members.values())


def _readings(wanted: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield what a name can mean: name, version and group."""
    name, _, rest = wanted.partition(".")
    if not rest:
        yield name.lower(), None, None
        return
    version, dot, group = rest.partition(".")
    if dot:
        yield name.lower(), version, group
    yield name.lower(), None, rest


def may_contain(wanted: str, version: Version) -> bool:
    """Return whether the resource that a user names can be in this version of a group."""
    return any(group is None or group == version.group for _, _, group in _readings(wanted))


# --- discovery documents ---


class _ResponseKind(msgspec.Struct):
    kind: str = ""


class _AggregatedResource(msgspec.Struct, rename="camel"):
    resource: str
    response_kind: _ResponseKind | None = None
    scope: str = ""
    singular_resource: str = ""
    verbs: tuple[str, ...] | None = None
    short_names: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None


class _AggregatedVersion(msgspec.Struct):
    version: str
    resources: tuple[_AggregatedResource, ...] | None = None


class _GroupName(msgspec.Struct):
    name: str = ""


class _AggregatedGroup(msgspec.Struct):
    metadata: _GroupName
    versions: tuple[_AggregatedVersion, ...] | None = None


class _AggregatedGroups(msgspec.Struct):
    items: tuple[_AggregatedGroup, ...]


class _GroupVersion(msgspec.Struct):
    version: str


class _Group(msgspec.Struct, rename="camel"):
    name: str
    versions: tuple[_GroupVersion, ...] = ()
    preferred_version: _GroupVersion | None = None


class _Root(msgspec.Struct):
    """The document of /api or /apis: aggregated, or without resources."""

    kind: str
    versions: tuple[str, ...] = ()
    groups: tuple[_Group, ...] = ()


class _ListedResource(msgspec.Struct, rename="camel"):
    name: str
    kind: str = ""
    singular_name: str = ""
    namespaced: bool = False
    verbs: tuple[str, ...] | None = None
    short_names: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None


class _ResourceList(msgspec.Struct):
    resources: tuple[_ListedResource, ...] | None = None


_ROOT = msgspec.json.Decoder(_Root)
_AGGREGATED = msgspec.json.Decoder(_AggregatedGroups)
_RESOURCES = msgspec.json.Decoder(_ResourceList)

_MOST_VERSIONS = 1_000
MOST_RESOURCES = 10_000
"""More than the largest clusters serve. A hostile cluster could name millions."""

AGGREGATED = (
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,"
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
)
"""The Accept header for documents that contain all resources."""


def read_root(body: bytes) -> tuple[list[ServedResource], list[Version]]:
    """Read the document of /api or /apis: return its resources, and the versions whose resources it does not contain.

    Raises ValueError or RecursionError for any other document.
    """
    root = _ROOT.decode(body)
    if root.kind == "APIGroupDiscoveryList":
        return _bounded(_aggregated(_AGGREGATED.decode(body))), []
    versions = [Version("", version) for version in root.versions]
    for group in root.groups:
        first = [] if group.preferred_version is None else [group.preferred_version.version]
        others = [each.version for each in group.versions if each.version not in first]
        versions += [Version(group.name, version) for version in (*first, *others)]
    if len(versions) > _MOST_VERSIONS:
        raise ValueError(f"{len(versions)} versions of groups; at most {_MOST_VERSIONS} are read")
    return [], [each for each in versions if is_segment(each.version) and (not each.group or is_segment(each.group))]


def read_resources(body: bytes, within: Version) -> list[ServedResource]:
    """Read the resources of one version. Raises ValueError or RecursionError for any other document."""
    listed = (
        ServedResource(
            plural=entry.name,
            version=within.version,
            kind=entry.kind,
            group=within.group,
            singular=entry.singular_name,
            is_namespaced=entry.namespaced,
            short_names=entry.short_names or (),
            categories=entry.categories or (),
        )
        for entry in _RESOURCES.decode(body).resources or ()
        if _is_readable(entry.verbs)
    )
    return _bounded(filter(_is_safe, listed))


def _bounded(resources: Iterator[ServedResource]) -> list[ServedResource]:
    found = [*islice(resources, MOST_RESOURCES + 1)]
    if len(found) > MOST_RESOURCES:
        raise ValueError(f"more than {MOST_RESOURCES} resources")
    return found


def _aggregated(groups: _AggregatedGroups) -> Iterator[ServedResource]:
    for group in groups.items:
        for version in group.versions or ():
            for entry in version.resources or ():
                resource = ServedResource(
                    plural=entry.resource,
                    version=version.version,
                    kind=entry.response_kind.kind if entry.response_kind else "",
                    group=group.metadata.name,
                    singular=entry.singular_resource,
                    is_namespaced=entry.scope == "Namespaced",
                    short_names=entry.short_names or (),
                    categories=entry.categories or (),
                )
                if _is_readable(entry.verbs) and _is_safe(resource):
                    yield resource


def _is_readable(verbs: Sequence[str] | None) -> bool:
    return bool({"get", "list"} & {*(verbs or ())})


def _is_safe(resource: ServedResource) -> bool:
    """Return whether the resource has a path. Subresources have none of their own."""
    names = (resource.plural, resource.version, *([resource.group] if resource.group else []))
    return all(map(is_segment, names))
