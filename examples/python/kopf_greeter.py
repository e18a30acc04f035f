"""The greeter as a kopf operator, whose handlers run for every engaged project.

    MILO_DISCOVERY_ADDRESS=unix:///... python kopf_greeter.py

Each project occupies several threads. For a new operator, or for thousands of projects, see greeter.py.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import kopf
from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException

import milo_discovery.kopf
from milo_discovery import DiscoveryClient, Fleet

log = logging.getLogger("kopf_greeter")

GREETINGS = ("example.miloapis.com", "v1alpha1", "greetings")
NOT_FOUND = 404


@kopf.on.resume(*GREETINGS)
@kopf.on.create(*GREETINGS)
@kopf.on.update(*GREETINGS)
def greet(spec: kopf.Spec, name: str, memo: kopf.Memo, body: kopf.Body, **_: Any) -> None:
    """Write the ConfigMap. `memo.api` is a client for the project, with renewed credentials."""
    namespace = body["metadata"]["namespace"]
    data = {"text": spec["text"], "project": memo.cluster.name}
    config_map: dict[str, Any] = {"metadata": {"name": name, "namespace": namespace}, "data": data}
    kopf.adopt(config_map, owner=body)
    core: Any = CoreV1Api(memo.api)  # Any, since its methods also accept dicts
    try:
        core.replace_namespaced_config_map(name, namespace, config_map)
    except ApiException as error:
        if error.status != NOT_FOUND:
            raise
        core.create_namespaced_config_map(namespace, config_map)
    log.info("%s: greeted %s", memo.cluster.name, name)


@kopf.on.delete(*GREETINGS)
def farewell(name: str, memo: kopf.Memo, **_: Any) -> None:
    log.info("%s: farewell to %s", memo.cluster.name, name)


async def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    async with DiscoveryClient() as client:
        fleet = Fleet(client, include_kubeconfigs=True)
        await milo_discovery.kopf.run(fleet, kopf.get_default_registry())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
