"""What a reconcile knows of the object that it reconciles, beside the cache, which trails its writes."""

from __future__ import annotations

import msgspec

from milo_controllers.kinds import Document


class Unwritten(msgspec.Struct, frozen=True):
    """This reconcile has not written the object: the cache has it."""


UNWRITTEN = Unwritten()


class Written(msgspec.Struct, frozen=True):
    """The object as this reconcile last wrote or read it, until the cache has it or a newer state."""

    document: Document


class Outdated(msgspec.Struct, frozen=True):
    """A write was answered without the object, such as with a Scale, or a deletion without saying whether it is
    complete: only the API server has it."""

    last: Document | None = None
    """The object before its deletion, if that is known."""


class Deleted(msgspec.Struct, frozen=True):
    """This reconcile deleted the object, or removed the last finalizer for which its deletion waited."""

    last: Document | None = None
    """The object at its end, if that is known."""


OwnObject = Unwritten | Written | Outdated | Deleted

_RETURN_THE_OBJECT = frozenset({"", "status"})


def after_write(subresource: str, response: Document) -> OwnObject:
    """Return what is known of the object after a write of it, or of a subresource."""
    if subresource not in _RETURN_THE_OBJECT:
        return Outdated()
    return Deleted(response) if _is_terminating(response) and not _is_waiting(response) else Written(response)


def after_deletion(response: Document | None, last: Document | None = None) -> OwnObject:
    """Return what is known of the object after a deletion: it exists while it waits for finalizers or its grace period.

    `response` is that of the API server: the object, or a Status; None if the object did not exist. `last` is what was
    known of it before.
    """
    if response is None:
        return Deleted(last)
    if _is_terminating(response) and _is_waiting(response):
        return Written(response)
    deleted = deleted_uid(response)
    if not deleted and response.get("kind") == "Status":
        return Outdated(last)
    return Deleted(last if last and deleted in ("", last["metadata"]["uid"]) else None)


def deleted_uid(response: Document) -> str:
    """Return the UID of the object whose deletion was answered so; empty if the response does not say it."""
    details = response.get("details") if response.get("kind") == "Status" else response.get("metadata")
    return str((details or {}).get("uid") or "")


def _is_terminating(response: Document) -> bool:
    return bool((response.get("metadata") or {}).get("deletionTimestamp"))


def _is_waiting(terminating: Document) -> bool:
    metadata = terminating.get("metadata") or {}
    is_namespace = (terminating.get("apiVersion"), terminating.get("kind")) == ("v1", "Namespace")
    return bool(
        metadata.get("finalizers")
        or metadata.get("deletionGracePeriodSeconds")
        or (is_namespace and (terminating.get("spec") or {}).get("finalizers"))
    )
