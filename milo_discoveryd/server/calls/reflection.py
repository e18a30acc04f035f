"""The gRPC reflection service.

The servicer of grpcio-reflection copies each file descriptor into a message of `descriptor_pb2`, a module of 4 MiB.
`FileDescriptor.serialized_pb` contains the same bytes without the copy.
"""

from collections.abc import AsyncIterable, Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection_pb2

from milo_discoveryd.server.calls.handlers import ResponseWriter
from milo_discoveryd.server.calls.rpc_context import RpcContext

NAME = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name


class ReflectionService:
    """The descriptions of services, for calls that `AccessInterceptor` has admitted."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted(services)
        self._pool = descriptor_pool.Default()

    def handlers(self) -> grpc.GenericRpcHandler:
        reflect: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._reflect, request_deserializer=reflection_pb2.ServerReflectionRequest.FromString
        )
        return grpc.method_handlers_generic_handler(NAME, {"ServerReflectionInfo": reflect})

    async def _reflect(self, requests: AsyncIterable[Any], context: RpcContext) -> None:
        write = ResponseWriter(context).write
        async for request in requests:
            await write(self.response(request).SerializeToString())

    def response(self, request: Any) -> Any:
        try:
            match request.WhichOneof("message_request"):
                case "list_services":
                    services = [reflection_pb2.ServiceResponse(name=name) for name in self._services]
                    answer = {"list_services_response": reflection_pb2.ListServiceResponse(service=services)}
                case "file_by_filename":
                    answer = _files(self._pool.FindFileByName(request.file_by_filename))
                case "file_containing_symbol":
                    answer = _files(self._pool.FindFileContainingSymbol(request.file_containing_symbol))
                case "file_containing_extension":
                    extension = request.file_containing_extension
                    extended = self._pool.FindMessageTypeByName(extension.containing_type)
                    descriptor = self._pool.FindExtensionByNumber(extended, extension.extension_number)
                    answer = _files(self._pool.FindFileContainingSymbol(descriptor.full_name))
                case "all_extension_numbers_of_type":
                    extended = self._pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
                    numbers = sorted(extension.number for extension in self._pool.FindAllExtensions(extended))
                    response = reflection_pb2.ExtensionNumberResponse(
                        base_type_name=extended.full_name, extension_number=numbers
                    )
                    answer = {"all_extension_numbers_response": response}
                case _:
                    answer = _error(grpc.StatusCode.INVALID_ARGUMENT)
        except KeyError:
            answer = _error(grpc.StatusCode.NOT_FOUND)
        return reflection_pb2.ServerReflectionResponse(original_request=request, **answer)


def _files(file: FileDescriptor) -> dict[str, Any]:
    files = [descriptor.serialized_pb for descriptor in _with_dependencies(file, {}).values()]
    return {"file_descriptor_response": reflection_pb2.FileDescriptorResponse(file_descriptor_proto=files)}


def _with_dependencies(file: FileDescriptor, files: dict[str, FileDescriptor]) -> dict[str, FileDescriptor]:
    if file.name not in files:
        files[file.name] = file
        for dependency in file.dependencies:
            _with_dependencies(dependency, files)
    return files


def _error(code: grpc.StatusCode) -> dict[str, Any]:
    number, text = code.value
    return {"error_response": reflection_pb2.ErrorResponse(error_code=number, error_message=text)}
