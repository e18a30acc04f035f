"""`python -m bench.controllers_process ADDRESS OBJECTS [busy|marks]`: controllers with one informer in each cluster.

It prints WORKING once OBJECTS ConfigMaps were reconciled, and answers each line of its standard input with its state.
The reconciler does nothing; with `busy` each object is reconciled again at once, and with `marks` it prints the mark of
each object and the time.
"""

import asyncio
import ctypes
import gc
import sys
import threading
import time
from datetime import timedelta

import msgspec
from prometheus_client import CollectorRegistry

from bench.process import standard_input
from bench.projects import MARK
from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.controllers import Controllers, QueuePolicy, Request, Result

_AT_ONCE = Result(requeue_after=timedelta(0))


async def work(address: str, objects: int, mode: str) -> None:
    reconciles = 0

    async def reconcile(request: Request) -> Result | None:
        nonlocal reconciles
        reconciles += 1
        if reconciles == objects:
            say("WORKING")
        if mode == "marks" and reconciles > objects:
            found = await request.get()
            mark = (found or {}).get("metadata", {}).get("labels", {}).get(MARK)
            if mark:
                say(f"{mark} {time.time_ns()}")
        return _AT_ONCE if mode == "busy" else None

    async with DiscoveryClient(address) as client:
        fleet = Fleet(client, include_kubeconfigs=True)
        controllers = Controllers(fleet, registry=CollectorRegistry())
        controllers.reconcile("v1/configmaps", queue=QueuePolicy(min_requeue_s=0.0))(reconcile)
        async with controllers:
            reader = await standard_input()
            while await reader.readline():
                trim_memory()
                state = {"reconciles": reconciles, "at": time.perf_counter(), "threads": threading.active_count()}
                say(f"STATUS {msgspec.json.encode(state).decode()}")


def trim_memory() -> None:
    """Give free memory back, as the peers in Go do before they are measured."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2]), "".join(sys.argv[3:])))
