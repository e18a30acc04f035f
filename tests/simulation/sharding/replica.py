"""A pod of a simulation with real fleets: a daemon with its source and its membership, and its operator."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from random import Random
from typing import Protocol

from milo_discovery.model import Cluster as ClientCluster
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.engagement.subscriber import SubscriberKey
from milo_discoveryd.fleet.changes import STEP_S
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.rights.caller_selector import caller_key
from milo_discoveryd.server.calls.revision import wire_incarnation
from milo_discoveryd.sharding.assignment import FleetAssignment
from milo_discoveryd.sharding.group import ShardGroup
from milo_discoveryd.sharding.lease_client import ConflictError
from milo_discoveryd.sharding.leases import GroupState, Read, Request, View
from milo_discoveryd.sharding.member import Member
from milo_kube.reflect.view_status import ViewState
from tests.simulation.properties.api_server import Server
from tests.simulation.seeded.api import Api
from tests.simulation.seeded.daemon import CALLER, Daemon, Disk, Traits
from tests.simulation.seeded.loop import VirtualLoop
from tests.simulation.seeded.subscriber import Send
from tests.simulation.seeded.tokens import TokenApi
from tests.simulation.sharding.lease_api import ConflictError as ApiConflictError
from tests.simulation.sharding.lease_api import LeaseApi
from tests.simulation.sharding.operator import WHO, Operator, RunsElsewhereError

RELEASE_TIMEOUT_S = 21.0
REQUEST_TIMEOUT_S = 4.0
OPERATOR = SubscriberKey(caller_key(CALLER), WHO)
LEAVE_S = 20.0
OTHERS_S = 0.05
"""How long other work delays a step of the event loop."""


class Lab(Protocol):
    """What the pods of a simulation share, and what observes them."""

    random: Random
    traits: Traits
    server: Server
    lease_api: LeaseApi
    tokens: TokenApi
    loss_s: float
    """How long it takes to disengage one cluster whose ownership was lost."""

    def note(self, *parts: object) -> None: ...

    def breach(self, text: str) -> None: ...

    def changed(self, replica: "Replica", event: Event) -> None:
        """Check a change in the step in which a daemon makes it."""

    def read(self) -> None:
        """Check what the operators know, after one of them has read a batch."""


class FaultyLeases:
    """A pod's connection to the Lease API."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.down_until = 0.0
        self.error_share = 0.0
        self.late_s = 0.1
        """The longest delay of a request, and of its response."""

    async def read(self) -> GroupState:
        return (await self._applied(Read()))[0]

    async def write(self, request: Request) -> str:
        return (await self._applied(request))[1]

    async def _applied(self, request: Request) -> tuple[GroupState, str]:
        random, clock = self._lab.random, asyncio.get_running_loop().time
        ends_at = clock() + REQUEST_TIMEOUT_S
        await asyncio.sleep(random.uniform(0.001, self.late_s))
        if clock() < self.down_until or random.random() < self.error_share / 2:
            raise BackendError("no Lease API")
        try:
            applied = self._lab.lease_api.apply(request, clock())
        except ApiConflictError:
            raise ConflictError from None
        finally:
            await asyncio.sleep(random.uniform(0.001, self.late_s))
        if clock() > ends_at or random.random() < self.error_share / 2:
            raise BackendError("the response is lost")
        return applied


class LeaseRequests:
    def lease_request(self, action: str, result: str) -> None:
        pass


class SlowLoss(FleetAssignment):
    """Disengages clusters that were lost one by one, while others use the processor."""

    def __init__(self, fleet: Fleet, loss_s: float) -> None:
        super().__init__(fleet, RELEASE_TIMEOUT_S)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._work, self._loss_s = loop.work, loss_s
        for source in fleet.sources if loss_s else ():
            source.engagements.lose = partial(self._lose, source.engagements.lose)  # type: ignore[method-assign]

    def _lose(self, lose: Callable[..., list[Event]], *arguments: object) -> list[Event]:
        self._work(STEP_S)
        return lose(*arguments)

    def lose_ownership(self, reason: str) -> Iterator[None]:
        return self._slow(super().lose_ownership(reason))

    def _slow(self, steps: Iterator[None]) -> Iterator[None]:
        for _ in steps:
            yield
            for _ in range(int(self._loss_s / OTHERS_S)):
                self._work(OTHERS_S)
                yield


class Replica:
    def __init__(self, lab: Lab, name: str, number: int, disk: Disk | None = None) -> None:
        """`disk` has the state file of an earlier pod of the name."""
        self.name = name
        self._lab = lab
        self._number = number
        self._runs = 0
        self.is_ending = False
        self.is_dead = False
        self.has_had_share = False
        self.seen_view: View | None = None
        self.api = Api(lab.server, lab.random, self._note, lies=lambda: True)
        self.leases = FaultyLeases(lab)
        self.disk = disk or (Disk(self._note) if lab.traits.has_memory else None)
        self.daemon: Daemon | None = None
        self.operator = Operator(lambda: self if self.daemon else None, lab.random, self._note, lab.read)
        self.start()
        self._operating = asyncio.create_task(self.operator.run(), name=f"operator of {name}")

    # --- the operator ---

    @property
    def view(self) -> Collection[str]:
        """The clusters in which the operator works."""
        return () if self.is_dead else self.operator.works_in

    @property
    def is_told(self) -> bool:
        """Whether the streams of the operator tell it of each end."""
        subscriber = None if self.daemon is None else self.daemon.fleet.releases._subscribers.get(OPERATOR)
        return subscriber is not None and bool(subscriber.streams) and subscriber.is_told

    async def renew(self, request: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        assert self.daemon is not None
        return await self.daemon.renew(request)

    def call(self, request: pb.WatchClustersRequest, who: str, send: Send) -> asyncio.Task[None]:
        assert self.daemon is not None
        return self.daemon.call(request, who, send)

    def ask(self, request: pb.IssueKubeconfigRequest, who: str) -> asyncio.Task[None]:
        raise AssertionError("the operator requests no kubeconfigs")

    async def release(self, request: pb.ReleaseClusterRequest) -> None:
        assert self.daemon is not None
        daemon = self.daemon
        if self.operator.runs(request.cluster):
            raise RunsElsewhereError
        await daemon.release(request)
        record = daemon.fleet[request.cluster]
        cluster = None if record is None else record.cluster
        if cluster is not None and wire_incarnation(daemon.epoch, cluster.incarnation) == request.incarnation:
            self._lab.breach(f"{request.cluster} is still engaged after {self.name} released it")

    async def issue_while_draining(self, cluster: ClientCluster, who: str) -> str | None:
        return None

    # --- the daemon ---

    def start(self) -> None:
        lab = self._lab
        self._runs += 1
        self.started_at = asyncio.get_running_loop().time()
        self._note("starts, run", self._runs)
        self.daemon = daemon = Daemon(
            self.api,
            lab.tokens,
            f"{self._number:08x}{self._runs:08x}",
            lab.traits,
            self.disk,
            lab.random,
            self._note,
            lambda _: None,
        )
        changed = daemon.ledger.changed

        def record(event: Event, *, is_live: bool) -> None:
            assert not daemon.has_ended, f"the killed daemon of {self.name} goes on"
            changed(event, is_live=is_live)
            self.operator.late.discard(event.cluster.target.name)
            if event.type is EventType.DISENGAGED and self.is_told and self.operator.reads_late:
                self.operator.late.add(event.cluster.target.name)
            lab.changed(self, event)

        daemon.ledger.changed = record  # type: ignore[method-assign]
        member = Member(self.name, f"{self.name}#{self._number}.{self._runs}", instance=f"pod-{self._number}")
        assignment = SlowLoss(daemon.fleet, lab.loss_s)
        loop = asyncio.get_running_loop()
        self.group = ShardGroup("ops", member, self.leases, assignment, metrics=LeaseRequests(), clock=loop.time)
        group = self.group
        daemon.join(group)
        daemon.fleet.changes.add_listener(EventType.DISENGAGED, lambda _: group.wake())
        self._membership = asyncio.create_task(group.run(), name=f"membership of {self.name}")

    @property
    def is_member(self) -> bool:
        """Whether the present view contains this replica, and it is not about to leave it."""
        ownership = None if self.daemon is None else self.group.member.ownership(asyncio.get_running_loop().time())
        return ownership is not None and ownership.is_in_view and not self.is_ending

    @property
    def is_stale(self) -> bool:
        return self.daemon is None or self.daemon.fleet.status.state is not ViewState.STREAMING

    @property
    def is_listed(self) -> bool:
        return self.daemon is not None and self.daemon.collection.is_listed

    @property
    def followed_version(self) -> int:
        """The version up to which the daemon follows the server; 0 before the first list."""
        return int(self.daemon.collection.trust.version or 0) if self.daemon is not None and self.is_listed else 0

    @property
    def is_ignoring(self) -> bool:
        return self.daemon is not None and self.daemon.collection.trust.is_ignoring

    def is_streaming_for(self, seconds: float) -> bool:
        now = asyncio.get_running_loop().time()
        return self.daemon is not None and not self.is_stale and self.daemon.fleet.status.since <= now - seconds

    def engages(self, name: str) -> bool:
        """Return whether a cluster is engaged, and its ownership was not lost."""
        record = None if self.daemon is None else self.daemon.fleet[name]
        return record is not None and record.engaged and not self.is_losing

    @property
    def is_losing(self) -> bool:
        return self.daemon is not None and any(source.clusters.is_lost for source in self.daemon.fleet.sources)

    async def crash(self) -> None:
        """Kill the daemon; the operator goes on."""
        daemon, self.daemon = self.daemon, None
        if daemon is not None:
            self._note("crashes")
            await _ended(self._membership)
            daemon.source.await_assignment("killed")  # or the killed run's timers would go on in this process
            await daemon.kill()

    async def kill(self) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        self._note("is killed")
        await _ended(self._operating)
        self.operator.stop()
        await self.crash()

    async def stop(self, *, keeps_term: bool) -> None:
        """End as a pod with the component does: the daemon hands over or stops first, then the operator ends."""
        if self.daemon is None or self.is_ending:
            return
        self.is_ending = True
        self._note("stops for its successor" if keeps_term else "hands over")
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self.group.leave(keeps_term=keeps_term)
        await self.kill()

    def _note(self, *parts: object) -> None:
        self._lab.note(self.name, *parts)


async def _ended(task: asyncio.Task[None]) -> None:
    if task is not asyncio.current_task():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
