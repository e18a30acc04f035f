"""The reflection service answers as the servicer of grpcio-reflection does."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from milo_discovery.v1 import discovery_pb2
from milo_discoveryd.server.calls.reflection import NAME, ReflectionService

REQUEST = reflection_pb2.ServerReflectionRequest
EXTENSION = reflection_pb2.ExtensionRequest
ANY = "google.protobuf.Any"
SERVICE = discovery_pb2.DESCRIPTOR.services_by_name["DiscoveryService"].full_name

REQUESTS = {
    "services": REQUEST(list_services=""),
    "file": REQUEST(file_by_filename=discovery_pb2.DESCRIPTOR.name),
    "unknown file": REQUEST(file_by_filename="none.proto"),
    "symbol": REQUEST(file_containing_symbol=f"{SERVICE}.WatchClusters"),
    "unknown symbol": REQUEST(file_containing_symbol="none.None"),
    "extension": REQUEST(file_containing_extension=EXTENSION(containing_type=ANY, extension_number=1)),
    "numbers of extensions": REQUEST(all_extension_numbers_of_type=ANY),
    "extensions of an unknown type": REQUEST(all_extension_numbers_of_type="none.None"),
    "nothing": REQUEST(host="localhost"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_reflection_response_equals_that_of_grpcio_reflection(request_: Any) -> None:
    services = (SERVICE, NAME)
    response = ReflectionService(services).response(request_)
    peer = reflection.aio.ReflectionServicer(services)
    (expected,) = [answer async for answer in peer.ServerReflectionInfo(_stream(request_), None)]
    assert _comparable(response) == _comparable(expected)
    assert reflection.SERVICE_NAME == NAME


def _comparable(response: Any) -> tuple[Any, list[Any]]:
    """Return the response with its file descriptors parsed, since a file can be serialized in several ways."""
    files = response.file_descriptor_response.file_descriptor_proto
    parsed = sorted((descriptor_pb2.FileDescriptorProto.FromString(file) for file in files), key=lambda file: file.name)
    response.file_descriptor_response.ClearField("file_descriptor_proto")
    return response, parsed


async def _stream(request: Any) -> AsyncIterator[Any]:
    yield request
