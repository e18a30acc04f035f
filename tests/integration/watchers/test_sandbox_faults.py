"""Behavior seen on real API servers, reproduced by the sandbox: the daemon's view and its events."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import pytest

from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.source import Discovery
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.view_status import ViewState
from milo_kube.upstream import load_kubeconfig
from milo_sandbox import Sandbox
from milo_sandbox.api import Features
from milo_sandbox.resources import PROJECTS
from milo_sandbox.watch import Pace
from tests.integration.watchers.test_driver import Ledger
from tests.support.eventually import eventually
from tests.support.sources import new_source

QUICK = Backoff(first_s=0.01, cap_s=0.1)
POLICY = ReflectorPolicy(backoff=QUICK, silence_s=1.2, liveness=LivenessPolicy(every_s=0.1, misses=4))


class Follower:
    """A fleet that follows a sandbox with two ready projects, alpha and beta."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.ledger = Ledger()
        self.source = new_source(
            self.ledger,
            pending_deletions=PendingDeletions(lambda: 0.0, backoff=QUICK),
            removals=RemovalLimits(verify_after_s=600.0),
        )

    @property
    def events(self) -> list[str]:
        return self.ledger.events

    async def run(self, kubeconfig: Path) -> None:
        projects = KeyedSource(ProjectKind().follow(SourceOptions(project_server="https://milo.test")))
        discovery = Discovery(
            self.source,
            None,
            epoch="run",
            policy=POLICY,
            jitter=lambda: 0.0,
            connect_timeout_s=5.0,
            request_timeout_s=5.0,
        )
        async with aclosing(Transport(load_kubeconfig(kubeconfig), environ={})) as transport:
            await discovery.run(lambda _: transport, projects.collections, projects.restored_place)

    async def is_streaming(self) -> None:
        await eventually(lambda: self.source.status.state is ViewState.STREAMING)

    async def shows_reason(self, reason: str) -> None:
        await eventually(lambda: self.source.status.reason == reason)

    async def engages(self, name: str) -> None:
        """Create a project; its engagement is the only event."""
        events = [*self.events, f"ENGAGED {name}"]
        self.sandbox.projects.create(name, ready=True)
        await eventually(lambda: len(self.events) >= len(events))
        assert self.events == events

    @contextmanager
    def without_events(self) -> Iterator[None]:
        """Check that no event is sent within the block."""
        before = list(self.events)
        yield
        assert self.events == before


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(features=Features(pace=Pace(bookmark_interval=0.6))) as made:
        for name in ("alpha", "beta"):
            made.projects.create(name, ready=True)
        yield made


@pytest.fixture
async def follower(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Follower]:
    following = Follower(sandbox)
    task = asyncio.create_task(following.run(sandbox.write_kubeconfig(tmp_path / "kubeconfig")))
    yield following
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def streaming(follower: Follower) -> Follower:
    await follower.is_streaming()
    assert sorted(follower.events) == ["ENGAGED alpha", "ENGAGED beta"]
    return follower


async def test_paged_list_engages_clusters_while_watch_cache_initializes(sandbox: Sandbox, follower: Follower) -> None:
    sandbox.faults.initializing(seconds=30.0)  # the follower's task has not sent a request yet
    await eventually(lambda: follower.source.synced)
    assert sorted(follower.events) == ["ENGAGED alpha", "ENGAGED beta"]
    await follower.shows_reason("TooManyRequests")
    assert follower.source.status.state is ViewState.STALE

    sandbox.faults.clear()

    await follower.is_streaming()
    await follower.engages("gamma")


async def test_starting_server_is_retried_before_its_retry_after_elapses(sandbox: Sandbox, follower: Follower) -> None:
    sandbox.faults.installing(seconds=0.3)
    async with asyncio.timeout(4.0):  # the server's Retry-After is five seconds
        await follower.is_streaming()
    assert sorted(follower.events) == ["ENGAGED alpha", "ENGAGED beta"]


async def test_watch_at_a_future_resource_version_ends_nothing_before_it_is_reached(
    sandbox: Sandbox, streaming: Follower
) -> None:
    backup = sandbox.snapshot()
    await streaming.engages("gamma")
    with streaming.without_events():
        sandbox.restore(backup)
        sandbox.drop_watches()
        await streaming.shows_reason("RemovalsHeld")
        assert streaming.ledger.relistings == ["Silence"]
        assert streaming.source.engagements.engaged == 3
    sandbox.projects.create("delta", ready=True)  # takes the server to that version: gamma's absence is proven now
    await eventually(lambda: len(streaming.events) == 5)
    assert streaming.events[3:] == ["ENGAGED delta", "DISENGAGED gamma DELETED"]


async def test_watch_of_terminating_server_survives_its_closed_listener(sandbox: Sandbox, streaming: Follower) -> None:
    ending = asyncio.create_task(sandbox.terminate(grace=1.0))
    # Wait for more failed liveness probes than are tolerated of a hung server.
    await eventually(lambda: streaming.ledger.reads.count("connect") > POLICY.liveness.misses)
    assert streaming.source.status.state is ViewState.STREAMING
    await streaming.engages("gamma")
    with streaming.without_events():
        await ending
        await streaming.shows_reason("ConnectFailed")
        await sandbox.start()
        await streaming.is_streaming()
    assert streaming.ledger.relistings == []


async def test_schema_change_leads_to_one_relist_without_events(sandbox: Sandbox, streaming: Follower) -> None:
    with streaming.without_events():
        sandbox.change_schema(initializing=0.5)
        await eventually(lambda: streaming.ledger.relistings == ["Expired"])
        await streaming.is_streaming()
    await streaming.engages("gamma")
    assert streaming.ledger.relistings == ["Expired"]


async def test_deleted_and_recreated_crd_disengages_nothing(sandbox: Sandbox, streaming: Follower) -> None:
    with streaming.without_events():
        sandbox.delete_definition(PROJECTS)
        await eventually(lambda: streaming.source.status.state is ViewState.STALE)
        sandbox.faults.clear()
        await streaming.is_streaming()
    await streaming.engages("gamma")


async def test_false_deletion_of_live_objects_is_refuted(sandbox: Sandbox, streaming: Follower) -> None:
    with streaming.without_events():
        sandbox.report_recreated("alpha", "beta")
        sandbox.compact()
        sandbox.drop_watches()
        await eventually(lambda: streaming.ledger.relistings == ["Expired"])
        await streaming.is_streaming()
        await eventually(lambda: not len(streaming.source.collections[0].pending_deletions))
    await streaming.engages("gamma")


@pytest.mark.parametrize("fault", ["overloaded", "failing", "unauthorized", "forbidden"])
async def test_error_responses_make_source_stale_and_disengage_nothing(
    sandbox: Sandbox, streaming: Follower, fault: str
) -> None:
    with streaming.without_events():
        getattr(sandbox.faults, fault)()
        sandbox.drop_watches()
        await eventually(lambda: streaming.source.status.state is ViewState.STALE)
        sandbox.faults.clear()
        await streaming.is_streaming()
    await streaming.engages("gamma")


async def test_server_whose_etcd_does_not_answer_is_stale_until_it_does(sandbox: Sandbox, streaming: Follower) -> None:
    with streaming.without_events():
        sandbox.freeze_etcd()
        await streaming.shows_reason("Unresponsive")
        assert streaming.source.status.state is ViewState.STALE
    sandbox.faults.clear()
    sandbox.silence_watches(silent=False)
    await streaming.is_streaming()
    await streaming.engages("gamma")
