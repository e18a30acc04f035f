"""`python -m bench.kopf_process ADDRESS OBJECTS`: a kopf operator in each cluster, like bench.controllers_process."""

import asyncio
import itertools
import logging
import sys
import threading
import time
from typing import Any

import kopf
import msgspec

import milo_discovery.kopf
from bench.controllers_process import say, trim_memory
from bench.process import standard_input
from milo_discovery import DiscoveryClient, Fleet


async def work(address: str, objects: int) -> None:
    logging.disable(logging.WARNING)
    registry = kopf.OperatorRegistry()
    # Handlers of different clusters run in different threads; this counts atomically.
    handled = itertools.count(1)

    @kopf.on.event("v1", "configmaps", registry=registry)
    async def handle(**_: Any) -> None:
        if next(handled) == objects:
            say("WORKING")

    async with DiscoveryClient(address) as client:
        running = asyncio.create_task(milo_discovery.kopf.run(Fleet(client, include_kubeconfigs=True), registry))
        reader = await standard_input()
        while await reader.readline():
            trim_memory()
            state = {"at": time.perf_counter(), "threads": threading.active_count()}
            say(f"STATUS {msgspec.json.encode(state).decode()}")
        running.cancel()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2])))
