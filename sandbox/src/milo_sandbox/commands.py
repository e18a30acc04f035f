"""The commands `sandbox` and `demo`, which this package adds to `milo-discoveryd`."""

from pathlib import Path

import click

from milo_sandbox.errors import run

# Each command imports what it uses, so that `--help` is quick.
# ruff: noqa: PLC0415


@click.command()
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT")
@click.option("--projects", default=10, show_default=True, type=click.IntRange(0, 1_000_000))
@click.option("--churn", default=0.0, show_default=True, type=click.FloatRange(0, 1000), help="Changes per second.")
@click.option("--kubeconfig-out", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--config-out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a configuration of the daemon that follows this sandbox and issues kubeconfigs.",
)
@click.option(
    "--organization-watches",
    is_flag=True,
    help="Limit watches of projects in an organization's context to that organization's projects, unlike Milo v0.32.5.",
)
def sandbox(
    listen: str,
    projects: int,
    churn: float,
    kubeconfig_out: Path | None,
    config_out: Path | None,
    *,
    organization_watches: bool,
) -> None:
    """Run a fake Milo API for demos and tests of operators."""
    from milo_sandbox.api import Features
    from milo_sandbox.command import serve

    features = Features(organization_watches=organization_watches)
    run("milo-sandbox", serve(listen, projects, churn, kubeconfig_out, config_out, features=features))


class _Seconds(click.FloatRange):
    name = "number of seconds without a unit, such as 5"


@click.command()
@click.option(
    "--seconds", type=_Seconds(min=0), metavar="FLOAT RANGE", help="Stop after this many seconds.  [default: at Ctrl-C]"
)
@click.option("--projects", default=12, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--churn", default=5.0, show_default=True, type=click.FloatRange(0, 100), help="Changes per second.")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Kubeconfig of an existing Milo API, which the demo only reads.  [default: the demo starts a sandbox]",
)
@click.option("--objects", is_flag=True, help="Also publish the namespaces of all projects into a NATS server.")
def demo(seconds: float | None, projects: int, churn: float, kubeconfig: Path | None, *, objects: bool) -> None:
    """Run a fake Milo API, the daemon and a subscriber.

    The API's projects change; the terminal shows what the subscriber receives.
    """
    if objects and kubeconfig is not None:
        raise click.UsageError("--objects needs the sandbox's kubeconfigs: leave out --kubeconfig")
    from milo_sandbox.demo.demo import EXPECTED
    from milo_sandbox.demo.demo import demo as show

    run("milo-discoveryd demo", show(seconds, projects, churn, kubeconfig, publishes_objects=objects), *EXPECTED)
