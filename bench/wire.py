"""Batches, decoded only as far as counting needs: their events stay bytes."""

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from milo_discovery.v1 import discovery_pb2 as pb

_FULL = pb.WatchClustersResponse.DESCRIPTOR
_KEPT = ("revision", "previous_revision", "synced", "reset")

METHOD = "/milo.discovery.v1.DiscoveryService/WatchClusters"


def _counted() -> Any:
    """Return a message class with events declared as bytes, so that decoding creates no event objects."""
    file = FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    message = file.message_type.add(name="Batch")
    message.field.add(
        name="events",
        number=_FULL.fields_by_name["events"].number,
        type=FieldDescriptorProto.TYPE_BYTES,
        label=FieldDescriptorProto.LABEL_REPEATED,
    )
    for name in _KEPT:
        field = _FULL.fields_by_name[name]
        message.field.add(name=name, number=field.number, type=field.type, label=FieldDescriptorProto.LABEL_OPTIONAL)
    pool = DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    return GetMessageClass(pool.FindMessageTypeByName("bench.Batch"))


Batch = _counted()
