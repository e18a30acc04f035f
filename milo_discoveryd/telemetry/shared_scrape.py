"""Builds the metrics once for all scrapes that wait for them, and limits the share of time that builds take."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Encode = Callable[[Collector], bytes]

_PAUSE = 9.0
"""The pause after a build, as a multiple of its duration: builds take at most a tenth of the time, or more if
`_LONGEST_PAUSE_S` shortens the pause."""
_LONGEST_PAUSE_S = 2.0


class ScrapeForm(msgspec.Struct, frozen=True):
    """A variant of the metrics text, which scrapes of the same variant share."""

    content_type: str
    with_names: bool


class SharedScrape:
    """The metrics as text. Waiting scrapes share a build that begins after their requests."""

    def __init__(self, collect: Callable[[bool], Iterable[Metric]]) -> None:
        """The argument of `collect` is whether the metrics contain names of clusters and organizations."""
        self._collect = collect
        self._waiting: dict[ScrapeForm, tuple[Encode, asyncio.Future[bytes]]] = {}
        self._building: asyncio.Task[None] | None = None
        self.builds = 0

    async def read(self, form: ScrapeForm, encode: Encode) -> bytes:
        if form not in self._waiting:
            self._waiting[form] = (encode, asyncio.get_running_loop().create_future())
        _, text = self._waiting[form]
        if self._building is None:
            self._building = asyncio.create_task(self._build_all(), name="build metrics")
        return await asyncio.shield(text)

    async def stop(self) -> None:
        if self._building is not None:
            self._building.cancel()
            await asyncio.wait((self._building,))
        for _, text in self._waiting.values():
            text.cancel()
        self._waiting.clear()

    async def _build_all(self) -> None:
        try:
            while self._waiting:
                began = time.monotonic()
                for form in list(self._waiting):
                    await self._build(form, *self._waiting.pop(form))
                await asyncio.sleep(pause_s(time.monotonic() - began))
        finally:
            self._building = None

    async def _build(self, form: ScrapeForm, encode: Encode, text: "asyncio.Future[bytes]") -> None:
        self.builds += 1
        try:
            # Collected in one step of the event loop, so that nothing changes during the collection. Encoding takes
            # most of the time, and runs in a thread.
            families = _Collected(list(self._collect(form.with_names)))
            encoded = await asyncio.to_thread(encode, families)
        except Exception as error:  # noqa: BLE001 - raised in the scrapes
            text.set_exception(error)
            text.exception()  # marked as retrieved: all scrapes may have been canceled
        except asyncio.CancelledError:
            text.cancel()
            raise
        else:
            text.set_result(encoded)


class Turns:
    """Lets one request at a time use the event loop, for at most a tenth of the time, as for builds of the metrics."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._lock:
            await asyncio.sleep(self._free_at - time.monotonic())
            began = time.monotonic()
            try:
                yield
            finally:
                ended = time.monotonic()
                self._free_at = ended + pause_s(ended - began)


def pause_s(took_s: float) -> float:
    """Return how long to wait after a build that took `took_s`."""
    return min(_PAUSE * took_s, _LONGEST_PAUSE_S)


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
