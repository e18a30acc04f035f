"""The objects to publish for the engaged clusters, rendered from the state, server and CA of each cluster. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from milo_discovery._kubeconfig_access import read_access
from milo_discovery.errors import UnusableKubeconfig
from milo_publishing.objects import DesiredObject, object_name

if TYPE_CHECKING:
    from milo_discovery.events import Event
    from milo_discovery.model import Cluster
    from milo_publishing.accesses import Accesses
    from milo_publishing.decisions import Publication
    from milo_publishing.rendering import Renderer
    from milo_publishing.reports import ProblemReports


class FleetObjects:
    """The engaged clusters and their desired objects. Methods return the names of the objects that they changed."""

    def __init__(
        self, publication: Publication, renderer: Renderer, accesses: Accesses, reports: ProblemReports
    ) -> None:
        self._publication = publication
        self._renderer = renderer
        self._accesses = accesses
        self._reports = reports
        self._clusters: dict[str, Cluster] = {}
        self._without_object: dict[str, set[str]] = {}
        """Clusters whose object name is taken by another cluster, by object name."""

    @property
    def embeds_credentials(self) -> bool:
        return self._renderer.embeds_credentials

    def request_accesses(self) -> None:
        """Request the server and CA of every cluster again, unless the stream delivers kubeconfigs."""
        self._accesses.request_all(self._clusters if not self.embeds_credentials else ())

    def engage(self, event: Event) -> list[str]:
        name, before = event.cluster.name, self._clusters.get(event.cluster.name)
        self._clusters[name] = event.cluster
        if before is not None and before.uid != event.cluster.uid:
            self._accesses.forget(name)
        if self._renderer.embeds_credentials:
            if event.kubeconfig is not None:
                self._receive_kubeconfig(name, event.kubeconfig.kubeconfig)
        elif before is None or (before.uid, before.endpoint) != (event.cluster.uid, event.cluster.endpoint):
            self._accesses.request(name)
        return self.render(name)

    def withdraw(self, event: Event, *, is_end: bool) -> list[str]:
        """Remove a cluster. `is_end`: whether its disengagement permits deleting its object."""
        name = event.cluster.name
        self._clusters.pop(name, None)
        self._accesses.forget(name)
        for subject in (f"kubeconfig of {name}", f"cluster {name}"):
            self._reports.resolve(subject, "the cluster was disengaged")
        of_object = object_name(name, self._renderer.suffix)
        desired = None if of_object is None else self._publication.desired(of_object)
        if of_object is None or (desired is not None and desired.cluster != name):
            return []
        self._publication.withdraw(of_object)
        if is_end:
            self._publication.end(of_object, event.cluster.uid)
        waiting: Iterable[str] = self._without_object.pop(of_object, ())
        return [of_object, *(rendered for other in waiting for rendered in self.render(other))]

    def render(self, name: str) -> list[str]:
        """Update the desired object of a cluster from its current state."""
        cluster = self._clusters.get(name)
        if cluster is None:
            return []
        of_object = object_name(name, self._renderer.suffix)
        if of_object is None:
            self._reports.add_problem(f"cluster {name}", "its name cannot be converted to a valid object name")
            return []
        other = self._publication.desired(of_object)
        if other is not None and other.cluster != name:
            self._without_object.setdefault(of_object, set()).add(name)
            self._reports.add_problem(f"cluster {name}", f"the object {of_object} belongs to cluster {other.cluster!r}")
            return []
        self._reports.resolve(f"cluster {name}", f"the object {of_object} now belongs to this cluster")
        content = None
        if self._accesses.is_known(name):
            content = self._renderer.render(cluster, self._accesses.get(name))
        desired = DesiredObject(name=of_object, cluster=name, cluster_uid=cluster.uid, content=content)
        if desired == other:
            return []
        self._publication.desire(desired)
        return [of_object]

    def _receive_kubeconfig(self, name: str, kubeconfig: bytes) -> None:
        try:
            self._accesses.set(name, read_access(kubeconfig))
        except UnusableKubeconfig as error:
            self._reports.add_problem(f"kubeconfig of {name}", str(error))
        else:
            self._reports.resolve(f"kubeconfig of {name}", "usable")
