"""One run of a scenario in one mode: a server, a daemon process, subscribers, and the steps in order."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, assert_never

import yaml

from milo_discovery import DiscoveryClient, Sharding, Unavailable
from tests.end_to_end.process.daemon import DaemonEndedError, DaemonProcess
from tests.end_to_end.real.process import ProcessError
from tests.end_to_end.scenarios import kubeconfig, steps
from tests.end_to_end.scenarios.objects import Objects, ServerRefusedError
from tests.end_to_end.scenarios.servers import ApiServer, Servers
from tests.end_to_end.scenarios.steps import Act, Mode, Scenario, Subscribe, Write
from tests.end_to_end.scenarios.subscriber import PATIENCE_S, Subscriber, UnexpectedError

_LOOK_EVERY_S = 0.02
_GROUP_SETTLED_WITHIN_S = 120.0


class ScenarioFailedError(Exception):
    """The scenario failed in this mode."""

    def __init__(self, where: str, why: str, daemon: str) -> None:
        super().__init__(f"{where}: {why}")
        self.add_note(f"Last output of the daemon:\n{daemon}")
        self.daemon = daemon
        """The last lines of the daemon's log."""


class Setup(NamedTuple):
    """The settings and the environment of a daemon in a scenario run."""

    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """Returns the daemon's settings, given those of the scenario."""
    environ: Mapping[str, str] = {}


async def run_scenario(
    scenario: Scenario,
    mode: Mode,
    servers: Servers,
    *,
    patience_s: float = PATIENCE_S,
    daemons: Sequence[Setup] = (Setup(),),
) -> None:
    """Run a scenario in a mode, on one daemon or on all members of a shard group.

    Raises ScenarioFailedError.
    """
    # A short path, since a socket's path has 107 characters at most.
    with TemporaryDirectory(prefix="milo-") as name:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(servers.acquire(mode, Path(name)))
            settings = _settings(scenario.settings, mode, server)
            processes = []
            for number, setup in enumerate(daemons):
                address = f"unix://{name}/{number}.sock"
                config = Path(name) / f"{number}.yaml"
                config.write_text(yaml.safe_dump(setup.adapt({**settings, "listen": [address]})))
                process = DaemonProcess(address, "--config", str(config), environ=setup.environ, is_forked=True)
                processes.append(await stack.enter_async_context(process))
            written = Objects(mode, kubeconfig.read(server.kubeconfig), has_controllers=server.has_controllers)
            objects = await stack.enter_async_context(written)
            run = ScenarioRun(server, processes, objects, patience_s)
            stack.push_async_callback(run.close)
            await run.execute(scenario)


def _settings(given: Mapping[str, Any], mode: Mode, server: ApiServer) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "discovery_kubeconfig": str(server.kubeconfig),
        "http_listen": "off",
        # The endpoints of a scenario's clusters do not exist, so probes are off.
        "connectivity": {"interval": "off"},
    }
    if "internalServiceDiscovery" not in given:  # the former name of the option
        settings["mode"] = mode
    return settings | dict(given)


class ScenarioRun:
    """Executes the steps of one scenario, with its subscribers."""

    def __init__(
        self, server: ApiServer, daemons: Sequence[DaemonProcess], objects: Objects, patience_s: float
    ) -> None:
        self._server = server
        self._server_runs = True
        self._daemons = daemons
        self._objects = objects
        self._patience_s = patience_s
        # Each call is limited by the expectation that makes it, since a busy machine may be slow.
        self._clients = [DiscoveryClient(daemon.address, timeout=None) for daemon in daemons]
        self._present: dict[str, Subscriber] = {}
        self._gone: dict[str, Subscriber] = {}

    async def execute(self, scenario: Scenario) -> None:
        where = "at the start"
        try:
            for daemon in self._daemons:
                await daemon.start()
            await self._during(self._joined())
            if not isinstance(scenario.steps[0][1], Subscribe):
                await self._during(self._subscribe(Subscribe()))
            for number, (word, step) in enumerate(scenario.steps, start=1):
                where = f"step {number} ({word})"
                if isinstance(step, steps.OnDaemon):
                    await self._on_daemon(step)
                else:
                    await self._during(self._do(step))
            where = "at the end"
            await self._end()
        except (UnexpectedError, ServerRefusedError, DaemonEndedError, ProcessError) as error:
            tails = "\n".join(daemon.tail() for daemon in self._daemons)
            raise ScenarioFailedError(where, str(error), tails) from error

    async def close(self) -> None:
        for subscriber in self._present.values():
            await subscriber.close()
        self._present.clear()
        for client in self._clients:
            await client.close()

    async def _during(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; fail if one of the daemons exits first."""
        for daemon in self._daemons:
            work = daemon.during(work)
        await work

    async def _joined(self) -> None:
        """Wait until the daemons of a group have divided the clusters, none of which moves from then on."""
        group: Sharding | None = None
        try:
            async with asyncio.timeout(_GROUP_SETTLED_WITHIN_S):
                for client in self._clients:
                    while (group := (await client.server_info()).sharding) and not self._has_all(group):  # noqa: ASYNC110
                        await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise UnexpectedError(f"the group did not settle: {group}") from None

    def _has_all(self, group: Sharding) -> bool:
        return group.settled and len(group.members) == len(self._daemons)

    async def _end(self) -> None:
        await self.close()
        await self._terminate()
        if any("Traceback" in daemon.output for daemon in self._daemons):
            raise UnexpectedError("the daemon's log has a traceback")

    async def _do(self, step: Act) -> None:
        match step:
            case steps.OnApi(action):
                await self._on_api(action)
            case steps.Subscribe():
                await self._subscribe(step)
            case steps.Unsubscribe(who):
                self._gone[who] = self._presently(who)
                await self._present.pop(who).close()
            case steps.Reconnect(who):
                await self._presently(who).reconnect()
                await self._settled()
            case steps.Expect(events, by):
                await self._whoever(by).expect(events, self._objects.uids)
            case steps.ExpectUpdated(name, fields, by):
                await self._whoever(by).expect_updated(name, fields)
            case steps.ExpectNoUpdates(name, by):
                await self._whoever(by).expect_no_updates(name)
            case steps.ExpectSource(state, by):
                await self._presently(by).expect_source(state)
            case steps.ExpectEngaged():
                await self._expect_engaged(step)
            case _:
                await self._write(step)

    async def _write(self, step: Write) -> None:
        objects = self._objects
        match step:
            case steps.Create(name, labels, annotations, finalizers, ready):
                await objects.create(name, labels=labels, annotations=annotations, finalizers=finalizers, ready=ready)
            case steps.Condition(name, status, kind, message):
                await objects.condition(name, status, kind=kind, message=message)
            case steps.Label(name, put, unset):
                await objects.label(name, put, unset)
            case steps.Annotate(name, put, unset):
                await objects.annotate(name, put, unset)
            case steps.Delete(name):
                await objects.delete(name)
            case steps.Unfinalize(name):
                await objects.unfinalize(name)
            case steps.Replace(name):
                await objects.replace(name)
            case steps.Burst(prefix, count, labels):
                await objects.burst(prefix, count, labels)
            case _:
                assert_never(step)

    async def _on_api(self, action: str) -> None:
        match action:
            case "stop":
                await self._server.stop()
                self._server_runs = False
            case "start":
                await self._server.start()
                self._server_runs = True
            case "restart":
                await self._server.stop()
                await self._server.start()
                self._server_runs = True
            case "compact":
                await self._server.compact()
            case "drop-watches":
                await self._server.drop_watches()

    async def _on_daemon(self, step: steps.OnDaemon) -> None:
        """Act on the daemon, and return once it runs and its subscribers are connected again."""
        if step.action == "restart":
            await self._terminate()
        else:
            for daemon in self._daemons:
                await daemon.kill()
        for subscriber in self._present.values():
            await subscriber.disconnected()
        for daemon in self._daemons:
            await daemon.start()
        await self._settled()

    async def _terminate(self) -> None:
        for daemon in self._daemons:
            try:
                status = await daemon.terminate()
            except TimeoutError:
                raise UnexpectedError("the daemon did not exit on SIGTERM") from None
            if status != 0:
                raise UnexpectedError(f"the daemon exited with status {status} on SIGTERM")

    async def _subscribe(self, asked: Subscribe) -> None:
        if asked.who in self._present:
            raise UnexpectedError(f"there is a subscriber {asked.who!r} already")
        self._gone.pop(asked.who, None)
        addresses = [daemon.address for daemon in self._daemons]
        self._present[asked.who] = Subscriber(addresses, asked, patience_s=self._patience_s)
        await self._settled()

    async def _settled(self) -> None:
        """Wait until all subscribers have the current state or, while the API server is stopped, are connected."""
        for subscriber in self._present.values():
            await (subscriber.current() if self._server_runs else subscriber.connected())

    async def _expect_engaged(self, step: steps.ExpectEngaged) -> None:
        seen: list[str] | str = ""
        try:
            async with asyncio.timeout(self._patience_s):
                while not _matches(step, seen := await self._listed()):  # noqa: ASYNC110 - polled
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise UnexpectedError(_mismatch(step, seen)) from None

    async def _listed(self) -> list[str] | str:
        """Return the names, or the reason why there are none; a name occurs twice if two members have the cluster."""
        try:
            return [cluster.name for client in self._clients for cluster in await client.list()]
        except Unavailable as error:
            return str(error)

    def _presently(self, who: str) -> Subscriber:
        if who not in self._present:
            raise UnexpectedError(f"there is no subscriber {who!r}")
        return self._present[who]

    def _whoever(self, who: str) -> Subscriber:
        return self._gone[who] if who in self._gone else self._presently(who)


def _matches(step: steps.ExpectEngaged, seen: list[str] | str) -> bool:
    if isinstance(seen, str):
        return False
    return len(seen) == step.count if step.names is None else sorted(seen) == sorted(step.names)


def _mismatch(step: steps.ExpectEngaged, seen: list[str] | str) -> str:
    if isinstance(seen, str):
        return f"ListClusters failed: {seen or 'timeout'}"
    if step.names is None:
        return f"ListClusters returned {len(seen)} clusters, want {step.count}: {_names(seen)}"
    return (
        f"ListClusters returned {_names(seen)}, want {_names(step.names)}: "
        f"missing {_names(step.names.difference(seen))}, unexpected {_names(set(seen) - step.names)}"
    )


def _names(names: Collection[str]) -> str:
    some = sorted(names)[:20]
    return (", ".join(some) or "none") + (", ..." if len(names) > len(some) else "")
