"""An operator that keeps a ConfigMap for each Greeting in every engaged project.

    MILO_DISCOVERY_ADDRESS=unix:///... python greeter.py
    KUBECONFIG=... python greeter.py --single      # in one cluster, without a daemon

Its kind is that of the operator in Go: examples/go-operator/config/crd/greetings.yaml.
"""

import asyncio
import logging
import sys
from contextlib import suppress

from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.controllers import Controllers, Request, SingleCluster

log = logging.getLogger("greeter")

GREETINGS = "example.miloapis.com/v1alpha1/greetings"
CONFIG_MAPS = "v1/configmaps"
FINALIZER = "example.miloapis.com/greeter"


async def reconcile(request: Request) -> None:
    """Bring one Greeting's ConfigMap into the wanted state. Called again whenever one of the two has changed."""
    greeting = await request.get()
    if greeting is None:
        return
    if "deletionTimestamp" in greeting["metadata"]:
        # The place to remove what Kubernetes does not: the ConfigMap is deleted with its owner.
        log.info("%s: farewell to %s", request.cluster.name, request.name)
        await request.remove_finalizer(FINALIZER)
        return
    await request.ensure_finalizer(FINALIZER)
    project = request.cluster.current
    data = {"text": greeting["spec"]["text"], "project": project.name, "organization": project.organization}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": request.name}, "data": data}
    await request.apply(CONFIG_MAPS, config_map, owned=True)
    if await request.set_condition("Ready", "True", "Greeted", f"The ConfigMap {request.name} has the greeting"):
        await request.event("Greeted", f"Wrote the ConfigMap {request.name}")
        log.info("%s: greeted %s", request.cluster.name, request.name)


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if "--single" in sys.argv:
        controllers = Controllers(SingleCluster())
        controllers.reconcile(GREETINGS, owns=[CONFIG_MAPS])(reconcile)
        await controllers.run()
        return
    async with DiscoveryClient() as client:
        controllers = Controllers(Fleet(client, include_kubeconfigs=True))
        controllers.reconcile(GREETINGS, owns=[CONFIG_MAPS])(reconcile)
        await controllers.run()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
