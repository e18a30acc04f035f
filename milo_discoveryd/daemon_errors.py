"""The daemon's own errors: what a person is told, never where in the code it happened.

DiscoveryError
├── ConfigError        the settings or a file they name are wrong; carries every problem found, not just the first
├── StartError         the daemon cannot take up, or keep, the place it was told to serve at
├── CredentialError    a credential cannot be had
│   ├── BackendError   what should give it is down, or gave something that is no good: a later attempt may be better
│   └── UnfitError     there is one, and it isn't to be handed out: the configuration has to change
└── TransportError     no usable HTTP answer came back from an API server
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

TransportCause: TypeAlias = Literal["dns", "connect", "tls", "timeout", "closed", "credential"]


class DiscoveryError(Exception):
    """The root: catching it catches what the daemon foresaw, and nothing else."""


class ConfigError(DiscoveryError):
    """All that is wrong with what the daemon was given, one line for each."""

    def __init__(self, problems: Sequence[object]) -> None:
        self.problems = tuple(str(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


class StartError(DiscoveryError):
    """An address can't be listened on, or is no longer ours; the message says what would help."""


class CredentialError(DiscoveryError):
    """No credential to authenticate with: the message says which source failed and how to mend it."""


class BackendError(CredentialError):
    """What should give the credential did not."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, of_cluster: bool = False) -> None:
        """`retry_after_s`: when to ask again, where the backend said so."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.of_cluster = of_cluster
        """Whether it concerns one cluster only, and says nothing about the backend."""


class UnfitError(CredentialError):
    """The credential that there is must not be handed out."""


class TransportError(DiscoveryError):
    """The request got no answer. `cause` is for deciding and counting, the message for people."""

    def __init__(self, cause: TransportCause, message: str) -> None:
        self.cause: TransportCause = cause
        super().__init__(message)
