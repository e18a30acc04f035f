"""A daemon that follows a real server, and a subscriber that compares its events with expected ones."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from milo_discovery import DiscoveryClient, Engagement, EngagementReason, SourceStatus
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real.handing_out import kubeconfig_of
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.steps import Expected, Reason, Subscribe
from tests.end_to_end.scenarios.subscriber import PATIENCE_S, Subscriber

_LONGEST_S = 150.0
"""Long enough for timeouts of a minute in a real server."""
_LOOK_EVERY_S = 0.02


def engaged(name: str, *, at: str = "") -> Expected:
    return Expected("ENGAGED", name, endpoint=at)


def disengaged(name: str, reason: Reason) -> Expected:
    return Expected("DISENGAGED", name, reason)


class DaemonObserver:
    def __init__(self, server: RealApi, directory: Path, *, kubeconfig: Path | None = None, **settings: Any) -> None:
        self._server = server
        self._directory = directory
        socket = f"unix://{directory / 'discovery.sock'}"
        config = directory / "config.yaml"
        given = {
            "mode": server.mode,
            "discovery_kubeconfig": str(kubeconfig or server.kubeconfig),
            "listen": [socket],
            "http_listen": "off",
            **settings,
        }
        config.write_text(yaml.safe_dump(given))
        self.daemon = DaemonProcess(socket, "--config", str(config))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.daemon)
        await self.daemon.start()
        self._client = await self._stack.enter_async_context(DiscoveryClient(self.daemon.address))
        self._subscriber = Subscriber([self.daemon.address], Subscribe(), patience_s=_LONGEST_S)
        self._stack.push_async_callback(self._subscriber.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"last output of the daemon:\n{self.daemon.tail(40)}")
        await self._stack.aclose()

    async def expect(self, *expected: Expected) -> None:
        """Expect exactly these events since the previous expectation."""
        await self.daemon.during(self._subscriber.expect(expected, lambda _: ()))

    async def updated(self, name: str, **fields: Any) -> None:
        """Wait for an update with these fields."""
        await self.daemon.during(self._subscriber.expect_updated(name, fields))

    async def expect_last(self, *expected: Expected) -> None:
        """Expect exactly these events, followed by the engagement of a cluster that is created now."""
        await create_ready(self._server, "the-last")
        await self.expect(*expected, engaged("the-last"))

    async def source(self, state: str, reason: str | None = None, *, within_s: float = PATIENCE_S) -> SourceStatus:
        """Wait until the daemon reports this status of its source, and return it."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    seen = (await self._client.server_info()).source
                    if seen.state.name == state and reason in (None, seen.reason):
                        return seen
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise AssertionError(f"the source is {seen}, want {state} ({reason or 'for any reason'})") from None

    async def engaged_names(self) -> list[str]:
        return [cluster.name for cluster in await self._client.list()]

    async def kubeconfig_of(self, name: str) -> Path:
        """Return an issued kubeconfig as a file."""
        return await kubeconfig_of(self._client, name, self._directory)

    async def explains(self, name: str, reason: EngagementReason, words: str) -> None:
        """Wait until the explanation of a name has this reason and these words."""
        engagement = Engagement()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (engagement.reason is reason and words in engagement.message):
                    engagement = (await self._client.get(name)).engagement
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise AssertionError(
                f"the engagement of {name} is {engagement}, want {reason.name} with {words!r}"
            ) from None
