"""Status conditions, owner references and pending deletion: pure functions of an object."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, get_args

from milo_controllers.kinds import Document
from milo_kube.rfc3339 import rfc3339

ConditionStatus = Literal["True", "False", "Unknown"]


def with_condition(
    conditions: Iterable[Document],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    generation: int | None,
    now: datetime,
) -> list[Document] | None:
    """Return the conditions with this one set; None if nothing changes. lastTransitionTime changes only with `status`.

    Raises ValueError for an invalid status.
    """
    if status not in get_args(ConditionStatus):
        raise ValueError(f'condition {type_}: status {status!r}: write "True", "False" or "Unknown"')
    found = [dict(condition) for condition in conditions]
    before = next((condition for condition in found if condition.get("type") == type_), None)
    wanted: Document = {"type": type_, "status": status, "reason": reason, "message": message}
    if generation is not None:
        wanted["observedGeneration"] = generation
    if before is None:
        found.append({**wanted, "lastTransitionTime": rfc3339(now)})
        return found
    if all(before.get(name) == value for name, value in wanted.items()):
        return None
    if before.get("status") != status or not before.get("lastTransitionTime"):
        before["lastTransitionTime"] = rfc3339(now)
    before.update(wanted)
    return found


def owner_reference(owner: Document, *, controller: bool = True, block_owner_deletion: bool = True) -> Document:
    """Return a reference to `owner`, for the `metadata.ownerReferences` of an object that it owns."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": controller,
        "blockOwnerDeletion": block_owner_deletion,
    }


def with_owner(body: Document, reference: Document) -> Document:
    """Return the object with this owner. Raises ValueError if it would have two controllers."""
    metadata: dict[str, Any] = body.get("metadata") or {}
    others = [owner for owner in metadata.get("ownerReferences") or () if owner.get("uid") != reference["uid"]]
    for other in others:
        if other.get("controller") and reference["controller"]:
            name = f"{other.get('kind')} {other.get('name')}"
            raise ValueError(f"{metadata.get('name')} is already controlled by {name}; only one controller is allowed")
    return {**body, "metadata": {**metadata, "ownerReferences": [*others, reference]}}


def is_terminating(found: Document) -> bool:
    return bool(found["metadata"].get("deletionTimestamp"))
