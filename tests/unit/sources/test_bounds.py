"""Values too large for a protobuf message make the object malformed; long condition messages are truncated."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from milo_discoveryd.model.cluster import SuspensionReason
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project_control_plane import ControlPlaneObjects, ProjectControlPlaneKind
from milo_discoveryd.sources.reading import (
    MESSAGE_CHARACTERS,
    METADATA_BYTES,
    METADATA_PAIRS,
    ORGANIZATION_LABEL,
    Status,
)
from tests.unit.sources.objects import condition, control_plane, project
from tests.unit.sources.test_project import MODE
from tests.unit.sources.test_project_control_plane import API, mode

Observe = Callable[..., Observation]


def of_project(*conditions: dict[str, str], **metadata: Any) -> Observation:
    return MODE.observe(project("apollo", *conditions, **metadata))


def of_control_plane(*conditions: dict[str, str], **metadata: Any) -> Observation:
    return mode().observe(control_plane("apollo", *conditions, **metadata))


every_mode = pytest.mark.parametrize("observe", [of_project, of_control_plane])


@every_mode
@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_deletion_time_out_of_range_for_protobuf_makes_an_object_malformed(observe: Observe, at: str) -> None:
    assert isinstance(observe(deletionTimestamp=at), Malformed)


@every_mode
def test_labels_over_the_size_limit_make_an_object_malformed(observe: Observe) -> None:
    assert isinstance(observe(labels={"a": "b" * METADATA_BYTES}), Malformed)
    assert isinstance(observe(labels={"a": "b" * (METADATA_BYTES - 1)}), Ready)
    assert isinstance(observe(labels={"a": "\N{EURO SIGN}" * (METADATA_BYTES // 2)}), Malformed)
    many = METADATA_BYTES // 256
    assert isinstance(observe(labels={f"{number:0>56}": "b" * 200 for number in range(many + 1)}), Malformed)
    assert isinstance(observe(labels={f"{number:0>56}": "b" * 200 for number in range(many)}), Ready)


@every_mode
def test_too_many_labels_make_an_object_malformed(observe: Observe) -> None:
    observed = observe(labels={f"a{number:03}": "" for number in range(METADATA_PAIRS + 1)})
    assert isinstance(observed, Malformed)
    assert observed.message == "it has 251 labels; at most 250 are accepted"
    assert isinstance(observe(labels={f"a{number:03}": "" for number in range(METADATA_PAIRS)}), Ready)


def test_too_many_sent_annotations_make_an_object_malformed() -> None:
    sending = ControlPlaneObjects(
        ProjectControlPlaneKind(), SourceOptions(project_server=API, annotation_prefixes=("a/",))
    )
    annotations = {f"{prefix}/{number}": "" for prefix in "ab" for number in range(METADATA_PAIRS)}
    assert isinstance(sending.observe(control_plane("apollo", annotations=annotations)), Ready)
    assert isinstance(sending.observe(control_plane("apollo", annotations=annotations | {"a/more": ""})), Malformed)


@every_mode
def test_large_label_sets_are_not_cached(observe: Observe) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100):
            observe(labels={f"a{label:03}": f"{number} {'b' * 500}" for label in range(60)})
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 << 20


@every_mode
def test_equal_small_sets_of_labels_share_one_instance(observe: Observe) -> None:
    one, other = (observe(labels={"a" * 60: "b" * number, "c": "d"}) for number in (60, 60))
    assert isinstance(one, Ready)
    assert isinstance(other, Ready)
    assert one.target.labels is other.target.labels


@every_mode
def test_equal_large_sets_of_small_labels_are_not_shared(observe: Observe) -> None:
    labels = {f"{number:02}": "a" * 60 for number in range(9)}
    one, other = observe(labels=labels), observe(labels=labels)
    assert isinstance(one, Ready)
    assert isinstance(other, Ready)
    assert one.target.labels == other.target.labels
    assert one.target.labels is not other.target.labels
    assert one.target.labels[0] is other.target.labels[0]


def test_sent_annotations_over_the_size_limit_make_an_object_malformed() -> None:
    sending = ControlPlaneObjects(
        ProjectControlPlaneKind(), SourceOptions(project_server=API, annotation_prefixes=("a/",))
    )
    observed = [
        sending.observe(control_plane("apollo", annotations={"a/b": "c" * size, "d": "e" * METADATA_BYTES}))
        for size in (METADATA_BYTES - len("a/b"), METADATA_BYTES)
    ]
    assert [type(observation) for observation in observed] == [Ready, Malformed]


@every_mode
def test_organization_longer_than_a_valid_name_makes_an_object_malformed(observe: Observe) -> None:
    assert isinstance(observe(labels={ORGANIZATION_LABEL: "o" * 253}), Ready)
    assert isinstance(observe(labels={ORGANIZATION_LABEL: "o" * 254}), Malformed)


def test_owner_name_longer_than_a_valid_name_makes_a_project_malformed() -> None:
    owner = {"ownerRef": {"kind": "Organization", "name": "o" * 254}}
    assert isinstance(MODE.observe(project("apollo", spec=owner)), Malformed)


@every_mode
def test_long_message_of_a_condition_is_truncated(observe: Observe) -> None:
    kinds = ("Ready", "ControlPlaneReady")
    observed = observe(*(condition(kind, "False", "Waiting", "x" * 5_000_000) for kind in kinds))
    assert isinstance(observed, NotReady)
    assert len(observed.message) == MESSAGE_CHARACTERS + 1
    assert observed.message.endswith("x…")


def test_number_of_suspensions_and_length_of_their_fields_are_limited() -> None:
    suspension = {"reason": "r" * 1000, "suspendedAt": "1970-01-01T00:00:05Z", "reinstateAuthority": "a" * 1000}
    conditions = [condition("Ready"), condition("Suspended")]
    status = msgspec.convert({"conditions": conditions, "suspensions": [suspension] * 1000}, Status)
    observed = MODE.observe(msgspec.structs.replace(project("apollo"), status=status))
    assert isinstance(observed, Ready)
    assert observed.target.suspensions == (SuspensionReason("r" * 128, 5.0, "a" * 128),) * 16


def test_long_message_of_a_deletion_is_truncated() -> None:
    cleanup = condition("ResourceCleanup", "False", "", "y" * 5_000_000)
    observed = of_project(condition("Ready"), cleanup, deletionTimestamp="2026-01-01T00:00:00Z")
    assert isinstance(observed, Ready)
    assert len(observed.target.deletion_message) == MESSAGE_CHARACTERS + 1
