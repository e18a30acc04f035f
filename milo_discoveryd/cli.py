"""Arguments to a command; what went wrong to a line that a person can act on."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from milo_discoveryd import __version__

# The parts of the daemon are imported by the commands that use them: `--version` and `--help` are quick without.
# ruff: noqa: PLC0415


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="milo-discoveryd")
def main() -> None:
    """Discovers Milo project control planes and streams them to operators over gRPC."""


def daemon_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--config", type=click.Path(path_type=Path), help="A YAML file of settings."),
            click.option("--mode", help="project, project-control-plane, single, or that of an added package."),
            click.option("--discovery-kubeconfig", metavar="FILE", help="Where projects are watched."),
            click.option("--project-kubeconfig", metavar="FILE", help="Whose address leads to the control planes."),
            click.option("--label-selector", metavar="SELECTOR", help="Only projects with these labels."),
            click.option(
                "--listen", multiple=True, metavar="ADDRESS", help="unix:///path or HOST:PORT; may be repeated."
            ),
            click.option("--http-listen", metavar="HOST:PORT", help="Metrics and health."),
        )
    ):
        command = option(command)
    return command


@main.command()
@daemon_options
def run(config: Path | None, **flags: Any) -> None:
    """Runs the daemon.

    Settings come from flags, then MILO_DISCOVERYD_... variables, then the file, then defaults.
    """
    from milo_discoveryd import process
    from milo_discoveryd.imports import for_good, without

    ignored = process.clean(os.environ)
    # gRPC would print what it fails at in words of its own, beside ours; it reads this as it is loaded.
    os.environ["GRPC_VERBOSITY"] = "NONE"

    # What logs would use rich to draw pictures of errors, which ours are not to be: they may show secrets.
    with for_good(), without("rich"):
        import structlog

        from milo_discoveryd.app import Daemon
        from milo_discoveryd.config import load, named_file
        from milo_discoveryd.telemetry.logging import configure

    def start() -> Coroutine[Any, Any, None]:
        process.close_off()
        process.take_descriptors()
        read = partial(load, _given(flags), dict(os.environ), config)
        settings = read()
        level = configure(settings.log.level, settings.log.format)
        if ignored:
            structlog.get_logger().warning("environment ignored", variables=ignored)
        return Daemon(settings, load=read, file=named_file(os.environ, config)).run(level)

    _run(start)


@main.command()
@daemon_options
@click.option(
    "--as",
    "identity",
    metavar="IDENTITY",
    help="Say instead what somebody would get, and by which rule: some of listener=, uid=, gid=, san=, user=, group=.",
)
def check(config: Path | None, identity: str | None, **flags: Any) -> None:
    """Looks at the settings and at all they point to, and says what is wrong and how to mend it."""
    from milo_discoveryd.check import caller, standing
    from milo_discoveryd.check import check as look
    from milo_discoveryd.config import load

    async def start() -> None:
        settings = load(_given(flags), os.environ, config)
        looking = (
            look(settings, sys.stdout)
            if identity is None
            else standing(settings, caller(identity), sys.stdout, os.environ)
        )
        sys.exit(await looking)

    _run(start)


@main.command()
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT")
@click.option("--projects", default=10, show_default=True, type=click.IntRange(0, 1_000_000))
@click.option("--churn", default=0.0, show_default=True, type=click.FloatRange(0, 1000), help="Changes per second.")
@click.option("--kubeconfig-out", type=click.Path(path_type=Path), metavar="FILE")
def sandbox(listen: str, projects: int, churn: float, kubeconfig_out: Path | None) -> None:
    """An embedded Milo API, for demos and operators' tests."""
    from milo_discoveryd.sandbox.command import serve

    _run(lambda: serve(listen, projects, churn, kubeconfig_out))


@main.command()
@click.option("--seconds", type=click.FloatRange(min=0), help="End after so long.  [default: at Ctrl-C]")
@click.option("--churn", default=5.0, show_default=True, type=click.FloatRange(0.01, 100), help="Changes per second.")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Of a Milo API that there is; it is watched, and nothing is changed in it.  [default: one of the demo's own]",
)
def demo(seconds: float | None, churn: float, kubeconfig: Path | None) -> None:
    """A Milo API with life in it, the daemon and a subscriber, in this terminal."""
    from milo_discoveryd.demo.demo import demo as show

    _run(lambda: show(seconds, churn, kubeconfig))


def _given(flags: dict[str, Any]) -> dict[str, object]:
    return {name: value for name, value in flags.items() if value not in (None, ())}


def _run(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Foreseen errors end as a line each on standard error and status 1; others are ours, and show where they are."""
    from milo_discoveryd.errors import DiscoveryError

    try:
        asyncio.run(start())
    except KeyboardInterrupt:
        sys.exit(130)
    except DiscoveryError as error:
        _give_up([error])
    except BaseExceptionGroup as group:
        foreseen, rest = group.split(DiscoveryError)
        if rest is not None or foreseen is None:
            raise
        _give_up(_leaves(foreseen))


def _give_up(errors: "Iterator[BaseException] | list[BaseException]") -> None:
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
