"""Property test that a session's view equals the daemon's fleet after any batches, disconnects, restarts and resets."""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milo_discovery import Event, EventType, StreamBroken
from milo_discovery._session import Session
from milo_discovery.v1 import discovery_pb2 as pb

from .messages import cluster, disengaged, engaged, following, updated

NAMES = st.sampled_from("abcd")


class Daemon:
    """A model of the daemon: its fleet, its log of batches, and the streams that it serves."""

    def __init__(self) -> None:
        self.fleet: dict[str, pb.Cluster] = {}
        self.starts = 0
        self.uids = 0
        self.restart()

    def restart(self) -> None:
        """Start a new run, which cannot resume streams from earlier revisions."""
        self.starts += 1
        self.log: list[list[pb.ClusterEvent]] = []
        self.compacted = 0
        for name, old in self.fleet.items():
            self.fleet[name] = self.incarnation_of(old, suspended=old.suspended)

    def incarnation_of(self, of: pb.Cluster, *, suspended: bool) -> pb.Cluster:
        return cluster(of.name, uid=of.uid, incarnation=f"{self.starts}/{of.uid}", suspended=suspended)

    def revision(self, position: int) -> str:
        return f"{self.starts}:{position}"

    def commit(self, *events: pb.ClusterEvent) -> None:
        self.log.append(list(events))

    def engage(self, name: str) -> pb.ClusterEvent:
        self.uids += 1
        made = pb.Cluster(name=name, uid=f"uid-{self.uids}")
        self.fleet[name] = self.incarnation_of(made, suspended=False)
        return engaged(self.fleet[name])

    def stream(self, resume: str) -> deque[pb.WatchClustersResponse]:
        """Return the batches of a new stream."""
        now = len(self.log)
        resumable = {self.revision(position): position for position in range(self.compacted, now + 1)}
        if resume in resumable:
            position = resumable[resume]
            batches = [
                following(self.revision(at), self.revision(at + 1), *self.log[at]) for at in range(position, now)
            ]
            return deque(batches or [following(resume, resume)])
        parts = [engaged(each) for each in self.fleet.values()] or [None]
        batches, previous = [], ""
        for index, part in enumerate(parts, start=1):
            done = index == len(parts)
            revision = self.revision(now) if done else f"{self.revision(now)}/{index}"
            batch = following(previous, revision, *([part] if part else []), synced=done)
            batch.reset = index == 1
            batches.append(batch)
            previous = revision
        return deque(batches)


class Subscriptions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.daemon = Daemon()
        self.session = Session()
        self.in_flight: deque[pb.WatchClustersResponse] = deque()
        self.user_view: dict[str, str] = {}
        self.suspended: dict[str, bool] = {}

    @initialize()
    def connect(self) -> None:
        self.in_flight = self.daemon.stream(self.session.open())

    def live(self, *events: pb.ClusterEvent) -> None:
        at = len(self.daemon.log)
        self.daemon.commit(*events)
        self.in_flight.append(following(self.daemon.revision(at), self.daemon.revision(at + 1), *events))

    @rule(name=NAMES)
    def engage_or_replace(self, name: str) -> None:
        old = self.daemon.fleet.get(name)
        out = [] if old is None else [disengaged(old, pb.DISENGAGE_REASON_REPLACED)]
        self.live(*out, self.daemon.engage(name))

    @rule(name=NAMES)
    def disengage(self, name: str) -> None:
        if name in self.daemon.fleet:
            self.live(disengaged(self.daemon.fleet.pop(name)))

    @rule(name=NAMES)
    def update(self, name: str) -> None:
        if name in self.daemon.fleet:
            old = self.daemon.fleet[name]
            self.daemon.fleet[name] = self.daemon.incarnation_of(old, suspended=not old.suspended)
            self.live(updated(self.daemon.fleet[name]))

    @rule()
    def heartbeat(self) -> None:
        now = self.daemon.revision(len(self.daemon.log))
        self.in_flight.append(following(now, now))

    @rule()
    def break_connection(self) -> None:
        self.connect()

    @rule()
    def compact_log(self) -> None:
        self.daemon.compacted = len(self.daemon.log)

    @rule()
    def restart_daemon(self) -> None:
        self.daemon.restart()
        self.connect()

    @precondition(lambda self: len(self.in_flight) > 1)
    @rule()
    def lose_batch(self) -> None:
        lost = self.in_flight.popleft()
        try:
            for batch in tuple(self.in_flight):
                self.receive(batch)
        except StreamBroken:
            pass
        else:
            assert not lost.events, "a batch with events was lost, but the session did not raise StreamBroken"
        self.connect()

    @precondition(lambda self: self.in_flight)
    @rule()
    def receive_batch(self) -> None:
        self.receive(self.in_flight.popleft())

    @rule()
    def receive_all(self) -> None:
        while self.in_flight:
            self.receive(self.in_flight.popleft())
        assert self.user_view == {name: each.uid for name, each in self.daemon.fleet.items()}
        assert self.suspended == {name: each.suspended for name, each in self.daemon.fleet.items()}
        assert {name: known.cluster.incarnation for name, known in self.session.view.items()} == {
            name: each.incarnation for name, each in self.daemon.fleet.items()
        }

    def receive(self, batch: pb.WatchClustersResponse) -> None:
        for item in self.session.receive(batch):
            if isinstance(item, Event):
                self.update_user_view(item)

    def update_user_view(self, event: Event) -> None:
        """Apply an event to the user's view, and check the order ENGAGED, other events, DISENGAGED."""
        name = event.cluster.name
        if event.type is EventType.ENGAGED:
            assert name not in self.user_view, f"{name} was engaged twice"
            self.user_view[name] = event.cluster.uid
        else:
            assert self.user_view[name] == event.cluster.uid, f"{event.type.name} for {name}, whose UID is not engaged"
        self.suspended[name] = event.cluster.suspended
        if event.type is EventType.DISENGAGED:
            del self.user_view[name], self.suspended[name]

    @invariant()
    def check_user_view(self) -> None:
        assert {name: known.cluster.uid for name, known in self.session.view.items()} == self.user_view


TestSubscriptions = Subscriptions.TestCase
TestSubscriptions.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
