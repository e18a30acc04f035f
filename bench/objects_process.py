"""`python -m bench.objects_process ADDRESS CLUSTERS objects|caches KIND`: ConfigMaps and a kind of all clusters.

It prints WORKING once every cluster was read, and responds to each line on standard input with its state. `objects`
keeps them in a store of `milo_objects`, `caches` in the caches of `milo_controllers`, without a reconciler.
"""

import asyncio
import sys
import time
from collections.abc import Callable

import msgspec
from prometheus_client import CollectorRegistry

from bench.controllers_process import CONFIG_MAPS, say, trim_memory
from bench.process import standard_input
from milo_controllers import Controllers
from milo_discovery import DiscoveryClient, Fleet
from milo_objects import Kind, Objects, ProjectedObject, View


def by_uid(found: ProjectedObject) -> list[str]:
    return [found.uid]


async def work(address: str, clusters: int, way: str, other: str) -> None:
    async with DiscoveryClient(address) as client:
        if way == "objects":
            kinds = [Kind(CONFIG_MAPS, ["metadata.labels"]), Kind(other, ["metadata.labels", "status.phase"])]
            async with Objects(client, kinds, indexes={"uid": by_uid}) as objects:
                await report(objects.view, clusters, other)
        else:
            controllers = Controllers(Fleet(client, include_kubeconfigs=True), registry=CollectorRegistry())
            for kind in (CONFIG_MAPS, other):
                controllers.cache(kind, indexes={"uid": lambda found: [found["metadata"]["uid"]]})
            async with controllers:
                await report(controllers.view.view, clusters, other)


async def report(view: Callable[[str], View], clusters: int, other: str) -> None:
    while not all(view(kind).synced == clusters for kind in (CONFIG_MAPS, other)):  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # the same poll for both, which have no event for it in common
    say("WORKING")
    reader = await standard_input()
    while await reader.readline():
        trim_memory()
        say(f"STATUS {msgspec.json.encode({'at': time.perf_counter()}).decode()}")


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
