"""Errors as callers get them: a code, a sentence, and details for programs."""

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
    status,
    unexpected,
)

DETAILS: dict[str, type[Message]] = {
    "google.rpc.ErrorInfo": error_details_pb2.ErrorInfo,
    "google.rpc.RetryInfo": error_details_pb2.RetryInfo,
    "google.rpc.BadRequest": error_details_pb2.BadRequest,
    "google.rpc.QuotaFailure": error_details_pb2.QuotaFailure,
}


def details(error: CallError) -> list[Any]:
    found = []
    for packed in status(error).details:
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
def test_each_kind_has_its_code_its_sentence_and_a_word_for_programs(kind: type[CallError], code: int) -> None:
    error = kind("SOME_REASON", "what happened; what to do")
    assert (status(error).code, status(error).message) == (code, "what happened; what to do")
    assert details(error) == [error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="discovery.miloapis.com")]


def test_an_error_says_when_to_try_again_where_that_helps() -> None:
    _, retry = details(UnavailableError("NOT_SYNCED", "not yet", retry_after_s=1.5))
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_wrong_field_is_named_for_people_and_for_programs() -> None:
    error = InvalidRequestError("page_size", "-1 is negative")
    assert (status(error).code, status(error).message) == (code_pb2.INVALID_ARGUMENT, "page_size: -1 is negative")
    info, bad = details(error)
    assert info.reason == "INVALID_REQUEST"
    assert [(each.field, each.description) for each in bad.field_violations] == [("page_size", "-1 is negative")]


def test_of_what_is_limited_it_is_told_what_and_when_there_is_more() -> None:
    error = ExhaustedError("TOO_MANY_STREAMS", "streams", "5 are open already", retry_after_s=2.0)
    assert (status(error).code, status(error).message) == (code_pb2.RESOURCE_EXHAUSTED, "5 are open already")
    info, retry, quota = details(error)
    assert info.reason == "TOO_MANY_STREAMS"
    assert retry.retry_delay.ToMilliseconds() == 2000
    assert [(each.subject, each.description) for each in quota.violations] == [("streams", "5 are open already")]


def test_what_was_not_foreseen_is_told_as_a_number_to_quote() -> None:
    incident, told = unexpected()
    assert told.code == code_pb2.INTERNAL
    assert told.message == f"internal error; the daemon's log has it as incident {incident}"
    assert not told.details
    assert unexpected()[0] != incident
