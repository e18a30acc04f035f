"""Errors of reconcilers. Errors of API servers are in `milo_discovery.api_errors`.

ControllerError
├── Permanent               raised by reconcilers: stop retrying
├── NotCached               the kind, or the part of an object that was read, is not cached
├── NotSynced               the informer has not completed its first list
└── ReconcileTimeout        a reconcile took longer than its timeout
"""

# ruff: noqa: N818  (`except NotSynced` reads well without the suffix `Error`)

from __future__ import annotations

from milo_discovery.api_errors import ApiError


class ControllerError(Exception):
    """Base class of the errors of reconcilers. Those of API servers are a `ClusterApiError`."""


class Permanent(ControllerError):
    """An error that a retry does not fix: raise it in a reconciler to stop retries until the object changes.

    It is logged and counted, and `Controllers.failing` lists the object.
    """


class NotCached(ControllerError):
    """The kind, or the part of an object that was read, is not cached, or the object is invalid; the message says what
    to change."""


class NotSynced(ControllerError):
    """The cache has no complete list yet, so an object that is missing from it may exist.

    Do not catch it: the reconcile is retried.
    """

    def __init__(self, message: str, *, cluster: str = "") -> None:
        self.cluster = cluster
        """The name of the cluster of the cache."""
        super().__init__(message)


class ReconcileTimeout(ControllerError):
    """A reconcile took longer than its timeout, and is retried."""


def cause_of(error: Exception) -> Exception:
    """Return one error of a group, as a TaskGroup raises it, if all of them have one type: of those of an API server
    the one that asks for the longest delay."""
    if not isinstance(error, ExceptionGroup):
        return error
    causes = [cause_of(inner) for inner in error.exceptions]
    longest = max(causes, key=lambda cause: (isinstance(cause, ApiError) and cause.retry_after_s) or 0.0)
    return longest if len(set(map(type, causes))) == 1 else error


def text_of(error: Exception) -> str:
    """Return the text of an author's error, also if its `__str__` fails or returns what cannot be encoded."""
    try:
        text = str(error) or repr(error)
    except Exception:  # noqa: BLE001  (the author's code: an error there must not hide the one that it describes)
        text = type(error).__name__
    return text.encode(errors="backslashreplace").decode()
