"""A soak test: a random fault every few seconds for a given time, each followed by a check of recovery."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

from tests.end_to_end.process.issued_credentials import credential_violations
from tests.end_to_end.process.recorder import Recorder
from tests.end_to_end.process.validators import alternating, breaches
from tests.end_to_end.soak.deployment import Daemon, Deployment
from tests.end_to_end.soak.disk import Disk
from tests.end_to_end.soak.faults import Faults, Kind
from tests.end_to_end.soak.project_writer import MARK, ProjectWriter
from tests.end_to_end.soak.report import Recovery, Report, Subscriber
from tests.end_to_end.soak.saved_state import Ports, SavedState
from tests.end_to_end.soak.servers import Server

CHANGES_PER_SECOND = 3.0
PATIENCE_S = 150.0
"""The limit for the recovery of every reading subscriber after a fault; exceeding it is a failure, and the soak
continues."""
_LOOK_EVERY_S = 0.02

_STALLED = "grpc_server_handled_total Aborted WatchClusters milo.discovery.v1.DiscoveryService server_stream"

Say = Callable[[str], None]


class Soak:
    def __init__(
        self, server: Server, directory: Path, seed: int, say: Say, ports: Ports | None = None, *, piece: int = 0
    ) -> None:
        """`ports` are those of the piece that this one continues, `piece` is the number of pieces before it."""
        self.ports = ports or Ports()
        self._server = server
        self._directory = directory
        self._seed = seed
        self._say = say
        self._random = Random(f"{seed}-{piece}") if piece else Random(seed)
        self._is_ending = False
        self._failures: list[str] = []
        self._recoveries: dict[str, list[Recovery]] = defaultdict(list)

    def end(self) -> None:
        """End the piece after the current fault, with a report as at its regular end."""
        self._is_ending = True

    async def run(self, minutes: float, saved: SavedState | None = None) -> Report:
        """Run the soak; `saved` stores the state for the next piece."""
        server, directory = self._server, self._directory
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(server.close)
            await server.start()
            self._writer = writer = ProjectWriter(server, Random(self._seed))
            if saved is not None:
                writer.upstream.continue_from(saved.upstream())
            continues = await writer.load_or_create()
            disk = await stack.enter_async_context(Disk(directory / "faulted.state"))
            faulted = await stack.enter_async_context(Daemon("faulted", directory, server, self.ports.faulted))
            steady = await stack.enter_async_context(Daemon("steady", directory, server, self.ports.steady))
            self.ports = Ports(faulted.proxy.port, steady.proxy.port)
            self._deployment = deployment = Deployment(faulted, steady)
            faults = Faults(server, deployment, disk, self._random)
            async with deployment.at_work():
                churning = asyncio.create_task(writer.churn(CHANGES_PER_SECOND), name="churn")
                await self._until_well()
                if continues:
                    self._failures += _not_restored((faulted, steady))
                while not self._is_ending and time.monotonic() < began + minutes * 60.0 and steady.process.is_running:
                    await self._strike(faults.next())
                    await asyncio.sleep(self._random.uniform(0.5, 3.0))
                churning.cancel()
                await asyncio.wait((churning,))
                await self._end(faulted, steady)
            if saved is not None:
                saved.save(directory, self.ports, writer.upstream.states)
        histories = [recorder.history for recorder in deployment.recorders]
        self._failures += breaches(histories, writer.upstream)
        self._failures += [f"client: {breach}" for breach in alternating(deployment.watched)]
        handed = deployment.handed
        self._failures += [f"credentials: {breach}" for breach in credential_violations(handed)]
        return Report(
            server=server.title,
            seed=self._seed,
            minutes=(time.monotonic() - began) / 60.0,
            faults=dict(faults.counts),
            groups={kind.name: kind.group for kind in faults.kinds()},
            recoveries=dict(self._recoveries),
            disk=disk.title,
            writes=writer.writes,
            writes_lost=writer.lost,
            subscribers=[Subscriber.of(history) for history in histories],
            client_events=len(deployment.watched),
            handed=len(handed),
            stalled=int(deployment.gauges.last.get(_STALLED, 0.0)),
            slopes=deployment.gauges.slopes(),
            samples=deployment.gauges.samples,
            failures=self._failures,
            restored=int(continues),
        )

    async def _strike(self, kind: Kind) -> None:
        before = time.monotonic()
        await kind.strike()
        healed = time.monotonic()
        if not await self._until_well():
            self._failures.append(f"not recovered {PATIENCE_S:g} s after: {kind.name}; {self._missing()}")
        recovery = Recovery(lasted_s=healed - before, took_s=time.monotonic() - healed)
        self._recoveries[kind.name].append(recovery)
        self._say(f"{kind.name}: {recovery.lasted_s:.1f} s, recovered after {recovery.took_s:.1f} s")

    async def _until_well(self) -> bool:
        """Change a label value, and wait until every reading subscriber has received it and has the right state."""
        async with self._writer.quiet():
            try:
                async with asyncio.timeout(PATIENCE_S):
                    mark = await self._writer.mark()
                    while not all(self._knows(recorder, mark) for recorder in self._deployment.prompt):  # noqa: ASYNC110
                        await asyncio.sleep(_LOOK_EVERY_S)
            except TimeoutError:
                return False
        return True

    def _knows(self, recorder: Recorder, mark: str) -> bool:
        marker = recorder.view.get(MARK)
        return marker is not None and ("mark", mark) in marker[1] and recorder.view == self._truth(recorder)

    def _truth(self, recorder: Recorder) -> dict[str, tuple[str, tuple[tuple[str, str], ...]]]:
        engaged = self._writer.upstream.engaged(recorder.history.label_selector)
        return {name: (state.uid, state.labels) for name, state in engaged.items()}

    def _missing(self) -> str:
        return "; ".join(
            f"{recorder.history.who} differs from the API server in: "
            + ", ".join(sorted({name for name, _ in recorder.view.items() ^ self._truth(recorder).items()}))
            for recorder in self._deployment.prompt
        )

    async def _end(self, faulted: Daemon, steady: Daemon) -> None:
        """Wait until all subscribers, slow and remote ones too, have the right state; then check the daemons."""
        if not await self._until_well():
            self._failures.append(f"not recovered at the end; {self._missing()}")
        try:
            async with asyncio.timeout(PATIENCE_S):
                for recorder in self._deployment.recorders:
                    while recorder.view != self._truth(recorder):  # noqa: ASYNC110 - polled
                        await asyncio.sleep(_LOOK_EVERY_S)
                while self._deployment.names != set(self._truth(self._deployment.fast[0])):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            self._failures.append("not all subscribers had the right state at the end")
        for daemon in (faulted, steady):
            if "Traceback" in daemon.process.output:
                self._failures.append(f"the {daemon.name} daemon raised: {daemon.process.tail(60)}")
            if not daemon.process.is_running:
                self._failures.append(f"the {daemon.name} daemon has exited: {daemon.process.tail()}")


def _not_restored(daemons: Iterable[Daemon]) -> Iterator[str]:
    """Yield the daemons that refused their state file, with the problem."""
    for daemon in daemons:
        if refused := daemon.process.events("state refused"):
            yield f"the {daemon.name} daemon refused its state file: {refused[-1]['problem']}"
