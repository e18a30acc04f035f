"""Connectivity probes against a real HTTPS server."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trustme
from aiohttp import web
from msgspec.structs import replace

from milo_discoveryd.connectivity.reachability import ProbeFailed, ProbeOutcome, ProbeReached
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import Cluster, DeclaredTarget, Target
from milo_discoveryd.watchers import probing
from milo_discoveryd.watchers.probing import POOLS, ClusterAccess, ProbeSender
from milo_kube.api_request import Access, ApiRequest
from milo_kube.api_server import OpenResponse, Pools
from milo_kube.credential import ClientCertificate, Credential, Secret
from tests.integration.watchers.api_server import ApiServer, answering, upstream
from tests.support.eventually import LIMIT_S
from tests.support.ports import free_address


class Held(dict[str, Credential]):
    """Issued credentials, by cluster endpoint."""

    def of(self, cluster: Cluster) -> Credential | None:
        return self.get(cluster.target.endpoint)


def at(endpoint: str) -> Cluster:
    target = Target(name="alpha", uid="u", place=(endpoint,))
    return Cluster(target=target, source_version="1", engaged_at=0.0, incarnation=1)


@asynccontextmanager
async def prober(
    server: ApiServer,
    timeout_s: float = 10.0,
    held: Held | None = None,
    *,
    of_hosts: bool = False,
    trust: ClusterTrust | None = None,
    rejected: Callable[[Cluster, bool], None] = lambda *_: None,
    **differing: object,
) -> AsyncIterator[ProbeSender]:
    """Yield a sender. Without `trust`, clusters have the server's CA, and may receive the daemon's own credential."""
    of_server = upstream(server, **differing)

    async def trust_of(_: Cluster) -> ClusterTrust:
        return trust or ClusterTrust(of_server.trusted(), of_server.tls_server_name)

    made = ProbeSender(
        of_server,
        {},
        ClusterAccess(held=(Held() if held is None else held).of, trust_of=trust_of, rejected=rejected),
        path="/readyz",
        timeout_s=timeout_s,
        of_hosts=of_hosts,
        sends_own_credential=trust is None or bool(trust.server),
    )
    try:
        yield made
    finally:
        await made.aclose()


async def test_probe_sends_no_credential_without_tls() -> None:
    held = Held({"http://10.0.0.1:1": Credential(token=Secret("t"))})
    async with ApiServer(answering()) as server, prober(server, held=held) as made:
        for endpoint in ("http://10.0.0.1:1", "http://elsewhere.test"):
            outcome = await made.send(at(endpoint))
            assert isinstance(outcome, ProbeFailed)
            assert outcome.cause == "credential"
            assert "does not use TLS" in outcome.message


async def test_probe_of_host_requests_readyz_with_the_credential_of_the_daemon() -> None:
    async with ApiServer(answering()) as server:
        endpoint = f"{server.url}/apis/projects/alpha/control-plane"
        held = Held({endpoint: Credential(token=Secret("theirs"))})
        async with asyncio.timeout(LIMIT_S), prober(server, held=held, of_hosts=True) as made:
            assert await made.send(at(endpoint)) == ProbeReached()
        assert server.requests[0].path == "/readyz"
        assert server.headers("Authorization")[0] == "Bearer t0"


@pytest.mark.parametrize(
    ("status", "holds"),
    [
        (200, lambda outcome: outcome == ProbeReached()),
        (401, lambda outcome: isinstance(outcome, ProbeReached) and outcome.note.startswith("Unauthorized")),
        (403, lambda outcome: isinstance(outcome, ProbeReached) and outcome.note.startswith("Forbidden")),
        (429, lambda outcome: isinstance(outcome, ProbeReached) and outcome.note.startswith("TooManyRequests")),
        (404, lambda outcome: outcome == ProbeFailed("404", "the API server answered 404; check `connectivity.path`")),
        (503, lambda outcome: outcome == ProbeFailed("5xx", "the API server answered 503")),
    ],
)
async def test_probe_result_depends_on_response_status(status: int, holds: Callable[[ProbeOutcome], bool]) -> None:
    async with ApiServer(answering(status=status)) as server, prober(server) as sender:
        outcome = await sender.send(at(f"{server.url}/projects/alpha/control-plane"))
    assert holds(outcome), outcome
    (request,) = server.requests
    assert request.path == "/projects/alpha/control-plane/readyz"
    assert request.headers["Authorization"] == "Bearer t0"


async def test_probe_does_not_follow_redirect() -> None:
    async def away(_: web.Request) -> web.Response:
        raise web.HTTPFound("https://attacker.test/")

    async with ApiServer(away) as server, prober(server) as sender:
        outcome = await sender.send(at(server.url))
    assert isinstance(outcome, ProbeFailed)
    assert outcome.cause == "302"
    assert len(server.requests) == 1


async def test_probe_of_closed_port_is_a_failure_of_the_host() -> None:
    async with ApiServer(answering()) as server, prober(server) as sender:
        outcome = await sender.send(at(f"https://{free_address()}"))
    assert isinstance(outcome, ProbeFailed)
    assert (outcome.cause, outcome.is_of_host) == ("connect", True)


@pytest.mark.parametrize("cause", ["tls", "closed", "timeout"])
async def test_failure_that_another_cluster_at_the_host_may_not_have_is_not_of_the_host(cause: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if cause == "timeout":
            return await asyncio.Future()
        request.transport.abort()
        return web.Response()

    differing = {"authorities": trustme.CA().cert_pem.bytes()} if cause == "tls" else {}
    async with ApiServer(answer) as server, prober(server, timeout_s=0.5, **differing) as sender:
        outcome = await sender.send(declared(server.url))
        assert isinstance(outcome, ProbeFailed)
        assert (outcome.cause, outcome.is_of_host) == (cause, False)
        outcome = await sender.send(at(server.url))
        assert isinstance(outcome, ProbeFailed)
        assert (outcome.cause, outcome.is_of_host) == (cause, True)


def declared(endpoint: str) -> Cluster:
    target = DeclaredTarget(name="a", uid="u", place=(endpoint,), object_namespace="shop", object_name="a")
    return replace(at(endpoint), target=target)


@asynccontextmanager
async def silent_server(*, is_full: bool) -> AsyncIterator[str]:
    """Yield the endpoint of a server that accepts no TLS handshake and, if it is full, no connection."""
    async with AsyncExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4 * is_full):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        yield f"https://127.0.0.1:{silent.getsockname()[1]}"


@pytest.mark.parametrize("is_full", [True, False])
async def test_declared_cluster_fails_with_its_host_if_that_accepts_no_connection(is_full: bool) -> None:
    async with (
        silent_server(is_full=is_full) as endpoint,
        ApiServer(answering()) as server,
        prober(server, timeout_s=0.5) as sender,
    ):
        outcome = await sender.send(declared(endpoint))
        assert isinstance(outcome, ProbeFailed)
        assert (outcome.cause, outcome.is_of_host) == ("timeout", is_full)
        for missing, cause in (("https://no-such-host.invalid", "dns"), (f"https://{free_address()}", "connect")):
            outcome = await sender.send(declared(missing))
            assert isinstance(outcome, ProbeFailed)
            assert (outcome.cause, outcome.is_of_host) == (cause, True)


async def test_cluster_whose_authorities_take_too_much_memory_fails_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MEMORY", 0)
    monkeypatch.setattr(probing, "SHARE", 0)
    async with ApiServer(answering()) as server, prober(server) as sender:
        outcome = await sender.send(declared(server.url))
    assert isinstance(outcome, ProbeFailed)
    assert "too much memory" in outcome.message
    assert not outcome.is_of_host


async def test_failure_of_a_server_that_a_credential_states_is_not_of_the_host() -> None:
    async with ApiServer(answering()) as server:
        for elsewhere in ("https://no-such-host.invalid", f"https://{free_address()}"):
            async with prober(server, trust=ClusterTrust(None, server=elsewhere)) as sender:
                outcome = await sender.send(at(server.url))
            assert isinstance(outcome, ProbeFailed)
            assert not outcome.is_of_host


async def test_probe_timeout_is_reported() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    async with ApiServer(never) as server, prober(server, timeout_s=0.05) as sender:
        outcome = await sender.send(at(server.url))
    assert isinstance(outcome, ProbeFailed)
    assert outcome.cause == "timeout"


async def test_probe_of_server_with_untrusted_certificate_authority_fails_with_cause_tls() -> None:
    other = trustme.CA()
    async with ApiServer(answering()) as server, prober(server, authorities=other.cert_pem.bytes()) as sender:
        outcome = await sender.send(at(server.url))
    assert isinstance(outcome, ProbeFailed)
    assert (outcome.cause, outcome.is_of_host) == ("tls", True)


async def test_probe_of_unresolvable_host_is_dns_error() -> None:
    async with ApiServer(answering()) as server, prober(server) as sender:
        outcome = await sender.send(at("https://no-such-host.invalid"))
    assert isinstance(outcome, ProbeFailed)
    assert (outcome.cause, outcome.is_of_host) == ("dns", True)


async def test_probe_of_server_that_closes_the_connection_fails_with_cause_closed() -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with ApiServer(hang_up) as server, prober(server) as sender:
        outcome = await sender.send(at(server.url))
    assert isinstance(outcome, ProbeFailed)
    assert (outcome.cause, outcome.is_of_host) == ("closed", True)


async def test_probe_credential_failure_is_not_a_failure_of_the_host() -> None:
    class Broken:
        async def credential(self, *, within_s: float, refused: Credential | None = None) -> Credential:
            raise BackendError("the plugin failed")

    async with ApiServer(answering()) as server, prober(server, credentials=Broken()) as sender:
        outcome = await sender.send(at(server.url))
    assert isinstance(outcome, ProbeFailed)
    assert (outcome.cause, outcome.is_of_host) == ("credential", False)
    assert server.requests == []


async def test_probe_uses_credential_issued_for_cluster() -> None:
    async with ApiServer(answering()) as server:
        held = Held({f"{server.url}/alpha": Credential(token=Secret("theirs"))})
        async with prober(server, held=held) as sender:
            for name in ("alpha", "beta"):
                assert await sender.send(at(f"{server.url}/{name}")) == ProbeReached()
    assert server.headers("Authorization") == ["Bearer theirs", "Bearer t0"]


async def test_probe_of_a_host_also_requests_the_cluster_with_its_issued_credential() -> None:
    """Only this request shows whether the credential is accepted: the probe of the host has the daemon's own."""
    reported: list[tuple[str, bool]] = []

    async def refusing_theirs(request: web.Request) -> web.Response:
        return web.Response(status=401 if request.headers.get("Authorization") == "Bearer theirs" else 200)

    async with ApiServer(refusing_theirs) as server:
        alpha = f"{server.url}/alpha"
        async with prober(
            server,
            held=Held({alpha: Credential(token=Secret("theirs"))}),
            of_hosts=True,
            rejected=lambda of, is_: reported.append((of.target.endpoint, is_)),
        ) as sender:
            assert await sender.send(at(alpha)) == ProbeReached()
    assert reported == [(alpha, True)]
    assert [request.path for request in server.requests] == ["/readyz", "/alpha/readyz"]


@pytest.mark.parametrize(("status", "is_rejected"), [(401, True), (403, False), (200, False)])
async def test_rejection_or_acceptance_of_the_issued_credential_is_reported(status: int, is_rejected: bool) -> None:
    reported: list[tuple[str, bool]] = []
    async with ApiServer(answering(status=status)) as server:
        held = Held({f"{server.url}/alpha": Credential(token=Secret("theirs"))})
        async with prober(
            server, held=held, rejected=lambda of, is_: reported.append((of.target.endpoint, is_))
        ) as sender:
            for name in ("alpha", "beta"):
                await sender.send(at(f"{server.url}/{name}"))
    assert reported == [(f"{server.url}/alpha", is_rejected)]


async def test_probe_connections_are_pooled_by_client_certificate_and_limited_in_number() -> None:
    callers: list[object] = []

    async def note(request: web.Request) -> web.Response:
        assert request.transport is not None
        callers.append(request.transport.get_extra_info("peername"))
        return web.Response()

    authority = trustme.CA()
    async with ApiServer(note, wants_client_certificate_of=authority) as server:
        held = Held()
        for number in range(POOLS + 1):
            leaf = authority.issue_cert(f"operator-{number}")
            chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
            certificate = ClientCertificate(chain=chain, key=Secret(leaf.private_key_pem.bytes().decode()))
            held[f"{server.url}/p-{number}"] = Credential(certificate=certificate)
        async with prober(server, held=held) as sender:
            oldest, *others = held
            for endpoint in [oldest, *others, *others, oldest]:
                assert await sender.send(at(endpoint)) == ProbeReached()
    assert callers[1:9] == callers[9:17]
    assert len(set(callers)) == POOLS + 2, "the oldest connection was not evicted"


async def test_probe_of_a_cluster_with_its_own_ca_never_carries_the_daemons_credential() -> None:
    async with ApiServer(answering()) as own, ApiServer(answering()) as foreign:
        held = Held()
        async with prober(own, held=held, trust=ClusterTrust(foreign.pem)) as made:
            assert await made.send(at(foreign.url)) == ProbeReached()
            held[foreign.url] = Credential(token=Secret("its-own"))
            assert await made.send(at(foreign.url)) == ProbeReached()
            outcome = await made.send(at(own.url))
        assert [request.headers.get("Authorization") for request in foreign.requests] == [None, "Bearer its-own"]
    assert isinstance(outcome, ProbeFailed)
    assert outcome.cause == "tls", "the upstream's CA was trusted for a cluster"


async def test_probe_of_a_cluster_with_its_own_server_is_sent_there_without_the_daemons_token() -> None:
    async with ApiServer(answering()) as own, ApiServer(answering()) as tenant:
        trust = ClusterTrust(tenant.pem, "localhost", server=tenant.url)
        async with prober(own, trust=trust) as made:
            assert await made.send(at(own.url)) == ProbeReached()
        assert tenant.headers("Authorization") == [None]
        assert not own.requests


async def test_connection_in_use_is_not_closed_together_with_idle_ones() -> None:
    """Found by a reader: a request that began while another pool was closed failed, as if the server was lost."""
    async with ApiServer(answering(b"ok")) as server:
        pools = Pools(user_agent="prober", kept=2, environ={})

        async def opened(number: int) -> OpenResponse:
            access = Access(server=server.url, authorities=server.pem + b"\n" * number)
            return await pools.open_response(ApiRequest("GET", "/"), access, connect_timeout_s=LIMIT_S)

        async def used(number: int) -> bytes:
            response = await opened(number)
            try:
                return await response.read_error(9)
            finally:
                await response.aclose()

        idle = [await used(number) for number in (0, 1)]
        first, second = [await opened(number) for number in (2, 3)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(first.aclose())  # closes the two idle ones, with an await in between
            again = tasks.create_task(used(1))
        await second.aclose()
        await pools.aclose()
    assert [*idle, again.result()] == [b"ok"] * 3
