"""API servers of tenants that attack what connects to them, and the kubeconfigs that tenants' Secrets have of them."""

import asyncio
import datetime as dt
import gzip
import json
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from milo_sandbox import kubeconfigs
from tests.support.certificates import Authority, Pair
from tests.support.giant_keys import INTEGER, SEQUENCE, field, pem
from tests.support.tls_attacker import TlsAttacker, tls13

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EMPTY_NAMES = [x509.DNSName("")] * 6_000
"""In a certificate, they take 12 KiB, and 54 times as much in OpenSSL."""
_JUNK = b"x" * (256 * 1024)
_JUNK_PIECES = 96
"""24 MiB of `_JUNK`."""


def kubeconfig(server: str, authorities: bytes = b"", pair: Pair | None = None) -> str:
    """Return a kubeconfig with a token or, with `pair`, a client certificate."""
    user = {"token": "a-token"}
    if pair is not None:
        user = {
            "client-certificate-data": b64encode(pair.certificate).decode(),
            "client-key-data": b64encode(pair.key).decode(),
        }
    return json.dumps(kubeconfigs.kubeconfig(server=server, ca_pem=authorities, user=user, name="a"))


class TenantServers:
    """Servers of one authority, at one port of several loopback addresses; `connections` counts what they accept."""

    def __init__(
        self, directory: Path, serve: Serve, *, addresses: int = 1, names: Iterable[x509.GeneralName] = ()
    ) -> None:
        """`names`: further names in their certificate."""
        self.directory = directory
        self.authority = Authority("a tenant's CA")
        self.hosts = [f"127.0.1.{number}" for number in range(1, addresses + 1)]
        self.pair = self.authority.issue(*(x509.IPAddress(IPv4Address(host)) for host in self.hosts), *names)
        self.certificate, self.key = self.pair.write(directory, "tenant")
        self.connections = 0
        self.port = 0
        self._serve = serve
        self._serving: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def kubeconfig(self, number: int, pair: Pair | None = None, authorities: bytes = b"") -> str:
        server = f"https://{self.hosts[number % len(self.hosts)]}:{self.port}/c-{number}"
        return kubeconfig(server, self.authority.pem + authorities, pair)

    @asynccontextmanager
    async def listening(self, context: ssl.SSLContext | None = None) -> AsyncIterator["TenantServers"]:
        """Serve, without TLS if `context` is None."""
        with bound_together(self.hosts) as sockets:
            self.port = sockets[0].getsockname()[1]
            servers = [await asyncio.start_server(self._accept, sock=each, ssl=context) for each in sockets]
            try:
                yield self
            finally:
                for server in servers:
                    server.close()
                for writer in self._serving.values():
                    writer.transport.abort()
                if self._serving:
                    await asyncio.wait([*self._serving])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        serving = asyncio.current_task()
        assert serving is not None
        self._serving[serving] = writer
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        del self._serving[serving]
        await closed(writer)


@contextmanager
def bound_together(hosts: list[str]) -> Iterator[list[socket.socket]]:
    """Bind one port of all these addresses."""
    with ExitStack() as closing:
        sockets: list[socket.socket] = []
        for host in hosts:
            bound = closing.enter_context(
                socket.create_server((host, 0 if not sockets else sockets[0].getsockname()[1]))
            )
            sockets.append(bound)
        yield sockets


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class GzipBombs:
    """Answers each request with a gzip body and 24 MiB behind it, those of one moment together."""

    def __init__(self, together: int, within_s: float) -> None:
        body = gzip.compress(bytes(1 << 20))
        size = len(body) + len(_JUNK) * _JUNK_PIECES
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {size}\r\n\r\n"
        self._start = head.encode() + body
        self._together, self._within_s = together, within_s
        self._arrived = asyncio.Event()
        self.waiting = self.answered = self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.waiting += 1
        if self.waiting >= self._together:
            self._arrived.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._within_s):
                await self._arrived.wait()
        self._arrived.set()
        self.answered += 1
        writer.write(self._start)
        for _ in range(_JUNK_PIECES):
            if reader.at_eof():
                return
            writer.write(_JUNK)
            await writer.drain()
            await asyncio.sleep(0)  # a lost connection is noticed in another step of the event loop
            self.sent += len(_JUNK)


class KeyUpdateFlood:
    """Completes a TLS 1.3 handshake as either side, and then sends key updates alone."""

    def __init__(self, directory: Path, updates: int) -> None:
        self._directory, self._updates = directory, updates
        self._numbers = count()
        self.floods = self.sent = 0

    async def send(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext,
        server_name: str | None = None,
    ) -> None:
        """`context`: a new one, with a client's name of the server or None as a server."""
        keylog, is_server = self._directory / f"keys-{next(self._numbers)}", server_name is None
        if is_server:
            context.num_tickets = 0
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = tls13(context, keylog).wrap_bio(incoming, outgoing, server_side=is_server, server_hostname=server_name)
        is_done = False
        while not is_done:
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                is_done = True
            writer.write(outgoing.read())
            if not is_done:
                received = await reader.read(1 << 16)
                if not received:
                    return
                incoming.write(received)
        attacker = TlsAttacker(keylog, is_server=is_server)
        self.floods += 1
        with suppress(OSError):
            for _ in range(0, self._updates, 500):
                writer.write(attacker.key_updates(500))
                self.sent += 500
                await writer.drain()
                if writer.transport.is_closing():
                    return


class DheServer:
    """A server that offers finite-field Diffie-Hellman alone, and counts its handshakes."""

    def __init__(self, directory: Path) -> None:
        key = rsa.generate_private_key(65537, 2048)
        name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dhe")]), dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        certificate = made.sign(key, hashes.SHA256())
        self.authorities = certificate.public_bytes(serialization.Encoding.PEM)
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / "dhe.pem").write_bytes(plain + self.authorities)
        self._pem, self._parameters = directory / "dhe.pem", directory / "dhe.params"
        prime = Random(1).getrandbits(10_000) | 1 | 1 << 9_999
        numbers = (field(INTEGER, value.to_bytes(value.bit_length() // 8 + 1)) for value in (prime, 2))
        self._parameters.write_bytes(pem("DH PARAMETERS", field(SEQUENCE, *numbers)))
        self.shook = self.refused = 0

    def context(self, *, is_newest: bool) -> ssl.SSLContext:
        """Return a context with 10,000-bit parameters or, for TLS 1.3, with the largest group."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._pem)
        if is_newest:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.set_ecdh_curve("ffdhe8192")
        else:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("DHE-RSA-AES256-GCM-SHA384")
            context.load_dh_params(str(self._parameters))
        return context

    @asynccontextmanager
    async def listening(self, *, is_newest: bool) -> AsyncIterator[str]:
        """Serve in threads, since each handshake takes a second of CPU; the URL is yielded."""
        context = self.context(is_newest=is_newest)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            accepting = asyncio.create_task(self._accept(listener, context))
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
            accepting.cancel()
            await asyncio.wait([accepting])

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        listener.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            while True:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                tasks.create_task(asyncio.to_thread(self._shake, connection, context))

    def _shake(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        connection.settimeout(20)
        try:
            context.wrap_socket(connection, server_side=True).close()
            self.shook += 1
        except OSError:
            self.refused += 1
        finally:
            connection.close()


def handshake(url: str, authorities: bytes) -> tuple[Any, ...] | None:
    """Complete a handshake as an ordinary client of these authorities."""
    context = ssl.create_default_context(cadata=authorities.decode())
    context.set_ciphers("ALL:@SECLEVEL=0")
    port = int(url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)) as below,
        context.wrap_socket(below, server_hostname="127.0.0.1") as tls,
    ):
        return tls.cipher()
