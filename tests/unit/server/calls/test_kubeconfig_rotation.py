"""Kubeconfigs of one stream, by hand: to whom they go while rights change. Time is what the test says."""

from random import Random
from typing import Any

import pytest

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.credentials.credential import Credential
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.secret import Secret
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.issued_kubeconfig import IssuedKubeconfig
from milo_discoveryd.kubeconfigs.minter import LeaseKey
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.reflect.pending_deletions import PendingDeletions
from milo_discoveryd.registry.cursor import Cursor
from milo_discoveryd.registry.filter import EVERYTHING
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.rights import Recipient, Terms
from milo_discoveryd.rights.scope import ClusterScope, scoped
from milo_discoveryd.server.calls.frames import decode_frame, encoder
from milo_discoveryd.server.calls.kubeconfig_rotation import KubeconfigRotation
from tests.unit.registry.fleets import ready

EPOCH = "0123456789abcdef"
LIFE_S = 600.0


class Lease:
    """A lease that always holds a new credential."""

    def __init__(self, world: "World", cluster: Cluster) -> None:
        self.key = LeaseKey("source", cluster.incarnation, LIFE_S)
        self._world = world
        self._name = cluster.target.name

    def credential(self) -> IssuedCredential:
        world = self._world
        world.asked.append(self._name)
        world.minted += 1
        token = Credential(token=Secret(f"{self._name}-{world.minted}"))
        return IssuedCredential(credential=token, issued_at=world.now, expires_at=world.now + LIFE_S)

    def issue(self, incarnation: str, to: Recipient) -> IssuedKubeconfig:
        now = self._world.now
        return IssuedKubeconfig(self._name, b"text", now, now + LIFE_S, now + LIFE_S / 2, self.credential())


class World:
    """In the place of all that a rotation stands between."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ahead = 0.0
        """The wall clock."""
        self.wait_s = 0.0
        self.recipient: Recipient | None = Recipient(Caller(listener="api"), "shop")
        self.taken = 0
        self.minted = 0
        self.asked: list[str] = []
        self.fleet = Fleet(ChangeLog(encoder(EPOCH), Retention()), PendingDeletions(lambda: 0.0), None)  # type: ignore[arg-type]
        self.fleet.registry.commit([ready("alpha"), ready("beta")], Moment(0.0, 0.0))

    # A visit

    def take_kubeconfig(self) -> float:
        self.taken += not self.wait_s
        return self.wait_s

    # An issuer, whose credentials are for a cluster each and are always at hand

    def find(self, cluster: Cluster, ttl_s: float | None, terms: Terms) -> "Lease":
        return Lease(self, cluster)

    def rotation(self) -> KubeconfigRotation:
        made: Any = KubeconfigRotation(
            self.fleet,
            self,  # type: ignore[arg-type]
            EPOCH,
            shown=EVERYTHING,
            ttl_s=None,
            call=self,  # type: ignore[arg-type]
            clock=lambda: self.now,
            wall=lambda: self.now + self.ahead,
            draw=Random(1).random,
        )
        assert isinstance(made, KubeconfigRotation)
        return made

    def snapshot(self) -> list[bytes]:
        batch = Cursor(self.fleet.log, EVERYTHING, None).take()
        assert batch is not None
        return [*batch.frames]


@pytest.fixture
def world() -> World:
    return World()


def given(frames: tuple[bytes, ...]) -> list[str]:
    """The clusters that have a kubeconfig with them."""
    events = [decode_frame(frame) for frame in frames]
    return [event.cluster.name for event in events if event.HasField("kubeconfig")]


def test_each_is_given_one_and_the_next_in_time(world: World) -> None:
    rotation = world.rotation()
    assert given(rotation.attach_kubeconfigs(world.snapshot())) == ["alpha", "beta"]
    assert rotation.take() == ()
    world.now += LIFE_S / 2
    assert sorted(given(rotation.take())) == ["alpha", "beta"]


def test_after_a_sleep_that_the_steady_clock_missed_all_come_at_once(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.ahead = 2 * LIFE_S
    assert sorted(given(rotation.take())) == ["alpha", "beta"]
    assert rotation.take() == ()


def test_what_may_not_be_seen_any_more_is_not_asked_for_any_more(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    rotation.turn(scoped(EVERYTHING, ClusterScope(names=name_patterns(["beta"]))))
    world.asked.clear()
    world.now += LIFE_S / 2
    assert given(rotation.take()) == ["beta"]
    assert set(world.asked) == {"beta"}


def test_whoever_may_have_none_any_more_is_given_none(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.recipient = None
    rotation.turn(EVERYTHING)
    world.asked.clear()
    world.now += LIFE_S / 2
    assert given(rotation.take()) == given(rotation.attach_kubeconfigs(world.snapshot())) == world.asked == []


def test_on_other_terms_all_come_anew_and_on_the_same_none_does(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.recipient = Recipient(Caller(listener="api"), "another name of the rule")
    rotation.turn(EVERYTHING)
    assert rotation.take() == ()
    world.recipient = Recipient(Caller(listener="api"), "shop", Terms(sources=frozenset({"source"})))
    rotation.turn(EVERYTHING)
    assert sorted(given(rotation.take())) == ["alpha", "beta"]


def test_nothing_is_asked_for_that_is_not_counted_before(world: World) -> None:
    rotation = world.rotation()
    world.wait_s = 7.0
    assert given(rotation.attach_kubeconfigs(world.snapshot())) == []
    assert (world.asked, world.taken) == ([], 0)
    assert rotation.due_in_s == 7.0
    world.now += 7.0
    world.wait_s = 0.0
    assert sorted(given(rotation.take())) == ["alpha", "beta"]
    assert world.taken == 2


def test_while_there_is_none_left_nobody_is_looked_at(world: World) -> None:
    rotation = world.rotation()
    world.wait_s = 7.0
    rotation.attach_kubeconfigs(world.snapshot())
    looked = 0

    def counted() -> float:
        nonlocal looked
        looked += 1
        return world.wait_s

    world.take_kubeconfig = counted  # type: ignore[method-assign]
    world.now += 7.0
    assert rotation.take() == ()
    assert looked == 1, "the first tells of all"
    assert rotation.due_in_s == 7.0


def test_the_kind_of_event_is_that_of_a_renewal(world: World) -> None:
    rotation = world.rotation()
    rotation.attach_kubeconfigs(world.snapshot())
    world.now += LIFE_S / 2
    kinds = {decode_frame(frame).type for frame in rotation.take()}
    assert kinds == {pb.ClusterEvent.TYPE_KUBECONFIG}
