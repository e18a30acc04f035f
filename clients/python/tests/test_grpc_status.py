"""Tests of the conversion of gRPC statuses to exceptions."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo, Help
from google.rpc.status_pb2 import Status

from milo_discovery import CallFailed, Unavailable
from milo_discovery._grpc_status import NOT_RETRYABLE, status_error, understood


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


@pytest.mark.parametrize("kind", ["ErrorInfo", "RetryInfo", "BadRequest"])
def test_malformed_grpc_status_detail_is_ignored(kind):
    details = [Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=b"\xff\xff"), Any()]
    details[1].Pack(ErrorInfo(reason="NOT_SYNCED"))
    trailers = (("grpc-status-details-bin", Status(code=14, details=details).SerializeToString()),)
    assert status_error(grpc.StatusCode.UNAVAILABLE, "not yet", trailers).reason == "NOT_SYNCED"


def test_response_that_grpc_could_not_decode_is_a_failed_call():
    with pytest.raises(CallFailed, match="the response was not understood"):
        understood(None)
    assert understood(response := Status()) is response


def test_grpc_status_without_a_message_uses_its_name():
    assert str(status_error(grpc.StatusCode.UNAVAILABLE, None, None)) == "UNAVAILABLE"


def test_request_that_is_too_long_for_the_daemon_is_invalid():
    too_long = "SERVER: Received message larger than max (102704 vs. 98304)"
    error = status_error(grpc.StatusCode.RESOURCE_EXHAUSTED, too_long, None)
    assert isinstance(error, NOT_RETRYABLE)
    assert (error.code, str(error)) == ("INVALID_ARGUMENT", too_long)
