"""The daemon between its transport and its gRPC calls, wired as in production."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

import msgspec

from milo_discovery import model as client_model
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issuers.issuer import RequestingDaemon
from milo_discoveryd.credentials.issuers.token_request import RequestedTokens, TokenRequestIssuer
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.engagement.subscriber import SubscriberKey
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourcePolicy
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.kubeconfigs import CredentialLimits, IssuerAssignment, Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import Issuance
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.log.change_log import FRAME_EVICTION_INTERVAL_S, ChangeLog, Retention
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.observation import Malformed, Refused
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.model.resource import WatchedCollection
from milo_discoveryd.objects.collection import REMOVALS_HELD
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.rights.quota import QuotaLimits
from milo_discoveryd.rights.rights import Recipient, Rights
from milo_discoveryd.server.calls.access import AccessControl
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.server.calls.grpc_errors import CallError
from milo_discoveryd.server.calls.revision import TokenSigner, wire_incarnation
from milo_discoveryd.server.calls.server_info import DaemonInfo, ShardMembership
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.sources.keyed import FollowedCollection
from milo_discoveryd.sources.reading import KubeObject
from milo_discoveryd.state_file.encoding import (
    StateFileError,
    StateOrigin,
    StoredFleet,
    decode,
)
from milo_discoveryd.state_file.state_file import WRITE_INTERVAL_S
from milo_discoveryd.wiring.source import Discovery
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reflect.wire import Decoder
from tests.end_to_end.process.issued_credentials import CAP_S, IssuedCredential, token_in
from tests.simulation.properties.api_server import observe, place_of
from tests.simulation.seeded.api import RESOURCE, Api
from tests.simulation.seeded.loop import WALL_AT_ZERO
from tests.simulation.seeded.tokens import TokenApi
from tests.support.stored_fleets import encode

ORIGIN = StateOrigin("https://api.test", "project")
PLENTY = QuotaLimits(streams=1000, streams_each=1000, per_minute_each=1000)
CALLER = Caller(listener="here")
HEARTBEAT_S = 30.0
STALLED_S = 60.0


class Traits(msgspec.Struct, frozen=True):
    """The settings of a run, and the capabilities of its API server."""

    streaming: bool
    page_size: int
    grace_s: float
    batch_bytes: int
    stale_slots: int
    """The number of superseded entries after which the change log is swept."""
    tombstones: int
    """The number of disengagements for which revisions are retained; a small number covers a minute at most."""
    has_memory: bool
    token_life_s: float
    """The longest lifetime of an issued token."""
    objects_limit: int = 1 << 30
    """The maximum total size of the stored objects."""

    @property
    def forgets(self) -> bool:
        return self.tombstones < 100

    @classmethod
    def drawn(cls, random: Random) -> "Traits":
        return cls(
            streaming=random.random() < 0.6,
            page_size=random.choice((1, 2, 500)),
            grace_s=random.choice((0.0, 0.0, 20.0)),
            batch_bytes=random.choice((200, 1000, 1 << 20)),
            stale_slots=random.choice((1, 5, 1000)),
            tombstones=random.choice((3, 10_000)),
            has_memory=random.random() < 0.5,
            token_life_s=random.choice((60.0, 300.0, 1000.0)),
        )


class Disk:
    """The state file, which outlives restarts; a write that a kill interrupts may be torn."""

    origin = ORIGIN

    def __init__(self, note: Callable[..., None]) -> None:
        self.data: bytes | None = None
        self.is_killed = False
        self._note = note

    async def loaded(self) -> StoredFleet | None:
        return self.load()

    def load(self) -> StoredFleet | None:
        if self.data is None:
            return None
        try:
            image = decode(self.data, ORIGIN)
        except StateFileError as error:
            self._note("the state file is refused:", error)
            return None
        self._note("restored:", *sorted(kept.target.name for kept in image.clusters))
        return image

    async def save_changes(self, fleet: Callable[[], StoredFleet], changed: Callable[[], Awaitable[None]]) -> None:
        def write() -> None:
            self.data = encode(msgspec.structs.replace(fleet(), current_at=_wall()))

        self.is_killed = False
        await changed()
        try:
            while True:
                write()
                await asyncio.sleep(WRITE_INTERVAL_S)
                await changed()
        finally:
            if not self.is_killed:
                write()


class Ledger:
    """A journal of the daemon, with the clusters that it engaged and disengaged."""

    def __init__(self, note: Callable[..., None], epoch: str = "") -> None:
        self.engaged: dict[str, tuple[str, str]] = {}
        """UID and incarnation, by name."""
        self.disengaged: set[str] = set()
        """The UIDs of disengaged clusters."""
        self._note = note
        self._epoch = epoch

    def changed(self, done: Event, *, is_live: bool) -> None:
        target = done.cluster.target
        if done.type is EventType.DISENGAGED:
            del self.engaged[target.name]
            self.disengaged.add(target.uid)
        else:
            self.engaged[target.name] = (target.uid, wire_incarnation(self._epoch, done.cluster.incarnation))
        self._note("daemon:", done.type.value, target.name, target.uid, done.reason.value if done.reason else "")

    def synced(self, engaged: int) -> None:
        self._note("daemon: synced, engaged clusters:", engaged)

    def relisting(self, reason: str) -> None:
        self._note("daemon: lists again,", reason)

    def event_ignored(self, problem: str) -> None:
        self._note("daemon: ignores an event,", problem)

    def object_reported(self, observation: Malformed | Refused) -> None:
        self._note("daemon: refuses", observation.name)

    def source_duplicated(self, other: str) -> None:
        self._note("daemon: source duplicates", other)

    def source_status_changed(self, status: ViewStatus) -> None:
        self._note("daemon: source", status.state.value, status.reason)

    def liveness_checked(self, result: str) -> None:
        pass

    def drained(self, cluster: Cluster, unreleased: Collection[SubscriberKey]) -> None:
        self._note("daemon: drained", cluster.target.name, *sorted(key.name for key in unreleased))

    def confirmed(self, result: str) -> None:
        pass

    def accepted(self, holds: bool) -> None:
        self._note("daemon: accepts the lists of the source" if holds else "daemon: has nothing to accept")

    def confirmations_refused(self, problem: str) -> None:
        self._note("daemon: confirmations are refused,", problem)

    def confirmations_accepted(self) -> None:
        self._note("daemon: confirmations are answered again")

    def noted(self, caller: Caller, rule: str, event: str, **about: object) -> None:
        self._note("daemon:", event)

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None:
        self._note("daemon: refused", reason)

    def issued(self, to: Recipient, what: str, **about: object) -> None:
        self._note("daemon:", what, about["cluster"], about["incarnation"])

    def kubeconfig_issued(self, result: str) -> None:
        pass

    def mint_ended(self, source: str, result: str, seconds: float) -> None:
        self._note("daemon: a mint ended:", result)

    def probed(self, result: str) -> None:
        pass

    def batch_sent(self, latency_s: float | None) -> None:
        pass

    def reset_sent(self) -> None:
        pass


class Daemon:
    """One run of the daemon, from its start to its termination."""

    def __init__(
        self,
        api: Api,
        tokens: TokenApi,
        epoch: str,
        traits: Traits,
        disk: Disk | None,
        random: Random,
        note: Callable[..., None],
        handed: Callable[[IssuedCredential], None],
        *,
        drain_s: float = 0.0,
        ended: Callable[[Cluster], None] = lambda _: None,
    ) -> None:
        """Start the daemon; `handed` is called in the step that issues a credential, `ended` in the step of a
        disengagement.
        """
        self.epoch = epoch
        self.has_ended = False
        self._disk = disk
        self._tokens = tokens
        self._handed = handed
        self.ledger = Ledger(note, epoch)
        retention = Retention(traits.tombstones, 60.0 if traits.forgets else 3600.0)
        self.fleet = Fleet(ChangeLog(encoder(epoch), retention, traits.batch_bytes, traits.stale_slots))
        made = ClusterSource(
            self.fleet.changes,
            self.ledger,
            SourcePolicy(
                pending_deletions=lambda: PendingDeletions(random.random),
                objects_limit=traits.objects_limit,
                not_ready=NotReadyClusters(traits.grace_s, RemovalLimits()),
                drain_timeout_s=drain_s,
                removals=RemovalLimits(),
            ),
        )
        self.source = self.fleet.add(made)
        (self.collection,) = self.source.collections
        self._calls: set[asyncio.Task[None]] = set()
        about = DaemonInfo(
            version="0",
            mode="project",
            epoch=epoch,
            started_at=WALL_AT_ZERO,
            heartbeat_s=HEARTBEAT_S,
            stalled_s=STALLED_S,
        )
        access = AccessControl(Rights(), PLENTY, self.ledger, asyncio.get_running_loop().time)
        kubeconfigs = self._kubeconfigs(tokens, random)
        self.fleet.changes.add_listener(EventType.DISENGAGED, lambda event: kubeconfigs.disengaged(event.cluster))
        self.fleet.changes.add_listener(EventType.DISENGAGED, lambda event: ended(event.cluster))
        self._service = Service(
            self.fleet,
            about,
            self.ledger,
            kubeconfigs,
            access=access,
            signer=TokenSigner(b"the same for all"),
            draw=random.random,
        )
        policy = ReflectorPolicy(streaming_lists=traits.streaming, page_size=traits.page_size)
        discovery = Discovery(
            self.source,
            disk,
            epoch=epoch,
            policy=policy,
            jitter=random.random,
            connect_timeout_s=10.0,
            request_timeout_s=30.0,
        )
        projects = FollowedCollection(WatchedCollection(RESOURCE), Decoder(KubeObject, observe, Malformed))
        self._discovering = asyncio.create_task(discovery.run(lambda _: api, [projects], place_of), name=epoch)
        self._keeping = asyncio.create_task(kubeconfigs.run(), name=f"credentials of {epoch}")
        self._letting_go = asyncio.create_task(self._evict_frames(), name=f"frames of {epoch}")

    def _kubeconfigs(self, tokens: TokenApi, random: Random) -> Kubeconfigs:
        source = TokenRequestIssuer(
            "tokens",
            tokens,
            origin="tokens.test",
            tokens=RequestedTokens(namespace="milo", service_account="operator"),
            daemon=RequestingDaemon(run="one disk"),
            clock=_wall,
        )
        return Kubeconfigs(
            [IssuerAssignment(source)],
            Issuance(
                trust=lambda *_: ClusterTrust(authorities=None),
                audit=self.ledger,
                metrics=self.ledger,
                draw=random.random,
                wall=_wall,
            ),
            CredentialLimits(CAP_S, 600.0, concurrency=3),
        )

    async def _evict_frames(self) -> None:
        while True:
            await asyncio.sleep(FRAME_EVICTION_INTERVAL_S)
            for _ in self.fleet.log.evict_frames():
                await asyncio.sleep(0)

    @property
    def holds_removals(self) -> bool:
        """Whether removals are held, for all subscribers or for those that wait for a second list."""
        return self.fleet.status.reason == REMOVALS_HELD or len(self.fleet.waiting) > 0

    @property
    def holds_for_good(self) -> bool:
        return self.holds_removals and bool(self.collection.pending_deletions.until_accepted)

    def call(
        self, request: pb.WatchClustersRequest, who: str, send: Callable[[bytes], Awaitable[None]]
    ) -> asyncio.Task[None]:
        """Serve WatchClusters as the gRPC server does: canceled when the caller disconnects."""

        async def noted(message: bytes) -> None:
            for event in pb.WatchClustersResponse.FromString(message).events:
                if event.HasField("kubeconfig"):
                    self._note_handed(who, event.kubeconfig, event.cluster.uid, event.cluster.incarnation)
            await send(message)

        sending = noted if request.include_kubeconfigs else send
        return self._running(self._service.watch_clusters(request, CALLER, sending))

    def ask(self, request: pb.IssueKubeconfigRequest, who: str) -> asyncio.Task[None]:
        """Serve IssueKubeconfig."""

        async def asking() -> None:
            answer = await self._service.issue_kubeconfig(request, CALLER)
            self._note_handed(who, answer.kubeconfig, "", request.incarnation)

        return self._running(asking())

    async def list_clusters(self, request: pb.ListClustersRequest) -> pb.ListClustersResponse:
        """Serve ListClusters."""
        return await self._service.list_clusters(request, CALLER)

    async def release(self, request: pb.ReleaseClusterRequest) -> None:
        """Serve ReleaseCluster."""
        await self._service.release_cluster(request, CALLER)

    def join(self, group: ShardMembership) -> None:
        """Share the clusters with the other members of a group."""
        self._service.shard = group

    async def renew(self, request: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        """Serve RenewOwnership."""
        return await self._service.renew_ownership(request, CALLER)

    async def issue_while_draining(self, cluster: client_model.Cluster, who: str) -> str | None:
        """Request a kubeconfig of a draining cluster; return what is wrong with the response, or None."""
        request = pb.IssueKubeconfigRequest(cluster=cluster.name, incarnation=cluster.incarnation)
        try:
            answer = await self._service.issue_kubeconfig(request, CALLER)
        except CallError as error:
            record = self.fleet[cluster.name]
            engaged = None if record is None else record.cluster
            drains = engaged is not None and wire_incarnation(self.epoch, engaged.incarnation) == cluster.incarnation
            is_wrong = drains and error.reason not in ("CREDENTIALS_UNAVAILABLE", "NOT_SYNCED")
            return f"no credential while it drains: {error.reason}" if is_wrong else None
        self._note_handed(who, answer.kubeconfig, cluster.uid, cluster.incarnation)
        return None

    def _running(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        call = asyncio.create_task(coroutine)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def _note_handed(self, who: str, what: pb.Kubeconfig, uid: str, incarnation: str) -> None:
        token = self._tokens.made[token_in(what.kubeconfig)]
        self._handed(
            IssuedCredential(
                at=self._tokens.wall(),
                who=who,
                cluster=what.cluster,
                uid=uid,
                incarnation=incarnation,
                engaged=self.ledger.engaged.get(what.cluster),
                token=token,
                was_revoked=token.is_revoked,
                ends_at=what.expires_at.ToNanoseconds() / 1e9,
            )
        )

    async def drain(self) -> None:
        """Shut down as on SIGTERM: pending events are sent first."""
        self._service.end_streams()
        if self._calls:
            await asyncio.wait([*self._calls], timeout=5.0)
        await self._end()

    async def kill(self) -> None:
        """Stop as on SIGKILL, as far as other processes can observe."""
        if self._disk is not None:
            self._disk.is_killed = True
        await self._end()

    async def _end(self) -> None:
        self.fleet.releases.clear()  # the killed run's timer would go on in this process
        tasks = [self._discovering, self._keeping, self._letting_go, *self._calls]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
        self.has_ended = True

    @property
    def is_quiet(self) -> bool:
        """Whether the daemon follows the source, with no confirmation, grace or release pending."""
        waits = self.source.due_at is not None or len(self.fleet.releases)
        is_following = self.fleet.status.state is ViewState.STREAMING
        return is_following and not len(self.collection.pending_deletions) and not waits

    @property
    def defers_rechecks(self) -> bool:
        """Whether a refuted deletion waits for proof that the API server is the same as before."""
        pending = self.collection.pending_deletions
        return pending.defers_rechecks and bool(pending.doubted)

    @property
    def has_older_reads(self) -> bool:
        """Whether the confirmation of a deletion waits for a replica that may lag behind."""
        names = (name for name, _ in self.fleet.items())
        return any(self.collection.pending_deletions.older_since(name) is not None for name in names)

    @property
    def has_settled(self) -> bool:
        """Whether the daemon follows the source, perhaps with held removals."""
        return self.fleet.status.state is ViewState.STREAMING or self.holds_removals

    def check(self) -> None:
        """Raise the error that ended the daemon, if any."""
        for task in (self._discovering, self._keeping):
            if task.done():
                task.result()


def _wall() -> float:
    return time.time()
