"""Conditions and owner references."""

from datetime import UTC, datetime
from typing import Any

import pytest

from milo_controllers.conditions import (
    is_terminating,
    owner_reference,
    with_condition,
    with_owner,
)

BEFORE = "2026-01-01T00:00:00Z"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, UTC)
READY = {
    "type": "Ready", "status": "True", "reason": "Done", "message": "m", "observedGeneration": 1,
    "lastTransitionTime": BEFORE,
}  # fmt: skip
OTHER = {"type": "Other", "status": "False"}
OWNER: dict[str, Any] = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "uid": "u"}}


def test_condition_is_added_to_existing_conditions() -> None:
    found = with_condition([OTHER], "Ready", "True", "Done", "m", generation=1, now=NOW)
    assert found == [OTHER, {**READY, "lastTransitionTime": "2026-01-02T03:04:05Z"}]


def test_condition_that_is_already_set_is_unchanged() -> None:
    assert with_condition([READY], "Ready", "True", "Done", "m", generation=1, now=NOW) is None


@pytest.mark.parametrize("status", ["true", "Ready", True, None])
def test_invalid_condition_status_is_refused(status: Any) -> None:
    with pytest.raises(ValueError, match=r'condition Ready: status .*: write "True", "False" or "Unknown"'):
        with_condition([READY], "Ready", status, "Done", "m", generation=1, now=NOW)


def test_condition_transition_time_changes_only_with_its_status() -> None:
    same = with_condition([READY], "Ready", "True", "Again", "n", generation=2, now=NOW)
    assert same == [{**READY, "reason": "Again", "message": "n", "observedGeneration": 2}]
    other = with_condition([READY], "Ready", "False", "Done", "m", generation=1, now=NOW)
    assert other == [{**READY, "status": "False", "lastTransitionTime": "2026-01-02T03:04:05Z"}]


def test_transition_time_is_added_to_condition_that_lacks_it() -> None:
    found = with_condition([{"type": "Ready", "status": "True"}], "Ready", "True", "R", "", generation=None, now=NOW)
    assert found == [
        {"type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}
    ]


def test_owner_reference_is_added_once() -> None:
    reference = owner_reference(OWNER)
    assert reference == {
        "apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": "u",
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    once = with_owner({"kind": "ConfigMap"}, reference)
    assert once == {"kind": "ConfigMap", "metadata": {"ownerReferences": [reference]}}
    assert with_owner(once, reference) == once


def test_second_controller_owner_reference_is_rejected() -> None:
    owned = with_owner({"metadata": {"name": "x"}}, owner_reference(OWNER))
    another = {**owner_reference(OWNER), "uid": "another"}
    with pytest.raises(ValueError, match="Widget w"):
        with_owner(owned, another)
    both = with_owner(owned, {**another, "controller": False})
    assert [owner["uid"] for owner in both["metadata"]["ownerReferences"]] == ["u", "another"]


def test_object_with_deletion_timestamp_is_terminating() -> None:
    assert is_terminating({"metadata": {"deletionTimestamp": BEFORE}})
    assert not is_terminating(OWNER)
