"""Errors of calls: status code, message and details."""

from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from milo_discoveryd.server.calls.grpc_errors import (
    CallError,
    ExhaustedError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    StalledError,
    UnauthenticatedError,
    UnavailableError,
    error_status,
    internal_error,
)

DETAILS: dict[str, type[Message]] = {
    "google.rpc.ErrorInfo": error_details_pb2.ErrorInfo,
    "google.rpc.RetryInfo": error_details_pb2.RetryInfo,
    "google.rpc.BadRequest": error_details_pb2.BadRequest,
    "google.rpc.QuotaFailure": error_details_pb2.QuotaFailure,
}


def details(error: CallError) -> list[Any]:
    found = []
    for packed in error_status(error).details:
        detail = DETAILS[packed.TypeName()]()
        packed.Unpack(detail)
        found.append(detail)
    return found


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NotFoundError, code_pb2.NOT_FOUND),
        (PreconditionError, code_pb2.FAILED_PRECONDITION),
        (UnavailableError, code_pb2.UNAVAILABLE),
        (StalledError, code_pb2.ABORTED),
        (PermissionDeniedError, code_pb2.PERMISSION_DENIED),
        (UnauthenticatedError, code_pb2.UNAUTHENTICATED),
    ],
)
def test_call_error_has_code_message_and_reason(kind: type[CallError], code: int) -> None:
    error = kind("SOME_REASON", "what happened; what to do")
    assert (error_status(error).code, error_status(error).message) == (code, "what happened; what to do")
    assert details(error) == [error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="discovery.miloapis.com")]


def test_call_error_carries_retry_info() -> None:
    _, retry = details(UnavailableError("NOT_SYNCED", "not yet", retry_after_s=1.5))
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_invalid_request_error_names_field() -> None:
    error = InvalidRequestError("page_size", "-1 is negative")
    assert (error_status(error).code, error_status(error).message) == (
        code_pb2.INVALID_ARGUMENT,
        "page_size: -1 is negative",
    )
    info, bad = details(error)
    assert info.reason == "INVALID_REQUEST"
    assert [(violation.field, violation.description) for violation in bad.field_violations] == [
        ("page_size", "-1 is negative")
    ]


def test_exhausted_error_carries_quota_failure_and_retry_info() -> None:
    error = ExhaustedError("TOO_MANY_STREAMS", "streams", "5 are open already", retry_after_s=2.0)
    assert (error_status(error).code, error_status(error).message) == (
        code_pb2.RESOURCE_EXHAUSTED,
        "5 are open already",
    )
    info, retry, quota = details(error)
    assert info.reason == "TOO_MANY_STREAMS"
    assert retry.retry_delay.ToMilliseconds() == 2000
    assert [(violation.subject, violation.description) for violation in quota.violations] == [
        ("streams", "5 are open already")
    ]


def test_unexpected_error_is_reported_with_incident_number_and_without_details() -> None:
    incident, status = internal_error()
    assert status.code == code_pb2.INTERNAL
    assert incident in status.message
    assert not status.details
    assert internal_error()[0] != incident
