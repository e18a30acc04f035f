"""Options shared by the commands, and the connection that they describe."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from milo_discovery.address import ADDRESS_VARIABLE, DEFAULT_ADDRESS, grpc_target
from milo_discovery.client_credentials import (
    CA_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    SERVER_UID_VARIABLE,
    TOKEN_VARIABLE,
    ClientCredentials,
)
from milo_discovery.errors import DiscoveryError
from milo_discovery_cli.exit_status import CallFailure, exiting_on_second_interrupt, print_message
from milo_kube.act_as import STATEMENT_VARIABLE
from milo_kube.kubeconfig import SERVER_VARIABLE

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.options import FilterOptions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_COUNT = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>{_COUNT}){unit})?" for unit in ("d", "h", "m", "s", "ms")))
_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}


class Duration(click.ParamType[timedelta]):
    """A duration above zero: 500ms, 10s, 2m, 1h30m, 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        match = _DURATION.fullmatch(str(value))
        try:
            counts = match.groupdict(default="0") if match else {}
            duration = sum((float(count) * _UNITS[unit] for unit, count in counts.items()), timedelta())
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)
        if not duration:
            hint = f"; did you mean {value}s?" if re.fullmatch(_COUNT, str(value)) and float(value) else ""
            self.fail(f"{value!r} is not a duration above zero, such as 500ms, 10s or 2m{hint}", param, ctx)
        return duration


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """The address and the credentials of the daemon, from the command line."""

    address: str
    timeout: timedelta | None
    credentials: ClientCredentials

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which another call of this command uses the same daemon."""
        files = {
            variable: getattr(self.credentials, name.replace("-", "_")) for name, variable, *_ in _CREDENTIAL_FILES
        }
        variables = {
            ADDRESS_VARIABLE: self.address,
            **{variable: os.fspath(Path(file).absolute()) for variable, file in files.items() if file is not None},
        }
        if self.credentials.server_uid is not None:
            variables[SERVER_UID_VARIABLE] = str(self.credentials.server_uid)
        return variables

    def run(self, use: Callable[[DiscoveryClient], Awaitable[R]], *, limits_calls: bool = True) -> R:
        """Run a coroutine with a client. Raises CallFailure, which ends the command.

        `limits_calls`: whether --timeout, if it is set, is that of each call, and not that of the command.
        """
        # gRPC would log connection problems to stderr.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import asyncio  # noqa: PLC0415  (not needed for help and usage errors)

        from milo_discovery.client import DEFAULT_TIMEOUT, DiscoveryClient  # noqa: PLC0415  (loads gRPC)

        timeout = self.timeout if limits_calls and self.timeout is not None else DEFAULT_TIMEOUT

        async def with_client() -> R:
            with exiting_on_second_interrupt():
                async with DiscoveryClient(self.address, timeout=timeout, credentials=self.credentials) as client:
                    return await use(client)

        try:
            return asyncio.run(with_client())
        except DiscoveryError as error:
            raise CallFailure(error, self.address, self.credentials) from error


def address_option(command: Callable[..., R]) -> Callable[..., R]:
    return click.option(
        "--address",
        default=DEFAULT_ADDRESS,
        envvar=ADDRESS_VARIABLE,
        show_default=True,
        show_envvar=True,
        help="The daemon's address: unix:///PATH or HOST:PORT. If nothing listens on the default, interactive "
        "commands use the newest demo that you run.",
    )(command)


_CREDENTIAL_FILES = (
    ("ca-file", CA_VARIABLE, "CA certificates that verify the daemon. Enables TLS."),
    ("certificate-file", CERTIFICATE_VARIABLE, "Client certificate for mutual TLS."),
    ("key-file", KEY_VARIABLE, "Private key of the client certificate."),
    ("token-file", TOKEN_VARIABLE, "Bearer token."),
)
_CREDENTIAL_NAMES = (*(name.replace("-", "_") for name, *_ in _CREDENTIAL_FILES), "server_uid")


VARIABLES = (ADDRESS_VARIABLE, *(variable for _, variable, _ in _CREDENTIAL_FILES), SERVER_UID_VARIABLE)
_PREFIX = "MILO_DISCOVERY_"
_DAEMON_PREFIX = "MILO_DISCOVERYD_"
# Variables that Kubernetes sets for a Service named milo-discovery, and those that tests set.
_FOREIGN_VARIABLE = re.compile(rf"{_PREFIX}(SERVICE_HOST|SERVICE_PORT|PORT|TEST)(_.*)?")


def unknown_variables(environ: Iterable[str]) -> list[str]:
    """Return the environment variables that look like misspelled variables of this command."""
    return [
        name
        for name in environ
        if with_own_prefix(name) in VARIABLES
        or (
            name.startswith(_PREFIX)
            and name not in (STATEMENT_VARIABLE, SERVER_VARIABLE)
            and not _FOREIGN_VARIABLE.fullmatch(name)
        )
        if name not in VARIABLES
    ]


def with_own_prefix(variable: str) -> str:
    """Return the variable; if it begins with the daemon's prefix, replace that by the prefix of this command."""
    return re.sub(f"^{_DAEMON_PREFIX}", _PREFIX, variable)


def credential_options(command: Callable[..., R]) -> Callable[..., R]:
    for name, variable, description in reversed(_CREDENTIAL_FILES):
        option = click.option(f"--{name}", metavar="FILE", envvar=variable, show_envvar=True, help=description)
        command = option(command)
    return click.option(
        "--server-uid",
        type=click.IntRange(min=0),
        envvar=SERVER_UID_VARIABLE,
        show_envvar=True,
        help="The uid that the daemon must run as, for a Unix socket.",
    )(command)


def timeout_option(default: str | None, description: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    return click.option(
        "--timeout", type=Duration(), default=default, show_default=default is not None, help=description
    )


def connecting(
    *, timeout: str | None, timeout_help: str, finds_demo: bool = False
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorate a command that connects: it gets `ConnectionOptions` as its first argument.

    With `finds_demo`, the command uses a demo if no address is set and no daemon listens on the default address.
    Commands that run unattended do not use a demo, because they would replace what they have written with the demo's
    clusters.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @address_option
        @credential_options
        @timeout_option(timeout, timeout_help)
        @functools.wraps(command)
        def with_connection(*, address: str, timeout: timedelta | None, **rest: Any) -> R:
            address, timeout = _or_group_option("address", address), _or_group_option("timeout", timeout)
            if finds_demo and not any(map(_is_given, _contexts())):
                address = _local_address(address)
            given = {name: _or_group_option(name, rest.pop(name)) for name in _CREDENTIAL_NAMES}
            return command(_connection(address, timeout, given), **rest)

        return with_connection

    return decorate


def _contexts() -> Iterator[click.Context]:
    context: click.Context | None = click.get_current_context()
    while context is not None:
        yield context
        context = context.parent


def _is_given(context: click.Context) -> bool:
    return context.get_parameter_source("address") not in (None, ParameterSource.DEFAULT)


def _local_address(default: str) -> str:
    from milo_discovery_cli.local_daemon import local_address  # noqa: PLC0415  (`credential` has to start fast)

    found = local_address()
    if found is None or found == default:
        return default
    print_message(f"using the demo at {found}")
    return found


def _connection(address: str, timeout: timedelta | None, credentials: dict[str, Any]) -> ConnectionOptions:
    try:
        checked = ClientCredentials(**{name: None if value == "" else value for name, value in credentials.items()})
        checked.check(grpc_target(address))
    except DiscoveryError as error:
        raise CallFailure(error, address) from error
    return ConnectionOptions(address=address, timeout=timeout, credentials=checked)


def completion_connection(context: click.Context, timeout: timedelta) -> ConnectionOptions:
    """Return the connection that an incomplete command line describes."""
    options: dict[str, Any] = {}
    for scope in (context.parent, context):
        if scope is not None:
            options |= {name: value for name, value in scope.params.items() if value is not None}
    credentials = {name: options.get(name) for name in _CREDENTIAL_NAMES}
    return _connection(options.get("address", DEFAULT_ADDRESS), timeout, credentials)


def _or_group_option(name: str, value: T) -> T:
    """Return the value of an option: the one given after the command's name, or else the one given before it."""
    context = click.get_current_context()
    group = context.find_root()
    is_set_here = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    if is_set_here or group.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
        return value
    group_value: T = group.params[name]
    return group_value


unary = connecting(timeout="10s", timeout_help="How long to wait for the response.", finds_demo=True)
"""Decorates a command that makes unary calls."""


def with_values(command: click.Command, arguments: Iterable[str]) -> Iterator[str]:
    """Yield arguments as click reads them: kubectl takes `-n=web` for `-n web`, and `--watch=false` for none."""
    options = {name: option for option in command.params if isinstance(option, click.Option) for name in option.opts}
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        option = options.get(name)
        if option is not None and option.is_flag and value in {"true", "false"}:
            if value == "true":
                yield name
        elif option is not None and not option.is_flag and not name.startswith("--") and value:
            yield name + value
        else:
            yield argument
        if argument == "--":
            break
    yield from rest


def filtering(command: Callable[..., R]) -> Callable[..., R]:
    """Decorate a command that selects clusters: it gets `only`, the options of a filter."""

    @click.option(
        "-l",
        "--selector",
        default="",
        help="Label selector, such as 'env in (prod, dev),!trial'.",
    )
    @click.option("--organization", multiple=True, help="Only clusters of this organization. May be repeated.")
    @click.option("--source", multiple=True, help="Only clusters of this source of the daemon. May be repeated.")
    @functools.wraps(command)
    def with_filter(
        *args: Any, selector: str, organization: tuple[str, ...], source: tuple[str, ...], **rest: Any
    ) -> R:
        only: FilterOptions = {"label_selector": selector, "organizations": organization, "sources": source}
        return command(*args, only=only, **rest)

    return with_filter


_TEMPLATES = ("custom-columns=HEADER:.PATH,...", "jsonpath=TEMPLATE")


class OutputFormat(click.Choice[str]):
    """An output format. Commands that have the format `name` print objects, and also accept templates."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        given = str(value)
        kind, separator, template = given.partition("=")
        if separator and kind in {"jsonpath", "custom-columns"} and "name" in self.choices:
            from milo_discovery_cli import templates  # noqa: PLC0415  (`credential` has to start fast)

            if not template:
                self.fail(f"{kind}= has no template", param, ctx)
            templates.check(kind, template)
            return given
        return super().convert(given, param, ctx)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        return f"{message.rstrip('.')}, {', '.join(_TEMPLATES)}" if "name" in self.choices else message


def formatted(*formats: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorate a command with output formats, the first by default: it gets `form` and `headers`."""

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        command = click.option(
            "--no-headers", "headers", flag_value=False, default=True, help="Omit the table's header."
        )(command)
        return click.option(
            "-o",
            "--output",
            "form",
            type=OutputFormat(formats),
            default=formats[0],
            show_default=True,
            help=f"Output format{', or {} of each object, or {}'.format(*_TEMPLATES) if 'name' in formats else ''}.",
        )(command)

    return decorate
