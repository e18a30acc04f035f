"""A soak of a deployment shape: the processes of a cell of the matrix, and a random fault every few seconds.

After each fault clusters are created and deleted, and every consumer must have exactly the existing clusters, without a
false event before. The validator of the matrix verifies that, independently of the daemon's code.
"""

import asyncio
import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from milo_sandbox import Sandbox
from milo_sandbox.resources import CONFIG_MAPS
from tests.end_to_end.matrix.cell import Cell, Program, World, key
from tests.end_to_end.soak.gauges import EVERY_S, Gauges, Sample, own_mib
from tests.end_to_end.soak.operator_process import ANSWER, QUESTION
from tests.end_to_end.soak.report import row_of_recovery
from tests.support.eventually import eventually

SHAPES: Final = {
    "publisher": Cell("two", "state", 1, "publisher", "running"),
    "group": Cell("one", "state", 3, "subscriber", "running"),
}
"""The cell of each shape: two sources with a publisher and a Python operator, or a group of three daemons."""

PATIENCE_S = 150.0
_MOST, _FEWEST = 20, 8
_EMPTY_S = (0.5, 5.0)
"""How long lists are empty: less than the time after which a second list confirms the first."""
_KILLS: Final = "processes"
_OPERATOR: Final = Path(__file__).with_name("operator_process.py")

Strike = Callable[[], Awaitable[None]]


@dataclass
class ShapeReport:
    shape: str
    seed: int
    minutes: float = 0.0
    changes: int = 0
    told: int = 0
    """Engagements and disengagements that consumers received."""
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, Gauges] = field(default_factory=dict)
    """Samples of each process from the second half of the run, the first half of which is not evaluated: see
    `Gauges.warm`.
    """
    failures: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        faults = sum(map(len, self.recoveries.values()))
        lines = [
            f"{self.minutes:.0f} minutes in the shape `{self.shape}`, seed {self.seed}: {faults} faults of "
            f"{len(self.recoveries)} kinds, {self.changes} clusters created or deleted, {self.told} changes "
            "received by consumers.",
            f"**Validator failures and recoveries over the limit: {len(self.failures)}.**",
            *(f"- {failure}" for failure in self.failures[:50]),
            "",
            "| fault | count | recovery: median | p99 | longest |",
            "|---|---:|---:|---:|---:|",
            *(row_of_recovery(name, took) for name, took in sorted(self.recoveries.items())),
            "",
            "| anonymous memory in the last quarter, MiB | start | end | maximum | per hour |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, gauges in self.memory.items():
            slope = gauges.of("memory_mib")
            lines.append(f"| {name} | {slope.first:.1f} | {slope.last:.1f} | {slope.most:.1f} | {slope.an_hour:+.2f} |")
        return "\n".join([*lines, ""])


class ShapeSoak:
    def __init__(self, shape: str, directory: Path, seed: int, say: Callable[[str], None]) -> None:
        self._directory, self._say = directory, say
        self._cell, self._random = SHAPES[shape], Random(seed)
        self._report = ShapeReport(shape, seed)
        self._clusters: list[tuple[str, str]] = []
        """Source and name of each existing cluster."""
        self._is_ending = False
        self._operator: Program | None = None
        self._asked = ""

    def end(self) -> None:
        """Stop after the current fault."""
        self._is_ending = True

    async def run(self, minutes: float) -> ShapeReport:
        began = time.monotonic()
        async with World.running(self._cell, self._directory) as self._world, AsyncExitStack() as stack:
            self._clusters = [(source, f"p-{number}") for source in self._world.upstreams for number in range(6)]
            if self._world.publishers:
                environ = {"MILO_DISCOVERY_ADDRESS": self._world.address(0), "MILO_OPERATOR_LISTEN": "off"}
                self._operator = Program(str(_OPERATOR), environ=environ)
                await stack.enter_async_context(self._operator)
            half = began + minutes * 30.0
            sampling = asyncio.create_task(self._sample(half), name="memory")
            remaining: list[tuple[str, str, Strike]] = []
            await self._recover("")
            while not self._is_ending and time.monotonic() < began + minutes * 60.0:
                if not remaining:
                    # No process is killed in the second half, in which the growth of their memory is measured.
                    remaining = [fault for fault in self._faults() if fault[1] != _KILLS or time.monotonic() < half]
                    self._random.shuffle(remaining)
                name, _, strike = remaining.pop()
                await strike()
                await self._recover(name)
                await asyncio.sleep(self._random.uniform(0.5, 3.0))
            sampling.cancel()
            self._report.failures += [
                f"the daemon raised: {daemon.tail(60)}"
                for daemon in self._world.daemons
                if "Traceback" in daemon.output
            ]
            self._report.told = self._world.validator.told
        self._report.minutes = (time.monotonic() - began) / 60.0
        return self._report

    async def _recover(self, fault: str) -> None:
        """Create and delete clusters, and wait until every consumer has converged and the operator has answered."""
        began, validator = time.monotonic(), self._world.validator
        self._change()
        try:
            await self._world.settled(within_s=PATIENCE_S)
            await eventually(self._is_answered, within_s=PATIENCE_S)
        except TimeoutError:
            seen = {name: sorted(validator.truth ^ view) for name, view in validator.views.items()}
            self._report.failures.append(f"not recovered {PATIENCE_S:g} s after: {fault}; differences: {seen}")
        except AssertionError as error:
            self._report.failures.append(f"{fault}: {error}")
            validator.breaches.clear()
        took = time.monotonic() - began
        if fault:
            self._report.recoveries[fault].append(took)
            self._say(f"{fault}: recovered after {took:.1f} s")

    # --- changes ---

    def _change(self) -> None:
        sources = list(self._world.upstreams)
        self._create(self._random.choice(sources))
        while len(self._clusters) > _MOST:
            self._delete()
        if len(self._clusters) > _FEWEST:
            self._delete()
        self._ask()

    def _create(self, source: str) -> str:
        self._report.changes += 1
        name = f"c-{self._report.changes}"
        self._world.create(name, [source])
        self._clusters.append((source, name))
        return name

    def _delete(self) -> None:
        self._report.changes += 1
        source, name = self._clusters.pop(self._random.randrange(len(self._clusters)))
        self._world.delete(name, [source])

    def _ask(self) -> None:
        if self._operator is None:
            return
        self._asked = str(self._report.changes)
        document = {"metadata": {"name": QUESTION}, "data": {"text": self._asked}}
        for source, name in self._clusters:
            store = self._sandbox(source).control_plane(name)
            if store.find(CONFIG_MAPS, f"default/{QUESTION}") is None:
                store.create(CONFIG_MAPS, document, namespace="default")
            else:
                store.modify(
                    CONFIG_MAPS, QUESTION, lambda live: {**live, "data": document["data"]}, namespace="default"
                )

    def _is_answered(self) -> bool:
        return self._operator is None or all(self._answer(*cluster) == self._asked for cluster in self._clusters)

    def _answer(self, source: str, name: str) -> str:
        store = self._sandbox(source).control_plane(name)
        if store.find(CONFIG_MAPS, f"default/{ANSWER}") is None:
            return ""
        return str(store.read(CONFIG_MAPS, ANSWER, "default")["data"]["text"])

    # --- faults ---

    def _faults(self) -> list[tuple[str, str, Strike]]:
        faults: list[tuple[str, str, Strike]] = [
            ("one source: watches dropped", "", self._drop),
            ("one source: 429", "", lambda: self._answers("overloaded")),
            ("one source: 500", "", lambda: self._answers("failing")),
            ("one source: 401", "", lambda: self._answers("unauthorized")),
            ("one source: 403", "", lambda: self._answers("forbidden")),
            ("one source: API server restarted", "", lambda: self._restart_server(self._source())),
            ("one source: etcd hangs", "", self._freeze),
            ("one source: lists are empty", "", self._empty),
            ("hub: 500", "", self._fail_hub),
            ("hub: API server restarted", "", lambda: self._restart_server(self._world.hub)),
            ("a daemon stopped for a while", "", self._pause),
            ("a daemon killed", _KILLS, lambda: self._kill(1)),
            ("a daemon terminated", _KILLS, self._terminate),
            ("a daemon killed, then lists are empty", _KILLS, self._restart_with_empty_list),
        ]
        if len(self._world.daemons) > 1:
            faults.append(("two daemons killed", _KILLS, lambda: self._kill(2)))
        if self._operator is not None:
            faults.append(("publisher killed", _KILLS, lambda: _restart(self._world.publishers[0])))
            faults.append(("operator killed", _KILLS, lambda: _restart(self._operator)))
        return faults

    def _sandbox(self, source: str) -> Sandbox:
        return self._world.upstreams[source].sandbox

    def _source(self) -> Sandbox:
        return self._sandbox(self._random.choice(list(self._world.upstreams)))

    async def _some_time(self, least: float = 0.5, most: float = 6.0) -> None:
        """Wait for the duration of a fault, and create and delete clusters during it."""
        lasts = self._random.uniform(least, most)
        await asyncio.sleep(lasts / 2)
        self._change()
        await asyncio.sleep(lasts / 2)

    async def _drop(self) -> None:
        self._source().drop_watches()

    async def _answers(self, fault: str) -> None:
        async with self._others_unharmed() as source:
            sandbox = self._sandbox(source)
            getattr(sandbox.faults, fault)()
            sandbox.drop_watches()
        sandbox.faults.clear()

    @asynccontextmanager
    async def _others_unharmed(self) -> AsyncIterator[str]:
        """Choose a source for a fault; during the fault, consumers must receive new clusters of the other sources."""
        sources = list(self._world.upstreams)
        source = self._random.choice(sources)
        yield source
        for other in sources:
            if other != source:
                await self._until_engaged(key(other, self._create(other)), source)
        await self._some_time()

    async def _until_engaged(self, cluster: str, failing: str) -> None:
        views = self._world.validator.views
        try:
            await eventually(lambda: all(cluster in view for view in views.values()), within_s=PATIENCE_S)
        except TimeoutError:
            self._report.failures.append(f"{cluster} was not engaged while {failing} failed")

    async def _restart_server(self, sandbox: Sandbox) -> None:
        await sandbox.stop()
        await self._some_time()
        await sandbox.start()

    async def _freeze(self) -> None:
        sandbox = self._source()
        sandbox.freeze_etcd()
        await self._some_time()
        sandbox.faults.clear()
        sandbox.silence_watches(silent=False)

    async def _empty(self) -> None:
        sandbox = self._source()
        sandbox.faults.empty_lists()
        sandbox.compact()
        sandbox.drop_watches()
        await self._some_time(*_EMPTY_S)
        sandbox.faults.empty_lists(on=False)
        sandbox.compact()
        sandbox.drop_watches()

    async def _fail_hub(self) -> None:
        self._world.hub.faults.failing()
        await self._some_time()
        self._world.hub.faults.clear()

    async def _pause(self) -> None:
        daemon = self._random.choice(self._world.daemons)
        daemon.signal(signal.SIGSTOP)
        await self._some_time(0.5, 25.0)
        daemon.signal(signal.SIGCONT)

    async def _kill(self, count: int) -> None:
        killed = self._random.sample(self._world.daemons, count)
        for daemon in killed:
            await daemon.kill()
        await self._some_time()
        for daemon in killed:
            await daemon.start()

    async def _terminate(self) -> None:
        daemon = self._random.choice(self._world.daemons)
        if (status := await daemon.terminate()) != 0:
            self._report.failures.append(f"on SIGTERM a daemon exited with status {status}, want 0: {daemon.tail()}")
        await self._some_time()
        await daemon.start()

    async def _restart_with_empty_list(self) -> None:
        daemon, sandbox = self._random.choice(self._world.daemons), self._source()
        await daemon.kill()
        sandbox.faults.empty_lists()
        await daemon.start()
        await asyncio.sleep(self._random.uniform(*_EMPTY_S))
        sandbox.faults.empty_lists(on=False)

    # --- memory ---

    @property
    def _processes(self) -> dict[str, int]:
        daemons = {f"daemon {number}": daemon.pid for number, daemon in enumerate(self._world.daemons)}
        if self._operator is None:
            return daemons
        return daemons | {"publisher": self._world.publishers[0].pid, "operator": self._operator.pid}

    async def _sample(self, half: float) -> None:
        """Sample the memory of all processes in the second half, until canceled."""
        await asyncio.sleep(half - time.monotonic())
        while True:
            for name, pid in self._processes.items():
                gauges = self._report.memory.setdefault(name, Gauges())
                with contextlib.suppress(FileNotFoundError):
                    mib = own_mib(Path(f"/proc/{pid}/status").read_text())
                    gauges.samples.append(Sample(time.monotonic(), mib, 0.0, 0, 0))
            await asyncio.sleep(EVERY_S)


async def _restart(program: Program | None) -> None:
    assert program is not None
    await program.kill()
    await program.start()
