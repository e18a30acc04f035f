"""`python -m bench.kubernetes_aio KUBECONFIG [NAMESPACE]`: lists and watches with the kubernetes package.

It watches projects, or the ConfigMaps of a namespace. It prints the number of objects after the list, and then the
value of the benchmark's label and the time of each change.
"""

import asyncio
import sys
import time
from typing import Any

from kubernetes.aio.client import ApiClient, CoreV1Api, CustomObjectsApi
from kubernetes.aio.config import load_kube_config
from kubernetes.aio.watch import Watch

from bench.projects import MARK

_PROJECTS = ("resourcemanager.miloapis.com", "v1alpha1", "projects")


async def follow(kubeconfig: str) -> None:
    await load_kube_config(config_file=kubeconfig)  # type: ignore[no-untyped-call]
    async with ApiClient() as client:
        api = CustomObjectsApi(client)
        listed: Any = await api.list_cluster_custom_object(*_PROJECTS)
        say(f"synced {len(listed['items'])}")
        version = listed["metadata"]["resourceVersion"]
        async with Watch() as watch:  # type: ignore[no-untyped-call]
            async for event in watch.stream(api.list_cluster_custom_object, *_PROJECTS, resource_version=version):
                mark = event["object"]["metadata"]["labels"][MARK]
                say(f"{mark} {time.time_ns()}")


async def follow_config_maps(kubeconfig: str, namespace: str) -> None:
    await load_kube_config(config_file=kubeconfig)  # type: ignore[no-untyped-call]
    async with ApiClient() as client:
        api = CoreV1Api(client)
        listed = await api.list_namespaced_config_map(namespace)
        say(f"synced {len(listed.items)}")
        version = listed.metadata.resource_version
        async with Watch() as watch:  # type: ignore[no-untyped-call]
            async for event in watch.stream(api.list_namespaced_config_map, namespace, resource_version=version):
                say(f"{event['object'].metadata.labels[MARK]} {time.time_ns()}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(follow(*sys.argv[1:]) if len(sys.argv) == 2 else follow_config_maps(*sys.argv[1:]))
