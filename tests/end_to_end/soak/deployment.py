"""The deployment of a soak test, apart from its API server: two daemons and their subscribers.

Faults that hit a daemon hit the `faulted` one. The `steady` one runs from start to end, so that its use of resources
can be measured.
"""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from milo_discovery import DiscoveryClient, Event
from milo_discoveryd.credentials import jwt
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.issued_credentials import IssuedCredential, Token, mark
from tests.end_to_end.process.recorder import Recorder
from tests.end_to_end.soak.gauges import Gauges
from tests.end_to_end.soak.servers import Server
from tests.support.tcp_proxy import TcpProxy

STALLED_S = 10
_IDLE = """
import sys, time
import grpc
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
calls = []
for address in sys.argv[1:]:
    channel = grpc.insecure_channel("unix:" + address, options=[("grpc.use_local_subchannel_pool", 1)])
    call = DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest())
    try:
        next(call)
    except grpc.RpcError:
        pass
    calls.append(call)
time.sleep(100_000)
"""


class Daemon:
    """A daemon, and the TCP proxy through which it reaches the API server."""

    def __init__(self, name: str, directory: Path, server: Server, port: int = 0, *, keeps_state: bool = True) -> None:
        """`port` is that of the proxy to the API server, 0 for any. With `keeps_state`, the daemon has a state
        directory.
        """
        self.name = name
        self.directory = directory
        self.server = server
        self.proxy = TcpProxy(server.port, port)
        self.socket = directory / f"{name}.sock"
        self.state = directory / f"{name}.state"
        self._keeps_state = keeps_state
        self._config = directory / f"{name}.yaml"

    async def __aenter__(self) -> Self:
        self.state.mkdir(exist_ok=True)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.proxy)
            self._configure()
            self.process = await stack.enter_async_context(self.another())
            await self.process.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def another(self) -> DaemonProcess:
        """Return a daemon with the same settings, not started yet."""
        return DaemonProcess(f"unix://{self.socket}", "--config", str(self._config))

    async def metrics(self) -> str:
        """Return the address of its metrics."""
        await self.process.wait_for_output('"started"')
        return str(self.process.events("started")[-1]["http"])

    def _configure(self) -> None:
        kubeconfig = self.directory / f"{self.name}.kubeconfig"
        cluster = {
            "server": f"https://127.0.0.1:{self.proxy.port}",
            "certificate-authority": str(self.server.authority),
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "soak", "cluster": cluster}],
            "users": [{"name": "soak", "user": self.server.user}],
            "contexts": [{"name": "soak", "context": {"cluster": "soak", "user": "soak"}}],
            "current-context": "soak",
        }
        kubeconfig.write_text(yaml.safe_dump(content))
        self._config.write_text(yaml.safe_dump(self._settings(kubeconfig)))

    def _settings(self, kubeconfig: Path) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "discovery_kubeconfig": str(kubeconfig),
            "listen": [f"unix://{self.socket}"],
            "http_listen": "127.0.0.1:0",
            "annotation_prefixes": ["example.com/"],
            "stalled_timeout": f"{STALLED_S}s",
            "removals": {"verify_after": "5s"},
            "tombstones": {"count": 200},  # so that its caches reach their limits within minutes
        }
        if self._keeps_state:
            settings["state_directory"] = str(self.state)
        if self.server.is_sandbox:
            settings["watch"] = {"silence_limit": "20s"}  # the sandbox sends bookmarks every 5 s here
            issuer = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
            settings["kubeconfigs"] = {"issuers": [issuer]}
        return settings


class Deployment:
    def __init__(self, faulted: Daemon, steady: Daemon) -> None:
        self.faulted = faulted
        self.steady = steady
        self.fast = [Recorder("fast", f"unix://{faulted.socket}"), Recorder("fast beside", f"unix://{steady.socket}")]
        self.prod = Recorder("prod", f"unix://{steady.socket}", "env=prod")
        self.slow = Recorder("slow", f"unix://{steady.socket}")
        # The identity at a real API server is a certificate with a long life, so the daemons have no issuer there.
        with_kubeconfigs = faulted.server.is_sandbox
        self.restless = Recorder("restless", f"unix://{faulted.socket}", with_kubeconfigs=with_kubeconfigs)
        self.subscriber_proxy = TcpProxy(str(steady.socket))
        """The proxy between the steady daemon and a remote subscriber."""
        self.far: Recorder | None = None
        self.watched: list[Event] = []
        """The events of a subscriber with the client library, at the faulted daemon."""
        self.names: set[str] = set()
        self.gauges = Gauges()
        self.idle: Process | None = None

    @property
    def recorders(self) -> list[Recorder]:
        assert self.far is not None
        return [*self.fast, self.prod, self.slow, self.restless, self.far]

    @property
    def handed(self) -> list[IssuedCredential]:
        """Return the records of issued credentials; each has the token of the daemon's own user, which opens every
        cluster."""
        found = []
        for given in self.restless.given:
            claims = jwt.claims(given.token)
            assert claims is not None
            assert claims.exp is not None
            token = Token(given.token, mark(given.uid), claims.exp)
            found.append(given.issued_credential(self.restless.history.who, token))
        return found

    @property
    def prompt(self) -> list[Recorder]:
        """The subscribers that receive each change at once when there is no fault."""
        return [*self.fast, self.prod, self.restless]

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.subscriber_proxy)
            self.far = Recorder("far", f"127.0.0.1:{self.subscriber_proxy.port}")
            tasks = [asyncio.create_task(recorder.run(), name=recorder.history.who) for recorder in self.recorders]
            tasks.append(asyncio.create_task(self._client(), name="client"))
            following = self.gauges.follow(await self.steady.metrics(), self.steady.process.pid)
            tasks.append(asyncio.create_task(following, name="gauges"))
            await self.begin_idling()
            try:
                yield
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                await self.end_idling()

    async def begin_idling(self) -> None:
        """Start a process that reads once from each daemon, and never again."""
        sockets = [str(daemon.socket) for daemon in (self.faulted, self.steady)]
        self.idle = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _IDLE, *sockets, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE
        )

    async def end_idling(self) -> None:
        if self.idle is not None:
            with contextlib.suppress(ProcessLookupError):
                self.idle.kill()
            await self.idle.communicate()
            self.idle = None

    async def _client(self) -> None:
        async with DiscoveryClient(f"unix://{self.faulted.socket}") as client:
            watch = client.watch()
            async for event in watch:
                self.watched.append(event)
                self.names = set(watch.clusters)
