"""The errors of this package.

DiscoveryError
├── InvalidAddress            the address is malformed
├── InvalidCredentials        the client's credentials are invalid or unreadable, or cannot be used with this address
├── UntrustedServer           the server of the Unix socket runs as a different user, or others could replace it
├── StatusError               a call ended with a gRPC status other than OK
│   ├── ClusterNotFound           the cluster is unknown, or not engaged
│   ├── InvalidRequest            the daemon rejected an argument: `violations` has the invalid fields
│   ├── PermissionDenied          the caller is authenticated but not allowed
│   ├── Unauthenticated           the daemon does not accept the caller's credentials
│   ├── PreconditionFailed        the daemon's configuration or the cluster's state does not allow the call
│   ├── Unimplemented             the server does not implement the call
│   ├── Unavailable               the daemon is unreachable, or cannot answer at present: retry later
│   ├── TimedOut                  the deadline was exceeded
│   └── CallFailed                any other status
├── UnusableKubeconfig        a kubeconfig is not accepted, or it provides no credential
├── CertificateRenewed        an API client's certificate expired; create another API client
├── StreamBroken              a stream cannot continue; watches recover by themselves
└── HandlerFailed             a Fleet's handler raised, with on_error="raise"
"""

# ruff: noqa: N818  (`except Unavailable` reads well without the suffix `Error`)

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field of a request."""

    field: str
    description: str


class DiscoveryError(Exception):
    """Base class of all errors of this package."""


class InvalidAddress(DiscoveryError, ValueError):
    """The address is neither `unix:///path` nor `HOST:PORT`."""


class InvalidCredentials(DiscoveryError, ValueError):
    """The client's credentials are invalid or unreadable, or cannot be used with this address."""


class UntrustedServer(DiscoveryError):
    """The server of the Unix socket does not run as `ClientCredentials.server_uid`, or others could replace it."""


class StatusError(DiscoveryError):
    """A call ended with a gRPC status other than OK."""

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
        """The gRPC status code, such as "UNAVAILABLE"."""
        self.reason = reason
        """The daemon's machine-readable reason; empty if there is none, as when the daemon did not answer."""
        self.violations = violations
        """The invalid fields of the request."""
        self.retry_after = retry_after
        """How long to wait before a retry, if the daemon specified it."""


class ClusterNotFound(StatusError):
    """The cluster is unknown, or not engaged."""

    @property
    def assigned_elsewhere(self) -> bool:
        """Whether another member of the shard group owns the cluster: only that member knows whether it exists."""
        return self.reason == "ASSIGNED_ELSEWHERE"


class InvalidRequest(StatusError):
    """The daemon rejected an argument. `violations` has the invalid fields."""


class PermissionDenied(StatusError):
    """The caller is authenticated but not allowed."""


class Unauthenticated(StatusError):
    """The daemon does not accept the caller's credentials."""


class PreconditionFailed(StatusError):
    """The daemon's configuration or the cluster's state does not allow the call."""


class Unimplemented(StatusError):
    """The server does not implement this call: it is a daemon older than this client, or another program."""


class Unavailable(StatusError):
    """The daemon is unreachable, or cannot answer at present, for example because it is not synced. Retry later."""


class TimedOut(StatusError):
    """The deadline was exceeded."""


class CallFailed(StatusError):
    """A call failed with a gRPC status for which there is no other exception."""


class StreamBroken(DiscoveryError):
    """A stream cannot continue: it violated the protocol, its heartbeats stopped, or the daemon ended it."""


class UnusableKubeconfig(DiscoveryError):
    """A kubeconfig is not accepted, or it provides no credential. Messages quote no content."""


class CertificateRenewed(DiscoveryError):
    """The client certificate of an API client expired. Connections keep their certificate: create another client."""


class HandlerFailed(DiscoveryError):
    """A Fleet's handler raised, with on_error="raise". The handler's error is the `__cause__`."""

    def __init__(self, cluster: str) -> None:
        super().__init__(f"the handler of cluster {cluster!r} failed")
        self.cluster = cluster
