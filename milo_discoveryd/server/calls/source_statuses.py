"""The status of the sources of clusters, as far as a caller may see it."""

from collections.abc import Callable, Sequence

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.fleet.source import ClusterSource, worst
from milo_discoveryd.rights.scope import ClusterScope
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.visibility import visible_source
from milo_kube.moment import Moment
from milo_kube.reflect.view_status import ViewStatus


def source_statuses(
    sources: Sequence[ClusterSource],
    scope: ClusterScope,
    now: Moment,
    *,
    status_of: Callable[[ClusterSource], ViewStatus] = lambda source: source.status,
) -> list[pb.SourceStatus]:
    """Return a summary, followed by the status of each source if sources have names.

    Sources that the scope does not cover are left out; if it covers no source, the summary is that of all sources.
    """
    statuses = {source.name: visible_source(status_of(source), scope) for source in visible_sources(sources, scope)}
    whole = worst(list(statuses.values()) or [visible_source(status_of(source), scope) for source in sources])
    return convert.sources(statuses, whole, now)


def visible_sources(sources: Sequence[ClusterSource], scope: ClusterScope) -> tuple[ClusterSource, ...]:
    """Return the sources whose names a caller with this scope may see."""
    return tuple(source for source in sources if scope.covers_source(source.name))


def source_status(source: ClusterSource, scope: ClusterScope, now: Moment) -> pb.SourceStatus:
    """Return the status of one source, with its name if the source has one."""
    return convert.source(visible_source(source.status, scope), now, source.name)
