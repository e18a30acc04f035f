"""Reading a response while the server writes it."""

import asyncio
from contextlib import aclosing

import pytest
from aiohttp import web

from milo_discoveryd.watchers.transport import Transport
from milo_kube.http.errors import TransportError
from tests.integration.watchers.api_server import ApiServer, answering, upstream

PATH = "/watch"


class Script:
    """A scripted response: `send` writes bytes, `end` ends it, `cut` aborts the connection."""

    def __init__(self) -> None:
        self._orders: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.gone = asyncio.Event()

    def send(self, content: bytes) -> None:
        self._orders.put_nowait(content)

    def end(self) -> None:
        self._orders.put_nowait(None)

    def cut(self) -> None:
        self._orders.put_nowait(b"")

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while (order := await self._orders.get()) is not None:
                if not order:
                    assert request.transport is not None
                    request.transport.abort()
                    break
                await response.write(order)
        finally:
            self.gone.set()
        return response


async def test_stream_yields_bytes_as_sent_and_ends_with_the_response() -> None:
    script = Script()
    async with ApiServer(script) as server:
        transport = Transport(upstream(server))
        async with (
            transport.stream(PATH, [("watch", "1")], connect_timeout_s=10, silence_s=10) as stream,
            aclosing(stream.chunks()) as chunks,
        ):
            script.send(b"one")
            received = [await anext(chunks)]
            script.send(b"two")
            received.append(await anext(chunks))
            script.end()
            received += [chunk async for chunk in chunks]
        await transport.aclose()
    assert received == [b"one", b"two"]
    assert server.headers("Accept-Encoding") == ["identity"]


async def test_stream_line_of_many_mebibytes_is_read_in_chunks() -> None:
    line = b"x" * (6 << 20)
    async with ApiServer(answering(line)) as server:
        transport = Transport(upstream(server))
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=10) as stream:
            received = [chunk async for chunk in stream.chunks()]
        await transport.aclose()
    assert len(received) > 1
    assert b"".join(received) == line


async def test_truncated_stream_is_a_closed_error() -> None:
    script = Script()
    script.send(b'{"type":"ADD')
    script.cut()
    async with ApiServer(script) as server:
        transport = Transport(upstream(server))
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=10) as stream:
            with pytest.raises(TransportError) as raised:
                async for _ in stream.chunks():
                    pass
        await transport.aclose()
    assert raised.value.cause == "closed"


async def test_stream_without_further_bytes_times_out() -> None:
    script = Script()
    script.send(b"then nothing")
    async with ApiServer(script) as server:
        transport = Transport(upstream(server))
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=0.05) as stream:
            chunks = stream.chunks()
            assert await anext(chunks) == b"then nothing"
            with pytest.raises(TransportError, match="sent nothing for ") as raised:
                await anext(chunks)
        await transport.aclose()
    assert raised.value.cause == "timeout"


async def test_stream_closes_connection_when_its_context_exits() -> None:
    script = Script()
    script.send(b"on and on")
    async with ApiServer(script) as server:
        transport = Transport(upstream(server))
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=10) as stream:
            await anext(stream.chunks())
        await asyncio.wait_for(script.gone.wait(), 10)
        await transport.aclose()


async def test_stream_closes_connection_when_its_reader_is_canceled() -> None:
    script = Script()
    script.send(b"on and on")
    reading = asyncio.Event()

    async def read() -> None:
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=10) as stream:
            async for _ in stream.chunks():
                reading.set()

    async with ApiServer(script) as server:
        transport = Transport(upstream(server))
        task = asyncio.create_task(read())
        await asyncio.wait_for(reading.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(script.gone.wait(), 10)
        await transport.aclose()


async def test_stream_error_body_is_read_up_to_limit() -> None:
    async with ApiServer(answering(b"<html>" * 100, 503)) as server:
        transport = Transport(upstream(server))
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=10) as stream:
            assert (stream.status, await stream.read_error(12)) == (503, b"<html><html>")
        await transport.aclose()


async def test_open_watches_do_not_delay_requests() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if request.path == "/watch":
            await response.write(b"open")
            await never.wait()
        return response

    never = asyncio.Event()
    async with ApiServer(answer) as server:
        transport = Transport(upstream(server))
        async with asyncio.TaskGroup() as tasks:
            everyone_reads = asyncio.Barrier(101)

            async def watch() -> None:
                async with transport.stream("/watch", connect_timeout_s=10, silence_s=30) as stream:
                    await anext(stream.chunks())
                    await everyone_reads.wait()
                    await never.wait()

            for _ in range(100):
                tasks.create_task(watch())
            await everyone_reads.wait()
            assert (await transport.get("/version", timeout_s=10)).status == 200
            never.set()
        await transport.aclose()
