"""Waits for the request of each call. gRPC would wait without a limit of time or number, and keep what has arrived: a
client with thousands of requests that lack their last byte would exhaust the memory."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import grpc

from milo_discoveryd.server.calls.grpc_errors import CallError, InvalidRequestError, LateRequestError
from milo_discoveryd.server.calls.interceptor import Continuation, Handler, Refusals
from milo_discoveryd.server.calls.unread_answers import UnreadAnswers

MAX_ARRIVING = 500
"""Maximum number of requests that are arriving at all listeners together. Each listener gets an equal share."""
REQUEST_S = 10.0
"""How long a request may take to arrive. Clients send it together with the headers."""


class ArrivingRequests:
    """The requests of one listener that have not arrived completely.

    At the limit, the one that has been arriving for longest is given up for a new one: those of well-behaved clients
    arrive at once.
    """

    def __init__(self, listeners: int = 1, *, timeout_s: float = REQUEST_S) -> None:
        """`listeners` is how many listeners the daemon has."""
        self._limit = max(1, MAX_ARRIVING // listeners)
        self._timeout_s = timeout_s
        self._arriving: dict[asyncio.Timeout, None] = {}

    async def received(self, messages: Any) -> Any:
        """Return the request, the first of the messages. Raises CallError."""
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                if len(self._arriving) >= self._limit:
                    oldest = next(iter(self._arriving))
                    del self._arriving[oldest]
                    oldest.reschedule(asyncio.get_running_loop().time())
                self._arriving[limit] = None
                try:
                    # Closed, because gRPC's iterator refers to itself, and to its last message.
                    async with aclosing(aiter(messages)) as iterator:
                        async for message in iterator:
                            return message
                finally:
                    self._arriving.pop(limit, None)
        except TimeoutError:
            message = f"the request did not arrive within {self._timeout_s:g} s, or too many others were arriving"
            raise LateRequestError("REQUEST_INCOMPLETE", message) from None
        raise InvalidRequestError("request", "the call has none")

    def __len__(self) -> int:
        return len(self._arriving)


class ArrivalInterceptor(grpc.aio.ServerInterceptor):
    """Replaces the handlers of single requests and answers by handlers of streams: gRPC calls them at the headers, and
    they wait while an answer is sent."""

    def __init__(self, arriving: ArrivingRequests, answers: UnreadAnswers, refusals: Refusals) -> None:
        self._arriving = arriving
        self._answers = answers
        self._refusals = refusals

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method, serializer = handler_call_details.method, handler.response_serializer
        if handler.request_streaming:  # reflection
            call = handler.stream_stream
        elif handler.response_streaming:
            call = self._after_arrival(method, handler.unary_stream)
        else:
            call, serializer = self._after_arrival(method, self._answering(handler.unary_unary, serializer)), None
        return grpc.stream_stream_rpc_method_handler(
            self._taken(call),
            request_deserializer=handler.request_deserializer,
            response_serializer=serializer,
        )

    def _answering(self, call: Any, serialize: Any) -> Any:
        async def called(request: Any, context: Any) -> None:
            answer = await call(request, context)
            if answer is not None:
                answer = serialize(answer)
                await self._answers.send(answer, context)

        return called

    def _after_arrival(self, method: str, call: Any) -> Callable[[Any, Any], Any]:
        async def answered(messages: Any, context: Any) -> Any:
            try:
                request = await self._arriving.received(messages)
            except CallError as error:
                await self._refusals.answer(method.rpartition("/")[2], context, error)
                return None
            return await call(request, context)

        return answered

    def _taken(self, call: Any) -> Callable[[Any, Any], Any]:
        async def called(messages: Any, context: Any) -> Any:
            self._refusals.authenticator.taken(context)
            try:
                return await call(messages, context)
            except grpc.aio.AbortError as aborted:
                # gRPC keeps the error in the state of the call. Its frames have that state and the request, which would
                # stay until the garbage collector finds the cycle, with a megabyte for each large filter.
                del messages, context
                aborted.__context__ = aborted.__traceback__ = None
                raise

        return called
