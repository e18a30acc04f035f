"""A client over HTTP/2, and requests with it."""

from collections.abc import Callable

import pytest
from hyperframe.frame import (
    Frame,
)

from kube.tests.integration.http.http2_peer import Accepted, Authority
from milo_kube.http.client import Client
from milo_kube.http.connection import Response
from milo_kube.http.errors import TransportError
from milo_kube.http.http2 import Http2Connection

OK_HEAD = b"\x88"  # HPACK of ":status: 200"


def client(authority: Authority, *, idle_s: float = 15.0) -> Client:
    return Client(authority.trusting, user_agent="tests", idle_s=idle_s, http2=Http2Connection)


async def got(
    using: Client,
    url: str,
    method: str = "GET",
    *,
    body: bytes | None = None,
    proxy: str | None = None,
    silence_s: float = 10,
) -> tuple[int, bytes]:
    async with using.request(
        method,
        url,
        headers={"Authorization": "Bearer secret"},
        body=body,
        proxy=proxy,
        connect_timeout_s=10,
        silence_s=silence_s,
    ) as response:
        return response.status, await rest(response)


async def rest(response: Response) -> bytes:
    read = b""
    while chunk := await response.read(10):
        read += chunk
    return read


async def failed(using: Client, url: str, method: str = "GET") -> TransportError:
    with pytest.raises(TransportError) as raised:
        await got(using, url, method)
    return raised.value


def ok(accepted: Accepted, stream: int) -> None:
    accepted.answer(stream, b"ok")


def framed(*frames: Frame) -> Callable[[Accepted, int], None]:
    """Send these frames instead of a response; a frame with an odd stream ID is sent on the stream of the request."""

    def script(accepted: Accepted, stream: int) -> None:
        for frame in frames:
            frame.stream_id = stream if frame.stream_id % 2 else frame.stream_id
        accepted.send(b"".join(frame.serialize() for frame in frames))

    return script
