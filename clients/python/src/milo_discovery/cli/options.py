"""The options that commands share, and the connection that comes of them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from milo_discovery._address import ADDRESS_VARIABLE, DEFAULT_ADDRESS, target
from milo_discovery._credentials import (
    CA_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    TOKEN_VARIABLE,
    ClientCredentials,
)
from milo_discovery.cli.endings import Ended
from milo_discovery.errors import DiscoveryError

if TYPE_CHECKING:
    from milo_discovery._wire import FilterOptions
    from milo_discovery.client import DiscoveryClient

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_DURATION = re.compile(r"(?P<count>[0-9]+(\.[0-9]+)?)(?P<unit>ms|s|m|h)?")
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
}


class Duration(click.ParamType[timedelta]):
    """A span of time above zero: 500ms, 10s, 2m, 1h; a bare number counts seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        match = _DURATION.fullmatch(str(value))
        span = float(match["count"]) * _UNITS[match["unit"] or "s"] if match else timedelta()
        if not span:
            self.fail(f"{value!r} is not a span of time such as 500ms, 10s or 2m", param, ctx)
        return span


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the daemon is, and how long to wait for it."""

    address: str
    timeout: timedelta | None
    credentials: ClientCredentials

    def run(self, work: Callable[[DiscoveryClient], Awaitable[R]]) -> R:
        """Do the work with a client, and end the command where that fails."""
        # What gRPC has to say about connections goes to stderr unasked.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        import asyncio  # noqa: PLC0415  (help and usage errors do without)

        from milo_discovery.client import DiscoveryClient  # noqa: PLC0415  (loads gRPC)

        async def connected() -> R:
            async with DiscoveryClient(self.address, timeout=self.timeout, credentials=self.credentials) as client:
                return await work(client)

        try:
            return asyncio.run(connected())
        except DiscoveryError as error:
            raise Ended(error, self.address) from error


def address_option(command: Callable[..., R]) -> Callable[..., R]:
    return click.option(
        "--address",
        default=DEFAULT_ADDRESS,
        envvar=ADDRESS_VARIABLE,
        show_default=True,
        show_envvar=True,
        help="Where the daemon is: unix:///PATH or HOST:PORT.",
    )(command)


_FILES = (
    ("ca-file", CA_VARIABLE, "Who vouches for the daemon; for TLS."),
    ("certificate-file", CERTIFICATE_VARIABLE, "Our certificate; for TLS."),
    ("key-file", KEY_VARIABLE, "Its key."),
    ("token-file", TOKEN_VARIABLE, "A bearer token that says who we are."),
)


def credential_options(command: Callable[..., R]) -> Callable[..., R]:
    for name, variable, about in reversed(_FILES):
        command = click.option(f"--{name}", metavar="FILE", envvar=variable, show_envvar=True, help=about)(command)
    return command


def timeout_option(default: str | None, about: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    return click.option("--timeout", type=Duration(), default=default, show_default=default is not None, help=about)


def connecting(*, timeout: str | None, about_timeout: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A command that connects: it is handed a `Connection`, first of all."""

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @address_option
        @credential_options
        @timeout_option(timeout, about_timeout)
        @functools.wraps(command)
        def with_connection(*, address: str, timeout: timedelta | None, **rest: Any) -> R:
            address, timeout = _given("address", address), _given("timeout", timeout)
            names = [name.replace("-", "_") for name, *_ in _FILES]
            files = {name: _given(name, rest.pop(name)) or None for name in names}
            try:
                credentials = ClientCredentials(**files)
                credentials.check(target(address))
            except DiscoveryError as error:
                raise Ended(error, address) from error
            return command(Connection(address=address, timeout=timeout, credentials=credentials), **rest)

        return with_connection

    return decorate


def _given(name: str, value: T) -> T:
    """What was said of an option after the command's name; if nothing was, what was said before it."""
    context = click.get_current_context()
    before = context.parent
    here = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    if here or before is None or before.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
        return value
    said: T = before.params[name]
    return said


one_call = connecting(timeout="10s", about_timeout="How long to wait for the answer.")


def filtering(command: Callable[..., R]) -> Callable[..., R]:
    """A command for a part of the fleet: it is handed `only`, the options of a filter."""

    @click.option("-l", "--selector", default="", help="Only clusters with these labels: 'env in (prod, dev),!trial'.")
    @click.option("--organization", multiple=True, help="Only clusters of this organization; may be repeated.")
    @functools.wraps(command)
    def with_filter(*args: Any, selector: str, organization: tuple[str, ...], **rest: Any) -> R:
        only: FilterOptions = {"label_selector": selector, "organizations": organization}
        return command(*args, only=only, **rest)

    return with_filter


def formatted(*formats: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A command that prints in one of these formats, the first by default: it is handed `form` and `headers`."""

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        command = click.option("--no-headers", "headers", flag_value=False, default=True, help="No line of headers.")(
            command
        )
        return click.option(
            "-o",
            "--output",
            "form",
            type=click.Choice(formats),
            default=formats[0],
            show_default=True,
            help="The format.",
        )(command)

    return decorate
