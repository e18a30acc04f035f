"""A test harness on virtual time: three clusters, a daemon, a subscriber, and faults that the test chooses."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from milo_discoveryd.model.removal_limits import RemovalLimits
from tests.end_to_end.process.issued_credentials import IssuedCredential, credential_violations
from tests.end_to_end.process.validators import alternating, breaches
from tests.simulation.properties.api_server import ApiObject, Server
from tests.simulation.seeded.api import Api, Open
from tests.simulation.seeded.daemon import Daemon, Disk, Traits
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.simulation.seeded.subscriber import Subscriber
from tests.simulation.seeded.tokens import TokenApi
from tests.simulation.seeded.world import World
from tests.support.logs import capture_logs

TRAITS = Traits(
    streaming=True,
    page_size=500,
    grace_s=0.0,
    batch_bytes=1000,
    stale_slots=5,
    tombstones=10_000,
    has_memory=False,
    token_life_s=600.0,
)


class Harness:
    def __init__(self, loop: VirtualLoop, traits: Traits = TRAITS, *, with_kubeconfigs: bool = False) -> None:
        self._traits = traits
        self._random = random = Random(1)
        self.loop = loop
        self.notes: list[tuple[object, ...]] = []
        self.server = Server()
        self.world = World(self.server, random)
        for name in "abc":
            self.put(name)
        self.api = Api(self.server, random, self._note, lies=lambda: True)
        self.tokens = TokenApi(random, self.api.inject, traits.token_life_s, lambda: loop.wall)
        self.handed: list[IssuedCredential] = []
        self._disk = Disk(self._note) if traits.has_memory else None
        self.daemon = self._started(1)
        self.subscriber = Subscriber(
            "steady", "", lambda: self.daemon, random, self._note, lambda: None, with_kubeconfigs=with_kubeconfigs
        )
        self._reading = asyncio.create_task(self.subscriber.run(), name="steady")

    def _started(self, run: int) -> Daemon:
        return Daemon(
            self.api, self.tokens, f"{run:016x}", self._traits, self._disk, self._random, self._note, self.handed.append
        )

    async def restart_daemon(self) -> None:
        """Kill the daemon, and start another."""
        await self.daemon.kill()
        self.daemon = self._started(2)

    @property
    def watch(self) -> Open:
        """The open watch."""
        (opened,) = self.api.open
        return opened

    @property
    def received(self) -> list[str]:
        """Events of the subscriber, after its first snapshot."""
        return [f"{event.kind} {event.name}" for event in self.subscriber.history.events()][3:]

    def put(self, name: str, *, uid: str = "", ready: bool = True, content: int = 1) -> None:
        self.world.put(name, ApiObject(uid or f"uid-{name}", 0, ready, True, True, content))

    def change(self, name: str, **obj: Any) -> None:
        """Change an object, and report it on the watch."""
        self.put(name, **obj)
        self.api.ring()

    async def until(self, holds: Callable[[], object], within_s: float = 600.0) -> float:
        """Wait until a condition holds; return how long it took."""
        began = self.loop.time()
        while not holds():
            assert self.loop.time() < began + within_s, f"the condition did not become true within {within_s:g} s"
            await asyncio.sleep(0.1)
        return self.loop.time() - began

    async def settled(self, within_s: float = 600.0) -> float:
        """Wait until the subscriber has the server's state; return how long it took."""
        truth = self.world.upstream.engaged("")
        return await self.until(
            lambda: (
                self.daemon.is_quiet
                and self.api.has_sent_all
                and self.subscriber.has_read_all
                and self.subscriber.view == {name: (cluster.uid, cluster.labels) for name, cluster in truth.items()}
            ),
            within_s,
        )

    async def end(self) -> None:
        """Stop the daemon, and validate everything that was sent."""
        self.daemon.check()
        assert breaches([self.subscriber.history], self.world.upstream) == []
        assert [*self.subscriber.broken, *alternating(self.subscriber.given)] == []
        assert [*credential_violations(self.handed)] == []
        self._reading.cancel()
        await self.daemon.kill()

    def _note(self, *parts: object) -> None:
        self.notes.append(parts)


VERIFIED_S = RemovalLimits().verify_after_s + 5
"""The time until a second list has verified the first one; some faults end only with a list."""


def run_steps(
    steps: Callable[[Harness], Awaitable[None]],
    traits: Traits = TRAITS,
    *,
    with_kubeconfigs: bool = False,
    on: VirtualLoop | None = None,
) -> None:
    """Run steps in a settled harness, and validate the result."""
    loop = on or VirtualLoop(Random(1))

    async def main() -> None:
        harness = Harness(loop, traits, with_kubeconfigs=with_kubeconfigs)
        await harness.settled()
        await steps(harness)
        await harness.end()

    with capture_logs() as lines:
        run_on(loop, main())
    assert lines.errors == []
