"""The RPCs of DiscoveryService."""

import asyncio
import random
import time
from collections.abc import Generator, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakValueDictionary

from msgspec.structs import replace

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.engagement.subscriber import SubscriberKey
from milo_discoveryd.fleet.changes import steady_now
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.instruments import StreamMetrics
from milo_discoveryd.kubeconfigs.credential_lease import Draw
from milo_discoveryd.kubeconfigs.kubeconfigs import Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import NOT_OWNED, CredentialUnavailableError
from milo_discoveryd.kubeconfigs.rendering import IssuedKubeconfig
from milo_discoveryd.log.change_notifier import ChangeNotifier, ReadingTurns
from milo_discoveryd.log.filter import without_sources
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.rights.rights import Rights
from milo_discoveryd.rights.scope import scoped
from milo_discoveryd.server.calls import convert, releases, requests, visibility
from milo_discoveryd.server.calls.access import AccessControl, CallContext
from milo_discoveryd.server.calls.delivery_schedule import DeliveryBudget, DeliverySchedule
from milo_discoveryd.server.calls.grpc_errors import CallError, NotFoundError, PreconditionError, UnavailableError
from milo_discoveryd.server.calls.in_flight import CallSlot
from milo_discoveryd.server.calls.kubeconfig_rotation import KubeconfigRotation
from milo_discoveryd.server.calls.large_batches import LargeBatches
from milo_discoveryd.server.calls.listings import ListingOwner, Listings, Page
from milo_discoveryd.server.calls.revision import NOTHING, Position, TokenSigner, wire_incarnation
from milo_discoveryd.server.calls.server_info import (
    CLUSTERS_PER_STEP,
    CREDENTIALS_FAILING,
    STEP_S,
    DaemonDescription,
    DaemonInfo,
    ShardMembership,
)
from milo_discoveryd.server.calls.source_statuses import source_status, source_statuses, visible_sources
from milo_discoveryd.server.calls.stream import RETRY_S, Send, StreamOptions, WatchStream
from milo_discoveryd.server.calls.verification import Freshness
from milo_kube.moment import Moment

FIRST_LIST_HELD = (
    "the first list after the daemon's start may lack clusters that subscribers know, so removals are held until a "
    "second list confirms them (RemovalsHeld); retry"
)
PAGE_BYTES = 512 << 10
"""Size limit of a page: two dozen callers may be sent one at the same time, see `unread_answers.MAX_BYTES`."""
_ISSUER_ADVICE = "check kubeconfigs.issuers in the daemon's configuration"


class Service:
    def __init__(
        self,
        fleet: Fleet,
        info: DaemonInfo,
        metrics: StreamMetrics,
        kubeconfigs: Kubeconfigs,
        *,
        access: AccessControl,
        signer: TokenSigner,
        draw: Draw = random.random,
        shard: ShardMembership | None = None,
    ) -> None:
        """`shard` is set if the clusters are distributed among several daemons."""
        self._fleet = fleet
        self.shard = shard
        self._kubeconfigs = kubeconfigs
        self._info = info
        self.access = access
        self._signer = signer
        self._draw = draw
        self._listings = Listings(fleet.log, signer)
        self._listing: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        """By caller: held by its list that is being made."""
        self._server_info = DaemonDescription(fleet, kubeconfigs, info)
        self._stopping = asyncio.Event()
        self._stream_options = StreamOptions(
            epoch=info.epoch,
            signer=signer,
            metrics=metrics,
            turns=ReadingTurns(),
            large_batches=LargeBatches(streams=access.quotas),
            deliveries=DeliveryBudget(access.quotas),
            stalled_s=info.stalled_s,
            stopping=self._stopping,
        )
        self._clock = asyncio.get_running_loop().time
        self.streams: set[WatchStream] = set()

    @property
    def notifier(self) -> ChangeNotifier:
        """Wakes streams: after a change of clusters, sources or rights, and at shutdown."""
        return self._fleet.notifier

    @property
    def stalled_s(self) -> float:
        """How long a stream's client may read nothing."""
        return self._info.stalled_s

    def end_streams(self) -> None:
        """End each stream after it has sent its pending changes."""
        self._stopping.set()
        self._fleet.notifier.notify_now()

    def change_rights(self, rights: Rights) -> None:
        """Replace the rules. Running streams send the resulting changes at once."""
        self.access.rights = rights
        self._fleet.notifier.notify_now()

    async def watch_clusters(
        self,
        request: pb.WatchClustersRequest,
        caller: Caller,
        send: Send,
        *,
        freshness: Freshness | None = None,
        slot: CallSlot | None = None,
    ) -> None:
        """Stream the clusters. `slot` is released once the stream quota has admitted the stream."""
        async with self.access.authorize(caller, "WatchClusters", freshness) as call:
            with call.stream_slot(requests.kept_bytes(request)):
                if slot is not None:
                    slot.release()
                parsed = requests.watch(request, self._info.heartbeat_s, sources=len(self._fleet.sources))
                requests.known_sources(parsed.wanted, self._source_names(call))
                await self._stream(parsed, call, send, request_bytes=request.ByteSize())

    async def list_clusters(self, request: pb.ListClustersRequest, caller: Caller) -> pb.ListClustersResponse:
        async with self.access.authorize(caller, "ListClusters") as call:
            parsed = requests.listing(request)
            requests.known_sources(parsed.wanted, self._source_names(call))
            listing = self._listing.setdefault(call.quota_keys, asyncio.Lock())
            async with listing:
                call.require_rule()
                return await self._list(parsed, call)

    async def _list(self, parsed: requests.ListRequest, call: CallContext) -> pb.ListClustersResponse:
        selected = visible_sources(self._fleet.select(parsed.wanted.sources), call.scope)
        pending = frozenset(source.name for source in selected if not source.synced)
        if pending and len(pending) == len(selected):
            raise self._not_synced(call)
        now = self._clock()
        source, *sources = source_statuses(selected or self._fleet.sources, call.scope, Moment(time.time(), now))
        shown = scoped(parsed.wanted, call.scope)
        owner = ListingOwner(call.identity, call.holder(shown))

        def is_visible(cluster: Cluster) -> bool:
            return call.scope.is_everything or self._visible(cluster.target.name, call) is not None

        page = (
            self._listings.next(parsed.page_token, parsed.page_size, now, owner, is_visible)
            if parsed.page_token
            else await self._completed(
                self._listings.first(without_sources(shown, pending), parsed.page_size, now, owner, pending=pending),
                call,
            )
        )
        clusters, taken = await self._converted(page, call)
        listing = page.listing
        # A listing without the clusters of a pending source is a part of a snapshot: a stream cannot resume from its
        # revision.
        part = 1 if listing.pending else None
        known = NOTHING.grown(listing.counts)
        known = known.seen_at(self._fleet.changes.versions)
        position = Position(self._info.epoch, listing.revision, known=known, part=part)
        return pb.ListClustersResponse(
            clusters=clusters,
            next_page_token=self._listings.next_token(page, taken, now),
            revision=self._signer.sign(str(position), owner.holder),
            total_size=len(listing.clusters),
            source=source,
            sources=sources,
            pending_sources=sorted(listing.pending),
        )

    @property
    def _turns(self) -> ReadingTurns:
        return self._stream_options.turns

    def _source_names(self, call: CallContext) -> list[str]:
        """Return the names of the sources that the caller may see."""
        return [source.name for source in visible_sources(self._fleet.sources, call.scope)]

    async def _completed(self, steps: Generator[None, None, Page], call: CallContext) -> Page:
        """Run the steps in the caller's turns, and return the result."""
        while True:
            await self._turns.wait(call.quota_keys)
            began = self._clock()
            while self._clock() < began + STEP_S:
                try:
                    next(steps)
                except StopIteration as ended:
                    page: Page = ended.value
                    return page

    async def _converted(self, page: Page, call: CallContext) -> tuple[list[pb.Cluster], int]:
        """Return the page's clusters up to the size limit, and how many of its items were processed."""
        messages: list[pb.Cluster] = []
        size = 0
        for place, cluster in enumerate(page.clusters):
            if place % CLUSTERS_PER_STEP == 0:
                await self._turns.wait(call.quota_keys)
            if cluster is None:
                continue
            message = convert.cluster(cluster, self._info.epoch)
            size += message.ByteSize() + _FIELD_OVERHEAD
            if size > PAGE_BYTES and messages:
                return messages, place
            messages.append(message)
        return messages, len(page.clusters)

    async def get_cluster(self, request: pb.GetClusterRequest, caller: Caller) -> pb.GetClusterResponse:
        async with self.access.authorize(caller, "GetCluster", cluster=requests.truncated_name(request.name)) as call:
            name = requests.name(request.name, "name")
            record = self._visible(name, call)
            source = self._fleet.source_of(name)
            if record is None or source is None:
                sources = visible_sources(self._fleet.sources, call.scope)
                is_synced = all(visible.synced for visible in sources)
                hint = "" if is_synced else "; not every source has been listed completely yet"
                if self._may_lack(source, call):
                    hint = f"; {FIRST_LIST_HELD}"
                is_elsewhere = source is not None and source.engagements.assigned_elsewhere(name) is not None
                reason = "ASSIGNED_ELSEWHERE" if is_elsewhere else "NEVER_SEEN"
                raise NotFoundError(reason, f"cluster {name!r} is not known{hint}")
        pending = source.pending_deletion(name)
        confirming = None if pending is None else visibility.visible_problem(pending[1], call.scope)
        now, elsewhere = Moment(time.time(), self._clock()), source.engagements.assigned_elsewhere(name)
        grace_until = source.engagements.grace_until(name, now)
        engagement = convert.engagement(record, confirming, elsewhere, grace_until, source.description.ready_when)
        if grace_until is not None and source.engagements.not_ready.held is not None:
            engagement.message += "; many clusters became not ready at once (removals.hold_not_ready)"
        if unusable := source.problem_of(name):
            stays = "the cluster stays as last known: " if record.engaged else ""
            engagement.message += f"; {stays}{unusable}"
        if self.shard is not None and engagement.reason == pb.Engagement.REASON_ENGAGED:
            status = self.shard.status()
            owns = f"member {status.member} of the shard group, this daemon, owns it (view {status.view})"
            engagement.message += f"; {elsewhere or owns}"
        if (problem := self._credential_problem(record, call)) is not None:
            engagement.message += f"; no new credential can be obtained for it: {problem}"
        return pb.GetClusterResponse(
            cluster=None if record.latest is None else convert.cluster(record.latest, self._info.epoch),
            engagement=engagement,
            transitions=[
                convert.transition(transition, self._info.epoch)
                for transition in visibility.visible_transitions(record, call.scope)
            ],
            pending_releases=releases.pending(name, self._fleet.releases, call.identity, call.scope, now),
            source=source_status(source, call.scope, now),
        )

    async def release_cluster(self, request: pb.ReleaseClusterRequest, caller: Caller) -> pb.ReleaseClusterResponse:
        named = requests.truncated_name(request.cluster)
        async with self.access.authorize(caller, "ReleaseCluster", cluster=named) as call:
            parsed = requests.release(request)
            key = SubscriberKey(call.identity, parsed.subscriber)
            record = self._visible(parsed.cluster, call)
            if releases.must_note(parsed, record, key, self._fleet.releases, self._info.epoch):
                self._fleet.changes.release(key, parsed.cluster)
                call.noted(
                    "cluster released",
                    cluster=parsed.cluster,
                    incarnation=parsed.incarnation,
                    subscriber=parsed.subscriber,
                )
        return pb.ReleaseClusterResponse()

    async def end_subscription(self, request: pb.EndSubscriptionRequest, caller: Caller) -> pb.EndSubscriptionResponse:
        async with self.access.authorize(caller, "EndSubscription") as call:
            key = SubscriberKey(call.identity, requests.subscriber(request.subscriber))
            if self._fleet.changes.end_subscription(key):
                call.noted_at_rate("subscription ended", subscriber=key.name)
        return pb.EndSubscriptionResponse()

    async def issue_kubeconfig(self, request: pb.IssueKubeconfigRequest, caller: Caller) -> pb.IssueKubeconfigResponse:
        try:
            async with self.access.authorize(
                caller, "IssueKubeconfig", cluster=requests.truncated_name(request.cluster)
            ) as call:
                parsed = requests.issue(request)
                with _credential_errors(call):
                    made = await self._issued(parsed, call)
        except CallError as error:
            self._kubeconfigs.refused(error.reason.lower())
            raise
        return pb.IssueKubeconfigResponse(kubeconfig=convert.kubeconfig(made))

    async def renew_ownership(self, request: pb.RenewOwnershipRequest, caller: Caller) -> pb.RenewOwnershipResponse:
        async with self.access.authorize(caller, "RenewOwnership") as call:
            name = request.subscriber and requests.subscriber(request.subscriber)
            # A subscriber without a stream is not told that a cluster moves.
            key, releases = SubscriberKey(call.identity, name), self._fleet.releases
            is_told = releases.may_renew(key, steady_now(), nothing_moves=self._fleet.awaits_lists)
            valid_s = self.shard.valid_s() if self.shard is not None and is_told else None
        return pb.RenewOwnershipResponse(
            sharded=self.shard is not None, valid_for=None if valid_s is None else convert.duration(valid_s)
        )

    async def get_server_info(self, request: pb.GetServerInfoRequest, caller: Caller) -> pb.GetServerInfoResponse:
        async with self.access.authorize(caller, "GetServerInfo") as call:
            scope, to = call.scope, call.recipient
        turn = partial(self._turns.wait, call.quota_keys)
        streams = sum(scope.is_everything or call.shares_quotas(stream.caller) for stream in self.streams)
        now = Moment(time.time(), self._clock())
        return await self._server_info.describe(scope, to, streams=streams, shard=self.shard, now=now, turn=turn)

    async def _stream(
        self, parsed: requests.WatchRequest, call: CallContext, send: Send, *, request_bytes: int
    ) -> None:
        stream = WatchStream(
            self._fleet,
            parsed,
            call,
            send,
            replace(self._stream_options, is_sharded=self.shard is not None),
            rotation=await self._rotation(parsed, call) if parsed.with_kubeconfigs else None,
            subscription=(
                releases.subscription(call.caller, parsed.subscriber, scoped(parsed.wanted, call.scope), request_bytes)
                if parsed.subscriber
                else None
            ),
        )
        self.streams.add(stream)
        self._fleet.log.shared_by(len(self.streams))
        try:
            await stream.run()
        finally:
            self.streams.discard(stream)
            self._fleet.log.shared_by(len(self.streams))

    async def _issued(self, parsed: requests.IssueRequest, call: CallContext) -> IssuedKubeconfig:
        terms = call.require_kubeconfigs().terms
        source = self._fleet.source_of(parsed.cluster)
        if source is not None and call.scope.covers_source(source.name) and not source.synced:
            raise self._not_synced(call)  # an incomplete list may be started again, with new incarnations
        if self._fleet[parsed.cluster] is None and self._may_lack(source, call):
            message = f"cluster {parsed.cluster!r} is not known; {FIRST_LIST_HELD}"
            raise UnavailableError("NOT_SYNCED", message, retry_after_s=RETRY_S)
        cluster = self._requested_cluster(parsed, call)
        call.charge_kubeconfig()
        lease = self._kubeconfigs.require_lease(cluster, parsed.ttl_s, terms, call.identity)
        is_without_secret = parsed.as_command and not lease.needs_credential_for_trust
        await (lease.wait_for_issuer() if is_without_secret else lease.wait_for_credential())
        # Check again, because the cluster and the rules may have changed during the wait. No `await` from here on.
        to, now = call.require_kubeconfigs(), self._requested_cluster(parsed, call)
        if (now, to.terms) != (cluster, terms):
            lease = self._kubeconfigs.require_lease(now, parsed.ttl_s, to.terms, call.identity)
        incarnation = wire_incarnation(self._info.epoch, now.incarnation)
        return lease.issue_exec(incarnation, to) if parsed.as_command else lease.issue(incarnation, to)

    def _may_lack(self, source: ClusterSource | None, call: CallContext) -> bool:
        """Return whether a stream waits for a second list of a source that the caller may see, because clusters may be
        missing from the first list."""
        return (
            source is not None and call.scope.covers_source(source.name) and self._fleet.waiting.is_any_for(source.name)
        )

    def _visible(self, name: str, call: CallContext) -> ClusterRecord | None:
        return visibility.visible_record(name, self._fleet[name], call.scope)

    def _requested_cluster(self, parsed: requests.IssueRequest, call: CallContext) -> Cluster:
        record = self._visible(parsed.cluster, call)
        cluster = None if record is None else record.cluster
        if cluster is None:
            raise NotFoundError("NOT_ENGAGED", f"cluster {parsed.cluster!r} is not engaged")
        incarnation = wire_incarnation(self._info.epoch, cluster.incarnation)
        if parsed.incarnation not in ("", incarnation):
            raise PreconditionError(
                "OTHER_INCARNATION",
                f"cluster {parsed.cluster!r} is engaged as incarnation {incarnation}, not {parsed.incarnation!r}",
            )
        return cluster

    def _credential_problem(self, record: ClusterRecord, call: CallContext) -> str | None:
        to = call.recipient
        problem = None if record.cluster is None or to is None else self._kubeconfigs.problem(record.cluster, to.terms)
        return problem if problem is None or call.scope.is_everything else CREDENTIALS_FAILING

    async def _rotation(self, parsed: requests.WatchRequest, call: CallContext) -> KubeconfigRotation:
        with _credential_errors(call, f"{_ISSUER_ADVICE}, or watch without include_kubeconfigs"):
            refusal = await self._kubeconfigs.refusal(call.require_kubeconfigs().terms)
            if refusal is not None:
                raise refusal
        return KubeconfigRotation(
            self._fleet,
            self._kubeconfigs,
            self._info.epoch,
            shown=scoped(parsed.wanted, call.scope),
            ttl_s=parsed.kubeconfig_ttl_s,
            call=call,
            schedule=DeliverySchedule(
                self._clock,
                time.time,
                self._draw,
                caller=call.quota_keys,
                budget=self._stream_options.deliveries,
                later=asyncio.get_running_loop().call_soon,
            ),
        )

    def _not_synced(self, call: CallContext) -> UnavailableError:
        statuses = source_statuses(self._fleet.sources, call.scope, Moment(time.time(), self._clock()))
        problem = f"no complete list of the source has been read yet ({statuses[0].message or statuses[0].reason})"
        if any(source.clusters.is_lost for source in self._fleet.sources):
            problem = NOT_OWNED
        return UnavailableError("NOT_SYNCED", f"{problem}; retry", retry_after_s=RETRY_S)


@contextmanager
def _credential_errors(call: CallContext, advice: str = _ISSUER_ADVICE) -> Iterator[None]:
    """Map credential errors to call errors. Limited scopes get no details, which may name other clusters."""
    is_limited = not call.scope.is_everything
    try:
        yield
    except UnfitError as error:
        problem = "no credential issuer can serve the request" if is_limited else str(error)
        raise PreconditionError("NO_CREDENTIAL_ISSUER", f"{problem}; {advice}") from error
    except CredentialUnavailableError as error:
        message = "no credential can be obtained at present; retry" if is_limited else str(error)
        raise UnavailableError(CREDENTIALS_FAILING, message, retry_after_s=error.retry_after_s) from error


_FIELD_OVERHEAD = 5
"""The maximum size, in bytes, of the tag and length prefix of one cluster in a page."""
