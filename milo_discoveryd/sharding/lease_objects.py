"""Conversion of a group's Leases to and from Kubernetes objects (coordination.k8s.io/v1)."""

from collections.abc import Mapping
from typing import Any

import msgspec

from milo_discoveryd.rfc3339 import rfc3339
from milo_discoveryd.sharding.leases import GroupState, MemberLease, View, ViewMember

GROUP_LABEL = "discovery.miloapis.com/shard-group"
_PREFIX = "discovery.miloapis.com/"
VIEW = "view"
"""Takes the place of the member in the name of the view's Lease."""
_DURATION_S = 30


class LeaseFormatError(ValueError):
    """A Lease of the group was not written by this program. The message names the Lease."""


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    uid: str
    resource_version: str
    annotations: dict[str, str] = {}


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str = ""


class _Lease(msgspec.Struct, frozen=True):
    metadata: _Metadata
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
    annotations = {"view": msgspec.json.encode(view).decode()}
    return _encode(names.view, version, view.id, annotations, names=names, wall=wall)


def encode_precondition(version: str) -> bytes:
    """Return the body of a DELETE request that deletes only this version."""
    uid, _, resource_version = version.partition("/")
    return msgspec.json.encode({"preconditions": {"uid": uid, "resourceVersion": resource_version}})


def decode_list(body: bytes, names: LeaseNames) -> GroupState:
    """Decode a list of the group's Leases. Raises LeaseFormatError."""
    try:
        leases = _LEASE_LIST.decode(body).items
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LeaseFormatError(f"the response to a list of Leases is not a list: {error}") from error
    members: dict[str, MemberLease] = {}
    view, view_version = None, ""
    for lease in leases:
        try:
            if lease.metadata.name == names.view:
                view, view_version = _view(lease), lease.version
            else:
                member = _member(lease)
                members[member.member] = member
        except (KeyError, ValueError, msgspec.MsgspecError) as error:
            raise LeaseFormatError(
                f"Lease {names.namespace}/{lease.metadata.name} has the label {names.selector}, but was not written by"
                f" milo-discoveryd ({error}): delete it"
            ) from error
    return GroupState(members=members, view=view, view_version=view_version)


def decode_version(body: bytes) -> str:
    """Return the version of a Lease that was written. Raises LeaseFormatError."""
    try:
        return _LEASE.decode(body).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LeaseFormatError(f"the response to a write is not a Lease: {error}") from error


def _member(lease: _Lease) -> MemberLease:
    found = {key.removeprefix(_PREFIX): value for key, value in lease.metadata.annotations.items()}
    return MemberLease(
        member=found["member"],
        version=lease.version,
        holder=lease.spec.holder_identity,
        term=found["term"],
        weight=float(found["weight"]),
        acknowledged=int(found["acknowledged-view"]),
        is_leaving=found.get("leaving") == "true",
        is_stopped=found.get("stopped") == "true",
        renewal=int(found["renewal"]),
        instance=found.get("instance", ""),
    )


def _view(lease: _Lease) -> View:
    stored = _STORED_VIEW.decode(lease.metadata.annotations[f"{_PREFIX}view"])
    return View(number=stored.number, id=stored.id, members=stored.members, previous=stored.previous)


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
