"""The look-ups of projects whose writes are reviewed."""

import asyncio

import pytest

from milo_controllers.webhooks import ProjectClusters, _ProjectLookUps
from milo_discovery.api_clients import ApiClients
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import Unavailable
from milo_discovery.model import Cluster
from milo_discovery.testing import FakeDiscovery

HOUR_S = 3600.0


class Clock:
    """The clock of the running event loop, which stands still until the test advances it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: self._now)

    def advance(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def cluster(uid: str) -> Cluster:
    return Cluster(name="alpha", uid=uid, endpoint="https://alpha.test")


class Daemon:
    """A daemon that knows one project, and a replica that may have engaged it."""

    def __init__(self) -> None:
        self.known: Cluster | None = None
        self.engaged: Cluster | None = None
        self.is_down = False
        self.hangs = False
        self.calls = 0

    async def find(self, _project: str) -> Cluster | None:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_down:
            raise Unavailable("down", code="UNAVAILABLE")
        return self.known

    def engaged_here(self, _project: str) -> EngagedCluster | None:
        return None if self.engaged is None else EngagedCluster(self.engaged, None, ApiClients(FakeDiscovery()))

    def look_ups(self) -> _ProjectLookUps:
        return _ProjectLookUps(ProjectClusters(known=self.find, engaged=self.engaged_here))


@pytest.mark.parametrize("known", [None, cluster("1")])
@pytest.mark.parametrize("engaged", [None, cluster("1"), cluster("2")])
async def test_answer_is_used_for_a_second(clock: Clock, known: Cluster | None, engaged: Cluster | None) -> None:
    daemon = Daemon()
    daemon.known, daemon.engaged = known, engaged
    look_ups = daemon.look_ups()
    for calls, advance_s in ((1, 0.9), (1, 0.1), (2, 0.0)):
        assert await look_ups.cluster("alpha") == daemon.known
        assert daemon.calls == calls
        clock.advance(advance_s)


async def test_project_is_looked_up_again_after_none_was_engaged() -> None:
    daemon = Daemon()
    look_ups = daemon.look_ups()
    assert await look_ups.cluster("alpha") is None
    daemon.known = daemon.engaged = cluster("1")
    assert await look_ups.cluster("alpha") == daemon.known


async def test_project_that_was_not_engaged_cannot_be_looked_up_while_the_daemon_is_down(clock: Clock) -> None:
    daemon = Daemon()
    daemon.known = cluster("1")
    look_ups = daemon.look_ups()
    await look_ups.cluster("alpha")
    clock.advance(HOUR_S)
    daemon.known = None
    assert await look_ups.cluster("alpha") is None
    daemon.is_down = True
    assert await look_ups.cluster("alpha") is None
    clock.advance(1)
    with pytest.raises(Unavailable):
        await look_ups.cluster("alpha")


async def test_answer_about_a_former_incarnation_is_not_used() -> None:
    daemon = Daemon()
    daemon.known = daemon.engaged = cluster("1")
    look_ups = daemon.look_ups()
    await look_ups.cluster("alpha")
    daemon.known = daemon.engaged = cluster("2")
    assert await look_ups.cluster("alpha") == daemon.known


@pytest.mark.parametrize("engaged", [None, cluster("2")])
async def test_last_known_cluster_is_used_while_the_daemon_is_down(clock: Clock, engaged: Cluster | None) -> None:
    daemon = Daemon()
    daemon.known = cluster("1")
    look_ups = daemon.look_ups()
    await look_ups.cluster("alpha")
    clock.advance(HOUR_S)
    daemon.is_down, daemon.engaged = True, engaged
    for _ in range(2):
        assert await look_ups.cluster("alpha") == (engaged or daemon.known)
    assert daemon.calls == 2


async def test_project_is_looked_up_once_at_a_time_and_kept_from_when_the_answer_arrives(clock: Clock) -> None:
    daemon = Daemon()
    answer = asyncio.Event()

    async def find(project: str) -> Cluster | None:
        found = await daemon.find(project)
        await answer.wait()
        return found

    look_ups = _ProjectLookUps(ProjectClusters(known=find, engaged=daemon.engaged_here))
    reviews = [asyncio.create_task(look_ups.cluster("alpha")) for _ in range(3)]
    await asyncio.sleep(0)
    clock.advance(HOUR_S)
    answer.set()
    assert await asyncio.gather(*reviews) == [None] * 3
    assert daemon.calls == 1


async def test_look_up_of_a_review_that_is_given_up_delays_no_other() -> None:
    daemon = Daemon()
    look_ups = daemon.look_ups()
    daemon.hangs = True
    first = asyncio.create_task(look_ups.cluster("alpha"))
    second = asyncio.create_task(look_ups.cluster("alpha"))
    await asyncio.sleep(0)
    daemon.hangs = False
    daemon.known = daemon.engaged = cluster("1")
    first.cancel()
    assert await second == daemon.known


async def test_answer_from_before_the_project_was_engaged_is_not_kept() -> None:
    daemon = Daemon()

    async def find(project: str) -> Cluster | None:
        found = await daemon.find(project)
        daemon.known = daemon.engaged = cluster("1")
        return found

    look_ups = _ProjectLookUps(ProjectClusters(known=find, engaged=daemon.engaged_here))
    assert await look_ups.cluster("alpha") is None
    assert await look_ups.cluster("alpha") == daemon.known


async def test_daemon_that_hangs_delays_one_review_in_a_second(clock: Clock) -> None:
    daemon = Daemon()
    daemon.engaged, daemon.hangs = cluster("1"), True
    look_ups = daemon.look_ups()
    first = asyncio.create_task(look_ups.cluster("alpha"))
    await asyncio.sleep(0)
    clock.advance(1)
    assert await first == daemon.engaged
    clock.advance(0.9)
    assert await look_ups.cluster("alpha") == daemon.engaged
    assert daemon.calls == 1
    daemon.hangs, daemon.known = False, cluster("2")
    clock.advance(0.1)
    assert await look_ups.cluster("alpha") == daemon.known


async def test_cluster_that_is_disengaged_during_the_look_up_is_not_used(clock: Clock) -> None:
    daemon = Daemon()
    daemon.engaged, daemon.hangs = cluster("1"), True
    look_ups = daemon.look_ups()
    first = asyncio.create_task(look_ups.cluster("alpha"))
    await asyncio.sleep(0)
    daemon.engaged = None
    clock.advance(1)
    with pytest.raises(TimeoutError):
        await first
