"""Storms: the daemon, the API server and the subscribers are killed at the same time and without a pause.

A soak test injects one fault at a time and waits until all subscribers have converged. In a storm the faults of the
daemon, the API server, the connections between them and the subscribers overlap, so that each process is killed
while the others are in any state. The faults stop only at the end; then all subscribers must converge.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from milo_discovery import DiscoveryClient, Event
from milo_discoveryd.credentials import jwt
from tests.end_to_end.process.daemon import DaemonEndedError
from tests.end_to_end.process.issued_credentials import IssuedCredential, Token, credential_violations, mark
from tests.end_to_end.process.validators import alternating, breaches
from tests.end_to_end.soak.deployment import Daemon
from tests.end_to_end.soak.killable_subscriber import KillableSubscriber
from tests.end_to_end.soak.project_writer import MARK, ProjectWriter
from tests.end_to_end.soak.report import Subscriber
from tests.end_to_end.soak.servers import SandboxServer
from tests.end_to_end.soak.storm_report import StormReport

CHANGES_PER_SECOND = 6.0
PATIENCE_S = 150.0
"""The limit for the convergence of all subscribers after the storm."""
_LOOK_EVERY_S = 0.02

DAEMON_KILLED: Final = "daemon killed"
SERVER_KILLED: Final = "API server killed"
SUBSCRIBER_KILLED: Final = "subscriber killed"
KILLS: Final = (DAEMON_KILLED, SERVER_KILLED, SUBSCRIBER_KILLED)

Strike = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    """The faults of one target; those of different targets overlap."""

    mean_pause_s: float
    faults: tuple[tuple[str, int, Strike], ...]
    """The name of each fault, its weight, and the function that injects it."""


class Storm:
    def __init__(self, directory: Path, seed: str, *, keeps_state: bool) -> None:
        """With `keeps_state`, the daemon has a state directory."""
        self._seed = seed
        self._random = Random(seed)
        self._server = server = SandboxServer(directory)
        self._writer = ProjectWriter(server, Random(seed))
        self._daemon = daemon = Daemon("daemon", directory, server, keeps_state=keeps_state)
        self._keeps_state = keeps_state
        address = f"unix://{daemon.socket}"
        self.subscribers = [
            KillableSubscriber("resuming", address),
            KillableSubscriber("resuming, prod only", address, "env=prod"),
            KillableSubscriber("resuming, with kubeconfigs", address, with_kubeconfigs=True),
            KillableSubscriber("from a snapshot", address, keeps_revision=False),
        ]
        self._steady = KillableSubscriber("never killed", address)
        self._watched: list[Event] = []
        """The events of a subscriber with the client library, which is never killed."""
        self._names: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._failures: list[str] = []

    @property
    def _all(self) -> list[KillableSubscriber]:
        return [*self.subscribers, self._steady]

    async def run(self, seconds: float) -> StormReport:
        """Run the storm, and return once all subscribers have converged or the limit is reached."""
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._server.close)
            await self._server.start()
            await self._writer.load_or_create()
            await stack.enter_async_context(self._daemon)
            await stack.enter_async_context(self._subscribed())
            if not await self._converge():
                self._failures.append(f"not converged before the storm: {self._differences()}")
            async with self._background(self._writer.churn(CHANGES_PER_SECOND)):
                await self._strike_all(seconds)
                abated = time.monotonic()
                if not await self._converge():
                    self._failures.append(f"not converged {PATIENCE_S:g} s after the storm: {self._differences()}")
                recovery_s = time.monotonic() - abated
            await self._terminated()
        self._judge()
        return StormReport(
            seed=self._seed,
            seconds=time.monotonic() - began,
            recovery_s=recovery_s,
            faults=dict(self._counts),
            kills=sum(self._counts[kill] for kill in KILLS),
            writes=self._writer.writes,
            subscribers=[Subscriber.of(subscriber.history) for subscriber in self._all],
            client_events=len(self._watched),
            credentials=len(self._credentials()),
            failures=self._failures,
        )

    def _judge(self) -> None:
        self._failures += breaches([subscriber.history for subscriber in self._all], self._writer.upstream)
        self._failures += [f"client: {breach}" for breach in alternating(self._watched)]
        self._failures += [f"credentials: {breach}" for breach in credential_violations(self._credentials())]
        if "Traceback" in self._daemon.process.output:
            self._failures.append(f"the daemon raised: {self._daemon.process.tail(60)}")

    def _credentials(self) -> list[IssuedCredential]:
        """Return the records of issued credentials; each has the token of the daemon's own user."""
        found = []
        for subscriber in self._all:
            for given in subscriber.given:
                claims = jwt.claims(given.token)
                assert claims is not None
                assert claims.exp is not None
                token = Token(given.token, mark(given.uid), claims.exp)
                found.append(given.issued_credential(subscriber.history.who, token))
        return found

    # --- the faults ---

    async def _strike_all(self, seconds: float) -> None:
        """Inject faults into all targets at the same time, and return when the last fault is over."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number, target in enumerate(self._targets()):
                group.create_task(self._strike(target, Random(f"{self._seed}-{number}"), until))

    def _targets(self) -> list[Target]:
        proxy = self._daemon.proxy
        return [
            Target(12.0, ((DAEMON_KILLED, 4, self._kill_daemon), ("daemon terminated", 1, self._terminate_daemon),
                          ("daemon stopped", 1, self._stop_daemon))),
            Target(12.0, ((SERVER_KILLED, 4, self._kill_server), ("API server compacted", 2, self._server.compact),
                          ("500 for everything", 1, lambda: self._answers("failing", code=500)),
                          ("429 for everything", 1, lambda: self._answers("overloaded")),
                          ("401 for everything", 1, lambda: self._answers("unauthorized")))),
            Target(15.0, (("API server connections reset", 1, proxy.cut),
                          ("API server refuses connections", 1, self._refuse))),
            Target(6.0, ((SUBSCRIBER_KILLED, 4, self._kill_subscriber),
                         ("subscriber stopped", 1, self._stop_subscriber))),
        ]  # fmt: skip

    async def _strike(self, target: Target, random: Random, until: float) -> None:
        weights = [weight for _, weight, _ in target.faults]
        while (pause := random.expovariate(1.0 / target.mean_pause_s)) < until - time.monotonic():
            await asyncio.sleep(pause)
            name, _, fault = random.choices(target.faults, weights)[0]
            self._counts[name] += 1
            try:
                await fault()
            except (DaemonEndedError, OSError, RuntimeError, TimeoutError) as error:
                # No more faults for this target. The storm continues, since its validators may report more failures.
                self._failures.append(f"{name}: {error!r}; {self._daemon.process.tail()}")
                return

    async def _some_time(self) -> None:
        await asyncio.sleep(self._random.uniform(0.0, 3.0))

    async def _kill_daemon(self) -> None:
        await self._daemon.process.kill()
        await self._some_time()
        await self._daemon.process.start()

    async def _terminate_daemon(self) -> None:
        await self._terminated()
        await self._daemon.process.start()

    async def _terminated(self) -> None:
        process = self._daemon.process
        if not process.is_running:
            self._failures.append(f"the daemon has exited: {process.tail()}")
        elif (status := await process.terminate()) != 0:
            self._failures.append(f"on SIGTERM the daemon exited with status {status}: {process.tail()}")

    async def _stop_daemon(self) -> None:
        self._daemon.process.signal(signal.SIGSTOP)
        await self._some_time()
        self._daemon.process.signal(signal.SIGCONT)

    async def _kill_server(self) -> None:
        await self._server.kill()
        await self._some_time()
        await self._server.start()

    async def _answers(self, fault: str, **given: object) -> None:
        await self._server.order(fault, **given)
        await self._server.order("drop_watches")
        await self._some_time()
        await self._server.order("clear")

    async def _refuse(self) -> None:
        async with self._daemon.proxy.refusing():
            await self._some_time()

    async def _kill_subscriber(self) -> None:
        subscriber = self._random.choice(self.subscribers)
        await subscriber.kill()
        await subscriber.start()

    async def _stop_subscriber(self) -> None:
        subscriber = self._random.choice(self.subscribers)
        subscriber.signal(signal.SIGSTOP)
        await self._some_time()
        subscriber.signal(signal.SIGCONT)

    # --- the subscribers ---

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for subscriber in self._all:
                await subscriber.start()
                stack.push_async_callback(subscriber.kill)
            await stack.enter_async_context(self._background(self._follow()))
            yield

    async def _follow(self) -> None:
        async with DiscoveryClient(f"unix://{self._daemon.socket}") as client:
            watch = client.watch()
            async for event in watch:
                self._watched.append(event)
                self._names = set(watch.clusters)

    @asynccontextmanager
    async def _background(self, work: Awaitable[None]) -> AsyncIterator[None]:
        task = asyncio.ensure_future(work)
        try:
            yield
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _converge(self) -> bool:
        """Change a label value, and wait until every subscriber has received it and has the right state."""
        async with self._writer.quiet():
            try:
                async with asyncio.timeout(PATIENCE_S):
                    mark = await self._writer.mark()
                    while not all(self._knows(subscriber, mark) for subscriber in self._all):  # noqa: ASYNC110 - polled
                        await asyncio.sleep(_LOOK_EVERY_S)
                    while self._names != set(self._truth("")):  # noqa: ASYNC110
                        await asyncio.sleep(_LOOK_EVERY_S)
            except TimeoutError:
                return False
        return True

    def _knows(self, subscriber: KillableSubscriber, mark: str) -> bool:
        marker = subscriber.view.get(MARK)
        is_marked = marker is not None and ("mark", mark) in marker[1]
        return is_marked and subscriber.view == self._truth(subscriber.history.label_selector)

    def _truth(self, label_selector: str) -> dict[str, tuple[str, tuple[tuple[str, str], ...]]]:
        engaged = self._writer.upstream.engaged(label_selector)
        return {name: (state.uid, state.labels) for name, state in engaged.items()}

    def _differences(self) -> str:
        return "; ".join(
            f"{subscriber.history.who}: "
            + ", ".join(
                sorted(
                    {
                        name
                        for name, _ in subscriber.view.items() ^ self._truth(subscriber.history.label_selector).items()
                    }
                )
            )
            for subscriber in self._all
        )
