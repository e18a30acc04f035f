"""Translates gRPC statuses and their google.rpc details into this package's errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from milo_discovery.errors import (
    CallFailed,
    ClusterNotFound,
    FieldViolation,
    InvalidRequest,
    PermissionDenied,
    PreconditionFailed,
    StatusError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

ResponseT = TypeVar("ResponseT")

_DETAILS_KEY = "grpc-status-details-bin"

_BY_CODE: dict[grpc.StatusCode, type[StatusError]] = {
    grpc.StatusCode.NOT_FOUND: ClusterNotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
}

_TOO_LARGE = "SERVER: Received message larger than max"
"""How the message begins with which the daemon's gRPC rejects a request as RESOURCE_EXHAUSTED, which is otherwise
temporary."""

NOT_RETRYABLE = (InvalidRequest, PermissionDenied, Unauthenticated, PreconditionFailed, Unimplemented)
"""Errors that end a watch: a retry would fail too, until the client or the daemon is changed."""


def status_error(
    code: grpc.StatusCode, message: str | None, trailers: Iterable[tuple[str, str | bytes]] | None
) -> StatusError:
    """Return the error for a status, with the reason, violations and retry delay from its details."""
    reason = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after: timedelta | None = None
    for detail in _details(trailers or ()):
        with suppress(
            DecodeError, ValueError, OverflowError
        ):  # A malformed detail, or a delay out of range, is ignored.
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                reason = error_details_pb2.ErrorInfo.FromString(detail.value).reason
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                violations = tuple(
                    FieldViolation(violation.field, violation.description) for violation in bad.field_violations
                )
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry_after = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay.ToTimedelta()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (message or "").startswith(_TOO_LARGE):
        code = grpc.StatusCode.INVALID_ARGUMENT
    return _BY_CODE.get(code, CallFailed)(
        message or code.name, code=code.name, reason=reason, violations=violations, retry_after=retry_after
    )


def status_error_of_call(error: grpc.RpcError) -> StatusError:
    """Return the error for the exception that a call raised."""
    call = cast("grpc.Call", error)  # gRPC's exceptions implement both RpcError and Call
    return status_error(call.code(), call.details(), call.trailing_metadata())


def understood(response: ResponseT | None) -> ResponseT:
    """Return the response of an asyncio call. Raises CallFailed for None: gRPC could not decode the response."""
    if response is None:
        raise CallFailed("the response was not understood", code="INTERNAL")
    return response


def is_connection_loss(error: StatusError) -> bool:
    """Return whether the daemon was unreachable: errors that the daemon returns have a reason."""
    return isinstance(error, Unavailable) and not error.reason


def _details(trailers: Iterable[tuple[str, str | bytes]]) -> Sequence[Any]:
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return tuple(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return ()  # without valid details, the status code can still be used
    return ()
