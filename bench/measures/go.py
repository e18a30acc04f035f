"""Operators in Go on multicluster-runtime: with the provider for the daemon, and with Milo's own provider.

Each is a process that works in all projects of one API server (`bench/operator`). The module of Milo's own provider is
not published: a program that makes the same calls in the same order replaces it.
"""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median

import yaml

from bench import peers, projects
from bench.access import PROJECTS, call
from bench.daemon import Daemon
from bench.measures.rotation import SOURCE, Renewed
from bench.milo import Milo
from bench.process import Process
from bench.setting import Samples, Setting
from bench.subscribers import synced

_WITHIN_S = 1800.0
_STREAMS_PER_CONNECTION = 250
"""The default limit of HTTP/2 servers in Go."""
KEYS = (
    *(f"go.{informers}_informers.{key}" for informers in (0, 1, 5) for key in ("seconds", "peer_seconds", "ratio")),
    "go.latency_50ms.seconds",
    "go.extra_sockets",
    "go.hanging.ratio",
    "go.restart.engage_calls",
    "go.restart.requests",
    "go.rotation.watches_reopened",
    "go.churn.goroutines",
    "go.large.seconds_ratio",
    "go.large.kib_ratio",
)
_WAYS = ("", "shared_mapper_", "plain_")
"""Key prefixes of the operator with the provider for the daemon, and of the operators that make the calls of Milo's
provider: with one REST mapper for all projects, and with one per project."""
_READERS = {"objects": (), "shared_informers": ("--shared-informers",)}
"""Options of the program that reads two kinds of all projects, with package objects and with client-go's informers."""
_READ_OBJECTS = 20
"""Of each kind in each project."""
MEMORY_KEYS = (
    *(
        f"go_memory.{kinds}_kinds.{key}"
        for kinds in ("stable", "all")
        for key in (
            "served",
            *(
                f"{informers}_informers.{key}"
                for informers in (1, 3, 10)
                for key in (
                    *(f"{way}kib" for way in _WAYS),
                    "ratio",
                    "plain_ratio",
                    *(f"{way}goroutines" for way in _WAYS),
                )
            ),
        )
    ),
    *(f"go_memory.two_kinds.{reader}_{unit}" for reader in _READERS for unit in ("kib", "goroutines")),
    "go_memory.two_kinds.ratio",
)


async def memory(setting: Setting) -> Samples:
    """Measure the memory of operators per project, on servers with few and with many kinds."""
    binary = peers.operator() if setting.scale.with_go else None
    if binary is None:
        return {key: [] for key in MEMORY_KEYS}
    bench = _Bench(setting, binary)
    found: Samples = {key: [] for key in MEMORY_KEYS}
    for _ in range(setting.scale.rounds):
        for kinds in ("stable", "all"):
            for informers in (1, 3, 10):
                measured = await bench.memory(kinds, informers)
                found[f"go_memory.{kinds}_kinds.served"].append(measured.pop("served"))
                for name, value in measured.items():
                    found[f"go_memory.{kinds}_kinds.{informers}_informers.{name}"].append(value)
        for name, value in (await bench.readers()).items():
            found[f"go_memory.two_kinds.{name}"].append(value)
    return found


async def measure(setting: Setting) -> Samples:
    binary = peers.operator() if setting.scale.with_go else None
    if binary is None:
        return {key: [] for key in KEYS}
    bench = _Bench(setting, binary)
    found: dict[str, float] = {}
    few, many, large = setting.scale.operators
    for informers in (0, 1, 5):
        found |= await bench.beside(many, informers)
    async with bench.place(many, latency_ms=50) as place, place.ours(5) as operator:
        found["go.latency_50ms.seconds"] = await operator.working()
    found |= await bench.hanging(many, setting.scale.rounds)
    found |= await bench.troubled(few)
    found |= await bench.rotated(few)
    found |= await bench.large(few, many, large, setting.scale.rounds)
    return {key: [found[key]] for key in KEYS}


def place(setting: Setting, binary: Path, count: int, *, objects: int) -> AbstractAsyncContextManager["_ProjectServer"]:
    """Run an API server in Go with projects, each with `objects` of each kind."""
    return _Bench(setting, binary).place(count, objects=objects)


class _Operator(Process):
    def __init__(self, command: list[str], log: Path) -> None:
        self._began = time.perf_counter()
        self._answers = 0
        super().__init__(command, log)

    async def working(self) -> float:
        """Return the seconds from the start of the process until it works in every cluster."""
        await self.wait_for_lines(1, within_s=_WITHIN_S, beginning="WORKING")
        return time.perf_counter() - self._began

    async def status(self) -> dict[str, int]:
        self._answers += 1
        self.tell("status")
        lines = await self.wait_for_lines(self._answers, beginning="STATUS")
        answer: dict[str, int] = json.loads(lines[self._answers - 1].removeprefix("STATUS"))
        return answer

    async def settled_kib(self) -> float:
        """Return the resident memory in KiB after unused memory was released."""
        return (await self.settled())[0]

    async def settled(self) -> tuple[float, float]:
        """Return the memory in KiB after unused memory was released, and the number of goroutines."""
        goroutines = (await self.status())["goroutines"]
        return self.rss_mib * 1024, goroutines


class _ProjectServer:
    """An API server with projects, and a Milo API that lists them."""

    def __init__(self, binary: Path, directory: Path, milo: Milo, server: _Operator, url: str, count: int) -> None:
        self._binary, self._directory, self._count, self._url = binary, directory, count, url
        self.milo, self.server = milo, server
        self._operators = 0
        self.address = f"unix://{directory / 'daemon.sock'}"
        self._ca = directory / "projects.ca"
        self._config = directory / "daemon.yaml"
        kubeconfig = directory / "projects.kubeconfig"
        cluster = {"server": url, "certificate-authority": str(self._ca)}
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": "bench"}}],
                }
            )
        )
        self._settings = f"project_kubeconfig: {kubeconfig}\n"

    def daemon(self, kubeconfigs: str = "") -> Daemon:
        self._config.write_text(self._settings + kubeconfigs)
        return Daemon(self.milo.access.kubeconfig, self._directory, config=self._config)

    @asynccontextmanager
    async def ours(self, informers: int, *, missing: int = 0, kubeconfigs: str = "") -> AsyncIterator[_Operator]:
        """Run the operator with a daemon that starts at the same time; the operator does not wait for `missing`
        projects.
        """
        daemon = self.daemon(kubeconfigs)
        try:
            arguments = ["--kubeconfigs"] if kubeconfigs else []
            arguments += [f"--address={daemon.address}", f"--clusters={self._count - missing}"]
            async with self.operator(informers, *arguments) as operator:
                await daemon.listens()  # raises if the daemon has exited
                yield operator
        finally:
            await daemon.end()

    def peer(self, informers: int, *arguments: str) -> "_Running":
        discovery = f"--discovery-kubeconfig={self.milo.access.kubeconfig}"
        return self.operator(informers, discovery, f"--clusters={self._count}", *arguments)

    def operator(self, informers: int, *arguments: str) -> "_Running":
        return self._running("work", f"--url={self._url}", f"--informers={informers}", *arguments)

    def reader(self, *arguments: str) -> "_Running":
        """Run the program that reads two kinds of all projects."""
        return self._running("follow", f"--address={self.address}", f"--clusters={self._count}", *arguments)

    def reader_over_nats(self, binary: Path, url: str) -> "_Running":
        """Run the program that reads the two kinds of all projects from NATS."""
        return self._started([str(binary), f"--nats={url}", f"--clusters={self._count}"])

    def _running(self, *arguments: str) -> "_Running":
        return self._started([str(self._binary), *arguments, f"--ca={self._ca}"])

    def _started(self, command: list[str]) -> "_Running":
        self._operators += 1
        return _Running(_Operator(command, self._directory / f"operator-{self._operators}.log"))


class _Running:
    def __init__(self, operator: _Operator) -> None:
        self._operator = operator

    async def __aenter__(self) -> _Operator:
        return self._operator

    async def __aexit__(self, *_: object) -> None:
        await self._operator.end()


class _Bench:
    def __init__(self, setting: Setting, binary: Path) -> None:
        self._setting, self._binary = setting, binary

    @asynccontextmanager
    async def place(
        self, count: int, *, latency_ms: int = 0, hanging: int = 0, objects: int = 1, kinds: str = "all"
    ) -> AsyncIterator[_ProjectServer]:
        directory = self._setting.directory
        command = [str(self._binary), "serve", f"--projects={count}", f"--ca={directory / 'projects.ca'}"]
        command += [f"--latency={latency_ms}ms", f"--hanging={hanging}", f"--objects={objects}"]
        command += ["--stable-kinds"] if kinds == "stable" else []
        async with (
            self._setting.milo(count) as milo,
            _Running(_Operator(command, directory / "projects.log")) as server,
        ):
            (line,) = await server.wait_for_lines(1, beginning="URL")
            yield _ProjectServer(self._binary, directory, milo, server, line.split()[1], count)

    async def beside(self, many: int, informers: int) -> dict[str, float]:
        """Measure the time until each operator has reconciled all projects of one server."""
        found: dict[str, float] = {}
        key = f"go.{informers}_informers"
        async with self.place(many) as place:
            async with place.ours(informers) as operator:
                found[f"{key}.seconds"] = await operator.working()
                if informers == 1:
                    state = await place.server.status()
                    shared = state["watches"] / _STREAMS_PER_CONNECTION
                    found["go.extra_sockets"] = state["connections"] - shared
            async with place.peer(informers) as operator:
                found[f"{key}.peer_seconds"] = await operator.working()
        found[f"{key}.ratio"] = found[f"{key}.seconds"] / found[f"{key}.peer_seconds"]
        return found

    async def memory(self, kinds: str, informers: int) -> dict[str, float]:
        """Measure memory and goroutines per project, by the difference between two numbers of projects."""
        few, many = self._setting.scale.operators_memory
        settled: dict[tuple[str, int], tuple[float, float]] = {}
        for count in (few, many):
            async with (
                self.place(count, kinds=kinds) as place,
                place.ours(informers) as ours,
                place.peer(informers, "--shared-mapper") as shared_mapper,
                place.peer(informers) as plain,
            ):
                for way, operator in zip(_WAYS, (ours, shared_mapper, plain), strict=True):
                    await operator.working()
                    settled[way, count] = await operator.settled()
                found = {"served": float((await place.server.status())["kinds"])}
        for way in _WAYS:
            grown = [b - a for a, b in zip(settled[way, few], settled[way, many], strict=True)]
            found[f"{way}kib"], found[f"{way}goroutines"] = (growth / (many - few) for growth in grown)
        found["ratio"] = found["kib"] / found["shared_mapper_kib"]
        found["plain_ratio"] = found["kib"] / found["plain_kib"]
        return found

    async def readers(self) -> dict[str, float]:
        """Measure memory and goroutines per project of the programs that read two kinds of all projects."""
        few, many = self._setting.scale.objects
        settled: dict[tuple[str, int], tuple[float, float]] = {}
        for count in (few, many):
            async with self.place(count, objects=_READ_OBJECTS) as place:
                daemon = place.daemon()
                try:
                    await daemon.listens()
                    for name, arguments in _READERS.items():
                        async with place.reader(*arguments) as reader:
                            await reader.working()
                            settled[name, count] = await reader.settled()
                finally:
                    await daemon.end()
        found: dict[str, float] = {}
        for name in _READERS:
            grown = [b - a for a, b in zip(settled[name, few], settled[name, many], strict=True)]
            found[f"{name}_kib"], found[f"{name}_goroutines"] = (growth / (many - few) for growth in grown)
        return found | {"ratio": found["objects_kib"] / found["shared_informers_kib"]}

    async def hanging(self, count: int, rounds: int) -> dict[str, float]:
        """Measure the start with one unresponsive project in a hundred, beside a run in which all projects respond."""
        hanging = max(1, count // 100)
        ratios = []
        for _ in range(rounds):  # alternating, so that other load affects both
            async with self.place(count) as place, place.ours(1) as operator:
                without_s = await operator.working()
            async with self.place(count, hanging=hanging) as place, place.ours(1, missing=hanging) as operator:
                ratios.append(await operator.working() / without_s)
        return {"go.hanging.ratio": median(ratios)}

    async def troubled(self, count: int) -> dict[str, float]:
        """Measure a restart of a killed daemon, and then repeated disengagements and engagements of one project."""
        async with self.place(count) as place:
            daemon = place.daemon()
            arguments = [f"--address={daemon.address}", f"--clusters={count}"]
            async with place.operator(1, *arguments) as operator:
                await operator.working()
                before, requests = await operator.status(), (await place.server.status())["requests"]
                daemon.signal(signal.SIGKILL)
                await daemon.end()
                daemon = place.daemon()
                try:
                    await _until(operator, "snapshots", 2)
                    after, now = await operator.status(), (await place.server.status())["requests"]
                    churned = await _churned(place.milo, operator, count, self._setting.scale.operator_rounds)
                finally:
                    await daemon.end()
        return {
            "go.restart.engage_calls": after["engage_calls"] - before["engage_calls"],
            "go.restart.requests": now - requests,
            "go.churn.goroutines": churned,
        }

    async def rotated(self, count: int) -> dict[str, float]:
        """Measure the replacement of each cluster's credential while its watch is open."""
        minted = self._setting.directory / "operator-minted"
        minted.write_text("")
        source = SOURCE.format(python=sys.executable, minted=minted, life_s=self._setting.scale.token_life_s)
        async with self.place(count) as place, place.ours(1, kubeconfigs=source) as operator:
            await operator.working()
            before = (await place.server.status())["watches_opened"]
            async with synced(place.address, 1, with_kubeconfigs=True) as (subscriber,):
                renewed = Renewed()
                subscriber.on_batch = renewed.note
                async with asyncio.timeout(_WITHIN_S):
                    while len(renewed.names) < count:
                        await subscriber.read()
            # The operator's client applies batches in order, so that this request follows the renewal.
            await operator.status()
            return {"go.rotation.watches_reopened": (await place.server.status())["watches_opened"] - before}

    async def large(self, few: int, many: int, large: int, rounds: int) -> dict[str, float]:
        """Measure time and memory with many more projects, as ratios to a proportional growth."""
        seconds, kib = [], []
        for _ in range(rounds):
            found: dict[int, tuple[float, float]] = {}
            for count in (few, many, large):
                async with self.place(count) as place, place.ours(1) as operator:
                    found[count] = await operator.working(), await operator.settled_kib()
            seconds.append(found[large][0] / (found[many][0] * large / many))
            per_project = (found[many][1] - found[few][1]) / (many - few)
            kib.append((found[large][1] - found[few][1]) / (large - few) / per_project)
        return {"go.large.seconds_ratio": median(seconds), "go.large.kib_ratio": median(kib)}


async def _churned(milo: Milo, operator: _Operator, count: int, rounds: int) -> float:
    """Return the number of remaining goroutines, except those that multicluster-runtime leaves for each source."""
    before = await operator.status()
    path = f"{PROJECTS}/{projects.name(0)}/status"
    async with milo.access.session() as session:
        for _ in range(rounds):
            for ready, live in ("False", count - 1), ("True", count):
                condition = {
                    "type": "Ready",
                    "status": ready,
                    "reason": "Bench",
                    "message": "bench",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
                await call(session, "PATCH", path, {"status": {"conditions": [condition]}}, patch=True)
                await _until(operator, "live", live)
    left = [0.0]
    for _ in range(50):
        after = await operator.status()
        of_others = after["mcr_goroutines"] - before["mcr_goroutines"]
        left.append(after["goroutines"] - before["goroutines"] - of_others)
        if left[-1] <= 0:
            break
        await asyncio.sleep(0.2)
    return max(0.0, left[-1])


async def _until(operator: _Operator, key: str, value: int) -> None:
    async with asyncio.timeout(_WITHIN_S):
        while (await operator.status())[key] != value:
            operator.check()
            await asyncio.sleep(0.02)
