"""The part of the demo with a NATS server: the namespaces of all projects, published and read.

`python -m milo_sandbox.demo.published_objects URL` prints them as a reader of the stream receives them.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from milo_discovery import DiscoveryClient
from milo_discovery.extras import needs_extra
from milo_sandbox.errors import run, write
from milo_sandbox.nats_server import running_nats

with needs_extra("nats", "milo-sandbox", ("./objects", "./sandbox")):
    from milo_objects import FollowedFleet, Kind, ObjectChanged, ObjectGone, Objects
    from milo_objects.jetstream import NatsOptions, NewStream
    from milo_objects.nats_source import NatsSource
    from milo_objects.publisher import ObjectPublisher

NAMESPACES = Kind("v1/namespaces", ("metadata.labels", "status.phase"))
_EXAMPLE = Path("examples/objects-nats/namespaces.mjs")

log = logging.getLogger("milo_sandbox")


@asynccontextmanager
async def publishing(client: DiscoveryClient, directory: Path, socket: str) -> AsyncIterator[str]:
    """Publish while the body runs, and yield what to do in other terminals."""
    async with running_nats(directory) as server, asyncio.TaskGroup() as tasks:
        options = NatsOptions(servers=(server.url,))
        publisher = ObjectPublisher(
            FollowedFleet(client), client, (NAMESPACES,), options, NewStream(), report=log.warning
        )
        running = tasks.create_task(publisher.run(), name="publisher")
        try:
            yield _introduction(server.url, socket)
        finally:
            running.cancel()


def _introduction(url: str, socket: str) -> str:
    python = shlex.quote(sys.executable)
    client = shlex.quote(str(Path(sys.executable).with_name("milo-discovery")))
    return f"""\
The namespaces of all projects are published at {url}. In three other terminals:
{python} -m milo_sandbox.demo.published_objects {url}
export MILO_DISCOVERY_ADDRESS={socket}; {client} get namespaces -A --watch
cd {_EXAMPLE.parent} && npm ci --silent && NATS_URL={url} node {_EXAMPLE.name}
In a fourth one, create a namespace in a project, which appears in all three:
export MILO_DISCOVERY_ADDRESS={socket}; {client} kubeconfig NAME >project.yaml
kubectl --kubeconfig project.yaml create namespace team
Ctrl-C ends the demo.
"""


async def show(url: str) -> None:
    """Print the changes of namespaces until canceled."""
    async with Objects(NatsSource(NatsOptions(servers=(url,))), [NAMESPACES]) as objects:
        async for change in objects.changes():
            match change:
                case ObjectChanged(scope, found):
                    write(f"{scope.cluster} {found.name} {found.fields['status']['phase']}\n")
                case ObjectGone(scope, found, reason):
                    write(f"{scope.cluster} {found.name} {reason.value}\n")
                case _:
                    pass


if __name__ == "__main__":
    run("published_objects", show(sys.argv[1]))
