"""Tests of the conversion of gRPC statuses to exceptions."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo, Help
from google.rpc.status_pb2 import Status

from milo_discovery import Unavailable
from milo_discovery._grpc_status import status_error


@pytest.mark.parametrize(
    "trailers",
    [None, (), (("other", "x"),), (("grpc-status-details-bin", b"\xff not a Status"),)],
    ids=["none", "empty", "unrelated", "malformed"],
)
def test_grpc_status_without_usable_details_keeps_its_code(trailers):
    error = status_error(grpc.StatusCode.UNAVAILABLE, "gone", trailers)
    assert isinstance(error, Unavailable)
    assert (error.message, error.reason, error.violations, error.retry_after) == ("gone", "", (), None)


def test_unknown_grpc_status_details_are_ignored():
    packed = [Any(), Any()]
    packed[0].Pack(Help())
    packed[1].Pack(ErrorInfo(reason="NOT_SYNCED"))
    trailers = (("grpc-status-details-bin", Status(code=14, details=packed).SerializeToString()),)
    assert status_error(grpc.StatusCode.UNAVAILABLE, "not yet", trailers).reason == "NOT_SYNCED"


def test_grpc_status_without_a_message_uses_its_name():
    assert str(status_error(grpc.StatusCode.UNAVAILABLE, None, None)) == "UNAVAILABLE"
