"""The errors of publishing."""

# ruff: noqa: N818  (as in milo_discovery.errors)

from __future__ import annotations

from datetime import timedelta

from milo_discovery.errors import DiscoveryError


class TargetUnavailable(DiscoveryError):
    """The API server did not answer, or asks for a retry."""

    def __init__(self, message: str, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TargetRefused(DiscoveryError):
    """The API server refused a request, and would refuse it again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PublishedByAnother(DiscoveryError):
    """The objects of this publisher stand for another fleet."""
