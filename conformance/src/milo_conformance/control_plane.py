"""A fake API server of a cluster, to which a client sends requests with its credential."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from milo_conformance.certificates import Authority
from milo_conformance.daemon import kubeconfig
from milo_discovery.v1 import discovery_pb2 as pb

_HOST = "127.0.0.1"
_LIST = {"kind": "NamespaceList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}


class ScriptedControlPlane:
    """An API server that answers each request with an empty list, or with a redirect."""

    def __init__(self) -> None:
        self.redirect: tuple[int, str] | None = None
        """The status of the redirect, and the server to which it leads; None: answer with an empty list."""
        self.tokens: list[str] = []
        """The Authorization header of each request; empty without one."""
        self._authority = Authority()
        self._port = 0

    async def __aenter__(self) -> ScriptedControlPlane:
        self._server = await asyncio.start_server(self._answer, _HOST, 0, ssl=self._context())
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"https://{_HOST}:{self._port}"

    def kubeconfig(self, name: str, token: str) -> pb.Kubeconfig:
        return kubeconfig(name, token, server=self.url, authority=self._authority.certificate)

    def _context(self) -> ssl.SSLContext:
        pair = self._authority.server(_HOST)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as directory:
            file = Path(directory) / "server.pem"
            file.write_bytes(pair.key + pair.certificate)
            context.load_cert_chain(file)
        return context

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {key.lower(): value.strip() for key, _, value in (field.partition(":") for field in fields)}
            self.tokens.append(headers.get("authorization", ""))
            status, location, body = 200, "", json.dumps(_LIST)
            if self.redirect is not None:
                status, server = self.redirect
                location, body = f"Location: {server}{line.split()[1]}\r\n", ""
            writer.write(
                f"HTTP/1.1 {status} Scripted\r\n{location}Content-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
            )
            await writer.drain()
        writer.close()
