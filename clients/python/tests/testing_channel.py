"""Adapts gRPC's testing channel to asyncio: each call waits in a thread for the test's response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc


class AioTestingChannel:
    """The methods of a `grpc.aio.Channel` that the client uses."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *serializers: Any, **_: Any) -> Callable[..., Any]:
        call = self._channel.unary_unary(method, *serializers)

        async def send(request: Any, *, timeout: float | None, metadata: Any) -> Any:
            try:
                return await asyncio.to_thread(call, request, metadata=metadata)
            except grpc.RpcError as error:
                raise _aio_error(error) from None

        return send

    def unary_stream(self, method: str, *serializers: Any, **_: Any) -> Callable[..., _Stream]:
        call = self._channel.unary_stream(method, *serializers)
        return lambda request, *, metadata: _Stream(call(request, metadata=metadata))

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> AioTestingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class _Stream:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> Any:
        try:
            return await asyncio.to_thread(next, self._call, grpc.aio.EOF)
        except asyncio.CancelledError:
            self._call.cancel()
            raise
        except grpc.RpcError as error:
            raise _aio_error(error) from None


def _aio_error(error: Any) -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata(*error.trailing_metadata())
    return grpc.aio.AioRpcError(error.code(), grpc.aio.Metadata(), trailers, error.details())
