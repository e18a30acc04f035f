"""Issued credentials on real servers, used by real kubectl and by the client library's API clients."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio
from kubernetes.aio.client import AuthenticationV1Api, V1SelfSubjectReview

from milo_discovery import CertificateRenewed, DiscoveryClient
from milo_discoveryd.credentials.issuers.issuer import MintRequest, RequestingDaemon
from milo_discoveryd.credentials.issuers.token_request import RequestedTokens, TokenRequestIssuer
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.upstreams import load_discovery_upstream
from tests.end_to_end.real.api import RefusedError
from tests.end_to_end.real.bearers import await_bearer, bearer_of
from tests.end_to_end.real.daemon_observer import DaemonObserver, disengaged, engaged
from tests.end_to_end.real.handing_out import handing_out, kubeconfig_of
from tests.end_to_end.real.inside import ADDRESSES, Inside
from tests.end_to_end.real.issuer import AUDIENCE, Issuer
from tests.end_to_end.real.kubectl import user_of
from tests.end_to_end.real.rights import (
    Rights,
    shipped_bound_tokens,
    shipped_role,
    shipped_role_of_tokens,
    user,
    withheld,
)
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready, set_ready
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import MODES, Mode
from tests.support.eventually import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

INFRASTRUCTURE: list[Mode] = ["project-control-plane"]
on_the_infrastructure = pytest.mark.parametrize("mode", INFRASTRUCTURE)
NAMESPACE = "/api/v1/namespaces/default"
TOKENS = {"type": "token-request", "namespace": "default", "service_account": "operators"}
ALPHA = Cluster(
    target=Target(name="alpha", uid="uid-of-alpha", place=("https://alpha.test",)),
    source_version="1",
    engaged_at=0.0,
    incarnation=1,
    object_uid="object-of-alpha",
)
LIFE_S = 10
"""The shortest lifetime of a signed certificate."""


@pytest_asyncio.fixture(loop_scope="session")
async def inside(server: RealApi) -> AsyncIterator[Inside]:
    async with Inside(server) as network:
        yield network


@pytest_asyncio.fixture(loop_scope="session")
async def operators(server: RealApi) -> None:
    """Create the service account of the issued tokens, without Secrets of earlier tests."""
    async with server.api() as api:
        await api.call("DELETE", f"{NAMESPACE}/secrets")
        await api.forget(f"{NAMESPACE}/serviceaccounts/operators")
        await api.call("POST", f"{NAMESPACE}/serviceaccounts", {"metadata": {"name": "operators"}})


async def secrets_in(server: RealApi) -> list[str]:
    async with server.api() as api:
        return [item["metadata"]["name"] for item in (await api.call("GET", f"{NAMESPACE}/secrets"))["items"]]


def token_in(kubeconfig: Path) -> str:
    token: str = json.loads(kubeconfig.read_bytes())["users"][0]["user"]["token"]
    return token


@on_the_infrastructure
@pytest.mark.usefixtures("operators")
async def test_bound_token_requested_with_shipped_roles_is_valid_until_disengagement(
    server: RealApi, directory: Path, inside: Inside
) -> None:
    await Rights(server, user("discovery")).give(shipped_role(server.mode), shipped_role_of_tokens())
    await create_ready(server, "alpha", "beta")
    async with handing_out(server, directory, TOKENS, kubeconfig=server.kubeconfig_as("discovery")) as client:
        alpha, beta = [await kubeconfig_of(client, name, directory) for name in ("alpha", "beta")]
        for kubeconfig in (alpha, beta):
            assert await user_of(kubeconfig, proxy=inside.proxy) == "system:serviceaccount:default:operators"
        assert len(await secrets_in(server)) == 2
        assert set(inside.asked) == {ADDRESSES.format(uid=cluster.uid) for cluster in (await client.list()).clusters}

        await set_ready(server, "alpha", False)

        await await_bearer(server, token_in(alpha), None)
        assert len(await secrets_in(server)) == 1
        assert await user_of(beta, proxy=inside.proxy) == "system:serviceaccount:default:operators"


@on_the_infrastructure
@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("resource", "verb", "missed"),
    [
        ("serviceaccounts/token", "create", "create serviceaccounts/token, resourceNames [operators], in namespace"),
        ("secrets", "create", "create, list and delete secrets in namespace default"),
        ("secrets", "list", "create, list and delete secrets in namespace default"),
        ("secrets", "delete", "create, list and delete secrets in namespace default"),
    ],
)
async def test_error_of_token_request_names_the_missing_permission(
    server: RealApi, resource: str, verb: str, missed: str
) -> None:
    rights = Rights(server, user("discovery"))
    await rights.give(withheld(shipped_role_of_tokens(), resource, verb))
    with pytest.raises(BackendError, match=r"\(403\): add to the daemon's role") as refusal:
        await a_life_of_tokens(server)
    assert missed in str(refusal.value)

    await rights.give(shipped_role_of_tokens())
    await a_life_of_tokens(server)


async def a_life_of_tokens(server: RealApi) -> None:
    """Mint tokens of one project in two runs of a daemon; the second run revokes those of the first."""
    upstream = load_discovery_upstream(server.kubeconfig_as("discovery"), {})
    async with aclosing(Transport(upstream, response_limit=1 << 20, connect_timeout_s=10, environ={})) as api:
        first, second = (tokens_of(api, run="one", origin=upstream.origin, namespace="default") for _ in range(2))
        for source in (first, second):
            await source.mint(MintRequest(ttl_s=600, cluster=ALPHA))
        await second.revoke(ALPHA)


def tokens_of(api: Transport, *, run: str, origin: str, namespace: str) -> TokenRequestIssuer:
    return TokenRequestIssuer(
        "tested",
        api,
        origin=origin,
        tokens=RequestedTokens(namespace=namespace, service_account="operators"),
        daemon=RequestingDaemon(run=run),
    )


@on_the_infrastructure
@pytest.mark.usefixtures("operators")
async def test_two_daemons_with_one_service_account_do_not_revoke_each_others_tokens(server: RealApi) -> None:
    await Rights(server, user("discovery")).give(shipped_role_of_tokens())
    upstream = load_discovery_upstream(server.kubeconfig_as("discovery"), {})
    async with aclosing(Transport(upstream, response_limit=1 << 20, connect_timeout_s=10, environ={})) as api:
        one, other = (tokens_of(api, run=run, origin=upstream.origin, namespace="default") for run in ("one", "other"))
        ours, theirs = [
            (await source.mint(MintRequest(ttl_s=600, cluster=ALPHA))).credential.token for source in (one, other)
        ]
        assert ours is not None
        assert theirs is not None
        await one.revoke(ALPHA)
        await await_bearer(server, ours.reveal(), None)
        assert await bearer_of(server, theirs.reveal()) == "system:serviceaccount:default:operators"
        assert len(await secrets_in(server)) == 1
        await other.revoke(ALPHA)
        assert await secrets_in(server) == []


@on_the_infrastructure
@pytest.mark.usefixtures("operators")
async def test_replicas_without_sharding_do_not_revoke_each_others_tokens(server: RealApi, directory: Path) -> None:
    """Two daemons with the same settings and service account, as beside an operator with leader election."""
    await Rights(server, user("discovery")).give(shipped_role(server.mode), shipped_role_of_tokens())
    await create_ready(server, "alpha", "beta")
    settings: dict[str, Any] = {
        "kubeconfigs": {"issuers": [{"name": "tokens", **TOKENS}]},
        "internal_address_template": ADDRESSES,
        "connectivity": {"interval": "off"},
    }
    async with AsyncExitStack() as stack:
        replicas: list[DaemonObserver] = []
        kubeconfig = server.kubeconfig_as("discovery")  # written once, since the first daemon reads this file
        for name in ("0", "1"):
            (directory / name).mkdir()
            replica = DaemonObserver(server, directory / name, kubeconfig=kubeconfig, **settings)
            replicas.append(await stack.enter_async_context(replica))
        first, second = replicas
        for observer in replicas:
            await observer.expect(engaged("alpha"), engaged("beta"))
        ours, theirs = [token_in(await observer.kubeconfig_of("alpha")) for observer in replicas]
        for token in (ours, theirs):
            assert await bearer_of(server, token) == "system:serviceaccount:default:operators"

        await first.daemon.terminate()
        assert await bearer_of(server, theirs) == "system:serviceaccount:default:operators"
        await first.daemon.start()
        await first.source("STREAMING")
        again, beta = [token_in(await first.kubeconfig_of(name)) for name in ("alpha", "beta")]

        await set_ready(server, "alpha", False)
        await second.expect(disengaged("alpha", "NOT_READY"))
        for token in (theirs, again):
            await await_bearer(server, token, None)
        assert await bearer_of(server, beta) == "system:serviceaccount:default:operators"


@on_the_infrastructure
async def test_shipped_admission_policy_refuses_permanent_tokens_and_admits_bound_ones(server: RealApi) -> None:
    namespace, policy, binding = shipped_bound_tokens()
    name = namespace["metadata"]["name"]
    secrets, registration = f"/api/v1/namespaces/{name}/secrets", "/apis/admissionregistration.k8s.io/v1"
    permanent = {
        "metadata": {"name": "permanent", "annotations": {"kubernetes.io/service-account.name": "operators"}},
        "type": "kubernetes.io/service-account-token",
    }
    async with server.api() as api:
        for path, obj in (("validatingadmissionpolicies", policy), ("validatingadmissionpolicybindings", binding)):
            await api.forget(f"{registration}/{path}/{obj['metadata']['name']}")
            await api.call("POST", f"{registration}/{path}", obj)
        with suppress(RefusedError):  # an earlier run created it
            await api.call("POST", "/api/v1/namespaces", namespace)
        with suppress(RefusedError):
            await api.call("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "operators"}})
        async with asyncio.timeout(LIMIT_S):
            while True:  # a policy takes effect some moments after its creation
                try:
                    await api.call("POST", secrets, permanent)
                except RefusedError as error:
                    refusal = str(error)
                    break
                await api.forget(f"{secrets}/permanent")
                await asyncio.sleep(0.2)
        assert "only empty Secrets of type Opaque" in refusal
        for other in (
            {"type": "Opaque", "data": {"a": "Yg=="}},
            {"stringData": {"a": "b"}},
            {"type": "kubernetes.io/basic-auth", "stringData": {"username": "a", "password": "b"}},
        ):
            with pytest.raises(RefusedError, match="only empty Secrets of type Opaque"):
                await api.call("POST", secrets, {"metadata": {"name": "other"}, **other})
    upstream = load_discovery_upstream(server.kubeconfig, {})
    async with aclosing(Transport(upstream, response_limit=1 << 20, connect_timeout_s=10, environ={})) as transport:
        source = tokens_of(transport, run="one", origin=upstream.origin, namespace=name)
        assert (await source.mint(MintRequest(ttl_s=600, cluster=ALPHA))).credential.token is not None
        await source.revoke(ALPHA)


@on_the_infrastructure
async def test_certificate_is_renewed_before_expiry_without_failed_requests(
    server: RealApi, directory: Path, inside: Inside
) -> None:
    source = {
        "type": "client-certificate",
        "ca_certificate": str(server.authority.file),
        "ca_key": str(server.authority.key_file()),
        "common_name": "operator-of-{name}",
        "organizations": ["operators"],
    }
    await create_ready(server, "alpha")
    async with handing_out(server, directory, source, max_ttl=f"{LIFE_S}s", default_ttl=f"{LIFE_S}s") as client:
        kubeconfig = await kubeconfig_of(client, "alpha", directory)
        assert await user_of(kubeconfig, proxy=inside.proxy) == "operator-of-alpha"
        shown = set()
        async for holder in holders(client, inside.proxy):
            assert (holder["username"], holder["groups"][0]) == ("operator-of-alpha", "operators")
            shown.add(holder["extra"]["authentication.kubernetes.io/credential-id"][0])
            if len(shown) == 2:
                break


async def holders(client: DiscoveryClient, proxy: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the user of alpha's credential continuously; each client is replaced with its certificate."""
    while True:
        async with client.api_client("alpha", proxy=proxy) as api:
            with suppress(CertificateRenewed):
                while True:
                    review = await AuthenticationV1Api(api).create_self_subject_review(V1SelfSubjectReview())
                    yield review.to_dict()["status"]["user_info"]
                    await asyncio.sleep(0.1)


async def test_service_account_tokens_are_accepted_by_structured_authentication(servers: RealServers) -> None:
    """A server trusts a new issuer after ten seconds, so both modes are tested concurrently."""

    async def in_mode(mode: Mode, directory: Path) -> None:
        async with servers.acquire(mode, directory) as server, Issuer(directory) as issuer:
            server.trust(issuer.trusted())
            await await_bearer(server, issuer.token("operator"), "account:operator")
            await by_service_account(server, directory, issuer)
            server.trust()

    with TemporaryDirectory(prefix="milo-") as one, TemporaryDirectory(prefix="milo-") as other:
        async with asyncio.TaskGroup() as both:
            for mode, directory in zip(MODES, (one, other), strict=True):
                both.create_task(in_mode(mode, Path(directory)))


async def by_service_account(server: RealApi, directory: Path, issuer: Issuer) -> None:
    """Check issued kubeconfigs and the daemon's own requests, all authenticated as one service account."""
    await Rights(server, user("account:operator")).give(shipped_role(server.mode))
    key = directory / "key.json"
    key.write_text(json.dumps(issuer.register("operator")))
    source = {
        "type": "datum-service-account",
        "key_file": str(key),
        "ca_file": str(issuer.ca_file),
        "audiences": [AUDIENCE],
    }
    await create_ready(server, "alpha", "beta")
    nobody = server.kubeconfig_with({"token": "nobody's"}, "nobody")
    async with handing_out(server, directory, source, kubeconfig=nobody, authenticates=True) as client:
        alpha, beta = [await kubeconfig_of(client, name, directory) for name in ("alpha", "beta")]
    assert token_in(alpha) == token_in(beta)
    assert issuer.given == 2, "want one token for the daemon, and one for all issued kubeconfigs"
    assert await bearer_of(server, token_in(alpha)) == "account:operator"
    assert await bearer_of(server, issuer.token("operator", audience="others")) is None
    if server.mode == "project-control-plane":  # a kube-apiserver in Milo's place has no control planes of projects
        async with Inside(server) as inside:
            assert await user_of(alpha, proxy=inside.proxy) == "account:operator"
