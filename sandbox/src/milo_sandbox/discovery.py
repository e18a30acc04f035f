"""Discovery documents for kubectl and client libraries."""

from collections.abc import Sequence

import msgspec

from milo_sandbox import refusals
from milo_sandbox.resources import Document, ResourceDefinition

VERSION = {
    "major": "1",
    "minor": "35",
    "gitVersion": "v1.35.0+milo-sandbox",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "",
}


class ReviewKind(msgspec.Struct, frozen=True, kw_only=True):
    """A review resource: its creation returns the result, and nothing is stored."""

    group: str
    plural: str
    kind: str
    version: str = "v1"


REVIEWS = (
    ReviewKind(group="authorization.k8s.io", plural="selfsubjectaccessreviews", kind="SelfSubjectAccessReview"),
    ReviewKind(group="authorization.k8s.io", plural="selfsubjectrulesreviews", kind="SelfSubjectRulesReview"),
    ReviewKind(group="authentication.k8s.io", plural="selfsubjectreviews", kind="SelfSubjectReview"),
    ReviewKind(group="authentication.k8s.io", plural="tokenreviews", kind="TokenReview"),
)

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_STATUS_VERBS = ["get", "patch", "update"]


def document(segments: Sequence[str], resources: Sequence[ResourceDefinition]) -> Document:
    """Return the document of /api, /apis or a path below. Raises PlainError for another path."""
    groups = _groups(resources)
    match segments:
        case ("api",):
            # Without core resources there is no core version; clients accept the empty list.
            versions = sorted({resource.version for resource in resources if not resource.group})
            return {"kind": "APIVersions", "apiVersion": "v1", "versions": versions}
        case ("api", version) if any(not resource.group and resource.version == version for resource in resources):
            return _resource_list(version, [resource for resource in resources if not resource.group])
        case ("apis",):
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*item) for item in groups.items()]}
        case ("apis", group) if group in groups:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, groups[group])}
        case ("apis", group, version) if version in groups.get(group, ()):
            served = [resource for resource in resources if (resource.group, resource.version) == (group, version)]
            return _resource_list(f"{group}/{version}", served)
    raise refusals.no_such_path()


def _groups(resources: Sequence[ResourceDefinition]) -> dict[str, list[str]]:
    """Return each group with its versions."""
    groups: dict[str, list[str]] = {}
    group_versions = [(resource.group, resource.version) for resource in resources if resource.group]
    group_versions += [(review.group, review.version) for review in REVIEWS]
    for group, version in group_versions:
        if version not in groups.setdefault(group, []):
            groups[group].append(version)
    return groups


def _group(name: str, versions: list[str]) -> Document:
    served = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": served, "preferredVersion": served[0]}


def _resource_list(group_version: str, resources: Sequence[ResourceDefinition]) -> Document:
    entries: list[Document] = []
    for resource in resources:
        entry = {
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
        }
        shorts = {"shortNames": list(resource.short_names)} if resource.short_names else {}
        entries.append({**entry, "verbs": _VERBS, **shorts})
        if resource.has_status:
            status = {"name": f"{resource.plural}/status", "singularName": "", "verbs": _STATUS_VERBS}
            entries.append(entry | status)
    entries += [
        {"name": review.plural, "singularName": "", "namespaced": False, "kind": review.kind, "verbs": ["create"]}
        for review in REVIEWS
        if f"{review.group}/{review.version}" == group_version
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}
