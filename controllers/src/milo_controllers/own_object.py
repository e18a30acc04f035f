"""What a reconcile knows of the object that it reconciles, beside the cache, which trails its writes."""

from __future__ import annotations

import msgspec

from milo_controllers.kinds import Document


class Unwritten(msgspec.Struct, frozen=True):
    """This reconcile has not written the object: the cache has it."""


UNWRITTEN = Unwritten()


class Written(msgspec.Struct, frozen=True):
    """The object as this reconcile last wrote or read it."""

    document: Document


class Outdated(msgspec.Struct, frozen=True):
    """A subresource was written whose response is not the object, such as a Scale: only the API server has it."""


class Deleted(msgspec.Struct, frozen=True):
    """This reconcile deleted the object, and it waits for no finalizer."""


OwnObject = Unwritten | Written | Outdated | Deleted

_RETURN_THE_OBJECT = frozenset({"", "status"})


def after_write(subresource: str, response: Document) -> OwnObject:
    """Return what is known of the object after a write of it, or of a subresource."""
    return Written(response) if subresource in _RETURN_THE_OBJECT else Outdated()


def after_deletion(response: Document | None) -> OwnObject:
    """Return what is known of the object after a deletion: it exists while it waits for finalizers or its grace period.

    `response` is that of the API server: the object, or a Status; None if the object did not exist.
    """
    metadata = (response or {}).get("metadata") or {}
    is_waiting = metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds")
    return Written(response) if response and metadata.get("deletionTimestamp") and is_waiting else Deleted()
