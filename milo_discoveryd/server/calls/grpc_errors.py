"""Errors of calls: gRPC status codes, reasons for programs, and messages for people. Pure."""

import secrets

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from milo_discoveryd.server.calls.convert import duration

DOMAIN = "discovery.miloapis.com"


class CallError(Exception):
    """A call fails with a gRPC status."""

    code: int = code_pb2.UNKNOWN
    """One of google.rpc.Code."""

    def __init__(self, reason: str, message: str, *, retry_after_s: float | None = None) -> None:
        """`reason`: a stable word in UPPER_SNAKE_CASE for programs. `message`: for people."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    def details(self) -> list[Any]:
        packed = [_packed(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN))]
        if self.retry_after_s is not None:
            packed.append(_packed(error_details_pb2.RetryInfo(retry_delay=duration(self.retry_after_s))))
        return packed


class InvalidRequestError(CallError):
    """A field of the request is invalid."""

    code = code_pb2.INVALID_ARGUMENT

    def __init__(self, field: str, problem: str) -> None:
        super().__init__("INVALID_REQUEST", f"{field}: {problem}")
        self._violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)

    def details(self) -> list[Any]:
        return [*super().details(), _packed(error_details_pb2.BadRequest(field_violations=[self._violation]))]


class ForeignPageTokenError(InvalidRequestError):
    """The page token was not signed for this caller and view."""


class NotFoundError(CallError):
    code = code_pb2.NOT_FOUND


class PreconditionError(CallError):
    code = code_pb2.FAILED_PRECONDITION


class UnavailableError(CallError):
    code = code_pb2.UNAVAILABLE


class LateRequestError(UnavailableError):
    """The request of a call did not arrive in time."""


class UnauthenticatedError(CallError):
    """Authentication failed."""

    code = code_pb2.UNAUTHENTICATED


class PermissionDeniedError(CallError):
    code = code_pb2.PERMISSION_DENIED


class ExhaustedError(CallError):
    """A quota or rate limit of the caller, or of all callers together, is reached."""

    code = code_pb2.RESOURCE_EXHAUSTED

    def __init__(self, reason: str, subject: str, message: str, *, retry_after_s: float) -> None:
        """`subject` names what is limited."""
        super().__init__(reason, message, retry_after_s=retry_after_s)
        self._violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)

    def details(self) -> list[Any]:
        return [*super().details(), _packed(error_details_pb2.QuotaFailure(violations=[self._violation]))]


class TooManyCallsError(ExhaustedError):
    """Too many calls of the caller, or of all callers of a listener together, are in flight."""


class TooManyReviewsError(UnavailableError):
    """The rate limit for token reviews of the caller, or of all callers together, is reached."""


class StalledError(CallError):
    code = code_pb2.ABORTED


def error_status(error: CallError) -> status_pb2.Status:
    return status_pb2.Status(code=error.code, message=error.message, details=error.details())


def internal_error() -> tuple[str, status_pb2.Status]:
    """Return an incident ID, and a status that contains only the ID: an unexpected error's text may contain secrets."""
    incident = secrets.token_hex(4)
    message = f"internal error; see incident {incident} in the daemon's log"
    return incident, status_pb2.Status(code=code_pb2.INTERNAL, message=message)


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
