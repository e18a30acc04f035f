"""Conversion of a group's Leases to and from Kubernetes objects (coordination.k8s.io/v1)."""

from collections.abc import Mapping
from typing import Any

import msgspec

from milo_discoveryd.sharding.leases import MAX_MEMBERS, GroupState, MemberLease, View, ViewMember
from milo_kube.rfc3339 import rfc3339

GROUP_LABEL = "discovery.miloapis.com/shard-group"
_PREFIX = "discovery.miloapis.com/"
VIEW = "view"
"""The last part of the name of the view's Lease, where other Leases have the member's name."""
_DURATION_S = 30
_FORMAT = "1"
"""The format of the Leases. Members with different formats cannot share clusters: each treats the Lease of the other as
malformed."""
_MAX_WEIGHT = 1000.0
_MAX_NUMBER = 2**53


class LeaseFormatError(ValueError):
    """A malformed response of the API server."""


class _LeaseMetadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    uid: str
    resource_version: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str = ""


class _Lease(msgspec.Struct, frozen=True):
    metadata: _LeaseMetadata
    spec: _Spec = _Spec()

    @property
    def version(self) -> str:
        return f"{self.metadata.uid}/{self.metadata.resource_version}"


_LEASE = msgspec.json.Decoder(_Lease)


class _LeaseList(msgspec.Struct, frozen=True):
    items: list[_Lease]


_LEASE_LIST = msgspec.json.Decoder(_LeaseList)


class _StoredView(msgspec.Struct, frozen=True):
    number: int
    id: str
    members: dict[str, ViewMember]
    previous: dict[str, ViewMember]


_STORED_VIEW = msgspec.json.Decoder(_StoredView)
_NAMES = msgspec.json.Decoder(list[str])


class LeaseNames(msgspec.Struct, frozen=True):
    namespace: str
    group: str

    @property
    def collection(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    @property
    def selector(self) -> str:
        return f"{GROUP_LABEL}={self.group}"

    @property
    def view(self) -> str:
        return self.member(VIEW)

    def member(self, member: str) -> str:
        return f"milo-discovery-{self.group}-{member}"

    def path(self, name: str) -> str:
        return f"{self.collection}/{name}"


def encode_member(lease: MemberLease, names: LeaseNames, wall: float) -> bytes:
    flags = {"leaving": lease.is_leaving, "stopped": lease.is_stopped}
    annotations = {
        "format": _FORMAT,
        "fleet": lease.fleet,
        "pending": msgspec.json.encode(sorted(lease.pending)).decode(),
        "member": lease.member,
        "term": lease.term,
        "weight": repr(lease.weight),
        "acknowledged-view": str(lease.acknowledged),
        "renewal": str(lease.renewal),
        "instance": lease.instance,
        **{name: "true" for name, is_set in flags.items() if is_set},
    }
    return _encode(names.member(lease.member), lease.version, lease.holder, annotations, names=names, wall=wall)


def encode_view(view: View, version: str, names: LeaseNames, wall: float) -> bytes:
    annotations = {"format": _FORMAT, "view": msgspec.json.encode(view).decode()}
    return _encode(names.view, version, view.id, annotations, names=names, wall=wall)


def encode_precondition(version: str) -> bytes:
    """Return the body of a DELETE request that deletes only this version."""
    uid, _, resource_version = version.partition("/")
    return msgspec.json.encode({"preconditions": {"uid": uid, "resourceVersion": resource_version}})


def decode_list(body: bytes, names: LeaseNames) -> GroupState:
    """Decode a list of the group's Leases. Raises LeaseFormatError for anything but a list.

    A malformed Lease of a member is returned with its `problem`. A malformed view counts as deleted.
    """
    leases = _decode_leases(body)
    members: dict[str, MemberLease] = {}
    view, view_version, problems = None, "", []
    for lease in leases:
        name = lease.metadata.name
        if name == names.view:
            view_version = lease.version
            try:
                view = _view(lease)
            except _UNREADABLE as error:
                problems.append(f"{_described(lease, names)} is malformed ({_reason(error)}): it will be written again")
        elif not name.startswith(names.member("")):
            problems.append(f"{_described(lease, names)} does not belong to the group: remove its label {GROUP_LABEL}")
        else:
            member = name.removeprefix(names.member(""))
            try:
                members[member] = _member(lease, member)
            except _UNREADABLE as error:
                members[member] = _unreadable(lease, member, names, error)
    return GroupState(members=members, view=view, view_version=view_version, problems=tuple(problems))


def decode_owner(body: bytes) -> str | None:
    """Return the group of the only Lease of a list; None if there is none. Raises LeaseFormatError."""
    return next((lease.metadata.labels.get(GROUP_LABEL, "") for lease in _decode_leases(body)), None)


def _decode_leases(body: bytes) -> list[_Lease]:
    try:
        return _LEASE_LIST.decode(body).items
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LeaseFormatError(f"the response to a list of Leases is not a list: {error}") from error


def decode_version(body: bytes) -> str:
    """Return the version of a Lease that was written. Raises LeaseFormatError."""
    try:
        return _LEASE.decode(body).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LeaseFormatError(f"the response to a write is not a Lease: {error}") from error


class _OtherFormatError(ValueError):
    """The Lease was written by a version of this program with another format."""


_UNREADABLE = (KeyError, ValueError, msgspec.MsgspecError, RecursionError)


def _member(lease: _Lease, name: str) -> MemberLease:
    annotations = _annotations(lease)
    if annotations["member"] != name:
        raise ValueError(f"it names the member {annotations['member']!r}")
    if not annotations["term"] and lease.spec.holder_identity:
        raise ValueError("its term is empty")
    return MemberLease(
        member=name,
        version=lease.version,
        holder=lease.spec.holder_identity,
        term=annotations["term"],
        weight=_weight(float(annotations["weight"])),
        acknowledged=_number(int(annotations["acknowledged-view"])),
        pending=frozenset(_NAMES.decode(annotations["pending"])),
        is_leaving=annotations.get("leaving") == "true",
        is_stopped=annotations.get("stopped") == "true",
        renewal=_number(int(annotations["renewal"])),
        instance=annotations.get("instance", ""),
        fleet=annotations["fleet"],
    )


def _unreadable(lease: _Lease, name: str, names: LeaseNames, error: Exception) -> MemberLease:
    """Return a malformed Lease. It counts as held, because its member may be running.

    A running member with another format renews its Lease, which changes the term returned here.
    """
    return MemberLease(
        member=name,
        version=lease.version,
        holder=lease.spec.holder_identity or "unknown",
        term=lease.version if isinstance(error, _OtherFormatError) else "",
        problem=f"{_described(lease, names)} is malformed ({_reason(error)}): its member may own clusters",
    )


def _described(lease: _Lease, names: LeaseNames) -> str:
    return f"Lease {names.namespace}/{lease.metadata.name} of shard group {names.group}"


def _reason(error: Exception) -> str:
    return f"it has no annotation {_PREFIX}{error.args[0]}" if isinstance(error, KeyError) else str(error)


def _annotations(lease: _Lease) -> dict[str, str]:
    annotations = {key.removeprefix(_PREFIX): value for key, value in lease.metadata.annotations.items()}
    if annotations["format"] != _FORMAT:
        raise _OtherFormatError(
            f"its format is {annotations['format']!r}, but this daemon's is {_FORMAT!r}: run one version in all members"
        )
    return annotations


def _weight(weight: float) -> float:
    if not 0 <= weight <= _MAX_WEIGHT:
        raise ValueError(f"its weight {weight} is not between 0 and {_MAX_WEIGHT:g}")
    return weight


def _number(number: int) -> int:
    if not 0 <= number <= _MAX_NUMBER:
        raise ValueError(f"its number {number} is not between 0 and {_MAX_NUMBER}")
    return number


def _view(lease: _Lease) -> View:
    stored = _STORED_VIEW.decode(_annotations(lease)["view"])
    if (number := max(len(stored.members), len(stored.previous))) > MAX_MEMBERS:
        raise ValueError(f"it has {number} members, more than {MAX_MEMBERS}")
    for stored_lease in (*stored.members.values(), *stored.previous.values()):
        _weight(stored_lease.weight)
    return View(number=_number(stored.number), id=stored.id, members=stored.members, previous=stored.previous)


def _encode(
    name: str, version: str, holder: str, annotations: Mapping[str, str], *, names: LeaseNames, wall: float
) -> bytes:
    uid, _, resource_version = version.partition("/")
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": names.namespace,
        "labels": {GROUP_LABEL: names.group, "app.kubernetes.io/managed-by": "milo-discoveryd"},
        "annotations": {f"{_PREFIX}{key}": value for key, value in annotations.items()},
    }
    if version:
        # The UID makes an update fail if the Lease was deleted, instead of creating it again.
        metadata |= {"uid": uid, "resourceVersion": resource_version}
    spec: dict[str, Any] = {"leaseDurationSeconds": _DURATION_S, "renewTime": rfc3339(wall, "microseconds")}
    if holder:
        spec["holderIdentity"] = holder
    return msgspec.json.encode(
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
    )
