"""Calls whose client disconnects before the error is sent."""

import asyncio

import grpc
import pytest
from google.rpc import code_pb2, status_pb2

from milo_discoveryd.server.calls.interceptor import abort


class DisconnectedClient:
    """The context of a call whose client has disconnected."""

    async def abort_with_status(self, status: grpc.Status) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")


async def test_failing_call_is_canceled_if_its_client_disconnects_before_the_error_is_sent() -> None:
    with pytest.raises(asyncio.CancelledError):
        await abort(DisconnectedClient(), status_pb2.Status(code=code_pb2.UNAVAILABLE))
