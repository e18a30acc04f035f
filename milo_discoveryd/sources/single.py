"""The kind `single`: a cluster from the settings, so that an operator runs unchanged without discovery."""

import uuid
from typing import Annotated

import msgspec

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Text
from milo_discoveryd.sources.kind import FixedClusters, SourceKind, SourceOptions


class SingleKind(SourceKind, frozen=True, kw_only=True):
    is_watched = False
    addresses_are_configured = True

    name: Annotated[str, values.cluster_name] = "single"
    """Name of the cluster."""
    labels: Annotated[dict[str, str], values.pairs] = msgspec.field(default_factory=dict)
    """Labels of the cluster."""
    organization: Annotated[str, Text(most=253)] = ""
    """Organization of the cluster."""

    def follow(self, options: SourceOptions) -> FixedClusters:
        server = options.project_server
        target = Target(
            name=self.name,
            uid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{server}#{self.name}")),
            place=(server,),
            organization=self.organization,
            labels=tuple(sorted(self.labels.items())),
        )
        return FixedClusters((target,))
