"""An operator that copies Secrets from one project to the projects that a label selector matches.

    MILO_DISCOVERY_ADDRESS=unix:///... SOURCE_PROJECT=shared python secret_replicator.py

A Secret of the source project is copied if it has the label `replicate.example.com/role: source`. Its annotation
`replicate.example.com/projects` selects projects by their labels, such as `env=prod`. A copy is deleted when its source
is deleted, or when its project is no longer selected.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

from milo_controllers import (
    Controllers,
    Kind,
    NotSynced,
    ReconcileTarget,
    Request,
    Result,
    Watched,
    main,
    watches,
)

log = logging.getLogger("replicator")

ROLE = "replicate.example.com/role"
SECRETS = Kind("v1/secrets", selector=ROLE)
PROJECTS = "replicate.example.com/projects"
SOURCE = os.environ.get("SOURCE_PROJECT", "shared")
# When a project's labels change, only Secrets that its cache contains are reconciled. Copies that do not exist yet are
# created after this interval.
AGAIN = Result(requeue_after=timedelta(minutes=5))

controllers = Controllers()


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Return whether the labels contain all KEY=VALUE pairs of the selector. An empty selector matches nothing."""
    wanted = dict(pair.strip().split("=", 1) for pair in selector.split(",") if "=" in pair)
    return bool(wanted) and wanted.items() <= labels.items()


async def reconcile(request: Request) -> Result | None:
    """Create, update or delete the copy of one Secret in one project."""
    if request.cluster.name == SOURCE:
        return None
    shared = request.clusters.cluster(SOURCE)
    if shared is None:
        return AGAIN  # the source project is not engaged: keep the copies
    source = shared.get(SECRETS, request.name, request.namespace)
    selector = (source or {}).get("metadata", {}).get("annotations", {}).get(PROJECTS, "")
    if source is not None and selects(selector, dict(request.cluster.current.labels)):
        metadata = {"name": request.name, "namespace": request.namespace, "labels": {ROLE: "copy"}}
        copy = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        await request.apply(SECRETS, copy | {"type": source["type"], "data": source.get("data", {})})
        log.info("%s: copied %s", request.cluster.name, request.name)
        return AGAIN
    found = await request.get()
    if found is not None and found["metadata"]["labels"][ROLE] == "copy":
        await request.delete(SECRETS, request.name, uid=found["metadata"]["uid"])
        log.info("%s: deleted the copy of %s", request.cluster.name, request.name)
    return AGAIN if source is not None else None


def copies_of_a_source(change: Watched) -> Iterator[ReconcileTarget]:
    """Map a Secret of the source project to its copy in every project."""
    if change.cluster.name == SOURCE:
        for name in change.clusters.names():
            yield ReconcileTarget(change.name, change.namespace, name)


def copies_in_a_namespace(change: Watched) -> Iterator[ReconcileTarget]:
    """Map a namespace, for example in a project that was just engaged, to the copies that it may need."""
    shared = change.clusters.cluster(SOURCE)
    with suppress(NotSynced):  # copies_of_a_source maps each Secret once the cache of the source project is synced
        for source in shared.list(SECRETS, change.name) if shared else ():
            yield ReconcileTarget(source["metadata"]["name"], change.name, change.cluster.name)


controllers.reconcile(
    SECRETS,
    watches=[
        watches(SECRETS, map=copies_of_a_source),
        watches(Kind("v1/namespaces", metadata_only=True), map=copies_in_a_namespace),
    ],
    on_cluster_change=True,
)(reconcile)

if __name__ == "__main__":
    main(controllers)
