"""`python -m bench.controllers_process ADDRESS OBJECTS [busy|marks|tenants [N]]`: one informer in each cluster.

It prints WORKING once OBJECTS ConfigMaps were reconciled, and responds to each line on standard input with its state.
By default the reconciler does nothing. With `busy` it requeues each object at once. With `marks` it prints the value of
the benchmark's label on each changed object, and the time. With `tenants` it does so too, while the reconciles of N
clusters hang, fail, or change their object again and again.
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
from milo_controllers import Controllers, QueuePolicy, ReconcileTarget, Request, Result
from milo_discovery import DiscoveryClient, Fleet

CONFIG_MAPS = "v1/configmaps"
_AT_ONCE = Result(requeue_after=timedelta(0))


async def work(address: str, objects: int, mode: str = "", misbehaving: str = "0") -> None:
    reconciles = 0
    tenants: list[str] = []

    async def reconcile(request: Request) -> Result | None:
        nonlocal reconciles
        reconciles += 1
        if reconciles == objects:
            if mode == "tenants":
                # Excludes the first cluster, in which the benchmark writes objects.
                tenants.extend(sorted(controllers.view.names())[-int(misbehaving) :])
                for cluster, found in controllers.view.list(CONFIG_MAPS):
                    if cluster.name in tenants:
                        metadata = found["metadata"]
                        controllers.enqueue(ReconcileTarget(metadata["name"], metadata["namespace"], cluster.name))
            say("WORKING")
        if request.cluster.name in tenants:
            await misbehave(request, tenants.index(request.cluster.name))
        elif mode in ("marks", "tenants") and reconciles > objects:
            found = await request.get()
            mark = (found or {}).get("metadata", {}).get("labels", {}).get(MARK)
            if mark:
                say(f"{mark} {time.time_ns()}")
        return _AT_ONCE if mode == "busy" else None

    async with DiscoveryClient(address) as client:
        fleet = Fleet(client, include_kubeconfigs=True)
        controllers = Controllers(fleet, registry=CollectorRegistry())
        controllers.reconcile(CONFIG_MAPS, queue=QueuePolicy(min_requeue_s=0.0))(reconcile)
        async with controllers:
            reader = await standard_input()
            while await reader.readline():
                trim_memory()
                state = {"reconciles": reconciles, "at": time.perf_counter(), "threads": threading.active_count()}
                say(f"STATUS {msgspec.json.encode(state).decode()}")


async def misbehave(request: Request, number: int) -> None:
    match number % 3:
        case 0:
            await asyncio.Event().wait()
        case 1:
            raise OSError("no reconcile of this cluster succeeds")
        case _:
            label = {"metadata": {"labels": {"changed": str(time.time_ns())}}}
            await request.patch(CONFIG_MAPS, request.name, label)


def trim_memory() -> None:
    """Return free memory to the operating system, as the Go programs do before they are measured."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
