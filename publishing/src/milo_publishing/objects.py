"""Objects that represent engaged clusters, and their comparison with the objects in the API server. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, auto
from functools import lru_cache
from typing import Any, overload

import msgspec
from msgspec.structs import replace

from milo_discovery.model import Cluster
from milo_discovery.removals import difference
from milo_kube.reflect.wire import cut, has_more_containers
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
_TYPE = ("apiVersion", "kind")


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


class IdentifyingLabels(msgspec.Struct, frozen=True, gc=False):
    """The labels that identify an object."""

    managed_by: str | None = msgspec.field(default=None, name=MANAGED_BY)
    publication: str | None = msgspec.field(default=None, name=PUBLICATION)
    publisher: str | None = msgspec.field(default=None, name=PUBLISHER)

    @classmethod
    def of(cls, identity: Identity) -> IdentifyingLabels:
        return cls(MANAGER, identity.publication, identity.publisher)


class IdentifyingAnnotations(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The annotations that identify an object, and its cluster."""

    cluster: str | None = msgspec.field(default=None, name=CLUSTER)
    cluster_uid: str | None = msgspec.field(default=None, name=CLUSTER_UID)
    incarnation: str | None = msgspec.field(default=None, name=INCARNATION)
    group: str | None = msgspec.field(default=None, name=GROUP)
    filter: str | None = msgspec.field(default=None, name=FILTER)
    fields: str | None = msgspec.field(default=None, name=FIELDS)


class _RecordMetadata(msgspec.Struct, rename="camel"):
    """The fields of an object's metadata that are used."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: IdentifyingLabels | None = None
    annotations: IdentifyingAnnotations | None = None
    finalizers: list[str] | None = None
    deletion_timestamp: str | None = None


class _ObservedRecord(msgspec.Struct):
    metadata: _RecordMetadata


_ABSENT = msgspec.Raw(b"null")


class _StatusOrRecord(msgspec.Struct):
    """A Status, or an object."""

    metadata: msgspec.Raw = _ABSENT


class _RecordFields(msgspec.Struct, rename="camel", omit_defaults=True):
    """What any renderer writes below `data`, `spec` and `status`."""

    name: msgspec.Raw = _ABSENT
    server: msgspec.Raw = _ABSENT
    config: msgspec.Raw = _ABSENT
    project: msgspec.Raw = _ABSENT
    value: msgspec.Raw = _ABSENT
    provider: msgspec.Raw = _ABSENT
    address: msgspec.Raw = _ABSENT
    authorities: msgspec.Raw = msgspec.field(default=_ABSENT, name="ca.crt")
    audiences: msgspec.Raw = _ABSENT
    service_account_name: msgspec.Raw = _ABSENT
    display_name: msgspec.Raw = _ABSENT
    cluster_manager: msgspec.Raw = _ABSENT
    conditions: msgspec.Raw = _ABSENT
    properties: msgspec.Raw = _ABSENT
    access_providers: msgspec.Raw = _ABSENT


class _ComparedMetadata(msgspec.Struct, omit_defaults=True):
    name: str
    labels: msgspec.Raw = _ABSENT
    annotations: IdentifyingAnnotations | None = None


class _ComparedContent(msgspec.Struct, omit_defaults=True):
    """What is compared of an object: other clients may add fields of any size."""

    metadata: _ComparedMetadata
    type: str | None = None
    data: _RecordFields | None = None
    spec: _RecordFields | None = None
    status: _RecordFields | None = None


_RECORD, _CONTENT = msgspec.json.Decoder(_ObservedRecord), msgspec.json.Decoder(_ComparedContent)
_ANSWER, _METADATA = msgspec.json.Decoder(_StatusOrRecord), msgspec.json.Decoder(_RecordMetadata)
_DOCUMENT, _VALUE = msgspec.json.Decoder(Document), msgspec.json.Decoder()
"""All are built at import, since the first use of a type by two threads at once crashes msgspec."""
UNDECODABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
_MOST_OF_LABELS = 64 << 10
_MOST_OF_FIELD = 512 << 10
"""Maximum bytes of all labels, and of a field without its long strings: what is larger is none of this command's, and
is written again."""
_MOST_CONTAINERS = 10_000
"""Maximum number of lists and maps in such a field: each takes more memory than its text."""
_LONGEST_STRING = 64 << 10
"""Maximum characters of a string in a field that exceeds this. Longer ones, such as CA bundles, have their digest."""
_LONGEST_LABEL = 63
_LONGEST_CLUSTER = 253 + 64
"""Maximum length of a cluster's name, including the name of its source."""
_LONGEST_UID = 128
_LONGEST_INCARNATION = 64
_LONGEST_GROUP = 63
_LONGEST_FILTER = 128
"""That of a filter is compared by its digest if it is longer. The other lengths are those that the daemon limits."""
_LENGTH_OF_DIGEST = 32
_OF_STRING = 48
"""The memory that a string takes besides its characters, about."""
_LENGTH_OF_FIELDS = 16
_LONGEST_TIME = 64
_MOST_OF_FINALIZERS = 253


def _is_short(value: str | None, longest: int, *, is_ascii: bool = True) -> bool:
    """Return whether a publisher may have written a value."""
    if value is None:
        return True
    return len(value) <= longest and (value.isascii() or not is_ascii) and len(value.encode()) <= longest


@overload
def _kept(value: str, longest: int, *, is_ascii: bool = True) -> str: ...


@overload
def _kept(value: str | None, longest: int, *, is_ascii: bool = True) -> str | None: ...


def _kept(value: str | None, longest: int, *, is_ascii: bool = True) -> str | None:
    """Return what is kept of a value by which an object is identified: all, if a publisher may have written it. Of
    others there is a digest, so that none is taken for what a publisher writes, and none takes much memory."""
    if value is None or _is_short(value, longest, is_ascii=is_ascii):
        return value
    return f"(not kept: {hashlib.sha256(value.encode()).hexdigest()[:_LENGTH_OF_DIGEST]})"


@lru_cache(maxsize=16)
def _shared(labels: IdentifyingLabels) -> IdentifyingLabels:
    """Return labels that most objects have in common, so that they are kept once."""
    return labels


@lru_cache(maxsize=16)
def _shared_text(text: str | None) -> str | None:
    """Return a text that most objects have in common, so that it is kept once."""
    return text


class ObservedObject(msgspec.Struct, frozen=True, gc=False):
    """An object as the API server returned it. Of its labels and annotations, it has those that identify it."""

    content: bytes | None
    """What is compared, in JSON, which takes less memory than a document; None if it was not kept."""
    name: str
    uid: str
    resource_version: str
    labels: IdentifyingLabels
    annotations: IdentifyingAnnotations
    finalizers: str | None
    """What the object waits for since its deletion was requested; None if that was not requested."""

    @classmethod
    def of(cls, answer: bytes | msgspec.Raw) -> ObservedObject:
        """Return the object of an answer. Raises TargetUnavailable if it is not an object."""
        try:
            try:
                found = _RECORD.decode(answer).metadata
            except RecursionError:  # what another client has added must not make it unreadable
                answer = cut(bytes(answer))
                found = _RECORD.decode(answer).metadata
        except UNDECODABLE as error:
            raise TargetUnavailable(f"the API server answered without an object's metadata: {error}") from None
        if not (found.name and found.uid and found.resource_version):
            raise TargetUnavailable("the API server answered without an object's name, UID and resource version")
        finalizers = ", ".join(found.finalizers or ()) if found.deletion_timestamp else None
        return cls(
            _content(answer),
            found.name,
            found.uid,
            found.resource_version,
            _labels(found.labels),
            _annotations_of(found.annotations),
            None if finalizers is None else _shared_text(finalizers[:_MOST_OF_FINALIZERS]),
        )

    @property
    def version(self) -> tuple[str, str]:
        return self.uid, self.resource_version

    @property
    def memory(self) -> int:
        """About how many bytes the strings take by which the object is identified."""
        strings = (self.name, *self.version, *msgspec.structs.astuple(self.annotations), self.finalizers)
        return sum(_OF_STRING + len(text) * (1 if text.isascii() else 4) for text in strings if text)

    def without_content(self) -> ObservedObject:
        return replace(self, content=None)

    @property
    def document(self) -> Document:
        """What is compared; without all if a field of it cannot be decoded."""
        try:
            return _DOCUMENT.decode(self.content or b"{}")
        except UNDECODABLE:
            return {}

    @property
    def cluster(self) -> str:
        return self.annotations.cluster or ""

    @property
    def cluster_uid(self) -> str:
        return self.annotations.cluster_uid or ""

    @property
    def incarnation(self) -> str:
        return self.annotations.incarnation or ""

    @property
    def publisher(self) -> str:
        return self.labels.publisher or ""

    def owner(self, identity: Identity) -> Owner:
        if self.labels.managed_by != MANAGER or self.labels.publication != identity.publication:
            return Owner.FOREIGN
        return Owner.SELF if self.publisher == identity.publisher else Owner.OTHER_PUBLISHER

    def difference(self, identity: Identity) -> str:
        """Return how the object's shard group or filter differs from the publisher's; empty if they are the same."""
        recorded = self.annotations.group, self.annotations.filter
        return difference(recorded, (identity.group, _kept(identity.filter, _LONGEST_FILTER)))


def is_finalizing(answer: bytes) -> bool:
    """Return whether the answer to a deletion is an object that waits for its finalizers."""
    try:
        metadata = _ANSWER.decode(answer).metadata
    except UNDECODABLE as error:
        raise TargetUnavailable(f"the API server answered a deletion with no object: {error}") from None
    try:
        return bool(_METADATA.decode(metadata).deletion_timestamp)
    except UNDECODABLE:
        return False


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
    digest = hashlib.sha256(fields.encode()).hexdigest()[:_LENGTH_OF_FIELDS]
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
    document = observed.document
    has_other_fields = observed.annotations.fields != body["metadata"]["annotations"][FIELDS]
    if not identity.group and observed.incarnation:
        # That of a shard group stays if it is only left out: the creation of the object has written it, too.
        body["metadata"]["annotations"][INCARNATION] = ""
    if content.status is not None:
        current = _with_observed_transition_times(content.status, document.get("status"))
        if has_other_fields or not contains(document.get("status"), current):
            status = {**_type(resource), "metadata": {"name": observed.name}, "status": current}
    if must_write and status is None and _has(document, body):
        body["metadata"]["annotations"][FIELDS] = ""
    return None if _has(document, body) else body, status


def as_desired(
    resource: PublishedResource, identity: Identity, cluster: Cluster, content: Rendered, observed: ObservedObject
) -> ObservedObject:
    """Return the object with no content but that which is as desired: the rest is written, whatever it is."""
    desired, document = applied(resource, identity, observed.name, cluster, content), observed.document
    if content.status is not None:
        desired["status"] = _with_observed_transition_times(content.status, document.get("status"))
    same = {key: value for key, value in desired.items() if contains(document.get(key), value)}
    return replace(observed, content=msgspec.json.encode(same))


def _with_observed_transition_times(status: Document, observed: Any) -> Document:
    """Return the status, with the observed lastTransitionTime of each condition whose status is unchanged."""
    observed_conditions = observed.get("conditions") if isinstance(observed, dict) else None
    before = {}
    for condition in observed_conditions if isinstance(observed_conditions, list) else ():
        match condition:  # others are malformed, and are replaced
            case {"type": str(kind), "status": str(state), "lastTransitionTime": str(at)} if len(at) <= _LONGEST_TIME:
                before[kind, state] = at
    conditions = [
        {
            **condition,
            "lastTransitionTime": before.get((condition["type"], condition["status"]), condition["lastTransitionTime"]),
        }
        for condition in status.get("conditions", [])
    ]
    return {**status, "conditions": conditions}


def _has(document: Document, body: Document) -> bool:
    """Return whether the object has what is to be applied. All objects of a collection have its type."""
    return contains(document, {key: value for key, value in body.items() if key not in _TYPE})


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
    return bool(observed == desired or observed == _digested(desired))


def _labels(found: IdentifyingLabels | None) -> IdentifyingLabels:
    values = () if found is None else msgspec.structs.astuple(found)
    return _shared(IdentifyingLabels(*(_kept(value, _LONGEST_LABEL) for value in values)))


_UNANNOTATED = IdentifyingAnnotations()


def _annotations_of(found: IdentifyingAnnotations | None) -> IdentifyingAnnotations:
    if found is None or found == _UNANNOTATED:
        return _UNANNOTATED
    return IdentifyingAnnotations(
        cluster=found.cluster if _is_short(found.cluster, _LONGEST_CLUSTER) else None,
        cluster_uid=_kept(found.cluster_uid, _LONGEST_UID, is_ascii=False),
        incarnation=_kept(found.incarnation, _LONGEST_INCARNATION),
        group=_shared_text(_kept(found.group, _LONGEST_GROUP)),
        filter=_shared_text(_kept(found.filter, _LONGEST_FILTER)),
        fields=_shared_text(found.fields) if _is_short(found.fields, _LENGTH_OF_FIELDS) else None,
    )


def _content(answer: bytes | msgspec.Raw) -> bytes:
    """Return what is compared of an object, without what is too large or malformed: that is written again."""
    try:
        content = _CONTENT.decode(answer)
    except UNDECODABLE:
        return b"{}"
    if len(memoryview(content.metadata.labels)) > _MOST_OF_LABELS:
        content.metadata.labels = _ABSENT
    for fields in (content.data, content.spec, content.status):
        for name in () if fields is None else _RecordFields.__struct_fields__:
            if len(memoryview(getattr(fields, name))) > _MOST_OF_FIELD:
                setattr(fields, name, _without_long_strings(getattr(fields, name)))
    return msgspec.json.encode(content)


def _without_long_strings(field: msgspec.Raw) -> msgspec.Raw:
    """Return a field with digests in place of long strings; absent if it is too large even so."""
    if has_more_containers(bytes(field), _MOST_CONTAINERS):
        return _ABSENT
    try:
        digested = msgspec.json.encode(_digested(_VALUE.decode(field)))
    except UNDECODABLE:
        return _ABSENT
    return msgspec.Raw(digested) if len(digested) <= _MOST_OF_FIELD else _ABSENT


def _digested(value: Any) -> Any:
    """Return a value with digests in place of long strings: as objects, which no schema has at such a place."""
    if isinstance(value, dict):
        return {key: _digested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_digested(item) for item in value]
    if isinstance(value, str) and len(value) > _LONGEST_STRING:
        return {"sha256": hashlib.sha256(value.encode()).hexdigest()}
    return value


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
