"""The status of the sources of clusters, as far as a caller may see it."""

from collections.abc import Callable, Sequence

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.registry.fleet import worst
from milo_discoveryd.registry.source import ClusterSource
from milo_discoveryd.rights.scope import ClusterScope
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.visibility import visible_source
from milo_kube.reflect.view_status import ViewStatus


def source_statuses(
    sources: Sequence[ClusterSource],
    scope: ClusterScope,
    now: Moment,
    *,
    status_of: Callable[[ClusterSource], ViewStatus] = lambda source: source.status,
) -> list[pb.SourceStatus]:
    """Return the status that summarizes all sources, followed by the status of each if the daemon has several."""
    statuses = {each.name: visible_source(status_of(each), scope) for each in sources}
    return convert.sources(statuses, worst(list(statuses.values())), now)


def source_status(source: ClusterSource, scope: ClusterScope, now: Moment) -> pb.SourceStatus:
    """Return the status of one source, with its name if the daemon has several."""
    return convert.source(visible_source(source.status, scope), now, source.name)
