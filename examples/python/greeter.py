"""An operator that keeps a ConfigMap for each Greeting in every engaged project.

    milo-discovery run greeter.py                  # in the projects of `./dev demo`
    MILO_DISCOVERY_ADDRESS=unix:///... python greeter.py
    KUBECONFIG=... python greeter.py --single      # in one cluster, without a daemon

Its kind is that of the operator in Go: examples/go-operator/config/crd/greetings.yaml. With several replicas, set LEASE
to the name of a Lease: one of them works at a time.
"""

import logging
import os
import sys

from milo_controllers import Controllers, Request, SingleCluster, main

log = logging.getLogger("greeter")

GREETINGS = "example.miloapis.com/v1alpha1/greetings"
CONFIG_MAPS = "v1/configmaps"
FINALIZER = "example.miloapis.com/greeter"

controllers = Controllers(SingleCluster() if "--single" in sys.argv else None)


@controllers.reconcile(GREETINGS, owns=[CONFIG_MAPS], on="generation")
async def reconcile(request: Request) -> None:
    """Bring one Greeting's ConfigMap into the wanted state. Called again whenever one of the two has changed."""
    greeting = await request.get()
    if greeting is None:
        return
    if "deletionTimestamp" in greeting["metadata"]:
        # The place to remove what Kubernetes does not: the ConfigMap is deleted with its owner.
        log.info("farewell")
        await request.remove_finalizer(FINALIZER)
        return
    await request.ensure_finalizer(FINALIZER)
    project = request.cluster.current
    data = {"text": greeting["spec"]["text"], "project": project.name, "organization": project.organization}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": request.name}, "data": data}
    await request.apply(CONFIG_MAPS, config_map, owned=True)
    if await request.set_condition("Ready", "True", "Greeted", f"The ConfigMap {request.name} has the greeting"):
        await request.event("Greeted", f"Wrote the ConfigMap {request.name}")
        log.info("greeted")


if __name__ == "__main__":
    main(controllers, lease=os.environ.get("LEASE"))
