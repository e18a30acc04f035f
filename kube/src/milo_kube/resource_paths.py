"""Resources by group, version and plural, and the paths under which an API server serves them. Pure."""

from __future__ import annotations

import re

from milo_kube.api_request import segment

_FORM = re.compile(r"(?:(?P<group>[a-z0-9.-]+)/)?(?P<version>v[a-z0-9]+)/(?P<plural>[a-z0-9.-]+)")


class ResourcePaths:
    """The paths of a resource: of `example.com/v1/widgets`, or of `v1/configmaps` in the core group."""

    def __init__(self, resource: object) -> None:
        """Raise ValueError for anything else than the name of a resource."""
        match = _FORM.fullmatch(resource) if isinstance(resource, str) else None
        if match is None:
            raise not_a_resource(resource)
        self.resource: str = match[0]
        self.group: str = match["group"] or ""
        self.version: str = match["version"]
        self.plural: str = match["plural"]

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def collection(self, namespace: str = "") -> str:
        """Return the path of the collection, in one namespace or in all."""
        root = f"/apis/{self.group}" if self.group else "/api"
        within = f"/namespaces/{segment(namespace)}" if namespace else ""
        return f"{root}/{self.version}{within}/{self.plural}"

    def path(self, name: str, namespace: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of a subresource of it."""
        return f"{self.collection(namespace)}/{segment(name)}{f'/{subresource}' if subresource else ''}"


def not_a_resource(given: object) -> ValueError:
    form = "write GROUP/VERSION/PLURAL, or VERSION/PLURAL for the core group"
    return ValueError(f"{given!r} does not name a resource: {form}")
