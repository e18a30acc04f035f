"""A project's control plane in the sandbox, for use in tests."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, overload
from urllib.parse import urlencode

from milo_discovery.kubeconfig_access import KubeconfigAccess, render_kubeconfig
from milo_discovery.testing.http import KindNotServedError, ObjectNotFoundError, RefusedError, SandboxHttp

__all__ = ["ControlPlane", "KindNotServedError", "ObjectNotFoundError", "RefusedError"]

_APPLY = "application/apply-patch+yaml"
_FIELD_MANAGER = "test"


class ControlPlane:
    """A project's control plane, to read and write objects of any kind. Each call is a blocking request.

    Resources are named as in `Controllers`: "v1/configmaps", "example.com/v1/widgets".
    """

    def __init__(self, http: SandboxHttp, project: str, path: str) -> None:
        self.project = project
        self._http = http
        self._path = path

    def __repr__(self) -> str:
        return f"<ControlPlane {self.project!r}>"

    def install(self, *manifests: Path | str | Mapping[str, Any]) -> list[dict[str, Any]]:
        """Apply manifests: objects, or YAML files of objects, such as a CustomResourceDefinition."""
        return [self.apply(document) for manifest in manifests for document in _documents(manifest)]

    @overload
    def apply(self, kind: str, body: Mapping[str, Any], /, *, namespace: str = "default") -> dict[str, Any]: ...
    @overload
    def apply(self, manifest: Mapping[str, Any], /, *, namespace: str = "default") -> dict[str, Any]: ...
    def apply(self, *what: Any, namespace: str = "default") -> dict[str, Any]:
        """Apply an object by server-side apply, with force: it takes over fields of other managers."""
        resource, manifest = self._named(*what)
        path = self._object_path(resource, manifest["metadata"]["name"], _namespace_of(manifest, namespace))
        query = urlencode({"fieldManager": _FIELD_MANAGER, "force": "true"})
        return self._document("PATCH", f"{path}?{query}", manifest, content_type=_APPLY)

    @overload
    def create(self, kind: str, body: Mapping[str, Any], /, *, namespace: str = "default") -> dict[str, Any]: ...
    @overload
    def create(self, manifest: Mapping[str, Any], /, *, namespace: str = "default") -> dict[str, Any]: ...
    def create(self, *what: Any, namespace: str = "default") -> dict[str, Any]:
        """Create an object from its kind and body, like `Request.create`, or only from its manifest."""
        resource, manifest = self._named(*what)
        return self._document("POST", self._collection(resource, _namespace_of(manifest, namespace)), manifest)

    def get(self, resource: str, name: str, *, namespace: str = "default") -> dict[str, Any]:
        """Return an object. Raises ObjectNotFoundError."""
        return self._document("GET", self._object_path(resource, name, namespace))

    def find(self, resource: str, name: str, *, namespace: str = "default") -> dict[str, Any] | None:
        """Return an object, or None if it does not exist."""
        try:
            return self.get(resource, name, namespace=namespace)
        except KindNotServedError:
            raise
        except ObjectNotFoundError:
            return None

    def list(self, resource: str, *, namespace: str = "", label_selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a resource, in all namespaces unless one is given."""
        query = f"?{urlencode({'labelSelector': label_selector})}" if label_selector else ""
        items: list[dict[str, Any]] = self._document("GET", self._collection(resource, namespace) + query)["items"]
        return items

    def patch(
        self, resource: str, name: str, patch: Mapping[str, Any], *, namespace: str = "default", subresource: str = ""
    ) -> dict[str, Any]:
        """Apply a JSON merge patch: None removes a field."""
        path = self._object_path(resource, name, namespace)
        return self._document("PATCH", f"{path}/{subresource}" if subresource else path, patch)

    def delete(self, resource: str, name: str, *, namespace: str = "default") -> None:
        """Delete an object. It stays until its finalizers are removed. Raises ObjectNotFoundError."""
        self._document("DELETE", self._object_path(resource, name, namespace))

    def access(self) -> KubeconfigAccess:
        """Return the control plane's address with a current credential."""
        server, authority, token = self._http.access()
        return KubeconfigAccess(server=server + self._path, authorities=authority, token=token)

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig with a current token. kubectl can use it too."""
        path.write_text(json.dumps(render_kubeconfig(self.project, self.access())))
        return path

    def _document(self, method: str, path: str, body: Any = None, *, content_type: str = "") -> dict[str, Any]:
        document: dict[str, Any] = self._http.request(method, path, body, content_type=content_type)
        return document

    def _named(self, first: Any, body: Mapping[str, Any] | None = None) -> tuple[str, Mapping[str, Any]]:
        if body is None:
            return self._resource_of(first), first
        return first, {"apiVersion": first.rpartition("/")[0], **body}

    def _resource_of(self, manifest: Mapping[str, Any]) -> str:
        version, kind = manifest["apiVersion"], manifest["kind"]
        served = self._served(version)
        plural = next((entry["name"] for entry in served if entry["kind"] == kind and "/" not in entry["name"]), None)
        if plural is None:
            raise self._not_served(f"{kind} of {version}", served)
        return f"{version}/{plural}"

    def _collection(self, resource: str, namespace: str) -> str:
        if resource.count("/") not in (1, 2):
            raise ValueError(
                f"{resource!r} does not name a resource: write GROUP/VERSION/PLURAL, or VERSION/PLURAL for the core "
                "group"
            )
        version, _, plural = resource.rpartition("/")
        # Called even if no namespace is given, since it raises if the kind is not served.
        is_namespaced = self._is_namespaced(version, plural)
        inside = f"/namespaces/{namespace}" if is_namespaced and namespace else ""
        return f"{self._path}{_version_path(version)}{inside}/{plural}"

    def _object_path(self, resource: str, name: str, namespace: str) -> str:
        return f"{self._collection(resource, namespace)}/{name}"

    def _is_namespaced(self, version: str, plural: str) -> bool:
        served = self._served(version)
        found = next((entry for entry in served if entry["name"] == plural), None)
        if found is None:
            raise self._not_served(f"{version}/{plural}", served)
        return bool(found["namespaced"])

    def require_served(self, resource: str) -> None:
        """Raise KindNotServedError unless the control plane serves the kind."""
        self._collection(resource, "default")

    def _served(self, version: str) -> builtins.list[dict[str, Any]]:
        try:
            served: list[dict[str, Any]] = self._document("GET", self._path + _version_path(version))["resources"]
        except ObjectNotFoundError:
            return []
        return served

    def _not_served(self, kind: str, others: builtins.list[dict[str, Any]]) -> KindNotServedError:
        names = ", ".join(other["name"] for other in others if "/" not in other["name"]) or "nothing"
        message = (
            f"{self.project} does not serve {kind}: install its CustomResourceDefinition, or correct its group, "
            f"version or plural (this version serves {names})"
        )
        return KindNotServedError("discovery", 404, {"message": message})


def _version_path(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _namespace_of(manifest: Mapping[str, Any], namespace: str) -> str:
    return str(manifest["metadata"].get("namespace") or namespace)


def _documents(manifest: Path | str | Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if isinstance(manifest, Mapping):
        yield manifest
        return
    import yaml  # noqa: PLC0415  (a dependency of milo-discoveryd)

    yield from filter(None, yaml.safe_load_all(Path(manifest).read_text()))
