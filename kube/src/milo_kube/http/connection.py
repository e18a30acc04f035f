"""The common part of HTTP/1.1 and HTTP/2: a connection, and a response whose body is read while it arrives."""

import asyncio
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from enum import Enum
from io import BytesIO
from typing import Protocol

from milo_kube.http.errors import TransportError
from milo_kube.http.headers import Headers, SentHeaders

OVERHEAD_LIMIT = 64 << 10
"""Maximum bytes of headers, chunk sizes and trailers that may arrive for which no body data has paid."""
_PIECE_BYTES = 64
"""Counted as overhead for each piece of a body: it takes a microsecond. A byte of data pays for itself and another."""
_UNZIP_AT_ONCE = 64 << 10
"""Hundreds of responses can arrive at one moment: each takes a third of a millisecond, and this much memory."""
_HEADER_VALUE = re.compile(r"[^\r\n\0]*")


class Refusal(Enum):
    """Why a server refused a request without processing it. Such a request can be sent again."""

    TRY_AGAIN = "try again"
    REQUIRES_HTTP_1 = "requires HTTP/1.1"


class Connection(Protocol):
    """A connection to a server, over which requests are sent."""

    requests: int
    handshake_bytes: int
    """Number of bytes that the server has sent for the TLS handshake."""

    @property
    def is_multiplexed(self) -> bool:
        """Whether the connection carries several exchanges at the same time."""

    @property
    def is_usable(self) -> bool:
        """Whether the connection is open, and the server accepts further requests on it."""

    @property
    def has_room(self) -> bool:
        """Whether one more request can be sent now."""

    @property
    def is_idle(self) -> bool:
        """Whether no exchange is running."""

    def send(self, method: str, target: str, headers: SentHeaders, body: bytes = b"") -> "Response":
        """Begin an exchange. Raises ValueError if a header is not valid."""

    async def ready(self) -> None:
        """Wait until requests can be sent. Raises TransportError."""

    def abort(self) -> None:
        """Close at once. Requests in flight fail."""


def close_at_once(transport: asyncio.Transport | None) -> None:
    """Close a transport: send the TLS close_notify, and do not wait for the peer's."""
    if transport is not None:
        transport.close()
        transport.abort()


class Response(ABC):
    """A response whose body is read while it arrives."""

    __slots__ = (
        *("_body", "_failure", "_has_head", "_is_complete", "_overhead", "_unpaid_zipped", "_unzip", "_waiter"),
        *("has_begun", "headers", "is_reusable", "origin", "refusal", "status"),
    )

    def __init__(self, origin: str) -> None:
        self.headers = Headers()
        self.status = 0
        self.has_begun = False
        """Whether at least one byte was received."""
        self.is_reusable = False
        """Whether the response was received completely, and the connection can be reused."""
        self.refusal: Refusal | None = None
        self.origin = origin
        self._has_head = False
        self._is_complete = False
        self._failure: TransportError | None = None
        self._overhead = 0
        self._body = bytearray()
        """What has not been read yet, in one piece: a server can send it two bytes at a time."""
        self._unzip: zlib._Decompress | None = None
        self._unpaid_zipped = 0
        """Number of compressed bytes that have brought no data: no limit of a body's size counts them."""
        self._waiter: asyncio.Future[None] | None = None

    async def head(self, silence_s: float | None) -> None:
        """Wait for status and headers. Raises TransportError."""
        while not self._has_head:
            if self._failure is not None:
                raise self._failure.copy()
            await self._more(silence_s)

    async def read(self, silence_s: float | None = None) -> bytes:
        """Return the next piece of the body, of any size; empty at its end. Raises TransportError."""
        while True:
            if self._unzip is not None and self._unzip.unconsumed_tail:
                await asyncio.sleep(0)  # a few bytes can expand to gigabytes: yield to other tasks
                return self._unzipped(self._unzip.unconsumed_tail)
            if self._body:
                data = bytes(self._body)
                self._body.clear()
                self._consumed(len(data))
                if self._unzip is None:
                    return data
                if piece := self._unzipped(data):
                    return piece
                continue
            if self._failure is not None:
                raise self._failure.copy()
            if self._is_complete:
                return self._end_of_zipped()
            await self._more(silence_s)

    @abstractmethod
    def close(self) -> None:
        """End the exchange, even if the body was not read to its end."""

    @abstractmethod
    def _consumed(self, size: int) -> None:
        """Called when `size` bytes of the body were read, so that the server may send more."""

    # --- called by subclasses while the response is received ---

    def _received_head(self, status: int) -> None:
        self.status = status
        self._has_head = True
        encoding = self.headers.get("Content-Encoding", "identity").lower()
        if encoding in ("gzip", "x-gzip"):
            self._unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        elif encoding != "identity":
            self._fail(TransportError("closed", f"{self.origin} used a content encoding that was not requested"))

    def _received_body(self, body: bytes) -> None:
        self._overhead = max(0, self._overhead + _PIECE_BYTES - 2 * len(body))
        self._body += body

    def _received_overhead(self, size: int) -> bool:
        """Count `size` bytes that do not belong to the body; return whether there were too many."""
        self._overhead += size
        if self._overhead <= OVERHEAD_LIMIT:
            return False
        self._refuse_overhead()
        return True

    def _refuse_overhead(self) -> None:
        what = "headers, trailers or chunk sizes, or a body in pieces of a few bytes"
        self._fail(TransportError("closed", f"{self.origin} sent more than {OVERHEAD_LIMIT} bytes of {what}"))

    def _fail(self, error: TransportError) -> TransportError:
        self._failure = self._failure or error.copy()
        self.is_reusable = False
        return error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- internals ---

    async def _more(self, silence_s: float | None) -> None:
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        try:
            if silence_s is None:  # saves the cost of a timer
                await waiter
            else:
                async with asyncio.timeout(silence_s):
                    await waiter
        except TimeoutError:
            raise TransportError("timeout", f"{self.origin} sent nothing for {silence_s:g} s") from None
        finally:
            self._waiter = None

    def _unzipped(self, data: bytes) -> bytes:
        unzip = self._unzip
        assert unzip is not None
        try:
            if not unzip.eof:
                piece = unzip.decompress(data, _UNZIP_AT_ONCE)
                if not unzip.unused_data:
                    taken = len(data) - len(unzip.unconsumed_tail)
                    self._unpaid_zipped = max(0, self._unpaid_zipped + taken - 2 * len(piece))
                    if self._unpaid_zipped > OVERHEAD_LIMIT:
                        raise self._fail(TransportError("closed", f"{self.origin} sent a gzip body without data"))
                    return piece
        except zlib.error:
            raise self._fail(TransportError("closed", f"{self.origin} sent a body that is not valid gzip")) from None
        # The decompressor would keep all data after the end, and copy it for each piece.
        raise self._fail(TransportError("closed", f"{self.origin} sent data after the end of a gzip body"))

    def _end_of_zipped(self) -> bytes:
        if self._unzip is not None and not self._unzip.eof:
            raise self._fail(TransportError("closed", f"{self.origin} sent a truncated gzip body"))
        return b""


def check_header(name: str, value: str) -> None:
    """Raise ValueError if the value contains a character that would end the header."""
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"the header {name} contains a line break or NUL")


class ResponseBody:
    """A response whose body is read in pieces, each of which has to arrive within `silence_s`."""

    __slots__ = ("_response", "_silence_s")

    def __init__(self, response: Response, silence_s: float | None) -> None:
        self._response = response
        self._silence_s = silence_s

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while chunk := await self._response.read(self._silence_s):
            yield chunk
            del chunk  # free it: the next chunk may not arrive for hours

    async def read_error(self, limit: int) -> bytes:
        """Return the beginning of the body."""
        body = bytearray()
        while len(body) < limit and (chunk := await self._response.read(self._silence_s)):
            body += chunk
        return bytes(body[:limit])

    async def read(self, limit: int, arrived: Callable[[int], None] = lambda _: None) -> bytes:
        """Return the body. Raises TransportError if it is larger than `limit`.

        `arrived` is called with the size of each piece.
        """
        body = BytesIO()  # it returns its content without a copy, which would take as much memory again
        while chunk := await self._response.read(self._silence_s):
            body.write(chunk)
            arrived(len(chunk))
            if body.tell() > limit:
                message = f"{self._response.origin} answered with more than {limit} bytes, the limit for a response"
                raise TransportError("too_large", message)
        return body.getvalue()
