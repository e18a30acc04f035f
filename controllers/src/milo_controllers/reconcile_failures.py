"""The objects of one controller whose last reconcile failed, and the log of failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import msgspec

from milo_controllers.errors import ControllerError, text_of
from milo_controllers.work_queue import ObjectKey
from milo_discovery.api_errors import ApiError, ClusterApiError, Conflict
from milo_discovery.errors import DiscoveryError
from milo_kube.failure_log import FailureLog, raised_at

log = logging.getLogger("milo_controllers")

_LONGEST_ERROR = 500
_MOST_ERRORS = 1000
"""Maximum number of errors that are kept of one cluster, in which a hundred thousand objects can fail."""
_NOT_KEPT = f"not kept, since more than {_MOST_ERRORS} objects of the cluster fail"


class ReconcileFailure(msgspec.Struct):
    """The last failure of an object."""

    error: str
    attempts: int
    since: float
    is_stopped: bool


class ReconcileFailures:
    """The failures of one controller."""

    def __init__(self, controller: str, logged: FailureLog) -> None:
        self._controller = controller
        self._logged = logged
        self._objects: dict[tuple[str, int], dict[ObjectKey, ReconcileFailure]] = {}
        """By cluster name and incarnation."""
        self._suspended: set[tuple[str, int]] = set()
        """The clusters, by name and incarnation, for which `log_suspension` has logged that their objects wait."""

    def __len__(self) -> int:
        return sum(map(len, tuple(self._objects.values())))

    def __iter__(self) -> Iterator[tuple[ObjectKey, ReconcileFailure]]:
        """Iterate over a copy, which is safe in any thread."""
        return iter([failure for objects in tuple(self._objects.values()) for failure in tuple(objects.items())])

    def of_cluster(self, cluster: str, incarnation: int) -> tuple[ObjectKey, ...]:
        """Return the objects of a cluster whose last reconcile failed."""
        return tuple(self._objects.get((cluster, incarnation), ()))

    def record(self, key: ObjectKey, error: Exception, *, is_stopped: bool) -> None:
        objects = self._objects.setdefault(key[:2], {})
        before = objects.get(key)
        since, attempts = (time.time(), 0) if before is None else (before.since, before.attempts)
        is_kept = len(objects) < _MOST_ERRORS or (before is not None and before.error != _NOT_KEPT)
        text = text_of(error)[:_LONGEST_ERROR] if is_kept else _NOT_KEPT
        objects[key] = ReconcileFailure(text, attempts + 1, since, is_stopped)

    def recovered(self, key: ObjectKey) -> None:
        objects = self._objects.get(key[:2])
        if objects is not None and objects.pop(key, None) is not None and not objects:
            del self._objects[key[:2]]

    def drop(self, cluster: str, incarnation: int) -> None:
        """Forget the objects of a cluster."""
        self.suspension_ended(cluster, incarnation)
        self._objects.pop((cluster, incarnation), None)

    def log_suspension(self, key: ObjectKey, what: str) -> None:
        """Log that an object waits for the end of its project's suspension, once for all objects of the cluster."""
        if key[:2] not in self._suspended:
            self._suspended.add(key[:2])
            log.info(
                "%s: %s: %s waits until the project is no longer suspended, as does each object whose reconcile writes",
                *(self._controller, key.cluster, what),
            )

    def suspension_ended(self, cluster: str, incarnation: int) -> None:
        self._suspended.discard((cluster, incarnation))

    def log(self, cluster: str, what: str, error: Exception, then: str) -> None:
        """Log a failure, unless one of the same cluster and cause was logged recently; log each conflict at INFO."""
        text = text_of(error)
        if isinstance(error, Conflict):
            # Conflicts are part of normal operation: usually the cache was behind, and the retry reads the new object.
            log.info("%s: %s: %s failed with a conflict (%s): %s", self._controller, cluster, what, then, text)
            return
        key: tuple[object, ...] = (self._controller, cluster, type(error), raised_at(error))
        if isinstance(error, ApiError):
            key = (self._controller, cluster, error.status, error.reason)
        summary = f"{self._controller}: {cluster}: {what} failed: {text}"
        if not self._logged.is_new(cluster, error, asyncio.get_running_loop().time(), key=key, what=summary):
            return
        # Expected errors are logged without a traceback; others are bugs.
        trace = None if isinstance(error, ControllerError | ClusterApiError | DiscoveryError) else error
        log.error("%s: %s: %s failed (%s): %s", self._controller, cluster, what, then, text, exc_info=trace)
