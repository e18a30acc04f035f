"""The command line of the daemon: parses arguments, and prints expected errors as single lines."""

import asyncio
import errno
import faulthandler
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from milo_discoveryd import __version__

# Each command imports what it uses, so that `--version` and `--help` are quick.
# ruff: noqa: PLC0415

COMMANDS_GROUP = "milo_discoveryd.commands"
IN_SANDBOX_PACKAGE = ("sandbox", "demo")


class _Commands(click.Group):
    """The commands of this module, and the commands that other packages add through an entry point."""

    def list_commands(self, context: click.Context) -> list[str]:
        from importlib.metadata import entry_points

        return sorted({*super().list_commands(context), *entry_points(group=COMMANDS_GROUP).names})

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:1] == ["help"]:
            if len(args) == 1:
                click.echo(context.get_help())
                context.exit()
            args = [args[1], "--help"]
        return super().resolve_command(context, args)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        own = super().get_command(context, name)
        if own is not None:
            return own
        from importlib.metadata import entry_points

        for found in entry_points(group=COMMANDS_GROUP, name=name):
            command: click.Command = found.load()
            return command
        if name in IN_SANDBOX_PACKAGE:
            raise click.UsageError(
                f"{name!r} is part of the package milo-sandbox, which is not installed: in a clone of the repository, "
                "run pip install ./kube ./clients/python ./clients/cli . ./sandbox",
                context,
            )
        raise click.NoSuchCommand(name, possibilities=self.list_commands(context), ctx=context)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="milo-discoveryd")
def command() -> None:
    """Discovers Milo project control planes and streams them to operators over gRPC."""


def main() -> None:
    """Run the command line and exit."""
    try:
        status = command.main(prog_name="milo-discoveryd", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        click.echo(f"milo-discoveryd: {_in_one_line(error)}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except OSError as error:
        # `run` writes nothing to stdout, so its ENOSPC is from another file.
        if error.errno != errno.ENOSPC or error.filename is not None or sys.argv[1:2] == ["run"]:
            raise
        click.echo(f"milo-discoveryd: cannot write to stdout: {error.strerror}", err=True)
        os._exit(1)  # at an ordinary exit, the interpreter would flush stdout again and report the error
    sys.exit(status)


def _in_one_line(error: click.UsageError) -> str:
    """Return the error, with the command to see for help."""
    where = "milo-discoveryd" if error.ctx is None else error.ctx.command_path
    if isinstance(error, click.NoSuchCommand | click.NoSuchOption) and error.possibilities:
        return f"{error.message.rstrip('.')}; did you mean {' or '.join(error.possibilities)}? See {where} --help"
    return f"{error.format_message().rstrip('.')}; see {where} --help"


def daemon_options(run: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings."),
            click.option(
                "--mode",
                help="Kind of the source: project, project-control-plane, service-consumer, declarative, "
                "kubeconfig-directory, kind, single, or a kind of an installed package.",
            ),
            click.option(
                "--discovery-kubeconfig",
                metavar="FILE",
                help="Kubeconfig of the API server where projects are watched.",
            ),
            click.option(
                "--project-kubeconfig",
                metavar="FILE",
                help="Kubeconfig whose address, CA and identity are used for projects.",
            ),
            click.option("--label-selector", metavar="SELECTOR", help="Label selector for projects."),
            click.option(
                "--listen",
                multiple=True,
                metavar="ADDRESS",
                help="Address of the gRPC service: unix:///path or HOST:PORT; may be repeated.",
            ),
            click.option(
                "--http-listen", metavar="HOST:PORT", help="Address of metrics, health checks and the status page."
            ),
        )
    ):
        run = option(run)
    return run


@command.command()
@daemon_options
def run(config: Path | None, **flags: Any) -> None:
    """Run the daemon.

    Settings come from flags, then MILO_DISCOVERYD_... variables, then the file, then defaults.
    """
    # These handlers apply until the event loop installs its own. Without them, SIGHUP, SIGUSR1 and SIGUSR2 would
    # terminate the process, and PID 1 would ignore SIGTERM: the kernel ignores signals to PID 1 that have no handler.
    leaving = (signal.SIGRTMIN,) if sys.platform == "linux" else ()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, *leaving):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_during_startup)
    gc.disable()  # imports create many objects and no garbage

    from milo_discoveryd import process_hardening

    process_hardening.open_standard_streams()
    faulthandler.enable()  # a crash in native code leaves the stack of each thread on stderr
    ignored = process_hardening.remove_unsafe_variables(os.environ)
    # gRPC reads this variable when it is imported. By default, it writes messages to stderr, between the daemon's own.
    os.environ["GRPC_VERBOSITY"] = "NONE"

    from milo_discoveryd.app import Daemon
    from milo_discoveryd.config import load, named_file
    from milo_discoveryd.logger import log
    from milo_discoveryd.telemetry.logging import configure

    gc.freeze()  # excludes imported modules from later collections
    gc.enable()

    def start() -> Coroutine[Any, Any, None]:
        process_hardening.protect_memory_and_new_files()
        process_hardening.raise_descriptor_limit()
        read = partial(load, _given(flags), dict(os.environ), config)
        settings = read()
        logging = configure(settings.log.level, settings.log.format)
        if ignored:
            log.warning("environment ignored", variables=ignored)
        file = named_file(os.environ, config)

        async def log_problems() -> None:
            # In a thread: from a slow disk, the modules can take seconds.
            checks = await asyncio.to_thread(importlib.import_module, "milo_discoveryd.check")
            await checks.log_problems(settings)

        return Daemon(settings, load=read, file=file, log_problems=log_problems).run(logging)

    run_reporting_errors(start)


@command.command()
@daemon_options
@click.option(
    "--as",
    "identity",
    metavar="IDENTITY",
    help="Only print what this identity may access: listener=, uid=, gid=, san=, user= or group=, separated by commas.",
)
def check(config: Path | None, identity: str | None, **flags: Any) -> None:
    """Check the settings and what they refer to.

    Prints the result of each check, and how to correct each problem.
    """
    from milo_discoveryd.check import check as run_checks
    from milo_discoveryd.check import parse_caller, print_effective_rights
    from milo_discoveryd.config import load

    async def start() -> None:
        settings = load(_given(flags), os.environ, config)
        if identity is None:
            sys.exit(await run_checks(settings, sys.stdout))
        sys.exit(await print_effective_rights(settings, parse_caller(identity), sys.stdout, os.environ))

    run_reporting_errors(start)


@command.command()
def leave() -> None:
    """Hand the clusters over to the other members of the shard group.

    For the preStop hook of the daemon's container: signals the daemon, which is process 1 there, and returns at once.
    """
    if sys.platform != "linux" or os.getpid() == 1:
        raise click.ClickException("process 1 is not the daemon: run this command in the daemon's container")
    try:
        os.kill(1, signal.SIGRTMIN)
    except PermissionError:
        raise click.ClickException(
            "process 1 belongs to another user: run this command in the daemon's container"
        ) from None


@command.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    bash: source <(milo-discoveryd completion bash)
    zsh:  source <(milo-discoveryd completion zsh)
    fish: milo-discoveryd completion fish | source
    """
    from click.shell_completion import get_completion_class

    script_class = get_completion_class(shell)
    assert script_class is not None, f"click does not support the shell {shell}"
    click.echo(script_class(command, {}, "milo-discoveryd", "_MILO_DISCOVERYD_COMPLETE").source())


def _exit_during_startup(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def _given(flags: dict[str, Any]) -> dict[str, object]:
    return {name: value for name, value in flags.items() if value not in (None, ())}


def run_reporting_errors(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `start`; print expected errors as a line each and exit with 1. Other errors are bugs: print a traceback."""
    from milo_discoveryd.daemon_errors import EXPECTED

    try:
        asyncio.run(start())
    except KeyboardInterrupt:
        sys.exit(130)
    except EXPECTED as error:
        _exit_with([error])
    except BaseExceptionGroup as group:
        expected, rest = group.split(EXPECTED)
        if rest is not None or expected is None:
            raise
        _exit_with(_leaves(expected))


def _exit_with(errors: "Iterator[BaseException] | list[BaseException]") -> None:
    for error in errors:
        for line in str(error).splitlines():
            click.echo(f"milo-discoveryd: {line}", err=True)
    sys.exit(1)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
