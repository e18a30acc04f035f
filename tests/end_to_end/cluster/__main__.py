"""`./dev cluster up|down|status|load`: a node of Kubernetes in namespaces of its own.

`load` builds the Dockerfile's images and those of NAME=DIRECTORY, each with its own Dockerfile, and imports them as
docker.io/library/NAME:VERSION. Exit status: 0 for success (`status`: it runs), 1 for a failure, 3 where it cannot run.
"""

import argparse
import sys
import time
from pathlib import Path

import click

from tests.end_to_end.cluster import parts
from tests.end_to_end.cluster.node import MissingError, Node
from tests.end_to_end.real.builds import UnobtainableError
from tests.end_to_end.real.process import ProcessError


def say(line: str) -> None:
    click.echo(f"dev cluster: {line}", err=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=["up", "down", "status", "load"])
    parser.add_argument("contexts", nargs="*", metavar="NAME=DIRECTORY", help="for `load`: images of other directories")
    parser.add_argument("--name", default="default", help="name of the cluster; several can run concurrently")
    given = parser.parse_args(argv)
    node = Node(given.name)
    begun = time.monotonic()
    try:
        match given.verb:
            case "up":
                node.up(say)
            case "down":
                node.down()
                return 0
            case "load":
                node.load(parts.images(parts.OURS, say))
                for name, context in (pair.split("=", 1) for pair in given.contexts):
                    node.load(parts.images({name: Path(context)}, say))
    except MissingError as error:
        say(str(error))
        return 3
    except (UnobtainableError, ProcessError) as error:
        say(str(error))
        return 1
    if node.process is None:
        click.echo(f"{node.name} is not running: start it with ./dev cluster up")
        return 1
    if given.verb != "status":
        say(f"{given.verb}: {time.monotonic() - begun:.1f} s")
    click.echo(f"{node.name} is running, with {node.memory_mib()} MiB")
    click.echo(f"  kubectl: {' '.join(node.enter('kubectl'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
