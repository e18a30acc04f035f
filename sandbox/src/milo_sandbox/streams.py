"""The watches of one store that are open now: they are sent on here, and ended, dropped or silenced from here."""

import asyncio
from math import inf

from aiohttp import web

from milo_sandbox import answers
from milo_sandbox.bell import Bell
from milo_sandbox.resources import Resource
from milo_sandbox.watch import Watch


class Streams:
    """A thin shell: each watch decides, this waits and writes."""

    def __init__(self) -> None:
        self._bell = Bell()
        self._open: dict[Watch, asyncio.Transport] = {}
        self._silent = False

    def __len__(self) -> int:
        return len(self._open)

    def wake(self) -> None:
        self._bell.ring()

    async def wait(self) -> None:
        """Until the next write."""
        await self._bell.wait_until(inf)

    def end(self, resource: Resource | None = None, *, last_bookmark: bool = True) -> None:
        """Let each, or each of that resource, send what it has, and end cleanly."""
        for watch in self._open:
            if resource in {None, watch.resource}:
                watch.end(last_bookmark=last_bookmark)
        self._bell.ring()

    def drop(self) -> None:
        """Cut the connections in mid-stream."""
        for transport in self._open.values():
            transport.abort()

    def hush(self, *, silent: bool) -> None:
        """Have all of them, and those to come, hang; or catch up and go on."""
        self._silent = silent
        for watch in self._open:
            watch.hush(silent=silent)
        self._bell.ring()

    async def send(self, request: web.BaseRequest, watch: Watch) -> web.StreamResponse:
        response = web.StreamResponse(headers=answers.HEADERS | {"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        if request.transport is None:
            raise ConnectionResetError("the client left before its watch began")
        loop = asyncio.get_running_loop()
        watch.hush(silent=self._silent)
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
            return response  # cut off, or left by its client: in the middle of a write that is no more than that
        finally:
            del self._open[watch]
        return response
