"""Exit statuses and error messages of the command line."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from milo_discovery.address import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from milo_discovery.errors import (
    ClusterNotFound,
    DiscoveryError,
    InvalidAddress,
    InvalidCredentials,
    InvalidRequest,
    PermissionDenied,
    TimedOut,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from milo_discovery.client_credentials import ClientCredentials

_OPTION_OF_FIELD = {
    "filter.label_selector": "--selector",
    "filter.names": "--name",
    "filter.organizations": "--organization",
    "filter.sources": "--source",
    "name": "NAME",
}

_FILE_FIELD = re.compile(r"(?<![/.\w-])(ca_file|certificate_file|key_file|token_file|server_uid)\b")
"""Names of ClientCredentials fields in messages. The command line replaces each by the option of that name."""


class ExitStatus(IntEnum):
    """The exit statuses. click uses 2 for usage errors too."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    NO_CONNECTION = 5
    TIMED_OUT = 6
    NOT_SYNCED = 7
    INTERRUPTED = 130


_STATUSES: dict[type[DiscoveryError], ExitStatus] = {
    InvalidAddress: ExitStatus.USAGE,
    InvalidRequest: ExitStatus.USAGE,
    ClusterNotFound: ExitStatus.NOT_FOUND,
    PermissionDenied: ExitStatus.DENIED,
    Unauthenticated: ExitStatus.DENIED,
    TimedOut: ExitStatus.TIMED_OUT,
}


def exit_status(error: DiscoveryError) -> ExitStatus:
    if isinstance(error, Unavailable):
        # Only the daemon sets a reason: it was reached, but cannot answer, most often because it is not synced.
        return ExitStatus.NOT_SYNCED if error.reason else ExitStatus.NO_CONNECTION
    return _STATUSES.get(type(error), ExitStatus.FAILED)


def describe(error: DiscoveryError, address: str, credentials: ClientCredentials | None = None) -> str:
    """Return the error message for the user. With credentials, connects to a TCP address again to find out why the
    daemon is unavailable."""
    match error:
        case InvalidRequest(violations=(_, *_)):
            refused = (
                f"{_OPTION_OF_FIELD.get(violation.field, violation.field)}: {violation.description}"
                for violation in error.violations
            )
            return "; ".join(refused)
        case Unavailable(reason=""):
            found = None if credentials is None else _connection_problem(address, credentials)
            reason = found or root_cause(error)
            return f"cannot connect to the daemon at {address}: {reason}{'' if found else _hint(address, reason)}"
        case InvalidCredentials():
            return _FILE_FIELD.sub(lambda match: f"--{match[0].replace('_', '-')}", str(error))
        case TimedOut(code="DEADLINE_EXCEEDED", message="Deadline Exceeded" | "Stream removed (Deadline Exceeded)"):
            return f"no response from {address} within --timeout"
        case _:
            return str(error)


def _hint(address: str, reason: str) -> str:
    if reason == "Permission denied":
        directories = reversed(Path(address.removeprefix("unix://")).parents)
        for directory in directories:
            if not os.access(directory, os.X_OK, effective_ids=True):
                return f" (uid {os.geteuid()} may not enter the directory {directory}: change its owner, group or mode)"
        return (
            f" (uid {os.geteuid()} may not use the socket: join its group, or change the daemon's `socket.group` or "
            "`socket.mode`)"
        )
    demo = _demo() if address == DEFAULT_ADDRESS else ""
    return f" (is milo-discoveryd running? set its address with --address or {ADDRESS_VARIABLE}{demo})"


def _demo() -> str:
    from milo_discovery_cli.local_daemon import demo_address  # noqa: PLC0415  (`credential` has to start fast)

    address = demo_address()
    return ", or start ./dev demo" if address is None else f"; the address of your demo is {address}"


def _connection_problem(address: str, credentials: ClientCredentials) -> str | None:
    if address.startswith("unix:"):
        return None  # the message of gRPC already contains the error of the operating system
    from milo_discovery_cli.connection_problem import connection_problem  # noqa: PLC0415  (loads TLS)

    return connection_problem(address, credentials)


def root_cause(error: DiscoveryError) -> str:
    """Return the last part of gRPC's "failed to connect to all addresses; last error: UNKNOWN: unix:/x: ..."."""
    return str(error).rpartition(": ")[2]


class CallFailure(click.ClickException):
    """A call to the daemon failed."""

    def __init__(self, error: DiscoveryError, address: str, credentials: ClientCredentials | None = None) -> None:
        super().__init__(describe(error, address, credentials))
        self.error = error
        self.program = running_program()

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # a class attribute in click
        return exit_status(self.error)

    def show(self, file: IO[Any] | None = None) -> None:
        print_message(self.message, self.program)


class CommandFailure(click.ClickException):
    """The command failed for a reason other than a failed call to the daemon."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.program = running_program()

    def show(self, file: IO[Any] | None = None) -> None:
        print_message(self.message, self.program)


def exit_by_sigpipe() -> NoReturn:
    """Terminate the process by SIGPIPE, as other tools in a pipeline do. Python ignores the signal by default."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    raise AssertionError("SIGPIPE with the default action did not terminate the process")


@contextmanager
def exiting_on_second_interrupt() -> Iterator[None]:
    """Let the handler of SIGINT, which is asyncio's here, handle the first one only: the next one ends the process.

    An exception in the middle of the cleanup would be printed by gRPC, or leave tasks that nothing wakes.
    """
    first = signal.getsignal(signal.SIGINT)
    if not callable(first) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(ExitStatus.INTERRUPTED))
        first(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, first)


def exit_by_full_output(error: OSError) -> NoReturn:
    """Exit after a failed write to stdout, before the interpreter flushes it again at shutdown."""
    print_message(f"cannot write to stdout: {error.strerror}")
    os._exit(ExitStatus.FAILED)


def running_program() -> str:
    """Return the command that runs: other ones connect to the daemon as `milo-discovery` does."""
    context = click.get_current_context(silent=True)
    return (context and context.find_root().info_name) or "milo-discovery"


def print_message(text: str, program: str = "") -> None:
    """Print a message to stderr, since stdout is for data. `program`: the one that had the problem, if it has ended."""
    click.echo(f"{program or running_program()}: {printable(text)}", err=True)


def printable(text: str) -> str:
    """Escape non-printable characters, such as terminal controls and bidirectional overrides, in untrusted text."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
