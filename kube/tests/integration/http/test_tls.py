"""TLS connections whose peer is hostile: what one callback may cost, and what is held."""

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from milo_kube import costly_steps
from milo_kube.costly_steps import AT_ONCE_S, CHEAP_S, COSTLY_S, CostlySteps, Handshakes
from milo_kube.credential import ClientCertificate, CredentialError, Secret
from milo_kube.http.client import Client
from milo_kube.http.connection_memory import ConnectionMemory, CountedTls
from milo_kube.http.errors import TransportError
from milo_kube.http.tls import HANDSHAKE_BYTES, TlsTransport
from milo_kube.http.tls_records import RECORDS_AT_ONCE
from milo_kube.tls_identity import ClientContexts, TlsIdentity, as_file
from tests.support.certificates import Authority, Pair
from tests.support.eventually import eventually
from tests.support.giant_keys import GiantPair
from tests.support.tls_attacker import TlsAttacker, tls13


def loaded(context: ssl.SSLContext, pair: Pair) -> ssl.SSLContext:
    with as_file(pair.certificate + pair.key) as path:
        context.load_cert_chain(path)
    return context


class Below(asyncio.Transport):
    """A transport in memory, which the peer reads only if `sent` is emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.is_paused = self.is_closed = False

    def write(self, data: Any) -> None:
        self.sent += data

    def taken(self) -> bytes:
        taken, self.sent = self.sent, b""
        return taken

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Above(asyncio.Protocol):
    """A protocol that keeps what it receives."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)


class Connection:
    """A connection between a `TlsTransport` and an attacker, after its handshake."""

    def __init__(self, keylog: Path, *, is_server: bool) -> None:
        """`is_server`: whether the transport is the server's."""
        self._keylog = keylog
        self._is_server = is_server
        self.below, self.above = Below(), Above()

    async def connect(self) -> None:
        authority = Authority()
        server = loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authority.server())
        server.num_tickets = 0
        client = ssl.create_default_context(cadata=authority.pem.decode())
        own, peers = (server, client) if self._is_server else (client, server)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        attacking = tls13(peers, self._keylog).wrap_bio(
            incoming,
            outgoing,
            server_side=not self._is_server,
            server_hostname="localhost" if self._is_server else None,
        )
        self.tls = TlsTransport(lambda _: self.above, own, None if self._is_server else "localhost")
        self.tls.connection_made(self.below)
        shaking = asyncio.create_task(self.tls.handshake())
        is_done = False
        while not (is_done and shaking.done()):
            try:
                attacking.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                pass
            if outgoing.pending:
                self.tls.data_received(outgoing.read())
            await asyncio.sleep(0)
            incoming.write(self.below.taken())
        await shaking
        self.attacker = TlsAttacker(self._keylog, is_server=not self._is_server)

    @property
    def failure(self) -> str:
        return str(self.tls._failure)

    @property
    def received(self) -> bytes:
        return b"".join(self.above.pieces)


@pytest.fixture(params=[False, True], ids=["client", "server"])
async def connection(request: pytest.FixtureRequest, tmp_path: Path) -> Connection:
    made = Connection(tmp_path / "keys", is_server=request.param)
    await made.connect()
    return made


async def test_records_of_data_and_a_few_key_updates_are_read(connection: Connection) -> None:
    content = b"x" * 6_000
    for _ in range(3):
        connection.tls.data_received(connection.attacker.key_updates(20) + connection.attacker.data(content))
    await eventually(lambda: connection.received == content * 3)
    assert not connection.below.is_closed


async def test_flood_of_key_updates_ends_the_connection(connection: Connection) -> None:
    """Each costs new keys and a reply: 256 KiB of them took 0.2 s, and queued as much."""
    flood = connection.attacker.key_updates(9_000)
    began = time.thread_time()
    connection.tls.data_received(flood)
    assert time.thread_time() - began < 0.05
    assert connection.below.is_paused
    await eventually(lambda: connection.below.is_closed)
    assert connection.failure == "the peer sent too many TLS records without data"
    assert len(connection.below.sent) < 4 << 10


async def test_key_updates_with_a_little_data_end_the_connection(connection: Connection) -> None:
    flood = b"".join(connection.attacker.key_updates(10) + connection.attacker.data(b"x") for _ in range(100))
    connection.tls.data_received(flood)
    await eventually(lambda: connection.below.is_closed)
    assert connection.failure == "the peer sent too many TLS records without data"
    assert len(connection.received) < 5


async def test_key_updates_that_arrive_one_by_one_end_the_connection(connection: Connection) -> None:
    for _ in range(40):
        connection.tls.data_received(connection.attacker.key_updates(1))
    assert connection.failure == "the peer sent too many TLS records without data"


async def test_many_small_records_are_read_over_many_iterations_without_reading_more(connection: Connection) -> None:
    content = [b"%05d" % number for number in range(2_000)]
    connection.tls.data_received(b"".join(map(connection.attacker.data, content)))
    assert len(connection.above.pieces) <= RECORDS_AT_ONCE
    assert connection.below.is_paused
    await eventually(lambda: len(connection.above.pieces) == len(content))
    assert connection.received == b"".join(content)
    await eventually(lambda: not connection.below.is_paused)


async def test_nothing_is_decrypted_while_the_protocol_has_paused_reading(connection: Connection) -> None:
    connection.tls.pause_reading()
    assert connection.below.is_paused
    connection.tls.data_received(connection.attacker.data(b"data"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not connection.above.pieces
    connection.tls.resume_reading()
    await eventually(lambda: connection.received == b"data")
    assert not connection.below.is_paused


async def test_replies_of_tls_that_the_peer_does_not_read_stop_reading(connection: Connection) -> None:
    content = b"x" * 2_560
    flood = b"".join(connection.attacker.key_updates(10) + connection.attacker.data(content) for _ in range(100))
    connection.tls.pause_writing()  # as the transport below does above its high-water mark
    connection.tls.data_received(flood)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(connection.below.sent) < 4 << 10
    assert connection.below.is_paused
    connection.tls.resume_writing()
    await eventually(lambda: connection.received == content * 100)
    await eventually(lambda: not connection.below.is_paused)


async def test_data_is_read_while_the_peer_does_not_read(connection: Connection) -> None:
    """Such as a response that is sent before the request was read."""
    connection.tls.pause_writing()
    connection.tls.data_received(connection.attacker.data(b"too large"))
    assert connection.received == b"too large"
    assert not connection.below.is_paused


async def test_long_data_leave_openssl_a_buffer_of_one_record(connection: Connection) -> None:
    sizes = list[int]()
    connection.below.write = lambda data: sizes.append(len(data))  # type: ignore[method-assign]
    connection.tls.write(bytes(100 << 10))
    assert sum(sizes) > 100 << 10
    assert max(sizes) < 17 << 10


async def test_error_of_the_protocol_in_a_later_iteration_closes_the_connection(connection: Connection) -> None:
    raised: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))

    def fail(_: bytes) -> None:
        if len(connection.above.pieces) > 2 * RECORDS_AT_ONCE:
            raise RuntimeError("a defect")
        Above.data_received(connection.above, b"")

    connection.above.data_received = fail  # type: ignore[method-assign]
    connection.tls.data_received(b"".join(connection.attacker.data(b"x") for _ in range(500)))
    await eventually(lambda: connection.below.is_closed)
    assert [str(error) for error in raised] == ["a defect"]


# --- handshakes as a client ---


async def requested(server: ssl.SSLContext, context: Callable[[], ssl.SSLContext]) -> None:
    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server) as listening:
        url = f"https://localhost:{listening.sockets[0].getsockname()[1]}"
        async with (
            aclosing(Client(context, user_agent="tests")) as client,
            client.request("GET", url, headers={}, connect_timeout_s=10),
        ):
            pass


@pytest.mark.parametrize("group", ["ffdhe2048", "ffdhe8192"])
async def test_server_that_selects_finite_field_diffie_hellman_in_tls_1_3_is_refused(group: str) -> None:
    """With ffdhe8192, a handshake takes 120 ms of CPU time."""
    authority = Authority()
    server = loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authority.server())
    server.set_ecdh_curve(group)
    trusting = TlsIdentity(authorities=authority.pem, certificate=None).context()
    began = time.thread_time()
    with pytest.raises(TransportError, match="chose finite-field Diffie-Hellman: enable an elliptic curve there"):
        await requested(server, lambda: trusting)
    assert time.thread_time() - began < 0.1


@pytest.mark.parametrize("group", ["prime256v1", "secp384r1", "secp521r1", "X25519"])
async def test_server_that_selects_another_elliptic_curve_is_accepted(group: str) -> None:
    authority = Authority()
    server = loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authority.server())
    server.set_ecdh_curve(group)
    trusting = TlsIdentity(authorities=authority.pem, certificate=None).context()
    with pytest.raises(TransportError, match="closed the connection"):  # after the handshake
        await requested(server, lambda: trusting)


async def test_server_with_many_certificates_is_refused() -> None:
    """Each can take 6 ms to verify."""
    authority, pair = Authority(), Authority().server()
    pair.certificate *= HANDSHAKE_BYTES // len(pair.der) + 10
    server = loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
    trusting = TlsIdentity(authorities=authority.pem, certificate=None).context()
    with pytest.raises(TransportError, match="too many bytes before the TLS handshake"):
        await requested(server, lambda: trusting)


@pytest.mark.parametrize(("certificates", "kept"), [(1, 3), (28, 2)])
async def test_idle_connection_to_a_server_with_many_certificates_counts_more(certificates: int, kept: int) -> None:
    """OpenSSL keeps them, in a multiple of their size."""
    authority = Authority()
    pair = authority.server()
    pair.certificate *= certificates
    trusting = TlsIdentity(authorities=authority.pem, certificate=None).context()
    using = Client(lambda: trusting, user_agent="tests", memory=ConnectionMemory(1900 << 10))
    accepted = list[asyncio.StreamWriter]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        while await reader.read(1 << 16):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server) as listening, aclosing(using):
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        responses = [using.request("GET", url, headers={}, connect_timeout_s=10) for _ in range(3)]
        for response in responses:
            await (await response.__aenter__()).read(10)
        for response in responses:
            await response.__aexit__()
        await eventually(lambda: sum(not writer.is_closing() for writer in accepted) == kept)
        await using.aclose()


async def test_certificates_of_a_handshake_that_does_not_end_are_counted() -> None:
    authority = Authority()
    pair = authority.server()
    pair.certificate *= 20
    trusting = TlsIdentity(authorities=authority.pem, certificate=None).context()
    memory, below = ConnectionMemory(100_000, 50_000), Below()
    client = CountedTls(
        lambda _: asyncio.Protocol(),
        trusting,
        "localhost",
        memory,
        alpn=("http/1.1",),
        turns=Handshakes().turns(0, "a"),
    )
    client.connection_made(below)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(below.taken())
    server = loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair).wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    client.data_received(outgoing.read()[:-200])
    with pytest.raises(ConnectionAbortedError, match="its certificates take too much memory"):
        await client.handshake()
    assert below.is_closed


async def test_costly_steps_of_handshakes_leave_half_of_the_loop() -> None:
    turns, order = CostlySteps(), []
    loop = asyncio.get_running_loop()

    def costly() -> None:
        busy(COSTLY_S)
        order.append(loop.time())

    for _ in range(4):
        turns.add(costly)
    await eventually(lambda: len(order) == 4)
    assert all(later - earlier > 1.9 * COSTLY_S for earlier, later in pairwise(order))


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def shake(handshakes: Handshakes, server: str, seconds: float = 0.0, identity: int = 0) -> None:
    done = asyncio.Event()
    handshakes.turns(identity, server)(lambda: (busy(seconds), done.set())[1])
    await done.wait()


async def order_of(handshakes: Handshakes, *servers: str) -> list[str]:
    """Return the order of handshakes that begin at once, none of which may share an iteration of the event loop."""
    order: list[str] = []
    for server in servers:
        handshakes.turns(0, server)(lambda server=server: (busy(AT_ONCE_S), order.append(server))[1])  # type: ignore[misc]
    await eventually(lambda: len(order) == len(servers))
    return order


async def test_handshakes_with_servers_that_were_cheap_wait_for_no_others() -> None:
    handshakes = Handshakes()
    for _ in range(3):
        await shake(handshakes, "cheap")
        await shake(handshakes, "costly", 2 * COSTLY_S)
    order = await order_of(handshakes, "costly", "costly", "new", "cheap", "other", "cheap")
    assert order == ["cheap", "cheap", "new", "other", "costly", "costly"]


async def test_server_that_was_costly_becomes_cheap_only_by_many_cheap_handshakes() -> None:
    handshakes = Handshakes()
    await shake(handshakes, "a", 4 * CHEAP_S)
    await shake(handshakes, "a")
    assert await order_of(handshakes, "a", "new") == ["new", "a"]
    for _ in range(40):
        await shake(handshakes, "a")
    assert await order_of(handshakes, "new 2", "a") == ["a", "new 2"]


async def test_handshake_of_another_identity_makes_no_server_costly() -> None:
    handshakes = Handshakes()
    await shake(handshakes, "a")
    await shake(handshakes, "a", 2 * COSTLY_S, identity=1)
    assert await order_of(handshakes, "new", "a") == ["a", "new"]


async def test_number_of_remembered_servers_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costly_steps, "KEPT_SERVERS", 2)
    handshakes = Handshakes()
    for server in "abac":
        await shake(handshakes, server)
    assert await order_of(handshakes, "b", "a") == ["a", "b"]


async def test_step_in_turn_returns_its_result_or_raises_its_error() -> None:
    turns = CostlySteps()
    canceled = asyncio.ensure_future(turns.result(lambda: 1))
    await asyncio.sleep(0)
    canceled.cancel()
    assert await turns.result(lambda: 2) == 2
    with pytest.raises(ZeroDivisionError):
        await turns.result(lambda: 1 // 0)


async def test_step_that_fails_does_not_stop_the_steps_of_other_handshakes() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    turns, ended = CostlySteps(), asyncio.Event()

    def fail() -> None:
        raise RuntimeError("a defect")

    turns.add(fail)
    turns.add(ended.set)
    await ended.wait()


# --- contexts that identities share ---


def certificate(pair: Pair) -> ClientCertificate:
    return ClientCertificate(chain=pair.certificate, key=Secret(pair.key.decode()))


class Side:
    """One side of a connection in memory."""

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if is_server else "localhost"
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=is_server, server_hostname=name)

    def step(self, other: "Side") -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            other.incoming.write(self.outgoing.read())
        return True


def presented(authority: Authority, providers: Sequence[Callable[[], ssl.SSLContext]]) -> list[bytes | None]:
    """Return the certificates that a server sees in connections that are all made before the first handshake."""
    server = loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authority.server())
    server.verify_mode = ssl.CERT_OPTIONAL
    server.load_verify_locations(cadata=authority.pem.decode())
    sides = [(Side(provider(), is_server=False), Side(server, is_server=True)) for provider in providers]
    for client, accepted in sides:
        while not all([client.step(accepted), accepted.step(client)]):
            pass
    return [accepted.tls.getpeercert(binary_form=True) for _, accepted in sides]


def test_each_connection_of_a_shared_context_presents_its_own_certificate() -> None:
    authority, contexts = Authority(), ClientContexts()
    pairs = [authority.issue(common_name=name) for name in "ab"]
    providers = [
        contexts.context(TlsIdentity(authorities=authority.pem, certificate=certificate(pair))) for pair in pairs
    ]
    assert providers[0]() is providers[1]()
    assert presented(authority, providers) == [pair.der for pair in pairs]


EC_PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


@pytest.mark.parametrize("place", ["chain", "key"])
@pytest.mark.parametrize("before", ["parameters", "key", "one line", "text"])
def test_what_precedes_a_certificate_or_key_leaves_no_other_certificate_in_the_context(before: str, place: str) -> None:
    """OpenSSL skips what it does not look for: another algorithm than that of the certificate must not be found."""
    contexts, authority = ClientContexts(), Authority()
    victim, own = authority.issue(common_name="victim"), authority.issue(key=rsa.generate_private_key(65537, 2048))
    preceding = {
        "parameters": EC_PARAMETERS,
        "key": victim.key,
        "one line": victim.certificate.replace(b"\n", b""),
        "text": b"Subject: \xc3\xbc\n",
    }[before]
    chain, key = own.certificate, own.key
    if place == "chain":
        chain = preceding + chain
    else:
        key = preceding + key
    victims = contexts.context(TlsIdentity(authorities=authority.pem, certificate=certificate(victim)))
    try:
        ours = contexts.context(
            TlsIdentity(authorities=authority.pem, certificate=ClientCertificate(chain=chain, key=Secret(key.decode())))
        )
    except CredentialError:
        assert (before, place) in {("key", "key"), ("one line", "chain")}
    else:
        assert presented(authority, [victims, ours]) == [victim.der, own.der]
    assert presented(authority, [victims]) == [victim.der]


def test_certificates_of_different_algorithms_do_not_share_a_context() -> None:
    """A context holds one certificate for each algorithm, and the server's preferences select one of them."""
    contexts, authority = ClientContexts(), Authority()
    ec = contexts.context(TlsIdentity(authorities=authority.pem, certificate=certificate(authority.issue())))
    giant = GiantPair(2048)
    pair = ClientCertificate(chain=giant.certificate, key=Secret(giant.key.decode()))
    rsa = contexts.context(TlsIdentity(authorities=authority.pem, certificate=pair))
    none = contexts.context(TlsIdentity(authorities=authority.pem, certificate=None))
    assert len({id(provider()) for provider in (ec, rsa, none)}) == 3


def test_certificate_that_cannot_be_loaded_is_not_presented_later() -> None:
    contexts, authority = ClientContexts(), Authority()
    good, other = certificate(authority.issue()), certificate(authority.issue())
    held = contexts.context(TlsIdentity(authorities=authority.pem, certificate=good))
    mixed = ClientCertificate(chain=good.chain, key=other.key)
    with pytest.raises(Exception, match="do not match"):
        contexts.context(TlsIdentity(authorities=authority.pem, certificate=mixed))
    assert held() is contexts.context(TlsIdentity(authorities=authority.pem, certificate=other))()
