"""The generated Go code in the repository is that of the current proto file."""

import ast
import re

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from milo_discovery.v1 import discovery_pb2
from tests.end_to_end.examples.building import ROOT


def descriptor_in_go() -> FileDescriptorProto:
    source = (ROOT / "clients" / "go" / "v1" / "discovery.pb.go").read_text()
    found = re.search(r'_rawDesc = "" \+\n((?:\t".*"(?: \+)?\n)+)', source)
    assert found is not None
    literals = re.findall(r'"(?:[^"\\]|\\.)*"', found[1])
    data = b"".join(ast.literal_eval("b" + literal) for literal in literals)
    return FileDescriptorProto.FromString(data)


def without_json_names(descriptor: FileDescriptorProto) -> FileDescriptorProto:
    """Remove JSON names, which some generators add although they follow from the names."""
    for message in descriptor.message_type:
        for message_type in (message, *message.nested_type):
            for field in message_type.field:
                field.ClearField("json_name")
    return descriptor


def test_generated_go_code_is_current() -> None:
    python = FileDescriptorProto.FromString(discovery_pb2.DESCRIPTOR.serialized_pb)

    assert without_json_names(descriptor_in_go()) == without_json_names(python), "run ./dev gen where Go is installed"
