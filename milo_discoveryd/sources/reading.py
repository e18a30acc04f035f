"""The fields of upstream objects that kinds read, and their validation and parsing.

Fields have the names of the JSON; msgspec skips all others when it decodes.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, starmap

import msgspec
from msgspec.structs import replace

from milo_discoveryd.model.cluster import Pairs, SuspensionReason, Target
from milo_discoveryd.model.observation import Malformed, NotReady, ObjectFields, Observation, Ready

# ruff: noqa: N815

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
# Used with fullmatch: `$` would accept a trailing newline.
DNS_LABEL = re.compile(_LABEL)
DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

ORGANIZATION_LABEL = "resourcemanager.miloapis.com/organization-name"


_ACTIVE_SUSPENSIONS = re.compile(r"due to active suspensions: (?P<names>.+)\Z")
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999: the range of a protobuf Timestamp."""
_LONGEST_WORD = 128
_MOST_SUSPENSIONS = 16
METADATA_BYTES = 32 * 1024
"""Size limit of an object's labels, and of those annotations that are sent to subscribers. Kubernetes allows far more,
but each change of an object is kept, and sent to every subscriber: tenants would determine how much memory that takes.
"""
METADATA_PAIRS = 250
"""Maximum number of labels of an object, and of those annotations that are sent to subscribers. A pair of two short
texts takes some 160 bytes."""

_SHARED_CHARACTERS = 380
_SHARED_LABELS = 16
_SHARED_SET_CHARACTERS = 512
"""Longer texts and larger sets of labels are not cached: tenants write them, and a cache has thousands of entries."""

MESSAGE_CHARACTERS = 2048
"""Length limit of a condition's message. API servers allow 32 KiB, but a proxy may send more."""
ORGANIZATION_CHARACTERS = 253


class ObjectOwner(msgspec.Struct, gc=False):
    kind: str = ""
    name: str = ""


class Metadata(msgspec.Struct, gc=False):
    name: str
    uid: str
    resourceVersion: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creationTimestamp: str | None = None
    deletionTimestamp: str | None = None
    namespace: str = ""
    finalizers: list[str] | None = None


class Condition(msgspec.Struct, gc=False):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    lastTransitionTime: str | None = None


class Spec(msgspec.Struct, gc=False):
    ownerRef: ObjectOwner | None = None


class SuspensionInfo(msgspec.Struct, gc=False):
    reason: str = ""
    suspendedAt: str = ""
    reinstateAuthority: str = ""


class Status(msgspec.Struct, gc=False):
    conditions: list[Condition] | None = None
    suspensions: list[SuspensionInfo] | None = None


class KubeObject(msgspec.Struct, gc=False):
    """An upstream object. A kind that reads more fields derives its own type from this one."""

    metadata: Metadata
    spec: Spec | None = None
    status: Status | None = None

    def condition(self, kind: str) -> Condition | None:
        conditions = None if self.status is None else self.status.conditions
        for condition in conditions or ():
            if condition.type == kind:
                return condition
        return None


class MalformedError(ValueError):
    """An object that cannot be used; the message says what is wrong with it."""


def malformed(metadata: Metadata, error: MalformedError) -> Malformed:
    return Malformed(metadata.name, metadata.uid, metadata.resourceVersion, str(error))


def not_ready(obj: KubeObject, kind: str, condition: Condition | None, organization: str) -> NotReady:
    if condition is None:
        message = f"condition {kind} is not set"
    else:
        words = [f"condition {kind} is {condition.status}", condition.reason or "", condition.message or ""]
        message = excerpt(": ".join(word for word in words if word))
    metadata = obj.metadata
    fields = ObjectFields(metadata.name, organization, labels(metadata))
    return NotReady(metadata.name, metadata.uid, metadata.resourceVersion, message, fields=fields)


def milo_target(
    obj: KubeObject,
    name: str,
    uid: str,
    place: tuple[str, ...],
    organization: str,
    *,
    annotation_prefixes: tuple[str, ...],
    cleanup_condition: str | None = None,
    suspended_by: tuple[SuspensionReason, ...] | None = None,
) -> Target:
    """Return the cluster that an object of Milo describes, with the fields that are common to all kinds of such
    objects.

    `cleanup_condition` is the type of the condition whose message explains what a deletion waits for.
    """
    metadata = obj.metadata
    is_terminating = metadata.deletionTimestamp is not None
    return Target(
        name=name,
        uid=uid,
        place=place,
        organization=organization,
        labels=labels(metadata),
        annotations=passed_on(metadata.annotations, annotation_prefixes),
        deletion_requested_at=deletion_requested_at(metadata) if is_terminating else None,
        deletion_message=deletion_message(obj, cleanup_condition) if is_terminating else "",
        suspensions=suspended_by,
    )


def readiness(metadata: Metadata, condition: Condition) -> tuple[str, str] | None:
    created, ready = metadata.creationTimestamp, condition.lastTransitionTime
    return (created, ready) if created and ready else None


def labels(metadata: Metadata) -> Pairs:
    """Return the labels, sorted. Equal small sets of labels share one instance, and so do equal small labels, which
    saves memory."""
    stated = metadata.labels or {}
    if len(stated) <= _SHARED_LABELS:
        try:
            return _shared_labels(tuple(starmap(_shared_label, sorted(stated.items()))))
        except _TooLargeToShareError:
            pass
    _check_size(stated, "labels")
    return tuple(starmap(_label, sorted(stated.items())))


def passed_on(annotations: dict[str, str] | None, prefixes: tuple[str, ...]) -> Pairs:
    """Return the annotations that are sent to subscribers, sorted."""
    if not prefixes or not annotations:
        return ()
    selected = {key: value for key, value in annotations.items() if key.startswith(prefixes)}
    _check_size(selected, f"annotations with the prefixes {', '.join(prefixes)}")
    return tuple(sorted(selected.items()))


def within_limits(observation: Observation) -> Observation:
    """Return what several objects mean for one cluster, within the limits of one object: clients do not accept larger
    messages.

    Raises MalformedError.
    """
    if not isinstance(observation, Ready):
        message = excerpt(observation.message)
        return observation if message is observation.message else replace(observation, message=message)
    target, suspensions = observation.target, observation.target.suspensions
    _check_size(dict(target.labels), "labels")
    _check_size(dict(target.annotations), "annotations")
    if suspensions is None or len(suspensions) <= _MOST_SUSPENSIONS:
        return observation
    return replace(observation, target=replace(target, suspensions=suspensions[:_MOST_SUSPENSIONS]))


def _check_size(pairs: Mapping[str, str], what: str) -> None:
    if len(pairs) > METADATA_PAIRS:
        raise MalformedError(f"it has {len(pairs)} {what}; at most {METADATA_PAIRS} are accepted")
    size = sum(len(text.encode()) for text in chain(pairs, pairs.values()))
    if size > METADATA_BYTES:
        raise MalformedError(f"its {what} have {size} bytes; at most {METADATA_BYTES} are accepted")


class _TooLargeToShareError(Exception):
    """Raised in a cached function, so that its result is not cached."""


@lru_cache(maxsize=8192)
def _shared_labels(pairs: Pairs) -> Pairs:
    if sum(map(len, chain.from_iterable(pairs))) > _SHARED_SET_CHARACTERS:
        raise _TooLargeToShareError
    return pairs


@lru_cache(maxsize=8192)
def _shared_label(key: str, value: str) -> tuple[str, str]:
    if len(key) + len(value) > _SHARED_CHARACTERS:
        raise _TooLargeToShareError
    return _shared(key), value


def _label(key: str, value: str) -> tuple[str, str]:
    return _shared_label(key, value) if len(key) + len(value) <= _SHARED_CHARACTERS else (key, value)


def shared(text: str) -> str:
    """Return one instance for equal short strings, which saves memory. Unlike interned strings, these can be freed in
    every supported version of Python."""
    return _shared(text) if len(text) <= _SHARED_CHARACTERS else text


@lru_cache(maxsize=4096)
def _shared(text: str) -> str:
    return text


def checked_organization(name: str) -> str:
    """Return the organization. Raises MalformedError if it is longer than any valid name."""
    if len(name) > ORGANIZATION_CHARACTERS:
        raise MalformedError(
            f"its organization has {len(name)} characters; at most {ORGANIZATION_CHARACTERS} are valid"
        )
    return shared(name)


def excerpt(message: str) -> str:
    return message if len(message) <= MESSAGE_CHARACTERS else f"{message[:MESSAGE_CHARACTERS]}…"


def suspensions(obj: KubeObject) -> tuple[SuspensionReason, ...] | None:
    """Return the active suspensions of a suspended object. An invalid time is omitted, but the object still counts as
    suspended.

    Milo's list also contains suspensions that were lifted. The condition's message names the active suspensions, but
    the list contains no names. If the message has fewer names than the list has suspensions, it is unknown which of
    these are active.
    """
    condition = obj.condition("Suspended")
    if condition is None or condition.status != "True":
        return None
    listed = (obj.status.suspensions if obj.status is not None else None) or ()
    message = excerpt(condition.message or "")
    named = _ACTIVE_SUSPENSIONS.search(message)
    if named is not None and len(named["names"].split(", ")) < len(listed):
        return (SuspensionReason("", None, "", message),)
    return suspensions_of(listed, message)


def suspensions_of(listed: Sequence[SuspensionInfo], message: str = "") -> tuple[SuspensionReason, ...]:
    return tuple(
        SuspensionReason(
            suspension.reason[:_LONGEST_WORD],
            _moment(suspension.suspendedAt),
            suspension.reinstateAuthority[:_LONGEST_WORD],
            message,
        )
        for suspension in listed[:_MOST_SUSPENSIONS]
    )


def deletion_requested_at(metadata: Metadata) -> float | None:
    if metadata.deletionTimestamp is None:
        return None
    moment = _moment(metadata.deletionTimestamp)
    if moment is None:
        raise MalformedError(f"deletionTimestamp {metadata.deletionTimestamp[:40]!r} is not a time with a time zone")
    return moment


def _moment(text: str) -> float | None:
    """Parse a time. Return None if it is invalid, has no time zone, or is outside the range of protobuf."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None or not _EARLIEST <= moment.timestamp() < _LATEST:
        return None
    return moment.timestamp()


def deletion_message(obj: KubeObject, condition: str | None = None) -> str:
    """Return what the deletion of an object is waiting for: the message of a condition, or the remaining finalizers."""
    metadata = obj.metadata
    cleanup = None if condition is None else obj.condition(condition)
    if cleanup is not None and cleanup.message:
        return excerpt(cleanup.message)
    return excerpt(f"waiting for finalizers: {', '.join(metadata.finalizers)}") if metadata.finalizers else ""


def checked(name: str, pattern: re.Pattern[str], limit: int, what: str) -> str:
    """Return the name if it is safe in a URL: authors of upstream objects must not choose where the daemon connects."""
    if len(name) > limit or not pattern.fullmatch(name):
        raise MalformedError(f"{what} {name[:80]!r} is not {'a DNS label' if pattern is DNS_LABEL else 'a DNS name'}")
    return name
