"""One cell of the matrix: daemon processes, their sources, and their consumers."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from milo_discovery import DiscoveryClient, Event, EventType, ServerInfo, SourceState, Watch
from milo_sandbox import Sandbox
from milo_sandbox.kubeconfigs import write
from milo_sandbox.resources import LEASES, SECRETS, Document
from tests.end_to_end.matrix.gate import Gate
from tests.end_to_end.matrix.upstreams import TOKEN_LIFE_S, Upstream, open_upstreams
from tests.end_to_end.matrix.validator import Validator
from tests.end_to_end.process.daemon import DaemonProcess
from tests.support.eventually import eventually
from tests.support.short_memory import with_short_memory

SETTLED_WITHIN_S = 120.0
VERIFY_AFTER_S = 10
VERIFY_BAD_LIST_AFTER_S = 30
VERIFY_BAD_LIST_IN_GROUP_AFTER_S = 60
"""Values of `removals.verify_after`. A bad list must be over before the second list. The values for cells with a bad
list are longer, since on a busy machine two sources may be listed many seconds apart, and a restarted member of a group
engages nothing for 10 s or longer, while the files of all members are missing.
"""
HUB = "hub"
_FLOOD = """import os, signal, sys, time
while True:
    for _ in range(1000):
        os.kill(int(sys.argv[1]), signal.SIGHUP)
    time.sleep(0.01)
"""
_CROWD = 200
_LEASE = "milo-discovery-matrix-member-1"
_FORGED = {
    "one": ("acknowledged-view", "9999"),
    "two": ("weight", "inf"),
    "reduced": ("term", ""),
    "files": ("format", "9999"),
}
"""The annotation that is forged in the Lease of a group's member, by the sources of the attacked cell."""


def record(validator: Validator, consumer: str, event: Event) -> None:
    """Report an event that a consumer received to the validator."""
    match event.type:
        case EventType.ENGAGED:
            validator.engaged(consumer, event.cluster.name)
        case EventType.DISENGAGED:
            reason = event.reason.name if event.reason.value else ""
            validator.disengaged(consumer, event.cluster.name, reason)


def key(source: str, cluster: str) -> str:
    return f"{source}#{cluster}"


def create_hub(hub: Sandbox, kubeconfig: Path) -> None:
    """Create the control plane that has the Leases of a group, and write its kubeconfig."""
    hub.projects.create(HUB, ready=True)
    write(kubeconfig, hub.kubeconfig(project=HUB, token=hub.token()))


def sharding(kubeconfig: Path) -> dict[str, str]:
    """Return the settings of a group whose Leases are in the hub."""
    return {"group": "matrix", "namespace": "default", "kubeconfig": str(kubeconfig)}


def pod(number: int) -> dict[str, str]:
    """Return the environment variables of a daemon, which give it the same name in the group after a restart."""
    return {"POD_NAME": f"member-{number}", "POD_UID": f"pod-{number}"}


class Cell(NamedTuple):
    sources: str
    """The sources: `one` or `two` of Projects, two that are `reduced` from ServiceConsumers, or `files`."""
    state: str
    daemons: int
    consumer: str
    phase: str

    def __str__(self) -> str:
        return "-".join(map(str, self))


class Program:
    """A Python process beside the daemons, which can be killed and started again."""

    def __init__(self, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self._arguments, self._environ = arguments, {**os.environ, **(environ or {})}
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, env=self._environ, stderr=DEVNULL
        )

    async def kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class World:
    """A running cell."""

    def __init__(self, cell: Cell, directory: Path, upstreams: dict[str, Upstream], hub: Sandbox) -> None:
        self.cell, self._directory, self.upstreams, self.hub = cell, directory, upstreams, hub
        self.validator = Validator(is_shared=cell.daemons > 1 and cell.consumer != "publisher")
        self.tenants = Validator(is_shared=cell.daemons > 1)
        """The validator for consumers that may receive only the clusters of one tenant."""
        self.gate = Gate(cell.sources, cell.daemons, directory, hub)
        self._kubeconfig = directory / "hub"
        create_hub(hub, self._kubeconfig)
        self._kubeconfigs: dict[str, set[str]] = {}
        self.watches: dict[int, Watch] = {}
        """The watch of each daemon's subscriber, by the daemon's number."""
        self.daemons = [self._daemon(number) for number in range(cell.daemons)]
        self.publishers = [
            Program(*self._publish(number), environ=with_short_memory(directory))
            for number in range(cell.daemons)
            if self._publishes
        ]

    @classmethod
    @asynccontextmanager
    async def running(cls, cell: Cell, directory: Path) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            upstreams = await stack.enter_async_context(open_upstreams(cell.sources, directory))
            hub = await stack.enter_async_context(Sandbox(token_life=TOKEN_LIFE_S))
            world = cls(cell, directory, upstreams, hub)
            for number in range(6):
                world.create(f"p-{number}")
            for daemon in world.daemons:
                await stack.enter_async_context(daemon)
                await daemon.start()
            async with asyncio.TaskGroup() as tasks:
                following = [tasks.create_task(consumer) for consumer in world._consumers()]
                for publisher in world.publishers:
                    await stack.enter_async_context(publisher)
                yield world
                for task in following:
                    task.cancel()

    def create(self, cluster: str, sources: Iterable[str] = ()) -> None:
        for name in sources or self.upstreams:
            for validator in self._validators(key(name, cluster)):
                validator.created(key(name, cluster))
            self.upstreams[name].create(cluster)

    def delete(self, cluster: str, sources: Iterable[str] = ()) -> None:
        for name in sources or self.upstreams:
            for validator in self._validators(key(name, cluster)):
                validator.deleted(key(name, cluster))
            self.upstreams[name].delete(cluster)

    def _validators(self, name: str) -> list[Validator]:
        return [self.validator, self.tenants] if self.gate.covers(name) else [self.validator]

    def empty(self, *, on: bool) -> None:
        for upstream in self.upstreams.values():
            upstream.empty(on=on)

    @asynccontextmanager
    async def attacked(self) -> AsyncIterator[None]:
        """Flood the first daemon with signals and connections, damage p-4, and forge the Lease of a group's member."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(Program("-c", _FLOOD, str(self.daemons[0].pid)))
            for _ in range(_CROWD):
                silent = stack.enter_context(socket.socket(socket.AF_UNIX))
                silent.connect(self.address(0).removeprefix("unix://"))
            if self.cell.daemons > 1:
                self._forge_lease()
            for upstream in self.upstreams.values():
                upstream.damage("p-4")
            yield
        for upstream in self.upstreams.values():
            upstream.repair("p-4")

    def _forge_lease(self) -> None:
        name, value = self._forged

        def forged(lease: Document) -> Document:
            annotations = {**lease["metadata"]["annotations"], name: value}
            return {**lease, "metadata": {**lease["metadata"], "annotations": annotations}}

        self.hub.control_plane(HUB).modify(LEASES, _LEASE, forged, namespace="default")

    @property
    def _forged(self) -> tuple[str, str]:
        name, value = _FORGED[self.cell.sources]
        return f"discovery.miloapis.com/{name}", value

    async def healed(self) -> None:
        """Wait until the member of a group whose Lease was forged has joined again."""
        if self.cell.daemons > 1:
            store = self.hub.control_plane(HUB)
            name, value = self._forged

            def is_forged() -> bool:
                lease = store.find(LEASES, f"default/{_LEASE}")
                return lease is None or lease.document()["metadata"]["annotations"][name] == value

            await eventually(lambda: not is_forged(), within_s=SETTLED_WITHIN_S)
            await self.joined()

    async def stored(self) -> None:
        """Wait until the state of the first daemon, if it keeps any, contains the clusters of its consumer."""
        if self.cell.state == "state":
            directory, view = self._directory / "state-0", self.validator.views.get("consumer-0", set())
            wanted = [cluster.rpartition("#")[2].encode() for cluster in view]
            await eventually(lambda: all(name in _content(directory) for name in wanted), within_s=SETTLED_WITHIN_S)

    async def settled(self, within_s: float = SETTLED_WITHIN_S) -> None:
        """Wait until each consumer has exactly the clusters that exist."""
        await eventually(lambda: self.validator.breaches or self._is_current, within_s=within_s)
        assert not self.validator.breaches, "; ".join(self.validator.breaches)

    async def gone(self, cluster: str) -> None:
        """Wait until no consumer has a cluster."""
        keys = {key(name, cluster) for name in self.upstreams}
        views = self.validator.views
        await eventually(lambda: not any(keys & view for view in views.values()), within_s=SETTLED_WITHIN_S)

    async def joined(self) -> None:
        """Wait until the daemons of a group have divided the clusters."""

        def is_settled(info: ServerInfo) -> bool:
            group = info.sharding
            return group is None or (group.settled and len(group.members) == self.cell.daemons)

        for number in range(self.cell.daemons):
            await self._until(number, is_settled)

    async def listed(self) -> None:
        """Wait until the first daemon has compared its first lists with the clusters that it, or its consumer, had
        before.
        """
        # Without a state file, only the consumer's own stream waits. A member of a group stores only its own clusters:
        # here it is a single one, whose deletion can be refuted by a read.
        expected = set() if self.cell.state == "no-state" else {(SourceState.CATCHING_UP, "RemovalsHeld")}
        if self.cell.daemons > 1 or self.cell.state == "no-state":
            expected.add((SourceState.STREAMING, ""))

        def is_compared(info: ServerInfo) -> bool:
            return info.synced and info.counts.subscribers > 0 and (info.source.state, info.source.reason) in expected

        await self._until(0, is_compared)

    async def _until(self, number: int, holds: Callable[[ServerInfo], bool]) -> None:
        info: ServerInfo | None = None
        try:
            async with DiscoveryClient(self.address(number)) as client, asyncio.timeout(SETTLED_WITHIN_S):
                while not holds(info := await client.server_info()):  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"daemon {number} was last {info}") from None

    @property
    def _is_current(self) -> bool:
        has_kubeconfigs = all(self.validator.views[name] <= found for name, found in self._kubeconfigs.items())
        return bool(self.validator.views) and self.validator.is_current and has_kubeconfigs

    def address(self, number: int) -> str:
        return f"unix://{self._directory}/{number}.sock"

    def _daemon(self, number: int) -> DaemonProcess:
        verify_after_s = VERIFY_AFTER_S
        if self.cell.phase == "bad-list":
            verify_after_s = VERIFY_BAD_LIST_IN_GROUP_AFTER_S if self.cell.daemons > 1 else VERIFY_BAD_LIST_AFTER_S
        issuers = [self._issuer(name) for name in self.upstreams]
        config: dict[str, Any] = {
            "sources": [upstream.settings(name) for name, upstream in self.upstreams.items()],
            **self.gate.settings(number, self.address(number), issuers),
            "http_listen": "off",
            "connectivity": {"interval": "off"},
            "removals": {"verify_after": f"{verify_after_s}s"},
            "watch": {"streaming_lists": "off"},  # the fault `empty_lists` does not affect streaming lists
        }
        if self.cell.state == "state":
            (self._directory / f"state-{number}").mkdir(mode=0o700)
            config["state_directory"] = str(self._directory / f"state-{number}")
        if self.cell.daemons > 1:
            config["sharding"] = sharding(self._kubeconfig)
        file = self._directory / f"{number}.yaml"
        file.write_text(yaml.safe_dump(config))
        return DaemonProcess(self.address(number), "--config", str(file), environ=pod(number), is_forked=True)

    def _issuer(self, name: str) -> dict[str, Any]:
        several = {"sources": [name]} if len(self.upstreams) > 1 else {}
        return {**self.upstreams[name].issuer(name), **several}

    @property
    def _publishes(self) -> bool:
        return self.cell.consumer == "publisher"

    def _consumers(self) -> list[Coroutine[Any, Any, None]]:
        return [self._read_hub()] if self._publishes else [self.follow(number) for number in range(self.cell.daemons)]

    async def follow(self, number: int) -> None:
        name, with_kubeconfigs = f"consumer-{number}", self.cell.consumer == "kubeconfigs"
        self.validator.views[name] = set()
        if with_kubeconfigs:
            self._kubeconfigs[name] = set()
        async with (
            DiscoveryClient(self.address(number)) as client,
            client.watch(include_kubeconfigs=with_kubeconfigs) as watch,
        ):
            self.watches[number] = watch
            async for event in watch:
                record(self.validator, name, event)
                if event.kubeconfig is not None:
                    self._kubeconfigs[name].add(event.cluster.name)

    def _publish(self, number: int) -> tuple[str, ...]:
        return (
            *("-m", "milo_discovery_cli", "publish", "flux-kubeconfigs", "--resync-interval", "1s"),
            *("--kubeconfig", str(self._kubeconfig), "--namespace", "default", "--address", self.address(number)),
        )

    async def _read_hub(self) -> None:
        """Read the published objects, as often as their users do."""
        store = self.hub.control_plane(HUB)
        while True:
            names = [
                secret.name.removesuffix("-kubeconfig") for secret in store[SECRETS] if "kubeconfig" in secret.name
            ]
            keys = [name.replace(".", "#", 1) for name in names]
            self.validator.listed("readers of the hub", keys)
            await asyncio.sleep(0.05)


def _content(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir() if not path.name.endswith(".new"))


async def restart(world: World, while_down: Callable[[], Awaitable[None]]) -> None:
    """Kill the first daemon, and start it again."""
    await world.daemons[0].kill()
    await while_down()
    await world.daemons[0].start()
