"""The cluster and the object of the running reconcile, for logs and traces."""

from __future__ import annotations

import logging
from contextvars import ContextVar

current_cluster: ContextVar[str] = ContextVar("milo_cluster", default="")
"""Name of the cluster of the running reconcile; empty outside of reconciles."""
current_object: ContextVar[str] = ContextVar("milo_object", default="")
"""Namespace and name of the object that is being reconciled."""
current_reconcile: ContextVar[str] = ContextVar("milo_reconcile", default="")
"""Random ID of the running reconcile."""


class ClusterFilter(logging.Filter):
    """A filter that adds `cluster`, `object` and `reconcile` to log records.

    Attach it to a handler, and use these names in the format of its formatter.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.cluster = current_cluster.get()
        record.object = current_object.get()
        record.reconcile = current_reconcile.get()
        return True


def log_with_stack(log: logging.Logger, level: int, stack: str, message: str, *arguments: object) -> None:
    """Log a message with a stack that is not that of the caller."""
    if log.isEnabledFor(level):
        log.handle(log.makeRecord(log.name, level, "", 0, message, arguments, None, sinfo=stack))
