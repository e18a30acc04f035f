"""The daemon's own errors: what a person is told, never where in the code it happened.

DiscoveryError
├── ConfigError        the settings or a file they name are wrong; carries every problem found, not just the first
├── StartError         the daemon cannot take up, or keep, the place it was told to serve at
├── CredentialError    the daemon cannot get the credential it would authenticate with
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


class TransportError(DiscoveryError):
    """The request got no answer. `cause` is for deciding and counting, the message for people."""

    def __init__(self, cause: TransportCause, message: str) -> None:
        self.cause: TransportCause = cause
        super().__init__(message)
