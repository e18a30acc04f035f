"""The gRPC channel that unary calls share, and its replacement after a connection loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from milo_discovery._grpc_status import is_connection_loss
from milo_discovery.errors import StatusError


@dataclass(eq=False)
class SharedConnection:
    """A channel, the number of calls in flight on it, and whether a call has succeeded on it."""

    channel: grpc.aio.Channel
    calls_in_flight: int = 0
    has_succeeded: bool = False


class SharedChannel:
    """The channel of the unary calls.

    A channel whose connection was lost fails calls until its reconnect backoff is over, so the next call gets a new
    channel. A failed channel is closed after its last call: closing it earlier would cancel the calls in flight.
    """

    def __init__(self, connect: Callable[[], grpc.aio.Channel]) -> None:
        self._connect = connect
        self._current: SharedConnection | None = None
        self._retired: set[SharedConnection] = set()
        """The failed connections with calls in flight."""

    def acquire(self) -> SharedConnection:
        """Return the connection for a new call."""
        if self._current is None:
            self._current = SharedConnection(self._connect())
        self._current.calls_in_flight += 1
        return self._current

    def should_retry(self, connection: SharedConnection, failure: StatusError) -> bool:
        """Record a failed call; return whether to make it again on a new channel.

        A retry helps only if a call succeeded on this channel before: the daemon may have been restarted since. All
        calls are read-only or idempotent.
        """
        if not is_connection_loss(failure):
            return False
        if self._current is connection:
            self._current = None
            self._retired.add(connection)
        return connection.has_succeeded

    def release(self, connection: SharedConnection) -> grpc.aio.Channel | None:
        """Record the end of a call; return the channel, for the caller to close, if it failed and has no more calls."""
        connection.calls_in_flight -= 1
        if connection is self._current or connection.calls_in_flight:
            return None
        self._retired.discard(connection)
        return connection.channel

    def close(self) -> list[grpc.aio.Channel]:
        """Return all channels, for the caller to close, which cancels the calls in flight."""
        connections = [*self._retired, *([] if self._current is None else [self._current])]
        self._retired.clear()
        self._current = None
        return [connection.channel for connection in connections]
