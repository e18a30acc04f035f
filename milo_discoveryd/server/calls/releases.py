"""Releases of draining clusters: whether a release is valid, and which pending releases a caller sees. Pure."""

from collections.abc import Iterator

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.engagement.pending_releases import PendingReleases
from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.rights.caller_selector import caller_key, quota_keys
from milo_discoveryd.rights.scope import ClusterScope
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.grpc_errors import NotFoundError, PreconditionError
from milo_discoveryd.server.calls.requests import ReleaseRequest
from milo_discoveryd.server.calls.revision import wire_incarnation
from milo_kube.moment import Moment


def subscription(caller: Caller, name: str, view: ClusterView, filter_bytes: int) -> Subscription:
    """Return the subscription of a caller's stream: drains wait until its subscriber has released the clusters."""
    return Subscription(SubscriberKey(caller_key(caller), name), ", ".join(quota_keys(caller)), view, filter_bytes)


def must_note(
    asked: ReleaseRequest, record: ClusterRecord | None, key: SubscriberKey, releases: PendingReleases, epoch: str
) -> bool:
    """Return whether to record a release; False if the release has no effect, for example because it was repeated.

    `record` is None if the caller may not see it. Raises NotFoundError and PreconditionError.
    """
    cluster = None if record is None else record.latest
    if record is None or cluster is None:
        raise NotFoundError("NEVER_SEEN", f"cluster {asked.cluster!r} is not known")
    incarnation = wire_incarnation(epoch, cluster.incarnation)
    if asked.incarnation != incarnation:
        raise PreconditionError(
            "OTHER_INCARNATION",
            f"cluster {asked.cluster!r} was last engaged as incarnation {incarnation}, not {asked.incarnation!r}",
        )
    if not record.engaged:
        return False
    if cluster.draining is None:
        raise PreconditionError(
            "NOT_DRAINING", f"cluster {asked.cluster!r} is engaged and not draining; release it once it drains"
        )
    if not releases.knows(key):
        raise PreconditionError(
            "NO_SUBSCRIPTION",
            f"this caller has no recent stream with confirm_releases as subscriber {asked.subscriber!r}; "
            "release with the subscriber name of the stream",
        )
    return releases.awaits(asked.cluster, key)


def pending(
    name: str, releases: PendingReleases, caller: str, scope: ClusterScope, now: Moment
) -> Iterator[pb.PendingRelease]:
    """Yield the subscribers that a draining cluster waits for; only those of the caller if the caller's scope is
    limited."""
    for release in releases.awaited(name):
        if scope.is_everything or release.key.caller == caller:
            yield pb.PendingRelease(
                subscriber=release.key.name,
                caller=release.label,
                connected=release.connected,
                since=None if release.since is None else convert.timestamp(release.since + now.wall - now.steady),
            )
