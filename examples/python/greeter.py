"""An operator that maintains a ConfigMap for each Greeting in every engaged project.

    milo-discovery run greeter.py                  # runs in the projects of `./dev demo`
    MILO_DISCOVERY_ADDRESS=unix:///... python greeter.py
    KUBECONFIG=... python greeter.py --single      # runs in one cluster, without a daemon

Install the CRD from examples/go-operator/config/crd/greetings.yaml. For several replicas, set LEASE to the name of a
Lease for leader election.
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
    """Reconcile the ConfigMap of one Greeting. Called when the ConfigMap or the Greeting's generation changes."""
    greeting = await request.get()
    if greeting is None:
        return
    if "deletionTimestamp" in greeting["metadata"]:
        # Remove external resources here. Kubernetes deletes the ConfigMap with its owner.
        log.info("farewell")
        await request.remove_finalizer(FINALIZER)
        return
    await request.ensure_finalizer(FINALIZER)
    project = request.cluster.current
    data = {"text": greeting["spec"]["text"], "project": project.name, "organization": project.organization}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": request.name}, "data": data}
    await request.apply(CONFIG_MAPS, config_map, owned=True)
    if await request.set_condition("Ready", "True", "Greeted", f"The ConfigMap {request.name} is up to date"):
        await request.event("Greeted", f"Applied the ConfigMap {request.name}")
        log.info("greeted")


if __name__ == "__main__":
    main(controllers, lease=os.environ.get("LEASE"))
