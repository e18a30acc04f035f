"""Tests that the enums of the model match the proto file."""

from __future__ import annotations

import pytest

import milo_discovery
from milo_discovery import model
from milo_discovery.v1 import discovery_pb2 as pb

ENUMS = {
    model.DisengageReason: pb.DisengageReason,
    model.ConnectivityState: pb.Connectivity.State,
    model.SourceState: pb.SourceStatus.State,
    model.EngagementReason: pb.Engagement.Reason,
    model.EventType: pb.ClusterEvent.Type,
    model.KubeconfigFormat: pb.KubeconfigFormat,
}


def test_every_model_enum_is_compared_with_the_proto_file():
    assert ENUMS.keys() == set(model._OpenEnum.__subclasses__())


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_enum_has_the_values_of_the_proto_file(enum):
    names = {value: name for name, value in ENUMS[enum].items()}
    prefix = names[0].removesuffix("UNSPECIFIED")
    assert {member.value: f"{prefix}{member.name}" for member in enum} == names


def test_unknown_enum_number_of_a_newer_daemon_is_unspecified():
    assert model.EngagementReason(99) is model.EngagementReason.UNSPECIFIED


def test_every_public_type_of_the_model_is_exported():
    public = {name for name, value in vars(model).items() if getattr(value, "__module__", "") == model.__name__}
    assert {name for name in public if not name.startswith("_")} <= set(milo_discovery.__all__)
