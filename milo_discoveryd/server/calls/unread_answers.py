"""Sends the answers of calls that have one. gRPC would keep each for as long as its client does not read: hundreds
of pages of a list, of one caller, would exhaust the memory."""

import asyncio
from collections.abc import Callable

import grpc

from milo_discoveryd.server.calls.rpc_context import RpcContext

MAX_BYTES = 12 << 20
"""Maximum bytes of answers that are being sent at all listeners together. Each listener gets an equal share."""
ANSWER_S = 60.0
"""How long a client may take to read an answer."""


class UnreadAnswers:
    """The answers of one listener that are being sent.

    A client that reads too late loses its connection, with all that gRPC keeps for it. At the limit, so does the one
    whose answer has been sent for longest: well-behaved clients read at once.
    """

    def __init__(self, close: Callable[[RpcContext], None], listeners: int = 1, *, timeout_s: float = ANSWER_S) -> None:
        """`close` closes the connection of a call; `listeners` is how many listeners the daemon has."""
        self._close = close
        self._limit = MAX_BYTES // listeners
        self._timeout_s = timeout_s
        self._sizes: dict[asyncio.Timeout, int] = {}

    async def send(self, answer: bytes, context: RpcContext) -> None:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                while self._sizes and sum(self._sizes.values()) + len(answer) > self._limit:
                    oldest = next(iter(self._sizes))
                    del self._sizes[oldest]
                    oldest.reschedule(asyncio.get_running_loop().time())
                self._sizes[limit] = len(answer)
                try:
                    await context.write(answer)
                finally:
                    self._sizes.pop(limit, None)
        except TimeoutError:
            self._close(context)
        except grpc.aio.InternalError:  # the client has disconnected
            raise asyncio.CancelledError from None

    def __len__(self) -> int:
        return len(self._sizes)
