"""Errors that the daemon expects, with messages for its administrator.

DaemonError
├── ConfigError    the settings, or a file that they name, are invalid; contains all problems
└── StartError     the daemon cannot start or continue to serve

CredentialError    of milo_kube: no credential is available
├── BackendError   the backend failed or returned an invalid credential; a retry may succeed
└── UnfitError     the credential must not be issued; the configuration has to change
"""

from collections.abc import Sequence

from milo_kube.credential import CredentialError


class DaemonError(Exception):
    """The base class of all expected errors except CredentialErrors."""


EXPECTED = (DaemonError, CredentialError)
"""All expected errors."""


class ConfigError(DaemonError):
    """All problems of a configuration, one line each."""

    def __init__(self, problems: Sequence[object]) -> None:
        self.problems = tuple(str(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


class StartError(DaemonError):
    """The daemon cannot start or continue to serve; the message says what to correct."""


class BackendError(CredentialError):
    """The backend of a credential issuer failed, or returned an invalid credential."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        of_cluster: bool = False,
        may_be_of_issuer: bool = False,
        reason: str = "failed",
    ) -> None:
        """`retry_after_s`: the delay before a retry, if the backend stated one."""
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.of_cluster = of_cluster
        """Whether the failure concerns only one cluster, and the backend is otherwise healthy."""
        self.may_be_of_issuer = may_be_of_issuer
        """Whether the backend may be the cause too: it counts as failing once clusters of several tenants fail so."""


class UnfitError(CredentialError):
    """There is no credential that may be issued, and a retry does not help."""

    reason = "unfit"
