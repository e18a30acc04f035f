"""The errors of this package.

DiscoveryError
├── InvalidAddress            the address is malformed
├── InvalidCredentials        the client's credentials cannot be read, or cannot be used with this address
├── UntrustedServer           another user than expected runs the server of the Unix socket
├── StatusError               a call ended with a gRPC status other than OK
│   ├── ClusterNotFound           the cluster is unknown, or not engaged
│   ├── InvalidRequest            the daemon refused an argument: `violations` name the fields
│   ├── PermissionDenied          the caller is authenticated but not allowed
│   ├── Unauthenticated           the daemon does not accept the caller's credentials
│   ├── PreconditionFailed        the daemon's configuration or the cluster's state does not allow it
│   ├── Unimplemented             the daemon is older than this client
│   ├── Unavailable               the daemon is not reached or not synced: retry later
│   ├── TimedOut                  the deadline was exceeded
│   └── CallFailed                any other status
├── UnusableKubeconfig        a kubeconfig is not one that this client accepts
├── CertificateRenewed        an API client's certificate expired; create another API client
├── StreamBroken              a stream violated the protocol; watches recover by themselves
└── HandlerFailed             a Fleet's handler raised, with on_error="raise"
"""

# ruff: noqa: N818  (`except Unavailable` reads well without the suffix `Error`)

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A refused field of a request."""

    field: str
    description: str


class DiscoveryError(Exception):
    """Base class of all errors of this package."""


class InvalidAddress(DiscoveryError, ValueError):
    """The address is neither `unix:///path` nor `HOST:PORT`."""


class InvalidCredentials(DiscoveryError, ValueError):
    """The client's credentials cannot be read, or cannot be used with this address."""


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
        """The daemon's machine-readable reason; empty if the daemon did not answer."""
        self.violations = violations
        """The fields that were refused."""
        self.retry_after = retry_after
        """How long to wait before a retry, if the daemon says."""


class ClusterNotFound(StatusError):
    """The cluster is unknown, or not engaged."""


class InvalidRequest(StatusError):
    """The daemon refused an argument. `violations` name the fields at fault."""


class PermissionDenied(StatusError):
    """The caller is authenticated but not allowed."""


class Unauthenticated(StatusError):
    """The daemon does not accept the caller's credentials."""


class PreconditionFailed(StatusError):
    """The daemon's configuration or the cluster's state does not allow it."""


class Unimplemented(StatusError):
    """The server does not know this call: the daemon is older than this client, or it is another program."""


class Unavailable(StatusError):
    """The daemon is not reached or not synced. Retry later."""


class TimedOut(StatusError):
    """The deadline was exceeded."""


class CallFailed(StatusError):
    """Any other status."""


class StreamBroken(DiscoveryError):
    """A stream violated the protocol: a batch is missing, or an event contradicts earlier ones."""


class UnusableKubeconfig(DiscoveryError):
    """A kubeconfig that this client does not accept, or a file of it that cannot be read. No content is quoted."""


class CertificateRenewed(DiscoveryError):
    """The client certificate of an API client expired. Connections keep their certificate: create another client."""


class HandlerFailed(DiscoveryError):
    """A Fleet's handler raised, with on_error="raise". The handler's error is the `__cause__`."""

    def __init__(self, cluster: str) -> None:
        super().__init__(f"the handler of cluster {cluster!r} failed")
        self.cluster = cluster
