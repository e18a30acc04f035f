"""Conversion of a group's Leases to and from Kubernetes objects (coordination.k8s.io/v1)."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from milo_discoveryd.sharding.leases import (
    MAX_LEASES,
    MAX_MEMBERS,
    MAX_NUMBER,
    PENDING_NAMES,
    PENDING_SIZE,
    GroupState,
    MemberLease,
    View,
    ViewMember,
)
from milo_kube.rfc3339 import rfc3339

GROUP_LABEL = "discovery.miloapis.com/shard-group"
_MANAGED_BY = "app.kubernetes.io/managed-by"
_MANAGER = "milo-discoveryd"
_PREFIX = "discovery.miloapis.com/"
VIEW = "view"
"""The last part of the name of the view's Lease, where other Leases have the member's name."""
_DURATION_S = 30
_FORMAT = "1"
"""The format of the Leases. Members with different formats cannot share clusters: each treats the Lease of the other as
malformed."""
_MAX_WEIGHT = 1000.0


_FOREIGN_NAMED = 5
_REASON_SIZE = 300
_IDENTIFIER_SIZE = 300
"""The longest identifier in a Lease, in JSON: the next view contains the names and terms of all present and former
members, and has to fit into annotations."""
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class LeaseFormatError(ValueError):
    """A malformed response of the API server."""


class _Annotations(msgspec.Struct, frozen=True, rename=lambda name: f"{_PREFIX}{name.replace('_', '-')}"):
    """The annotations of this program; others are not decoded."""

    format: str | None = None
    member: str | None = None
    term: str | None = None
    weight: str | None = None
    acknowledged_view: str | None = None
    pending: str | None = None
    renewal: str | None = None
    fleet: str | None = None
    view: str | None = None
    instance: str = ""
    leaving: str = ""
    stopped: str = ""


class _LeaseMetadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    uid: str
    resource_version: str
    annotations: _Annotations = _Annotations()


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str = ""


class _Lease(msgspec.Struct, frozen=True):
    metadata: _LeaseMetadata
    spec: _Spec = _Spec()

    @property
    def version(self) -> str:
        return f"{self.metadata.uid}/{self.metadata.resource_version}"


_LEASE = msgspec.json.Decoder(_Lease)


class _LeaseListMetadata(msgspec.Struct, frozen=True):
    continue_: str = msgspec.field(name="continue", default="")


class _LeaseList(msgspec.Struct, frozen=True):
    items: list[_Lease] | None
    metadata: _LeaseListMetadata = _LeaseListMetadata()


_LEASE_LIST = msgspec.json.Decoder(_LeaseList)


class _LeaseLabels(msgspec.Struct, frozen=True, rename={"group": GROUP_LABEL, "manager": _MANAGED_BY}):
    group: str = ""
    manager: str = ""


class _LabeledLeaseMetadata(_LeaseMetadata, frozen=True, rename="camel"):
    labels: _LeaseLabels = _LeaseLabels()


class _LabeledLease(_Lease, frozen=True):
    metadata: _LabeledLeaseMetadata


class _LabeledList(msgspec.Struct, frozen=True):
    items: list[_LabeledLease] | None


_LABELED_LIST = msgspec.json.Decoder(_LabeledList)


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


class LeaseList:
    """The Leases of a group, from the pages of one list.

    A malformed Lease of a member is kept with its `problem`. A malformed view counts as deleted. Leases that do not
    belong to the group are skipped.
    """

    def __init__(self, names: LeaseNames) -> None:
        self._names = names
        self._members: dict[str, MemberLease] = {}
        self._view: View | None = None
        self._view_version = ""
        self._problems: list[str] = []
        self._pending = 0
        self._pending_size = 0
        self._foreign = 0
        self._foreign_names: list[str] = []

    def add(self, page: bytes) -> str:
        """Add a page. Return the token of the next one; empty after the last.

        Raises LeaseFormatError for anything but a list of Leases, or if the group has too many of them, or too many
        pending clusters.
        """
        try:
            found = _LEASE_LIST.decode(page)
        except _UNDECODABLE as error:
            raise LeaseFormatError(f"the response to a list of Leases is not a list: {error}") from error
        for lease in found.items or ():
            self._add(lease)
        return found.metadata.continue_

    def _add(self, lease: _Lease) -> None:
        name, prefix = lease.metadata.name, self._names.member("")
        if name == self._names.view:
            self._view_version = lease.version
            try:
                self._view = _view(lease)
            except _UNREADABLE as error:
                malformed = f"{_described(lease, self._names)} is malformed ({_reason(error)})"
                self._problems.append(f"{malformed}: it will be written again")
        elif name.startswith(prefix):
            member = name.removeprefix(prefix)
            try:
                found = _member(lease, member)
            except _UNREADABLE as error:
                found = _unreadable(lease, member, self._names, error)
            self._members[member] = found
            self._count(found)
        else:
            self._foreign += 1
            if self._foreign <= _FOREIGN_NAMED:
                self._foreign_names.append(name)

    def _count(self, lease: MemberLease) -> None:
        """Raises LeaseFormatError if the group has too many Leases or pending clusters: no single Lease is at fault, so
        members keep what they hold and renew it, and no view changes."""
        self._pending += len(lease.pending)
        self._pending_size += sum(map(len, lease.pending))
        if len(self._members) > MAX_LEASES:
            problem = f"are more than {MAX_LEASES}"
        elif self._pending > PENDING_NAMES:
            problem = f"have more than {PENDING_NAMES} pending clusters"
        elif self._pending_size > MAX_MEMBERS * PENDING_SIZE:
            problem = f"have pending clusters whose names have more than {MAX_MEMBERS * PENDING_SIZE} characters"
        else:
            return
        raise LeaseFormatError(
            f"the Leases of shard group {self._names.group} {problem}: delete those of members that do not exist"
        )

    @property
    def group(self) -> GroupState:
        return GroupState(
            members=self._members,
            view=self._view,
            view_version=self._view_version,
            problems=(*self._problems, *self._foreign_problem()),
        )

    def _foreign_problem(self) -> Iterator[str]:
        if self._foreign:
            more = f" and {self._foreign - _FOREIGN_NAMED} more" if self._foreign > _FOREIGN_NAMED else ""
            yield (
                f"{self._foreign} Leases in namespace {self._names.namespace} have the label of shard group "
                f"{self._names.group} without belonging to it, and are skipped: "
                f"{', '.join(self._foreign_names)}{more}; remove their label {GROUP_LABEL}"
            )


class UnlistedLease(msgspec.Struct, frozen=True):
    """A Lease that the list of a group may lack, although it has the name of one of the group's Leases."""

    group: str
    """The group that its label names; empty without the label."""
    version: str
    is_replaceable: bool
    """Whether only its label was removed: it has what this program writes to the Lease of this name."""


def decode_unlisted(body: bytes, names: LeaseNames) -> UnlistedLease | None:
    """Return the only Lease of a list; None if there is none. Raises LeaseFormatError."""
    try:
        found = next(iter(_LABELED_LIST.decode(body).items or ()), None)
    except _UNDECODABLE as error:
        raise LeaseFormatError(f"the response to a list of Leases is not a list: {error}") from error
    if found is None:
        return None
    labels, written = found.metadata.labels, found.metadata.annotations
    # In another group, the Lease of a member with another name can have this name.
    is_of_name = found.metadata.name == (names.view if written.member is None else names.member(written.member))
    is_written = labels.manager == _MANAGER or written.format is not None
    return UnlistedLease(labels.group, found.version, not labels.group and is_written and is_of_name)


def decode_version(body: bytes) -> str:
    """Return the version of a Lease that was written. Raises LeaseFormatError."""
    try:
        return _LEASE.decode(body).version
    except _UNDECODABLE as error:
        raise LeaseFormatError(f"the response to a write is not a Lease: {error}") from error


class _OtherFormatError(ValueError):
    """The Lease was written by a version of this program with another format."""


_UNREADABLE = (ValueError, msgspec.MsgspecError, RecursionError)


def _member(lease: _Lease, name: str) -> MemberLease:
    found = _annotations(lease)
    member, term = _given(found.member, "member"), _given(found.term, "term")
    _limit(lease.spec.holder_identity, term, found.instance, found.fleet or "")
    if member != name:
        raise ValueError(f"it names the member {member!r}")
    if not term and lease.spec.holder_identity:
        raise ValueError("its term is empty")
    pending = _NAMES.decode(_given(found.pending, "pending"))
    if not all(map(str.isascii, pending)):  # other strings take four times the memory
        raise ValueError("a name of its pending clusters is not ASCII")
    if sum(map(len, pending)) > PENDING_SIZE:
        raise ValueError(f"the names of its pending clusters have more than {PENDING_SIZE} characters")
    return MemberLease(
        member=name,
        version=lease.version,
        holder=lease.spec.holder_identity,
        term=term,
        weight=_weight(float(_given(found.weight, "weight"))),
        acknowledged=_number(int(_given(found.acknowledged_view, "acknowledged-view"))),
        pending=frozenset(pending),
        is_leaving=found.leaving == "true",
        is_stopped=found.stopped == "true",
        renewal=_number(int(_given(found.renewal, "renewal"))),
        instance=found.instance,
        fleet=_given(found.fleet, "fleet"),
    )


def _unreadable(lease: _Lease, name: str, names: LeaseNames, error: Exception) -> MemberLease:
    """Return a malformed Lease. It counts as held, because its member may be running.

    A running member with another format renews its Lease, which changes the term returned here.
    """
    return MemberLease(
        member=name,
        version=lease.version,
        holder=lease.spec.holder_identity[:_IDENTIFIER_SIZE] or "unknown",
        term=lease.version if isinstance(error, _OtherFormatError) else "",
        problem=f"{_described(lease, names)} is malformed ({_reason(error)}): its member may own clusters",
    )


def _described(lease: _Lease, names: LeaseNames) -> str:
    return f"Lease {names.namespace}/{lease.metadata.name} of shard group {names.group}"


def _reason(error: Exception) -> str:
    """Return the beginning of an error's message, which may contain what a Lease contains."""
    reason = str(error)
    return reason if len(reason) <= _REASON_SIZE else f"{reason[:_REASON_SIZE]}..."


def _annotations(lease: _Lease) -> _Annotations:
    found = lease.metadata.annotations
    if _given(found.format, "format") != _FORMAT:
        raise _OtherFormatError(
            f"its format is {found.format!r}, but this daemon's is {_FORMAT!r}: run one version in all members"
        )
    return found


def _given(value: str | None, name: str) -> str:
    if value is None:
        raise ValueError(f"it has no annotation {_PREFIX}{name}")
    return value


def _weight(weight: float) -> float:
    if not 0 <= weight <= _MAX_WEIGHT:
        raise ValueError(f"its weight {weight} is not between 0 and {_MAX_WEIGHT:g}")
    return weight


def _number(number: int, largest: int = MAX_NUMBER) -> int:
    if not 0 <= number <= largest:
        raise ValueError(f"its number {number} is not between 0 and {largest}")
    return number


def _limit(*identifiers: str) -> None:
    for identifier in identifiers:
        if (size := len(msgspec.json.encode(identifier)) - len('""')) > _IDENTIFIER_SIZE:
            raise ValueError(f"an identifier in it has {size} characters, more than {_IDENTIFIER_SIZE}")


def _view(lease: _Lease) -> View:
    """Return the view, if a next one can be written after it."""
    stored = _STORED_VIEW.decode(_given(_annotations(lease).view, "view"))
    if (count := max(len(stored.members), len(stored.previous))) > MAX_MEMBERS:
        raise ValueError(f"it has {count} members, more than {MAX_MEMBERS}")
    _limit(stored.id)
    for name, member in (*stored.members.items(), *stored.previous.items()):
        _limit(name, member.term)
        _weight(member.weight)
    number = _number(stored.number, MAX_NUMBER - 1)
    return View(number=number, id=stored.id, members=stored.members, previous=stored.previous)


def _encode(
    name: str, version: str, holder: str, annotations: Mapping[str, str], *, names: LeaseNames, wall: float
) -> bytes:
    uid, _, resource_version = version.partition("/")
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": names.namespace,
        "labels": {GROUP_LABEL: names.group, _MANAGED_BY: _MANAGER},
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
