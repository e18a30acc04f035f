"""From gRPC's errors to ours: once, at the boundary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import cast

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

FATAL_TO_A_STREAM = (InvalidRequest, PermissionDenied, Unauthenticated, PreconditionFailed, Unimplemented)
"""Asking again for the same gets the same answer, until somebody changes something."""


def status_error(
    code: grpc.StatusCode, message: str | None, trailers: Iterable[tuple[str, str | bytes]] | None
) -> StatusError:
    """The error of a status, with what its google.rpc details say."""
    reason = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after: timedelta | None = None
    for detail in _details(trailers or ()):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            reason = error_details_pb2.ErrorInfo.FromString(detail.value).reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            violations = tuple(FieldViolation(each.field, each.description) for each in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_after = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay.ToTimedelta()
    return _BY_CODE.get(code, CallFailed)(
        message or code.name, code=code.name, reason=reason, violations=violations, retry_after=retry_after
    )


def failure(error: grpc.RpcError) -> StatusError:
    """The error of a blocking call."""
    call = cast("grpc.Call", error)  # what calls raise is both
    return status_error(call.code(), call.details(), call.trailing_metadata())


def _details(trailers: Iterable[tuple[str, str | bytes]]) -> Sequence[Any]:
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return tuple(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return ()  # the status itself has arrived, and is what counts
    return ()


def lost_connection(error: StatusError) -> bool:
    """Nobody answered: where the daemon did, it has given a reason."""
    return isinstance(error, Unavailable) and not error.reason
