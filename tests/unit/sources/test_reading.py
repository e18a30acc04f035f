"""Decoded fields of upstream objects."""

from milo_discoveryd.sources.reading import Condition, KubeObject, Metadata, Status

METADATA = Metadata(name="a", uid="u", resourceVersion="1")


def test_object_condition_is_found_by_type() -> None:
    conditions = [Condition("Ready", "True"), Condition("Suspended", "False")]
    assert KubeObject(METADATA, status=Status(conditions)).condition("Suspended") == Condition("Suspended", "False")


def test_object_without_status_has_no_conditions() -> None:
    assert KubeObject(METADATA).condition("Ready") is None
    assert KubeObject(METADATA, status=Status()).condition("Ready") is None
    assert KubeObject(METADATA, status=Status([Condition("Other", "True")])).condition("Ready") is None
