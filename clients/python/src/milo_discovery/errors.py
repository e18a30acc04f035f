"""Everything that can go wrong, as types.

DiscoveryError
├── InvalidAddress            the address names no place to connect to
├── InvalidCredentials        what the client is to show can't be read, or must not be shown there
├── ClusterNotFound           no such cluster, or none that is engaged
├── InvalidRequest            the daemon refused an argument: `violations` name the fields
├── PermissionDenied          known, and not allowed
├── Unauthenticated           not known
├── PreconditionFailed        the daemon's configuration doesn't allow it
├── Unimplemented             the daemon is older than this client
├── Unavailable               nobody answers, or the daemon can't answer yet: try again
├── TimedOut                  no answer within the time given
├── CallFailed                any other status
├── UnusableKubeconfig        a kubeconfig that this client can't work with
├── CertificateRenewed        an API client's certificate is over, and the next one needs another API client
├── StreamBroken              a stream broke its promises; watches mend that by themselves
└── HandlerFailed             a Fleet's handler raised, and the Fleet was asked to end for it
"""

# ruff: noqa: N818  (`except Unavailable` says what happened; `Error` after each of them would say nothing)

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request, and what is wrong with it."""

    field: str
    description: str


class DiscoveryError(Exception):
    """The root of all errors of this package."""


class InvalidAddress(DiscoveryError, ValueError):
    """The address names no place to connect to."""


class InvalidCredentials(DiscoveryError, ValueError):
    """What the client is to show can't be read, or must not be shown there."""


class StatusError(DiscoveryError):
    """The daemon, or the way to it, answered a call with a status other than OK."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "",
        violations: tuple[FieldViolation, ...] = (),
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        """The gRPC status, such as "UNAVAILABLE"."""
        self.reason = reason
        """The daemon's stable reason; empty where it wasn't the daemon that answered."""
        self.violations = violations
        """The fields of the request that were refused."""
        self.retry_after = retry_after
        """When the daemon suggests to try again."""


class ClusterNotFound(StatusError):
    """No such cluster, or none that is engaged."""


class InvalidRequest(StatusError):
    """The daemon refused an argument. `violations` name the fields at fault."""


class PermissionDenied(StatusError):
    """The caller is known, and not allowed."""


class Unauthenticated(StatusError):
    """The daemon doesn't know the caller."""


class PreconditionFailed(StatusError):
    """The daemon's configuration, or the cluster's state, doesn't allow it."""


class Unimplemented(StatusError):
    """The daemon doesn't know this call: it is older than this client, or something else answers there."""


class Unavailable(StatusError):
    """Nobody answers, or the daemon can't answer yet. Trying again later is right."""


class TimedOut(StatusError):
    """No answer within the time given."""


class CallFailed(StatusError):
    """Any other status."""


class StreamBroken(DiscoveryError):
    """A stream broke one of its promises: a batch is missing, or an event doesn't follow from those before."""


class UnusableKubeconfig(DiscoveryError):
    """A kubeconfig that this client can't work with. The message quotes nothing of it."""


class CertificateRenewed(DiscoveryError):
    """The client certificate of an API client is over, and connections are made with one certificate: make another."""


class HandlerFailed(DiscoveryError):
    """A handler raised, and its Fleet was asked to end for it. The handler's error is the `__cause__`."""

    def __init__(self, cluster: str) -> None:
        super().__init__(f"the handler of cluster {cluster!r} failed")
        self.cluster = cluster
