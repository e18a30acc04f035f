"""How the command ends: one line for each thing that went wrong, and a status that scripts can tell apart."""

from __future__ import annotations

import signal
from enum import IntEnum
from typing import IO, Any, NoReturn

import click

from milo_discovery.errors import (
    ClusterNotFound,
    DiscoveryError,
    InvalidAddress,
    InvalidRequest,
    PermissionDenied,
    TimedOut,
    Unauthenticated,
    Unavailable,
)

_OPTION_OF_FIELD = {
    "filter.label_selector": "--selector",
    "filter.names": "--name",
    "filter.organizations": "--organization",
    "name": "NAME",
}


class Exit(IntEnum):
    """The statuses of the command; 2 is a usage error for click as well."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    NO_CONNECTION = 5
    TIMED_OUT = 6
    NOT_SYNCED = 7
    INTERRUPTED = 130


_STATUSES: dict[type[DiscoveryError], Exit] = {
    InvalidAddress: Exit.USAGE,
    InvalidRequest: Exit.USAGE,
    ClusterNotFound: Exit.NOT_FOUND,
    PermissionDenied: Exit.DENIED,
    Unauthenticated: Exit.DENIED,
    TimedOut: Exit.TIMED_OUT,
}


def exit_status(error: DiscoveryError) -> Exit:
    if isinstance(error, Unavailable):
        # A reason is the daemon's: it is there, and has nothing to show yet.
        return Exit.NOT_SYNCED if error.reason else Exit.NO_CONNECTION
    return _STATUSES.get(type(error), Exit.FAILED)


def message(error: DiscoveryError, address: str) -> str:
    match error:
        case InvalidRequest(violations=(_, *_)):
            wrong = (f"{_OPTION_OF_FIELD.get(each.field, each.field)}: {each.description}" for each in error.violations)
            return "; ".join(wrong)
        case Unavailable(reason=""):
            return (
                f"no daemon answers at {address}: {cause(error)} "
                "(is milo-discoveryd running there? --address or MILO_DISCOVERY_ADDRESS says where it is)"
            )
        case TimedOut(code="DEADLINE_EXCEEDED", message="Deadline Exceeded"):
            return f"no answer from {address} within the time given by --timeout"
        case _:
            return str(error)


def cause(error: DiscoveryError) -> str:
    """The part that tells."""
    # gRPC's "failed to connect to all addresses; last error: UNKNOWN: unix:/x: connect failed: …": its end tells.
    return str(error).rpartition(": ")[2]


class Ended(click.ClickException):
    """The command ended early, for a reason that a person can act on."""

    def __init__(self, error: DiscoveryError, address: str) -> None:
        super().__init__(message(error, address))
        self.error = error

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # what click has as a constant depends on the error here
        return exit_status(self.error)

    def show(self, file: IO[Any] | None = None) -> None:
        say(self.message)


class Failed(click.ClickException):
    """The command can't do what was asked for, and it isn't the daemon's doing."""

    def show(self, file: IO[Any] | None = None) -> None:
        say(self.message)


def end_by_broken_pipe() -> NoReturn:
    """By the signal that Python ignores, now that it means the reader of our output, and not some socket of gRPC's."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    raise AssertionError("a signal that isn't handled has ended the process")


def say(text: str) -> None:
    """A message, which is not data."""
    click.echo(f"milo-discovery: {text}", err=True)
