"""Resources of Kubernetes APIs, and the keys of their objects."""

import msgspec

from milo_kube.api_request import is_segment

_LONGEST_NAME = 253
"""The longest name in Kubernetes, so that a name cannot make a request arbitrarily large."""


class Resource(msgspec.Struct, frozen=True):
    """A resource of an API server, and the selectors of its watched objects."""

    group: str
    """API group; empty for the core group."""
    version: str
    plural: str
    namespaced: bool = False
    namespace: str = ""
    """The only namespace to watch; empty for all namespaces."""
    label_selector: str = ""
    field_selector: str = ""

    @property
    def path(self) -> str:
        """Path of the watched collection."""
        return f"{self._root}{self._namespace(self.namespace)}/{self.plural}"

    @property
    def query(self) -> list[tuple[str, str]]:
        """Parameters of requests for the collection."""
        selectors = (("labelSelector", self.label_selector), ("fieldSelector", self.field_selector))
        return [(name, selector) for name, selector in selectors if selector]

    def object_path(self, namespace: str, name: str) -> str:
        return f"{self._root}{self._namespace(namespace)}/{self.plural}/{name}"

    @property
    def _root(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def _namespace(self, namespace: str) -> str:
        return f"/namespaces/{namespace}" if self.namespaced and namespace else ""


class ObjectKeys(msgspec.Struct, frozen=True):
    """The keys under which the objects of one resource are tracked: `NAME` or `NAMESPACE/NAME`, with a prefix."""

    namespaced: bool = False
    prefix: str = ""

    def key(self, namespace: str, name: str) -> str:
        """Return the key of an object; empty if the object has no name."""
        if not name:
            return ""
        return f"{self.prefix}{namespace}/{name}" if self.namespaced else f"{self.prefix}{name}"

    def split(self, key: str) -> tuple[str, str]:
        """Return the namespace and the name of a key."""
        if self.namespaced:
            namespace, _, name = key.removeprefix(self.prefix).partition("/")
            return namespace, name
        return "", key.removeprefix(self.prefix)

    def can_be_read(self, key: str) -> bool:
        """Return whether the object's namespace and name are safe in a URL path. No kind engages an object with an
        unsafe name."""
        namespace, name = self.split(key)
        return _is_segment(name) and (not self.namespaced or _is_segment(namespace))


NAMES = ObjectKeys()


class WatchedCollection(msgspec.Struct, frozen=True):
    """The watched objects of one resource, and how their keys are formed."""

    resource: Resource
    keys: ObjectKeys = NAMES

    @property
    def path(self) -> str:
        return self.resource.path

    @property
    def query(self) -> list[tuple[str, str]]:
        return self.resource.query

    def query_for(self, name: str) -> list[tuple[str, str]]:
        """Return the query that lists one object, provided that the field selector matches it."""
        return [("fieldSelector", f"metadata.name={name},{self.resource.field_selector}")]


def _is_segment(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and is_segment(name)
