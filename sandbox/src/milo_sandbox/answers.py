"""HTTP responses: JSON, errors, and lists that are streamed from serialized objects."""

import asyncio
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from aiohttp import web

from milo_sandbox.records import encode
from milo_sandbox.refusals import PlainError, RefusalError

HEADERS = {"Cache-Control": "no-cache, private"}
_GZIP_FROM = 128 * 1024  # Minimum bytes of a compressed response, as in a real server.
_PIECE = 256 * 1024


def document(value: Any, status: int = 200) -> web.Response:
    return body(encode(value), status)


def body(data: bytes, status: int = 200) -> web.Response:
    return web.Response(body=data, status=status, content_type="application/json", headers=HEADERS)


def text(data: str, status: int = 200) -> web.Response:
    return web.Response(text=data, status=status, headers=HEADERS)


def refused(error: RefusalError | PlainError) -> web.Response:
    answer = text(error.text, error.code) if isinstance(error, PlainError) else document(error.document(), error.code)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


async def parts(request: web.BaseRequest, data: Iterable[bytes]) -> web.StreamResponse:
    """Stream a large body in pieces, compressed if the client accepts it."""
    pieces = _pieces(data)
    first = b"".join(islice(pieces, 1))
    if len(first) < _GZIP_FROM:
        return body(first)
    response = web.StreamResponse(headers=HEADERS | {"Content-Type": "application/json"})
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        response.headers["Content-Encoding"] = "gzip"
        compressor = zlib.compressobj(level=1, wbits=31)
        await response.prepare(request)
        for piece in chain((first,), pieces):
            # Compress in a thread, because compression takes most of the time and zlib releases the GIL.
            if squeezed := await asyncio.to_thread(compressor.compress, piece):
                await response.write(squeezed)
        await response.write_eof(compressor.flush())
        return response
    await response.prepare(request)
    for piece in chain((first,), pieces):
        await response.write(piece)
    await response.write_eof()
    return response


def _pieces(data: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts into pieces of at least `_PIECE` bytes, except the last."""
    gathered: list[bytes] = []
    size = 0
    for part in data:
        gathered.append(part)
        size += len(part)
        if size >= _PIECE:
            yield b"".join(gathered)
            gathered.clear()
            size = 0
    yield b"".join(gathered)
