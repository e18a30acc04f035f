"""Renews the ownership of a sharded daemon for the blocking client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import grpc

from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._ownership import Ownership, boottime
from milo_discovery.errors import DiscoveryError


class OwnershipKeeper:
    """Renewals in a thread of their own, so that they continue while the user of a watch does not iterate."""

    def __init__(
        self,
        ownership: Ownership,
        connect: Callable[[], grpc.Channel],
        metadata: Callable[[], tuple[tuple[str, str], ...]],
    ) -> None:
        self._ownership = ownership
        self._connect = connect
        self._metadata = metadata
        self._lock = threading.Lock()
        """Held while `_channel` changes, so that close() finds the channel of a renewal."""
        self._channel: grpc.Channel | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Renew once, and then every few seconds until the daemon is no longer sharded. A no-op while renewals run."""
        if self._thread is None or not self._thread.is_alive():
            self._ownership.sharded = True
            self._renew()
            self._thread = threading.Thread(target=self._keep, name="milo-discovery ownership", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._channel is not None:
                self._channel.close()  # ends the call in flight
        if self._thread is not None:
            self._thread.join()

    def _keep(self) -> None:
        while self._ownership.sharded and not self._closed.wait(self._ownership.next_renewal_s(boottime())):
            self._renew()

    def _renew(self) -> None:
        """Request how long the daemon owns its clusters. A failure leaves the last response to expire."""
        with suppress(DiscoveryError, grpc.RpcError, ValueError):  # ValueError: the channel was closed
            with self._lock:
                if self._closed.is_set():
                    return
                # A new channel per call, because one that lost its daemon waits long before it reconnects.
                self._channel = channel = self._connect()
            asked_at = boottime()
            try:
                response = DiscoveryServiceStub(channel).RenewOwnership(
                    pb.RenewOwnershipRequest(), timeout=self._ownership.timeout_s(asked_at), metadata=self._metadata()
                )
            finally:
                channel.close()
            self._ownership.renewed(response, asked_at)
