"""Errors of the API server of a cluster.

ClusterApiError
├── NotLeading              this replica no longer holds the Lease or owns the cluster, or that moved
├── Unreachable             the API server sent no usable response
└── ApiError                the API server refused a request
    ├── NotFound
    ├── NotServed           nothing is known about the object
    ├── Conflict
    ├── AlreadyExists
    └── ProjectSuspended    a write to a suspended project
"""

# ruff: noqa: N818  (`except Conflict` reads well without the suffix `Error`)

from __future__ import annotations

__all__ = [
    "AlreadyExists",
    "ApiError",
    "ClusterApiError",
    "Conflict",
    "NotFound",
    "NotLeading",
    "NotServed",
    "ProjectSuspended",
    "Unreachable",
]


class ClusterApiError(Exception):
    """Base class of the errors of requests to the API server of a cluster."""


class NotLeading(ClusterApiError):
    """This replica no longer holds the Lease or owns the cluster, or the cluster moved, so nothing was written.

    Its reconciles are about to be canceled or repeated.
    """


class Unreachable(ClusterApiError):
    """The API server sent no usable response.

    `cause` is machine-readable: dns, connect, tls, timeout, closed or too_large.
    """

    def __init__(self, cause: str, message: str) -> None:
        self.cause = cause
        super().__init__(message)


class ApiError(ClusterApiError):
    """The API server refused a request.

    `status` is the HTTP status. `reason` is that of the Status object, a CamelCase word; empty if there was none.
    `retry_after_s` is the header Retry-After, or None: a reconcile that raises the error is not retried earlier
    (or than after five minutes), unless the object changes.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry_after_s: float | None = None) -> None:
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotFound(ApiError):
    """The API server has no object of this name, or no such namespace."""


class NotServed(ApiError):
    """A 404 that says nothing about the object: the API server does not serve the kind, or a proxy responded."""


class Conflict(ApiError):
    """The object has changed since it was read, or another manager owns a field that was applied without `force`."""


class AlreadyExists(ApiError):
    """An object with this name already exists."""


class ProjectSuspended(ApiError):
    """A write to a suspended project. Do not catch it: the object is reconciled again when the suspension ends."""


def api_error(
    status: int,
    reason: str,
    message: str,
    *,
    about: str = "",
    causes: tuple[str, ...] = (),
    retry_after_s: float | None = None,
) -> ApiError:
    """Return an error of the class that matches the status, reason and causes. `about` names the object, if any."""
    error_type = ApiError
    if "ProjectSuspended" in causes:
        error_type = ProjectSuspended
    elif status == 404:
        error_type = NotFound if about else NotServed
    elif status == 409:
        error_type = AlreadyExists if reason == "AlreadyExists" else Conflict
    return error_type(status, reason, message, retry_after_s=retry_after_s)
