"""Opens gRPC channels to the daemon."""

from __future__ import annotations

import grpc

from milo_discovery._address import CHANNEL_OPTIONS
from milo_discovery._client_credentials import ClientCredentials


def open_channel(target: str, credentials: ClientCredentials) -> grpc.Channel:
    """Open a blocking channel."""
    channel_credentials = credentials.channel_credentials()
    if channel_credentials is None:
        return grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(target, channel_credentials, options=CHANNEL_OPTIONS)


def open_aio_channel(target: str, credentials: ClientCredentials) -> grpc.aio.Channel:
    """Open a channel on the running event loop."""
    channel_credentials = credentials.channel_credentials()
    if channel_credentials is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, channel_credentials, options=CHANNEL_OPTIONS)
