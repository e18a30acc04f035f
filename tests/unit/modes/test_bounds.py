"""Values that no subscriber could be sent make the object malformed."""

import pytest

from milo_discoveryd.model.observation import Malformed, Ready
from milo_discoveryd.modes.reading import METADATA_BYTES
from tests.unit.modes.objects import project
from tests.unit.modes.test_project import MODE


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_deletion_time_outside_the_range_of_protobuf_is_malformed(at: str) -> None:
    assert isinstance(MODE.observe(project(deletionTimestamp=at)), Malformed)


def test_labels_larger_than_a_message_are_malformed() -> None:
    assert isinstance(MODE.observe(project(labels={"a": "b" * METADATA_BYTES})), Malformed)
    assert isinstance(MODE.observe(project(labels={"a": "b"}, annotations={"c": "d" * 1000})), Ready)
