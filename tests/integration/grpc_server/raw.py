"""A raw HTTP/2 client, for frames that no gRPC library sends."""

import asyncio
import socket
import ssl
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.settings import SettingCodes, Settings

METHOD = "/milo.discovery.v1.DiscoveryService/"


def headers(method: str) -> list[tuple[str, str]]:
    path = method if method.startswith("/") else METHOD + method
    return [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
        ("te", "trailers"), ("content-type", "application/grpc"),
    ]  # fmt: skip


class Raw:
    """A raw connection, which reads only on request."""

    def __init__(self, connected: socket.socket | ssl.SSLSocket) -> None:
        self.socket = connected
        self.connection = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )

    @classmethod
    async def unix(cls, path: Path) -> "Raw":
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(20)
        made.connect(str(path))
        return cls(made)

    @classmethod
    async def tcp(cls, host: str, port: int) -> "Raw":
        return cls(socket.create_connection((host, port), timeout=20))

    @classmethod
    async def tls(cls, host: str, port: int, context: ssl.SSLContext) -> "Raw":
        plain = socket.create_connection((host, port), timeout=20)
        return cls(await asyncio.to_thread(context.wrap_socket, plain, server_hostname="localhost"))

    async def greet(self, *, window: int = 65_535) -> None:
        self.connection.local_settings = Settings(
            client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.ENABLE_PUSH: 0}
        )
        self.connection.initiate_connection()
        if window > 65_535:
            self.connection.increment_flow_control_window(window - 65_535)
        await self.flush()

    def call(self, method: str, message: bytes = b"", *more: tuple[str, str], end: bool = True) -> int:
        """Queue a call; `flush` sends it."""
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, [*headers(method), *more])
        self.connection.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message, end_stream=end)
        return stream

    async def flush(self) -> None:
        await self.send(self.connection.data_to_send())

    async def send(self, data: bytes) -> None:
        """Send queued data.

        Raises OSError when the server has closed the connection.
        """
        await asyncio.to_thread(self.socket.sendall, data)

    async def read(self) -> list[Event] | None:
        """Return the next events, or None at the end of the connection."""
        data = await asyncio.to_thread(self.socket.recv, 65_536)
        return self.connection.receive_data(data) if data else None

    def close(self) -> None:
        self.socket.close()
