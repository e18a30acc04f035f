"""Subjects of the messages in the stream, of clusters, scopes and objects. Pure.

- `milo.clusters.SOURCE.CLUSTER`: a cluster
- `milo.objects.SOURCE.CLUSTER.GROUP.RESOURCE.state`: a scope, which is one kind in one cluster
- `milo.objects.SOURCE.CLUSTER.GROUP.RESOURCE.NAMESPACE.NAME`: an object
- `milo.publisher`: that a publisher runs

Each part is one token, so that a filter can name any of them, and one filter reads a kind, a cluster, or both: a NATS
server can restrict a consumer by its filter only if it has a single one.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

PUBLISHER: Final = "milo.publisher"
STREAM_SUBJECTS: Final = ("milo.clusters.>", "milo.objects.>", PUBLISHER)
CLUSTERS: Final = STREAM_SUBJECTS[0]
LONGEST_SUBJECT: Final = 2048
"""A server closes the connection of a client that sends a protocol line of more than 4,096 bytes."""
_NONE: Final = "_"
"""The token of an empty source or namespace. One that has this name, as of a hostile API server, is encoded."""
_CORE: Final = "core"
"""The token of the core group: other groups are built in, or have a dot."""


class ClusterSubject(NamedTuple):
    """A cluster, by its key: NAME, or SOURCE#NAME."""

    cluster: str

    def __str__(self) -> str:
        return f"milo.clusters.{_cluster(self.cluster)}"

    @property
    def contents(self) -> str:
        """The filter for the scopes and objects of the cluster."""
        return f"milo.objects.{_cluster(self.cluster)}.>"


class ScopeSubject(NamedTuple):
    """One kind in one cluster: its state."""

    cluster: str
    group: str
    resource: str

    def __str__(self) -> str:
        return f"{self._prefix}.state"

    @property
    def objects(self) -> str:
        """The filter for the objects of the scope, without its state."""
        return f"{self._prefix}.*.*"

    @property
    def _prefix(self) -> str:
        return f"milo.objects.{_cluster(self.cluster)}.{_group(self.group)}.{self.resource}"


class ObjectSubject(NamedTuple):
    """An object. The namespace is empty if it is cluster-scoped."""

    scope: ScopeSubject
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope._prefix}.{_optional(self.namespace)}.{_token(self.name)}"


Subject: TypeAlias = ClusterSubject | ScopeSubject | ObjectSubject


def source_of(cluster: str) -> str:
    """Return the name of the source of a cluster, from its key; empty if it has no name."""
    return cluster.partition("#")[0] if "#" in cluster else ""


def kind_filter(group: str, resource: str, cluster: str = "") -> str:
    """Return the filter for the scopes and objects of a kind, in one cluster or in all."""
    return f"milo.objects.{_cluster(cluster) if cluster else '*.*'}.{_group(group)}.{resource}.>"


def parse(subject: str) -> Subject:
    """Return what a subject is about. Raises ValueError for other subjects."""
    match subject.split("."):
        case ["milo", "clusters", source, name]:
            return ClusterSubject(_key(source, name))
        case ["milo", "objects", source, name, group, resource, "state"]:
            return ScopeSubject(_key(source, name), _parsed_group(group), resource)
        case ["milo", "objects", source, name, group, resource, namespace, object_name]:
            scope = ScopeSubject(_key(source, name), _parsed_group(group), resource)
            return ObjectSubject(scope, "" if namespace == _NONE else unquote(namespace), unquote(object_name))
    raise ValueError(f"{subject!r} is the subject of no cluster, scope or object")


def _cluster(key: str) -> str:
    source, separator, name = key.partition("#")
    return f"{_optional(source)}.{_token(name)}" if separator else f"{_NONE}.{_token(key)}"


def _key(source: str, name: str) -> str:
    return unquote(name) if source == _NONE else f"{unquote(source)}#{unquote(name)}"


def _group(group: str) -> str:
    return group.replace(".", "_") or _CORE


def _parsed_group(token: str) -> str:
    return "" if token == _CORE else token.replace("_", ".")


def _optional(text: str) -> str:
    return "%5F" if text == _NONE else _token(text) or _NONE


def _token(text: str) -> str:
    """Encode as in a URL, dots too, which Kubernetes' names may have anywhere. `unquote` decodes it."""
    return quote(text, safe=":").replace(".", "%2E")
