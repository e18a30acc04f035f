"""Objects that represent engaged clusters, and their comparison with the objects in the API server. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import Any

import msgspec

from milo_discovery.model import Cluster
from milo_discovery.removals import difference
from milo_publishing.errors import TargetUnavailable

Document = dict[str, Any]

MANAGER = "milo-discovery"
"""The field manager, and the label value that identifies the objects of this command."""
MANAGED_BY = "app.kubernetes.io/managed-by"
_DOMAIN = "discovery.miloapis.com"
PUBLICATION = f"{_DOMAIN}/publication"
PUBLISHER = f"{_DOMAIN}/publisher"
CLUSTER = f"{_DOMAIN}/cluster"
CLUSTER_UID = f"{_DOMAIN}/cluster-uid"
INCARNATION = f"{_DOMAIN}/incarnation"
"""Annotation, in a shard group, with the engagement that the object stands for. Its owner writes it when it engages the
cluster, so that a deletion which another replica decided before fails by its precondition."""
GROUP = f"{_DOMAIN}/group"
FILTER = f"{_DOMAIN}/filter"
FIELDS = f"{_DOMAIN}/fields"
"""Annotation with a digest of the names of all written fields. The digest changes when a field is no longer written."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MAX_NAME_LENGTH = 253
_LIST_KEYS = ("name", "type")


class PublishedResource(msgspec.Struct, frozen=True, kw_only=True):
    """A namespaced resource of the API."""

    api_version: str
    plural: str
    kind: str

    def path(self, namespace: str) -> str:
        """Return the path of the collection."""
        root = "/apis" if "/" in self.api_version else "/api"
        return f"{root}/{self.api_version}/namespaces/{namespace}/{self.plural}"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The objects that a publisher owns: those with its labels. The replicas of a shard group own them together."""

    publication: str
    """The kind of published objects, such as "cluster-profiles"."""
    publisher: str
    """The name of the publisher, which deletes only its own objects."""
    group: str = ""
    """The shard group of the daemon; empty without one."""
    filter: str = ""
    """The options that select the published clusters; empty for all."""

    def labels(self) -> dict[str, str]:
        return {MANAGED_BY: MANAGER, PUBLICATION: self.publication, PUBLISHER: self.publisher}

    def selector(self) -> str:
        """Return the label selector of the publisher's objects."""
        return ",".join(f"{key}={value}" for key, value in self.labels().items())


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """The desired content of the object that is published for one cluster."""

    body: Document
    """The top-level fields besides metadata and status, such as `spec` or `data`."""
    required: Document
    """The part of `body` without which the API server does not create the object."""
    labels: Mapping[str, str]
    status: Document | None = None


class Owner(Enum):
    """The owner of an object, as seen by a publisher."""

    SELF = auto()
    OTHER_PUBLISHER = auto()
    """Another publisher of the same publication."""
    FOREIGN = auto()


class _RecordMetadata(msgspec.Struct, rename="camel"):
    """The fields of an object's metadata that are used."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    finalizers: list[str] | None = None
    deletion_timestamp: str | None = None


_PREPARED = msgspec.json.Decoder(_RecordMetadata)
"""Built at import, since the first use of a type by two threads at once crashes msgspec."""


class ObservedObject(msgspec.Struct, frozen=True):
    """An object as the API server returned it."""

    document: Document
    name: str
    uid: str
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @classmethod
    def of(cls, document: Document) -> ObservedObject:
        """Wrap a document without managedFields, which are not compared, and use more memory than all other fields.

        Raises TargetUnavailable if it is not an object.
        """
        try:
            found = msgspec.convert(document.get("metadata"), _RecordMetadata)
        except msgspec.ValidationError as error:
            raise TargetUnavailable(f"the API server answered without an object's metadata: {error}") from None
        if not (found.name and found.uid and found.resource_version):
            raise TargetUnavailable("the API server answered without an object's name, UID and resource version")
        document["metadata"].pop("managedFields", None)
        labels, annotations = found.labels or {}, found.annotations or {}
        return cls(document, found.name, found.uid, found.resource_version, labels, annotations)

    @property
    def cluster(self) -> str:
        return self.annotations.get(CLUSTER, "")

    @property
    def cluster_uid(self) -> str:
        return self.annotations.get(CLUSTER_UID, "")

    @property
    def incarnation(self) -> str:
        return self.annotations.get(INCARNATION, "")

    @property
    def publisher(self) -> str:
        return self.labels.get(PUBLISHER, "")

    @property
    def finalizers(self) -> tuple[str, ...] | None:
        """What the object waits for since its deletion was requested; None if that was not requested."""
        metadata = self.document["metadata"]
        return tuple(metadata.get("finalizers") or ()) if metadata.get("deletionTimestamp") else None

    def owner(self, identity: Identity) -> Owner:
        if self.labels.get(MANAGED_BY) != MANAGER or self.labels.get(PUBLICATION) != identity.publication:
            return Owner.FOREIGN
        return Owner.SELF if self.publisher == identity.publisher else Owner.OTHER_PUBLISHER

    def difference(self, identity: Identity) -> str:
        """Return how the object's shard group or filter differs from the publisher's; empty if they are the same."""
        recorded = self.annotations.get(GROUP), self.annotations.get(FILTER)
        return difference(recorded, (identity.group, identity.filter))


def object_name(cluster: str, suffix: str = "") -> str:
    """Return the name of a cluster's object, which is not valid for each cluster.

    The key of a cluster of a named source is SOURCE#NAME, and "#" is not allowed in names.
    """
    return cluster.replace("#", ".") + suffix


def is_valid_name(name: str) -> bool:
    return len(name) <= _MAX_NAME_LENGTH and _NAME.fullmatch(name) is not None


def copied_labels(cluster: Cluster, patterns: Iterable[str]) -> dict[str, str]:
    """Return the cluster's labels that match the patterns: a key, or all keys of a prefix as PREFIX/*."""
    exact = {pattern for pattern in patterns if not pattern.endswith("/*")}
    prefixes = tuple(pattern.removesuffix("*") for pattern in patterns if pattern.endswith("/*"))
    return {key: value for key, value in cluster.labels.items() if key in exact or key.startswith(prefixes)}


def claim(resource: PublishedResource, identity: Identity, name: str, cluster: Cluster, content: Rendered) -> Document:
    """Return the object to create, with only the publisher's labels and annotations, and the required fields."""
    metadata = {"name": name, "labels": identity.labels(), "annotations": _annotations(identity, cluster)}
    return {**_type(resource), "metadata": metadata, **content.required}


def applied(
    resource: PublishedResource, identity: Identity, name: str, cluster: Cluster, content: Rendered
) -> Document:
    """Return the object to apply, without its status."""
    fields = "\n".join(sorted(_field_paths([content.body, dict(content.labels), content.status])))
    digest = hashlib.sha256(fields.encode()).hexdigest()[:16]
    metadata = {
        "name": name,
        "labels": {**content.labels, **identity.labels()},
        "annotations": {**_annotations(identity, cluster), FIELDS: digest},
    }
    return {**_type(resource), "metadata": metadata, **content.body}


def changes(
    resource: PublishedResource,
    identity: Identity,
    cluster: Cluster,
    content: Rendered,
    observed: ObservedObject,
    *,
    must_write: bool,
) -> tuple[Document | None, Document | None]:
    """Return what must be applied to the observed object: itself and its status, each None if it needs no change.

    `must_write`: whether the object is written even so, to get another version. Then it is written once more.
    """
    body, status = applied(resource, identity, observed.name, cluster, content), None
    has_other_fields = observed.annotations.get(FIELDS) != body["metadata"]["annotations"][FIELDS]
    if not identity.group and observed.incarnation:
        # That of a shard group stays if it is only left out: the creation of the object has written it, too.
        body["metadata"]["annotations"][INCARNATION] = ""
    if content.status is not None:
        current = _with_observed_transition_times(content.status, observed)
        if has_other_fields or not contains(observed.document.get("status"), current):
            status = {**_type(resource), "metadata": {"name": observed.name}, "status": current}
    if must_write and status is None and contains(observed.document, body):
        body["metadata"]["annotations"][FIELDS] = ""
    return None if contains(observed.document, body) else body, status


def _with_observed_transition_times(status: Document, observed: ObservedObject) -> Document:
    """Return the status, with the observed lastTransitionTime of each condition whose status is unchanged."""
    observed_status = observed.document.get("status")
    observed_conditions = observed_status.get("conditions") if isinstance(observed_status, dict) else None
    before = {}
    for condition in observed_conditions if isinstance(observed_conditions, list) else ():
        match condition:  # others are malformed, and are replaced
            case {"type": str(type_), "status": str(state), "lastTransitionTime": str(time)}:
                before[type_, state] = time
    conditions = [
        {
            **condition,
            "lastTransitionTime": before.get((condition["type"], condition["status"]), condition["lastTransitionTime"]),
        }
        for condition in status.get("conditions", [])
    ]
    return {**status, "conditions": conditions}


def contains(observed: Any, desired: Any) -> bool:
    """Return whether the observed value has each field of the desired one, with the same value."""
    if isinstance(desired, dict):
        return isinstance(observed, dict) and all(contains(observed.get(key), desired[key]) for key in desired)
    if isinstance(desired, list):
        if not isinstance(observed, list):
            return False
        keys = [_list_key(item) for item in desired]
        if None in keys:
            return len(observed) == len(desired) and all(map(contains, observed, desired))
        by_key = {_list_key(item): item for item in observed}
        return all(contains(by_key.get(key), item) for key, item in zip(keys, desired, strict=True))
    return bool(observed == desired)


def _type(resource: PublishedResource) -> Document:
    return {"apiVersion": resource.api_version, "kind": resource.kind}


def _annotations(identity: Identity, cluster: Cluster) -> dict[str, str]:
    engagement = {INCARNATION: cluster.incarnation} if identity.group else {}
    fleet = {GROUP: identity.group, FILTER: identity.filter}
    return {CLUSTER: cluster.name, CLUSTER_UID: cluster.uid, **engagement, **fleet}


def _field_paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, field in value.items():
            yield from _field_paths(field, f"{path}\0{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _field_paths(item, f"{path}\0{_list_key(item) or number}")
    else:
        yield path


def _list_key(value: Any) -> str | None:
    """Return the key that identifies an element of a list across changes."""
    if isinstance(value, dict):
        return next((str(value[key]) for key in _LIST_KEYS if key in value), None)
    return None
