"""Reading the body of a response, with limits on its size and on silence."""

from collections.abc import AsyncGenerator, Callable, Mapping

from milo_kube.http.connection import Response
from milo_kube.http.errors import TransportError


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
        """Return the body. Raises TransportError if it is larger than `limit`. `arrived` counts its bytes."""
        chunks: list[bytes] = []
        size = 0
        while chunk := await self._response.read(self._silence_s):
            chunks.append(chunk)
            size += len(chunk)
            arrived(len(chunk))
            if size > limit:
                message = f"{self._response.origin} answered with more than {limit} bytes, the limit for a response"
                raise TransportError("closed", message)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
