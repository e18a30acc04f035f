"""TCP listeners: TLS 1.3 with certificates on both sides."""

import asyncio
import datetime as dt
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.connections.acceptor import HANDSHAKE_S
from milo_discoveryd.server.connections.connection_rates import ConnectRateLimiter
from milo_discoveryd.server.connections.listener import Listener, TcpEndpoint
from milo_discoveryd.server.connections.proxy import ProxySide
from milo_discoveryd.server.connections.tls_certificates import ServerTls
from milo_kube.http.tls import CLIENT_BYTES
from milo_kube.rate_limit import Rate
from tests.integration.grpc_server.conftest import Harness, a_harness, ready
from tests.integration.grpc_server.test_peer_credentials import acceptor, callers, proxy_sides, reason
from tests.support.certificates import EDI_PARTY_NAME, Authority, Pair
from tests.support.eventually import eventually

__all__ = ["callers", "proxy_sides"]

SPIFFE = x509.UniformResourceIdentifier("spiffe://example.com/ns/milo/sa/operator")


class TlsFiles:
    """The certificates of a daemon and of its clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = Authority("clients")
        self.serving = Authority("servers")
        self.renew()

    def renew(self, life: dt.timedelta = dt.timedelta(hours=1)) -> None:
        """Replace the files one by one: in between, certificate and key do not match."""
        certificate, key = self.serving.server(life).write(self.directory, "new")
        certificate.rename(self.directory / "tls.crt")
        key.rename(self.directory / "tls.key")
        self.trust(self.ca)

    @property
    def expires_at(self) -> float:
        """When the server certificate expires."""
        certificate = x509.load_pem_x509_certificate((self.directory / "tls.crt").read_bytes())
        return certificate.not_valid_after_utc.timestamp()

    def trust(self, ca: Authority) -> None:
        (self.directory / "ca.new").write_bytes(ca.pem)
        (self.directory / "ca.new").rename(self.directory / "ca.crt")

    @property
    def tls(self) -> ServerTls:
        paths = (self.directory / name for name in ("tls.crt", "tls.key", "ca.crt"))
        return ServerTls(**dict(zip(("certificate", "key", "client_ca"), paths, strict=True)))

    def credentials(self, pair: Pair | None) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.serving.pem, None if pair is None else pair.key, None if pair is None else pair.certificate
        )


@pytest.fixture
def tls_files(tmp_path: Path) -> TlsFiles:
    return TlsFiles(tmp_path)


@asynccontextmanager
async def tcp(tls_files: TlsFiles, *, connections: int = 100) -> AsyncIterator[Harness]:
    listener = Listener(name="net", address=TcpEndpoint("127.0.0.1", 0), tls=tls_files.tls, connections=connections)
    async with a_harness(tls_files.directory, listeners=[listener]) as harness:
        [harness.address] = harness.server.addresses
        harness.listed(ready("alpha"))
        yield harness


@asynccontextmanager
async def client(harness: Harness, credentials: grpc.ChannelCredentials) -> AsyncIterator[DiscoveryServiceStub]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(harness.address, credentials, options=options) as channel:
        yield DiscoveryServiceStub(channel)


async def refusal(harness: Harness, credentials: grpc.ChannelCredentials) -> grpc.aio.AioRpcError:
    async with client(harness, credentials) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListClusters(pb.ListClustersRequest())
    return caught.value


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tls.crt", b"nothing", "certificate {}/tls.crt has no certificate in PEM"),
        ("tls.key", b"nothing", "key {}/tls.key has no private key in PEM"),
        ("tls.key", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "key {}/tls.key is encrypted"),
        ("tls.key", None, "key {0}/tls.key does not belong to certificate {0}/tls.crt"),
        ("ca.crt", b"nothing", "client_ca {}/ca.crt has no certificate in PEM"),
    ],
    ids=["certificate", "key", "encrypted", "mismatch", "client CA"],
)
def test_startup_error_names_invalid_tls_file(
    tls_files: TlsFiles, file: str, content: bytes | None, words: str
) -> None:
    path = tls_files.directory / file
    path.write_bytes(tls_files.serving.server().key if content is None else content)
    with pytest.raises(StartError, match=re.escape(words.format(tls_files.directory))):
        tls_files.tls.context()


async def test_names_in_a_client_certificate_identify_the_caller(callers: list[Caller], tls_files: TlsFiles) -> None:
    pair = tls_files.ca.issue(SPIFFE, x509.DNSName("operator.example.com"))
    async with tcp(tls_files) as harness, client(harness, tls_files.credentials(pair)) as stub:
        assert len((await stub.ListClusters(pb.ListClustersRequest())).clusters) == 1
    [caller] = callers
    assert (caller.listener, caller.uid) == ("net", None)
    assert caller.sans == ("uri:spiffe://example.com/ns/milo/sa/operator", "dns:operator.example.com")
    assert caller.peer.startswith("ipv4:127.0.0.1:")


@pytest.mark.parametrize("wrong", ["none", "another CA", "expired", "for servers"])
async def test_connection_without_valid_certificate_is_refused(
    callers: list[Caller], tls_files: TlsFiles, wrong: str
) -> None:
    pair = {
        "none": None,
        "another CA": Authority("clients").issue(SPIFFE),
        "expired": tls_files.ca.issue(SPIFFE, life=-dt.timedelta(minutes=1)),
        "for servers": tls_files.ca.issue(SPIFFE, use=ExtendedKeyUsageOID.SERVER_AUTH),
    }[wrong]
    async with tcp(tls_files) as harness:
        error = await refusal(harness, tls_files.credentials(pair))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert not acceptor(harness)._peers
    assert {line["reason"] for line in harness.audited} == {"CONNECTION_REFUSED"}
    assert {line["caller"]["listener"] for line in harness.audited} == {"net"}
    assert callers == []


async def test_certificate_without_san_is_unauthenticated(callers: list[Caller], tls_files: TlsFiles) -> None:
    async with tcp(tls_files) as harness:
        error = await refusal(harness, tls_files.credentials(tls_files.ca.issue(common_name="operator.example.com")))
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "NO_NAME")
    assert [line["reason"] for line in harness.audited] == ["NO_NAME"]
    assert callers == []


async def test_accepted_connections_have_tcp_nodelay(tls_files: TlsFiles, proxy_sides: list[ProxySide]) -> None:
    async with tcp(tls_files) as harness, client(harness, tls_files.credentials(tls_files.ca.issue(SPIFFE))) as stub:
        await stub.ListClusters(pb.ListClustersRequest())
        connected = proxy_sides[0].transport.get_extra_info("socket")
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def client_context(tls_files: TlsFiles, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(cadata=tls_files.serving.pem.decode())
    context.load_cert_chain(*tls_files.ca.issue(SPIFFE).write(tls_files.directory, "client"))
    context.set_alpn_protocols(["h2"])
    return context


async def test_tls_before_1_3_is_refused(tls_files: TlsFiles) -> None:
    async with tcp(tls_files) as harness:
        host, _, port = harness.address.partition(":")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=client_context(tls_files, ssl.TLSVersion.TLSv1_2))
        await eventually(lambda: harness.audited)
        assert "UNSUPPORTED_PROTOCOL" in str(harness.audited[0]["problem"])
        _, writer = await asyncio.open_connection(
            host, int(port), ssl=client_context(tls_files, ssl.TLSVersion.TLSv1_3)
        )
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()


async def test_keys_are_agreed_on_by_elliptic_curves_alone(tls_files: TlsFiles) -> None:
    """Found by an attacker without a certificate: each recorded ClientHello for 8,192 bits took the loop 160 ms."""
    context = client_context(tls_files, ssl.TLSVersion.TLSv1_3)
    context.set_ecdh_curve("ffdhe8192")
    async with tcp(tls_files) as harness:
        host, _, port = harness.address.partition(":")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=context)
        await eventually(lambda: harness.audited)
    assert "NO_SUITABLE_KEY_SHARE" in str(harness.audited[0]["problem"])


async def test_plaintext_connection_is_refused(callers: list[Caller], tls_files: TlsFiles) -> None:
    async with tcp(tls_files) as harness:
        async with grpc.aio.insecure_channel(harness.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await DiscoveryServiceStub(channel).ListClusters(pb.ListClustersRequest())
        await eventually(lambda: not len(acceptor(harness)))
    assert {line["reason"] for line in harness.audited} == {"CONNECTION_REFUSED"}
    assert callers == []


async def test_server_certificate_is_renewed_without_interruption(tls_files: TlsFiles) -> None:
    pair = tls_files.ca.issue(SPIFFE)
    async with tcp(tls_files) as harness, client(harness, tls_files.credentials(pair)) as staying:
        call = staying.WatchClusters(pb.WatchClustersRequest())
        assert (await call.read()).synced
        before = await shown(harness)
        tls_files.serving = Authority("servers")
        tls_files.renew()
        for _ in range(5):
            async with client(harness, tls_files.credentials(pair)) as stub:
                await stub.ListClusters(pb.ListClustersRequest())
        assert await shown(harness) != before
        acceptor(harness).check()
        harness.seen(ready("beta"))
        assert [event.cluster.name for event in (await call.read()).events] == ["beta"]
        call.cancel()


async def test_expiry_of_the_server_certificate_is_a_metric(tls_files: TlsFiles) -> None:
    async with tcp(tls_files) as harness:

        def expiry() -> float | None:
            name = "milo_discoveryd_credential_expiry_timestamp_seconds"
            return harness.metrics.registry.get_sample_value(name, {"credential_issuer": "listener net"})

        assert expiry() == tls_files.expires_at
        tls_files.renew(dt.timedelta(hours=5))
        acceptor(harness).check()
        assert expiry() == tls_files.expires_at


async def test_partial_certificate_renewal_is_ignored(tls_files: TlsFiles) -> None:
    pair = tls_files.ca.issue(SPIFFE)
    async with tcp(tls_files) as harness:
        certificate, key = tls_files.serving.server().write(tls_files.directory, "half")
        certificate.rename(tls_files.directory / "tls.crt")
        async with client(harness, tls_files.credentials(pair)) as stub:
            await stub.ListClusters(pb.ListClustersRequest())
        key.rename(tls_files.directory / "tls.key")
        async with client(harness, tls_files.credentials(pair)) as stub:
            await stub.ListClusters(pb.ListClustersRequest())


def test_certificate_with_a_name_that_cannot_be_read_is_renewed(tls_files: TlsFiles) -> None:
    tls = tls_files.tls
    former = tls.context()
    certificate, key = tls_files.serving.issue(encoded_names=EDI_PARTY_NAME).write(tls_files.directory, "odd")
    certificate.rename(tls_files.directory / "tls.crt")
    key.rename(tls_files.directory / "tls.key")
    assert tls.context() is not former


async def test_client_ca_change_closes_connections_of_the_old_ca(tls_files: TlsFiles) -> None:
    old, new = tls_files.ca.issue(SPIFFE), Authority("clients, later")
    async with tcp(tls_files) as harness, client(harness, tls_files.credentials(old)) as stub:
        call = stub.WatchClusters(pb.WatchClustersRequest())
        assert (await call.read()).synced
        tls_files.trust(new)
        acceptor(harness).check()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert (await refusal(harness, tls_files.credentials(old))).code() is grpc.StatusCode.UNAVAILABLE
        async with client(harness, tls_files.credentials(new.issue(SPIFFE))) as another:
            await another.ListClusters(pb.ListClustersRequest())


async def test_connection_is_closed_when_client_certificate_expires(tls_files: TlsFiles) -> None:
    brief = tls_files.ca.issue(SPIFFE, life=dt.timedelta(seconds=2))
    async with tcp(tls_files) as harness, client(harness, tls_files.credentials(brief)) as stub:
        call = stub.WatchClusters(pb.WatchClustersRequest())
        assert (await call.read()).synced
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_connection_is_closed_when_the_wall_clock_passes_the_expiry_of_its_certificate(
    tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, began = tls_files.ca.issue(SPIFFE, life=dt.timedelta(hours=1)), time.time()
    async with tcp(tls_files) as harness, client(harness, tls_files.credentials(pair)) as stub:
        call = stub.WatchClusters(pb.WatchClustersRequest())
        assert (await call.read()).synced
        acceptor(harness).check()
        assert len(acceptor(harness)) == 1
        monkeypatch.setattr(time, "time", lambda: began + 4000)
        acceptor(harness).check()
        await eventually(lambda: not len(acceptor(harness)))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()


async def test_oldest_connection_without_tls_handshake_is_evicted_for_a_newer_one(
    tls_files: TlsFiles,
) -> None:
    async with tcp(tls_files, connections=4) as harness:
        with ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port(harness)))) for _ in range(3)]
            silent[0].settimeout(20)
            assert await asyncio.to_thread(silent[0].recv, 1) == b""
            for _ in range(20):
                stack.enter_context(socket.create_connection(("127.0.0.1", port(harness))))
            async with client(harness, tls_files.credentials(tls_files.ca.issue(SPIFFE))) as stub:
                await stub.ListClusters(pb.ListClustersRequest())
            assert len(acceptor(harness)) <= 3
        assert "evicted" in str(harness.audited[0]["problem"])


async def test_tls_handshake_with_too_many_bytes_is_refused(tls_files: TlsFiles) -> None:
    length = 100_000  # OpenSSL waits for the whole message
    message = b"\x01" + length.to_bytes(3, "big") + bytes(CLIENT_BYTES)
    size = 8_192
    records = [message[start : start + size] for start in range(0, len(message), size)]
    async with tcp(tls_files) as harness:
        with socket.create_connection(("127.0.0.1", port(harness))) as endless:
            endless.settimeout(HANDSHAKE_S / 2)
            endless.sendall(b"".join(b"\x16\x03\x01" + len(record).to_bytes(2, "big") + record for record in records))
            with suppress(ConnectionError):
                while await asyncio.to_thread(endless.recv, 100):
                    pass
        await eventually(lambda: "too many bytes" in str(harness.audited[-1:]))


@pytest.mark.parametrize(("certificates", "is_accepted"), [(10, True), (24, False)])
async def test_client_may_send_a_chain_of_8_kib(tls_files: TlsFiles, certificates: int, is_accepted: bool) -> None:
    """OpenSSL keeps it for as long as the connection is open, in twenty times the memory."""
    pair = tls_files.ca.issue(SPIFFE)
    pair.certificate *= certificates
    async with tcp(tls_files) as harness:
        if is_accepted:
            async with client(harness, tls_files.credentials(pair)) as stub:
                await stub.ListClusters(pb.ListClustersRequest())
        else:
            await refusal(harness, tls_files.credentials(pair))
            await eventually(lambda: "too many bytes" in str(harness.audited))


async def test_connect_rate_limit_does_not_affect_established_connections(tls_files: TlsFiles) -> None:
    async with tcp(tls_files) as harness, client(harness, tls_files.credentials(tls_files.ca.issue(SPIFFE))) as stub:
        call = stub.WatchClusters(pb.WatchClustersRequest())
        assert (await call.read()).synced
        acceptor(harness)._rate_limiter = ConnectRateLimiter(Rate(per_second=0.01, burst=2))
        for expected in ("", "", "rate limit"):
            with socket.create_connection(("127.0.0.1", port(harness))) as bad:
                bad.sendall(b"no TLS at all")
                bad.settimeout(20)
                with suppress(ConnectionError):
                    while await asyncio.to_thread(bad.recv, 100):
                        pass
            await eventually(lambda: harness.audited)
            assert expected in str(harness.audited[-1]["problem"])
        harness.seen(ready("beta"))
        assert [event.cluster.name for event in (await call.read()).events] == ["beta"]
        call.cancel()


async def test_non_grpc_connection_counts_as_failed(tls_files: TlsFiles) -> None:
    async with tcp(tls_files) as harness:
        acceptor(harness)._rate_limiter = ConnectRateLimiter(Rate(per_second=0.01, burst=2))
        for expected in ("gRPC closed", "rate limit"):
            with suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port(harness), ssl=client_context(tls_files), server_hostname="localhost"
                )
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
                while await reader.read(65_536):
                    pass
                writer.close()
            await eventually(lambda wanted=expected: wanted in str(harness.audited[-1:]))


async def test_tls_listener_has_no_reflection(tls_files: TlsFiles) -> None:
    async with (
        tcp(tls_files) as harness,
        grpc.aio.secure_channel(harness.address, tls_files.credentials(tls_files.ca.issue(SPIFFE))) as channel,
    ):
        ask = channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_port_in_use_is_refused(tls_files: TlsFiles) -> None:
    async with tcp(tls_files) as harness:
        taken = TlsFiles(tls_files.directory)
        listener = Listener(name="net", address=TcpEndpoint("127.0.0.1", port(harness)), tls=taken.tls)
        with pytest.raises(StartError, match=r"already in use.*another --listen"):
            async with a_harness(tls_files.directory, listeners=[listener]):
                pass


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key", "ca.crt"])
async def test_startup_error_names_missing_tls_file(tls_files: TlsFiles, missing: str) -> None:
    (tls_files.directory / missing).unlink()
    with pytest.raises(StartError, match=rf"{missing} cannot be read"):
        tls_files.tls.context()


def port(harness: Harness) -> int:
    return int(harness.address.rpartition(":")[2])


async def shown(harness: Harness) -> str:
    """Return the certificate that the server presents now."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port(harness)))
