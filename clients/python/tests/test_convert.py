"""Tests that every field of a protobuf message is converted to the model."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from milo_discovery import _convert
from milo_discovery.v1 import discovery_pb2 as pb

NOT_CONVERTED = {"ListClustersResponse.next_page_token"}
CONVERTERS: dict[type[Message], Callable[[Any], object]] = {
    pb.Cluster: _convert.cluster,
    pb.Kubeconfig: _convert.kubeconfig,
    pb.SourceStatus: _convert.source_status,
    pb.GetClusterResponse: _convert.cluster_report,
    pb.GetServerInfoResponse: _convert.server_info,
    pb.ListClustersResponse: lambda message: _convert.listing([message]),
}


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_text(field: FieldDescriptor) -> bool:
    return field.cpp_type == FieldDescriptor.CPPTYPE_STRING


def fill(message: Message) -> None:
    """Set all fields of a message recursively."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if is_map(field):
            value["key"] = "x" if is_text(field.message_type.fields_by_name["value"]) else 1
        elif field.message_type is not None:
            fill(value.add() if field.is_repeated else value)
        elif field.is_repeated:
            value.append("x")
        else:
            is_bytes = field.type == FieldDescriptor.TYPE_BYTES
            setattr(message, field.name, b"x" if is_bytes else "x" if is_text(field) else 1)


def paths(message: Message, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all fields of a filled message recursively."""
    for field in message.DESCRIPTOR.fields:
        yield (*path, field.name)
        value = getattr(message, field.name)
        inner = field.message_type
        if inner is not None and not is_map(field) and not inner.full_name.startswith("google."):
            yield from paths(value[0] if field.is_repeated else value, (*path, field.name))


def without(message: Message, path: tuple[str, ...]) -> Message:
    changed = type(message)()
    changed.CopyFrom(message)
    holder: Any = changed
    for name in path[:-1]:
        value = getattr(holder, name)
        holder = value[0] if holder.DESCRIPTOR.fields_by_name[name].is_repeated else value
    holder.ClearField(path[-1])
    return changed


@pytest.mark.parametrize("kind", CONVERTERS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_every_field_is_converted(kind: type[Message]) -> None:
    convert, message = CONVERTERS[kind], kind()
    fill(message)
    lost = {".".join(path) for path in paths(message) if convert(without(message, path)) == convert(message)}
    assert {f"{kind.DESCRIPTOR.name}.{path}" for path in lost} == {
        name for name in NOT_CONVERTED if name.startswith(f"{kind.DESCRIPTOR.name}.")
    }


def test_unassigned_cluster_of_an_earlier_version_is_assigned_elsewhere() -> None:
    unassigned = pb.GetClusterResponse(engagement=pb.Engagement(reason=pb.Engagement.REASON_UNASSIGNED))
    assert _convert.cluster_report(unassigned).engagement.assigned_elsewhere
    not_ready = pb.GetClusterResponse(engagement=pb.Engagement(reason=pb.Engagement.REASON_NOT_READY))
    assert not _convert.cluster_report(not_ready).engagement.assigned_elsewhere
