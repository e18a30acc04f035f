"""Waits for an API server, and asks it for a sign of life while nothing comes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from milo_discoveryd.daemon_errors import TransportError
from milo_discoveryd.reflect.liveness_policy import LivenessCheck, LivenessPolicy, LivenessTracker
from milo_discoveryd.reflect.reflector import UNRESPONSIVE, Failure
from milo_discoveryd.reusable_timeout import Deadline, deadline
from milo_discoveryd.watchers.transport import Answer

T = TypeVar("T")
PATH = "/livez"
_SILENCE = frozenset({"timeout", "closed"})
"""A refusal is none: a server that ends takes nobody new, and goes on serving whom it has."""


class LivenessApi(Protocol):
    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer: ...

    async def drop(self) -> None:
        """Every connection that there is; the next request makes its own."""


class UnresponsiveError(Exception):
    """It is connected, and answers nobody."""

    def __init__(self, liveness: LivenessPolicy) -> None:
        asked = f"{liveness.misses} times in a row, {liveness.every_s:g} s apart"
        self.failure = Failure(UNRESPONSIVE, f"it was asked for {PATH} {asked}, and did not answer")
        super().__init__(self.failure.message)


class LivenessProbe:
    def __init__(self, api: LivenessApi, liveness: LivenessPolicy, tell: Callable[[str], None]) -> None:
        self._api = api
        self._liveness = liveness
        self._tell = tell
        self._vigil = LivenessTracker(liveness)
        self._deadline: Deadline | None = None
        self._is_lost = False
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            if (look := self._vigil.look(self._clock())) is not None:
                await self._look(look)
            await asyncio.sleep(self._vigil.next_at(self._clock()) - self._clock())

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """For one wait after another. Raises UnresponsiveError once nobody is there any more, with every connection
        dropped; TimeoutError where a wait is over."""
        try:
            async with deadline() as self._deadline:
                yield
        except TimeoutError:
            if not self._is_lost:
                raise
            await self._api.drop()
            raise UnresponsiveError(self._liveness) from None
        finally:
            self._deadline = None
            self._vigil.end()

    async def wait(self, answer: Awaitable[T], until: float | None = None) -> T:
        """Within `waiting`."""
        assert self._deadline is not None, "waits are made within `waiting`"
        self._is_lost = False
        self._vigil.begin(self._clock())
        if until is not None:
            self._deadline.set(until)
        found = await answer
        self._deadline.lift()
        self._vigil.end()
        return found

    async def waited(self, answer: Awaitable[T], until: float | None = None) -> T:
        """For this one alone."""
        async with self.waiting():
            return await self.wait(answer, until)

    async def _look(self, look: LivenessCheck) -> None:
        result = "answered"
        try:
            # Whatever is said of the path, and of who asks: somebody is there to say it.
            await self._api.get(PATH, timeout_s=self._liveness.patience_s)
        except TransportError as error:
            result = error.cause
        self._tell(result)
        if self._vigil.told(look, is_silent=result in _SILENCE):
            assert self._deadline is not None, "only what is waited for can be given up"
            self._is_lost = True
            self._deadline.give_up()
