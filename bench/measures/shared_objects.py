"""Two kinds of all projects, read by five programs in Go: with client-go's informers, with package objects, over NATS.

Over NATS, the memory is that of the daemon, the publisher, the NATS server and the programs together. Resident memory
includes the code of each program, which is that of operators for the first two; anonymous memory does not.
"""

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from bench import peers
from bench.measures import go, rotation
from bench.measures.controllers import LIFE_S
from bench.process import Process, anonymous_mib, rss_mib
from bench.setting import Samples, Setting
from milo_sandbox.nats_server import running_nats

_READERS = 5
_OBJECTS = 20
"""Of each kind in each project."""
_WAYS = ("client_go", "objects", "nats")
KEYS = (
    *(f"shared_objects.{way}.{key}" for way in _WAYS for key in ("mib", "anonymous_mib", "watches", "seconds")),
    *(f"shared_objects.{key}_ratio" for key in ("mib", "anonymous_mib", "watches")),
    *(f"shared_objects.nats.{part}_mib" for part in ("programs", "daemon", "publisher", "server")),
    "shared_objects.nats.restart_requests",
)
_DECLARATION = """\
objects:
- resource: v1/configmaps
  fields: [metadata.labels, status]
- resource: v1/secrets
  fields: [metadata.labels, status]
  secrets: true
"""


async def measure(setting: Setting) -> Samples:
    binary = peers.operator() if setting.scale.with_go else None
    over_nats = peers.reader_over_nats() if setting.scale.with_go else None
    if binary is None or over_nats is None:
        return {key: [] for key in KEYS}
    minted = setting.directory / "shared-minted"
    minted.write_text("")
    source = rotation.SOURCE.format(python=sys.executable, minted=minted, life_s=LIFE_S)
    _, count = setting.scale.objects
    found: dict[str, float] = {}
    for way in _WAYS:
        async with go.place(setting, binary, count, objects=_OBJECTS) as place, AsyncExitStack() as stack:
            daemon = place.daemon(source)
            stack.push_async_callback(daemon.end)
            await daemon.listens()
            pids: dict[str, int] = {}
            start = partial(place.reader, *(("--shared-informers",) if way == "client_go" else ()))
            if way == "nats":
                url, pids = await stack.enter_async_context(_published(setting, daemon.address))
                pids["daemon"] = daemon.pid
                start = partial(place.reader_over_nats, over_nats, url)
            began = time.perf_counter()
            readers = [await stack.enter_async_context(start()) for _ in range(_READERS)]
            for reader in readers:
                await reader.working()
            found[f"{way}.seconds"] = time.perf_counter() - began
            programs = sum([await reader.settled_kib() for reader in readers]) / 1024
            served = await place.server.status()
            found[f"{way}.watches"] = served["watches"]
            found |= {f"{way}.{part}_mib": rss_mib(pid) for part, pid in pids.items()}
            found[f"{way}.mib"] = programs + sum(map(rss_mib, pids.values()))
            found[f"{way}.anonymous_mib"] = sum(map(anonymous_mib, [*pids.values(), *(one.pid for one in readers)]))
            if way == "nats":
                found["nats.programs_mib"] = programs
                await readers[0].end()
                async with start() as again:
                    await again.working()
                found["nats.restart_requests"] = (await place.server.status())["requests"] - served["requests"]
    for key in ("mib", "anonymous_mib", "watches"):
        found[f"{key}_ratio"] = found[f"nats.{key}"] / found[f"client_go.{key}"]
    return {f"shared_objects.{key}": [value] for key, value in found.items()}


@asynccontextmanager
async def _published(setting: Setting, address: str) -> AsyncIterator[tuple[str, dict[str, int]]]:
    """Run a NATS server and a publisher; yield the server's URL, and the processes."""
    directory = setting.directory / "nats"
    directory.mkdir()
    declaration = setting.directory / "objects.yaml"
    declaration.write_text(_DECLARATION)
    async with running_nats(directory) as server:
        command = [sys.executable, "-m", "milo_objects.command", "publish", str(declaration)]
        command += ["--nats", server.url, "--create-stream"]
        environ = {**os.environ, "MILO_DISCOVERY_ADDRESS": address}
        publisher = Process(command, setting.directory / "publisher.log", environ=environ)
        try:
            yield server.url, {"publisher": publisher.pid, "server": server.pid}
        finally:
            await publisher.end()
