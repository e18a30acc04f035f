"""Decoded fields of upstream objects."""

from milo_discoveryd.model.objects import Condition, KubeObject, Metadata, Status

METADATA = Metadata(name="a", uid="u", resourceVersion="1")


def test_condition_is_found_by_type() -> None:
    conditions = [Condition("Ready", "True"), Condition("Suspended", "False")]
    assert KubeObject(METADATA, status=Status(conditions)).condition("Suspended") == Condition("Suspended", "False")


def test_missing_status_has_no_conditions() -> None:
    assert KubeObject(METADATA).condition("Ready") is None
    assert KubeObject(METADATA, status=Status()).condition("Ready") is None
    assert KubeObject(METADATA, status=Status([Condition("Other", "True")])).condition("Ready") is None
