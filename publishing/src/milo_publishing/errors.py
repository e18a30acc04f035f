"""Errors of the publishing commands."""

# ruff: noqa: N818  (as in milo_discovery.errors)

from __future__ import annotations

from datetime import timedelta

from milo_discovery.errors import DiscoveryError


class TargetUnavailable(DiscoveryError):
    """A request to the target API server failed; it is retried.

    `is_unsent`: no server was reached at all. `is_answer`: a server has answered it. Otherwise that is unknown.
    `is_too_large`: the response has more bytes than are read.
    """

    def __init__(
        self,
        message: str,
        retry_after: timedelta | None = None,
        *,
        is_unsent: bool = False,
        is_answer: bool = False,
        is_too_large: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_unsent = is_unsent
        self.is_answer = is_answer
        self.is_too_large = is_too_large


class TargetRefused(DiscoveryError):
    """The target API server rejected a request about an object: with a 4xx status other than 401, 408 and 429."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PermitEnded(DiscoveryError):
    """A deletion was not sent, because the cluster was engaged while the request waited for its connection."""


class PublishedByAnother(DiscoveryError):
    """The objects with this publisher's labels were written for another filter or shard group."""
