"""`python -m controllers.tests.integration.hostile_api_server ATTACK`: an API server that attacks or refuses operators.

It prints its URL and its CA as a line of JSON, and serves until its standard input is closed.
"""

import asyncio
import gzip
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import suppress

from hyperframe.frame import (
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from kube.tests.integration.http.http2_peer import Authority

FLOODS = {
    "PING": PingFrame(0, bytes(8)),
    "SETTINGS": SettingsFrame(0),
    "WINDOW_UPDATE": WindowUpdateFrame(0, window_increment=1),
    "PRIORITY": PriorityFrame(1, depends_on=0, stream_weight=1),
    "empty DATA": DataFrame(1, b""),
    "padding": DataFrame(1, b"x", flags=["PADDED"], pad_length=200),
}
"""Frames that are sent without end, by name."""
BODIES = ("pages", "watch", "churn", "line", "gzip")
REFUSALS = ("forbidden", "silent")
OK_HEAD = b"\x88"  # HPACK of ":status: 200"
GZIP_BYTES = 60 << 20


async def flood(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SettingsFrame(0).serialize())
    await reader.readuntil(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    kind = -1
    while kind != HeadersFrame.type:
        header = await reader.readexactly(9)
        kind = header[3]
        await reader.readexactly(int.from_bytes(header[:3]))
    writer.write(HeadersFrame(1, OK_HEAD, flags=["END_HEADERS"]).serialize())
    frames = FLOODS[name].serialize() * 1_000
    while True:
        writer.write(frames)
        await drained(writer)


async def serve(attack: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests over HTTP/1.1."""
    while True:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = request.split()[1]
        is_watch = "watch=1" in target
        if attack == "silent":
            continue
        if attack == "forbidden":
            send(writer, b'{"kind":"Status","reason":"Forbidden","message":"no right"}', status="403 Forbidden")
        elif is_watch and attack in ("pages", "gzip"):
            send(writer, b'{"kind":"Status","reason":"Invalid"}', status="422 Unprocessable Entity")
        elif attack == "pages":
            send(writer, page())
        elif attack == "gzip":
            send(writer, gzip.compress(b'{"kind":"List","items":[' + b" " * GZIP_BYTES), "Content-Encoding: gzip\r\n")
        elif not is_watch:
            send(writer, b'{"kind":"List","metadata":{"resourceVersion":"1"},"items":[]}')
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in EVENTS[attack]() if attack in EVENTS else itertools.repeat(b'{"type":"ADDED"' + b" " * 60_000):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await drained(writer)
        await writer.drain()


async def drained(writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    # drain() returns at once while a lost TLS connection is being closed, which takes an iteration of the event loop.
    await asyncio.sleep(0)


def send(writer: asyncio.StreamWriter, body: bytes, headers: str = "", status: str = "200 OK") -> None:
    writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)


_numbers = itertools.count(1)


def metadata() -> dict[str, object]:
    name = f"o{next(_numbers)}"
    return {"name": name, "namespace": "default", "uid": name, "resourceVersion": "5"}


def found() -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(), "data": {"content": "x" * 2_000}}


def page() -> bytes:
    more = {"resourceVersion": "5", "continue": "more"}
    return json.dumps({"kind": "List", "metadata": more, "items": [found() for _ in range(500)]}).encode()


def events() -> Iterator[bytes]:
    while True:
        yield b"".join(json.dumps({"type": "ADDED", "object": found()}).encode() + b"\n" for _ in range(100))


def churn() -> Iterator[bytes]:
    """Add objects, and delete each at once."""
    while True:
        named = [{"metadata": {**metadata(), "name": f"{next(_numbers)}-{'x' * 200}"}} for _ in range(100)]
        events = ({"type": event, "object": added} for added in named for event in ("ADDED", "DELETED"))
        yield b"".join(json.dumps(event).encode() + b"\n" for event in events)


EVENTS = {"watch": events, "churn": churn}


async def main(attack: str) -> None:
    authority = Authority()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await (flood(attack, reader, writer) if attack in FLOODS else serve(attack, reader, writer))
        writer.close()

    context = authority.server(["h2"] if attack in FLOODS else ["http/1.1"])
    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    sys.stdout.write(json.dumps({"url": url, "ca": authority.pem}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
