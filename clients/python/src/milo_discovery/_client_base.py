"""The common part of the async and the blocking client: settings, the unary calls' channel, and the open watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Generic, TypeVar

from milo_discovery._address import grpc_target
from milo_discovery._backoff import BackoffPolicy
from milo_discovery._client_credentials import ClientCredentials
from milo_discovery._shared_channel import SharedChannel

ChannelT = TypeVar("ChannelT")
WatchT = TypeVar("WatchT")

DEFAULT_TIMEOUT = timedelta(seconds=10)
# gRPC fails calls at once whose timeout is longer than 292 years, such as timedelta.max.
_LONGEST_S = timedelta(days=365).total_seconds()


class ClientBase(Generic[ChannelT, WatchT]):
    """Settings and state of a client; subclasses add the I/O."""

    def __init__(
        self,
        address: str | None,
        *,
        timeout: timedelta | None,
        backoff: BackoffPolicy | None,
        credentials: ClientCredentials | None,
        connect: Callable[[str], ChannelT] | None,
        open_channel: Callable[[str, ClientCredentials], ChannelT],
    ) -> None:
        self._target = grpc_target(address)
        self._credentials = ClientCredentials.from_environment() if credentials is None else credentials
        self._credentials.check(self._target)
        self._timeout = timeout
        self._backoff = backoff or BackoffPolicy()
        self._connect_to = connect or (lambda target: open_channel(target, self._credentials))
        self._shared_channel = SharedChannel(self._connect)
        self._watches: set[WatchT] = set()

    def _connect(self) -> ChannelT:
        return self._connect_to(self._target)

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout.total_seconds()


def time_left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline of `time.monotonic()`; None means no limit."""
    return None if deadline is None else min(deadline - time.monotonic(), _LONGEST_S)
