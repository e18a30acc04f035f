"""The subscriber with which the conformance kit tests this client's Fleet."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

from milo_discovery import DiscoveryClient, DiscoveryError, EngagedCluster, Fleet

LINGERS = "CONFORMANCE_LINGER" in os.environ
Report = Callable[..., None]


class Handler:
    """The handler of one cluster. It ends with the engagement, or on a command."""

    def __init__(self, cluster: EngagedCluster) -> None:
        self.cluster = cluster
        self.verb = ""
        self._credential: Any = cluster.credentials()
        self._commanded = asyncio.Event()

    def command(self, verb: str) -> None:
        self.verb = verb
        self._commanded.set()

    async def until_signaled(self) -> None:
        waits = [asyncio.ensure_future(coroutine) for coroutine in (self.cluster.drained(), self._commanded.wait())]
        try:
            with suppress(asyncio.CancelledError):  # the cluster was disengaged
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def linger(self) -> None:
        while not self.verb:
            with suppress(asyncio.CancelledError):  # disengaged while it drained
                await self._commanded.wait()

    async def request(self) -> str:
        """Send a request with an API client. Return its error, or an empty string if it succeeded."""
        # Imported only here, since cases time the start, and in a thread, since the event loop has to read heartbeats.
        aiohttp = await asyncio.to_thread(import_module, "aiohttp")
        kubernetes = await asyncio.to_thread(import_module, "kubernetes.aio.client")
        try:
            async with self.cluster.api_client() as api:
                await kubernetes.CoreV1Api(api).list_namespace()
        except (kubernetes.ApiException, aiohttp.ClientError, DiscoveryError) as error:
            return str(error) or type(error).__name__
        return ""

    async def credential(self) -> dict[str, Any]:
        access = await self._credential.access()
        return {"token": access.token, "server": access.server, "as": access.act_as.user if access.act_as else ""}


class Handlers:
    """The running handlers by cluster, oldest first."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._running: dict[str, list[Handler]] = {}

    async def work(self, cluster: EngagedCluster) -> None:
        handler = Handler(cluster)
        self._running.setdefault(cluster.name, []).append(handler)
        self._report("BEGIN", cluster=cluster.name, uid=cluster.uid)
        await handler.until_signaled()
        if not handler.verb:
            self._report("SIGNALED", cluster=cluster.name, uid=cluster.uid)
            if LINGERS:
                await handler.linger()
        self._running[cluster.name].remove(handler)
        self._report("END", cluster=cluster.name, uid=cluster.uid)
        if handler.verb == "fail":
            raise RuntimeError("scripted")

    async def execute(self, verb: str, name: str) -> None:
        handler = self._running[name][0]
        if verb == "request":
            self._report("ANSWERED", cluster=name, code=await handler.request())
            return
        if verb != "credential":
            handler.command(verb)
            return
        try:
            self._report("CREDENTIAL", cluster=name, **await handler.credential())
        except DiscoveryError as error:
            self._report("CREDENTIAL", cluster=name, code=getattr(error, "code", ""))


async def run_fleet(stdin: asyncio.StreamReader, report: Report) -> None:
    environment = os.environ
    handlers = Handlers(report)
    async with DiscoveryClient() as client:
        fleet = Fleet(
            client,
            on_drain="wait",
            confirm_releases=True,
            subscriber=environment["CONFORMANCE_SUBSCRIBER"],
            include_kubeconfigs="CONFORMANCE_KUBECONFIGS" in environment,
            heartbeat_interval=timedelta(seconds=float(environment["CONFORMANCE_HEARTBEAT_S"])),
        )
        fleet.on_engage(handlers.work)
        running = asyncio.create_task(fleet.run())
        commands = asyncio.create_task(execute_all(stdin, handlers.execute, running.cancel))
        await asyncio.wait([running])
        commands.cancel()


async def execute_all(
    stdin: asyncio.StreamReader, execute: Callable[[str, str], Awaitable[None]], stop: Callable[[], object]
) -> None:
    while words := (await stdin.readline()).decode().split():
        if words == ["stop"]:
            stop()
        else:
            await execute(*words)
