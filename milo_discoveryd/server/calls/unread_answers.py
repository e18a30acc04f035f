"""Sends the answers of calls that have one. gRPC would keep each for as long as its client does not read: hundreds
of pages of a list, of one caller, would exhaust the memory."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from milo_discoveryd.server.calls.rpc_context import RpcContext

MAX_BYTES = 12 << 20
"""Maximum bytes of answers that are being sent at all listeners together. Each listener gets an equal share."""
MAX_ANSWERS = 250
"""Maximum number of these answers. gRPC rejects the calls of all callers once too many have not ended."""
ANSWER_S = 60.0
"""How long a client may take to read an answer."""


class _UnreadAnswer(NamedTuple):
    size: int
    owners: tuple[str, ...]


class UnreadAnswers:
    """The answers of one listener that are being sent.

    A client that reads too late loses its connection, with all that gRPC keeps for it. At the limit, so does the one
    whose answer has been sent for longest, of the caller with most answers: well-behaved clients read at once.
    """

    def __init__(
        self,
        close: Callable[[RpcContext], None],
        owners: Callable[[RpcContext], Sequence[str]],
        listeners: int = 1,
        *,
        timeout_s: float = ANSWER_S,
    ) -> None:
        """`close` closes the connection of a call, and `owners` returns whose it is; `listeners` is how many listeners
        the daemon has."""
        self._close = close
        self._owners = owners
        self._most_bytes = MAX_BYTES // listeners
        self._most = max(1, MAX_ANSWERS // listeners)
        self._timeout_s = timeout_s
        self._answers: dict[asyncio.Timeout, _UnreadAnswer] = {}

    async def send(self, answer: bytes, context: RpcContext) -> None:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                while self._answers and self._is_full(len(answer)):
                    self._give_up_one()
                self._answers[limit] = _UnreadAnswer(len(answer), tuple(self._owners(context)))
                try:
                    await context.write(answer)
                finally:
                    self._answers.pop(limit, None)
        except TimeoutError:
            self._close(context)
        except grpc.aio.InternalError:  # the client has disconnected
            raise asyncio.CancelledError from None

    def _is_full(self, more: int) -> bool:
        unread = sum(answer.size for answer in self._answers.values())
        return len(self._answers) >= self._most or unread + more > self._most_bytes

    def _give_up_one(self) -> None:
        [(most, _)] = Counter(answer.owners for answer in self._answers.values()).most_common(1)
        oldest = next(limit for limit, answer in self._answers.items() if answer.owners == most)
        del self._answers[oldest]
        oldest.reschedule(asyncio.get_running_loop().time())

    def __len__(self) -> int:
        return len(self._answers)
