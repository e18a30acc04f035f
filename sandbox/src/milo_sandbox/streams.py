"""The open watches of one store, and the operations that end, cut or silence them."""

import asyncio
from math import inf

from aiohttp import web

from milo_sandbox import answers
from milo_sandbox.resources import ResourceDefinition
from milo_sandbox.watch import ObjectWatch


class Bell:
    """A notification for waiting streams, which check their state before they wait, so that they miss no change."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait_until(self, deadline: float) -> None:
        """Wait until the next ring, or until a time of the loop's clock."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_at(deadline, _wake, waiter) if deadline != float("inf") else None
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer:
                timer.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Streams:
    """The open watches of one store. This class waits and writes for the watches; each watch decides what to send."""

    def __init__(self) -> None:
        self._bell = Bell()
        self._open: dict[ObjectWatch, asyncio.Transport] = {}
        self._silent = False

    def __len__(self) -> int:
        return len(self._open)

    def wake(self) -> None:
        self._bell.ring()

    async def wait(self) -> None:
        """Wait until the next write."""
        await self._bell.wait_until(inf)

    def end(self, resource: ResourceDefinition | None = None, *, last_bookmark: bool = True) -> None:
        """End all watches, or those of a resource, cleanly after their pending events."""
        for watch in self._open:
            if resource in {None, watch.resource}:
                watch.end(last_bookmark=last_bookmark)
        self._bell.ring()

    def drop(self) -> None:
        """Cut the connections."""
        for transport in self._open.values():
            transport.abort()

    def set_silent(self, *, silent: bool) -> None:
        """Stop sending on all current and future watches, or let them catch up."""
        self._silent = silent
        for watch in self._open:
            watch.set_silent(silent=silent)
        self._bell.ring()

    async def send(self, request: web.BaseRequest, watch: ObjectWatch) -> web.StreamResponse:
        response = web.StreamResponse(headers=answers.HEADERS | {"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        if request.transport is None:
            raise ConnectionResetError("the client disconnected before its watch began")
        loop = asyncio.get_running_loop()
        watch.set_silent(silent=self._silent)
        self._open[watch] = request.transport
        try:
            await response.prepare(request)
            while not watch.done:
                if data := watch.step(loop.time()):
                    await response.write(data)
                elif not watch.done:
                    await self._bell.wait_until(watch.wakes_at)
            await response.write_eof()
        except ConnectionResetError:
            return response  # the connection was cut, or closed by the client
        finally:
            del self._open[watch]
        return response
