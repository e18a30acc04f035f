"""The command `milo-objects`."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from milo_discovery.extras import needs_extra
from milo_kube.cache_budget import CacheLimits
from milo_kube.termination import interrupt_on_sigterm
from milo_objects.kinds import Kind

with needs_extra("nats", "milo-objects", ("./kube", "./clients/python", "./clients/cli", "./objects")):
    import click
    import yaml

    from milo_discovery_cli.exit_status import CommandFailure, printable
    from milo_discovery_cli.options import ConnectionOptions, connecting

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_objects.jetstream import NatsOptions, NewStream

_SIZE = re.compile(r"([0-9]+)(Ki|Mi|Gi|Ti)?")
_POWERS = {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}
_CONNECTIONS = 32
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The limits in cgroups of version 2 and 1. Without any, the first is absent or no number, the second a huge one."""
_MEMORY_PER_BYTE = 4
"""The memory that a byte of an object can take: with its record, and while messages of the stream are read."""
_GONE_SHARE = 5
"""One part in so many is for the records of gone objects, whose bytes take as much memory."""


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is published: the content of the declaration's file."""

    objects: tuple[Kind, ...]

    def __post_init__(self) -> None:
        subjects = [(kind.paths.group, kind.paths.plural) for kind in self.objects]
        if not subjects:
            raise ValueError("objects: declare at least one kind")
        for kind, subject in zip(self.objects, subjects, strict=True):
            if subjects.count(subject) > 1:
                raise ValueError(f"{kind.resource}: declared twice: name the fields of all readers, of one version")


_DECLARATIONS = msgspec.json.Decoder(Declaration)  # prepares the type


class Size(click.ParamType[int]):
    """A number of bytes, also with a suffix: 10Gi."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _SIZE.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not a number of bytes, such as 10Gi", param, ctx)
        return int(found[1]) << _POWERS[found[2]]


def read_declaration(path: Path) -> tuple[Kind, ...]:
    """Raises CommandFailure."""
    try:
        return msgspec.convert(yaml.safe_load(path.read_bytes()), Declaration).objects
    except OSError as error:
        raise CommandFailure(f"{path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        hint = "; write a field with [*] in quotes" if "alias" in (error.context or "") else ""
        raise CommandFailure(f"{path}{line}: {error.problem}{hint}") from error
    except (yaml.YAMLError, msgspec.ValidationError, ValueError) as error:
        raise CommandFailure(f"{path}: {' '.join(str(error).split())}") from error


def _file(name: str, variable: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    kind = click.Path(path_type=Path, dir_okay=False, exists=True)
    return click.option(name, type=kind, envvar=variable, show_envvar=True, help=text)


@click.group("milo-objects", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="milo-objects", prog_name="milo-objects")
def command() -> None:
    """Publish objects of all engaged Milo project control planes."""


@command.command("publish")
@click.argument("declaration", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--nats",
    "servers",
    multiple=True,
    default=("nats://localhost:4222",),
    envvar="NATS_URL",
    show_default=True,
    show_envvar=True,
    help="URL of a NATS server; tls:// requires TLS. May be repeated.",
)
@_file("--nats-credentials", "NATS_CREDS", "Credentials file of NATS (.creds).")
@_file("--nats-ca", "NATS_CA", "CA that verifies the NATS servers. Default: those of the system.")
@_file("--nats-certificate", "NATS_CERT", "Client certificate for NATS.")
@_file("--nats-key", "NATS_KEY", "Key of the client certificate.")
@click.option("--create-stream", is_flag=True, help="Create the stream `milo` if it does not exist.")
@click.option("--replicas", type=click.IntRange(1, 5), default=1, show_default=True, help="Replicas of a new stream.")
@click.option("--max-bytes", type=Size(), help="Maximum size of a new stream, such as 10Gi. Default: none.")
@click.option(
    "--accept-removals",
    "accepts_removals",
    is_flag=True,
    help="End all published clusters that the daemon no longer has, however many they are.",
)
@click.option(
    "--listen", default="", metavar="HOST:PORT", help="Serve /livez, /readyz and /metrics over HTTP at this address."
)
@connecting(timeout=None, timeout_help="How long to wait for an answer of the daemon.")
def publish(
    connection: ConnectionOptions, *, declaration: Path, listen: str, accepts_removals: bool, **options: Any
) -> None:
    """Publish the objects of the kinds in the file DECLARATION into the NATS stream `milo`.

    It follows the kinds in every cluster that the daemon has engaged, and writes what changes. Readers need nothing
    but NATS.
    """
    from milo_objects.jetstream import NatsOptions, NewStream  # noqa: PLC0415  (not needed for help)

    if bool(options["nats_certificate"]) != bool(options["nats_key"]):
        raise click.UsageError("--nats-certificate and --nats-key are set together")
    kinds = read_declaration(declaration)
    nats = NatsOptions(
        servers=options["servers"],
        credentials=options["nats_credentials"],
        ca=options["nats_ca"],
        certificate=options["nats_certificate"],
        key=options["nats_key"],
    )
    new = NewStream(replicas=options["replicas"], max_bytes=options["max_bytes"] or -1)
    connection.run(
        lambda client: _publish(
            client,
            kinds,
            nats,
            new if options["create_stream"] else None,
            listen=listen,
            accepts_removals=accepts_removals,
        )
    )


def objects_bytes(files: Iterable[Path] = _MEMORY_LIMITS) -> int:
    """Return how many bytes of objects fit into the memory of this container."""
    limit = CacheLimits().total_bytes
    for file in files:
        with suppress(OSError, ValueError):
            limit = min(limit, int(file.read_text()) // _MEMORY_PER_BYTE)
    return limit


async def _publish(
    client: DiscoveryClient,
    kinds: tuple[Kind, ...],
    nats: NatsOptions,
    new: NewStream | None,
    *,
    listen: str,
    accepts_removals: bool,
) -> None:
    import asyncio  # noqa: PLC0415  (not needed for help and usage errors)

    from milo_kube.http.server import HttpServer  # noqa: PLC0415
    from milo_kube.task_groups import unwrap_single_error  # noqa: PLC0415
    from milo_objects.follow import FollowedFleet  # noqa: PLC0415
    from milo_objects.publisher import ObjectPublisher  # noqa: PLC0415
    from milo_objects.publisher_pages import PublisherPages  # noqa: PLC0415

    total = objects_bytes()
    gone = total // _GONE_SHARE
    source = FollowedFleet(client, limits=CacheLimits(total_bytes=total - gone))
    publisher = ObjectPublisher(
        *(source, client, kinds, nats, new),
        accepts_removals=accepts_removals,
        gone_bytes=gone * _MEMORY_PER_BYTE,
        report=_report,
    )
    server = HttpServer(PublisherPages(publisher.publication).answer, connections=_CONNECTIONS)
    if listen:
        host, separator, port = listen.rpartition(":")
        if not separator or not port.isdecimal():
            raise click.UsageError(f"--listen {listen!r}: write HOST:PORT or :PORT")
        try:
            _report(f"serving probes and metrics on {await server.start(host.strip('[]') or None, int(port))}")
        except OSError as error:
            raise CommandFailure(f"--listen {listen}: {error.strerror}") from error
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    try:
        with unwrap_single_error():
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(publisher.run(), name="publish")
                running.add_done_callback(lambda _: ending.set())
                await ending.wait()
                running.cancel()
    finally:
        await server.stop()


def _report(text: str) -> None:
    click.echo(f"milo-objects: {printable(text)}", err=True)


def main() -> None:
    """Run the command line and exit."""
    interrupt_on_sigterm()
    try:
        status = command.main(prog_name="milo-objects", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status)


if __name__ == "__main__":
    main()
