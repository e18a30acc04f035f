"""The whole daemon in this process, configured by a file, and its client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from tests.support.eventually import eventually


@asynccontextmanager
async def a_daemon(tmp_path: Path, file: Path | None = None, **flags: object) -> AsyncIterator[DiscoveryServiceStub]:
    listen = {} if file is not None and '"listen"' in file.read_text() else {"listen": (f"unix://{tmp_path}/d.sock",)}
    given: dict[str, object] = {**listen, "http_listen": "off", **flags}
    daemon = Daemon(load(given, {}, file), {})
    running = asyncio.create_task(daemon.serve())
    try:
        await eventually(lambda: daemon.started.is_set() or running.done())
        async with grpc.aio.insecure_channel(
            f"unix:{tmp_path}/d.sock", options=(("grpc.use_local_subchannel_pool", 1),)
        ) as channel:
            stub = DiscoveryServiceStub(channel)
            stream = stub.WatchClusters(pb.WatchClustersRequest())
            while not (await stream.read()).synced:  # type: ignore[union-attr]
                pass
            stream.cancel()
            yield stub
    finally:
        running.cancel()
        await asyncio.wait((running,))
        if not running.cancelled():
            running.result()
