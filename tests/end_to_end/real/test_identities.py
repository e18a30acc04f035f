"""Two operators beside one daemon, each with an identity and clusters of its own, and impersonation."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import pytest_asyncio
import yaml
from kubernetes.aio.client import AuthenticationV1Api, V1SelfSubjectReview
from prometheus_client import CollectorRegistry

from milo_controllers import Controllers, Request
from milo_discovery import CallFailed, ClusterNotFound, DiscoveryClient, Fleet, Unavailable
from milo_discovery.sync import SyncDiscoveryClient as BlockingClient
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real.api import Api
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.kubectl import kubectl
from tests.end_to_end.real.rights import Rights, user
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.scenarios.servers import RealServers
from tests.support.eventually import LIMIT_S

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

RBAC = "/apis/rbac.authorization.k8s.io/v1"
MEMBERS = "/apis/fleet.example.com/v1/members"
OPERATORS = {"dns": "shop", "mail": "blog"}
"""The services, each with the only project that has activated it."""
ACTING = {"user": "dns-agent", "groups": ["agents", "of-dns"], "extra": {"example.com/why": ["tested", "twice"]}}


@pytest_asyncio.fixture(loop_scope="session")
async def projects(servers: RealServers, directory: Path) -> AsyncIterator[dict[str, RealApi]]:
    """The API servers of two projects."""
    async with AsyncExitStack() as stack:
        found = {}
        for name in OPERATORS.values():
            (directory / name).mkdir()
            found[name] = await stack.enter_async_context(servers.acquire("project", directory / name))
        yield found


def role(name: str, *rules: tuple[str, str, Sequence[str], Sequence[str]]) -> dict[str, Any]:
    """Return a ClusterRole with rules: a verb, an API group, resources, names."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [
            {"verbs": [verb], "apiGroups": [group], "resources": [*resources], "resourceNames": [*names]}
            for verb, group, resources, names in rules
        ],
    }


READ = role("reader", ("list", "", ["namespaces"], []))
FOLLOW = role("follower", ("list", "", ["namespaces"], []), ("watch", "", ["namespaces"], []))
AGENTS_FOLLOW = {
    "metadata": {"name": "agents-follow"},
    "subjects": [user("dns-agent")],
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "follower"},
}
MAY_ACT = role(
    "acting",
    ("impersonate", "", ["users"], ["dns-agent"]),
    ("impersonate", "", ["groups"], ["agents", "of-dns"]),
    ("impersonate", "authentication.k8s.io", ["userextras/example.com/why"], ["tested", "twice"]),
)


async def activate(api: Api, project: RealApi, name: str) -> None:
    """Register a project, with a Secret for the identity of each operator."""
    metadata = {"name": name, "labels": {service: "active" for service, of in OPERATORS.items() if of == name}}
    spec = {"url": project.url, "secretRef": {"name": name, "namespace": NAMESPACE}}
    await api.ensure(
        MEMBERS, {"apiVersion": "fleet.example.com/v1", "kind": "Member", "metadata": metadata, "spec": spec}
    )
    for service in OPERATORS:
        content = project.kubeconfig_as(f"{service}-operator").read_bytes()
        data = {"kubeconfig": base64.b64encode(content).decode()}
        secret = {"metadata": {"name": f"{name}-{service}"}, "data": data}
        await api.ensure(f"/api/v1/namespaces/{NAMESPACE}/secrets", secret)


def configuration(platform: RealApi, directory: Path, **of_dns: Any) -> dict[str, Any]:
    def source(service: str) -> dict[str, Any]:
        settings = {
            "resource": {
                "group": "fleet.example.com",
                "version": "v1",
                "plural": "members",
                "label_selector": f"{service}=active",
            },
            "endpoint": {"field": "spec.url"},
            "secret": {"name": "{spec.secretRef.name}", "namespace": "{spec.secretRef.namespace}"},
        }
        kubeconfig = str(platform.kubeconfig)
        return {"name": service, "kind": "declarative", "discovery_kubeconfig": kubeconfig, "settings": settings}

    return {
        "sources": [source(service) for service in OPERATORS],
        "listen": [{"name": operator, "address": f"unix://{directory}/{operator}.sock"} for operator in OPERATORS],
        "http_listen": "off",
        "connectivity": {"interval": "off"},
        "audit": {"file": str(directory / "audit.jsonl")},
        "kubeconfigs": {
            "issuers": [
                {
                    "name": f"{service}-identity",
                    "type": "kubeconfig-secret",
                    "sources": [*OPERATORS],
                    "secret": f"{{secret}}-{service}",
                    "namespace_template": "{secret_namespace}",
                    "allow_long_lived": True,
                }
                for service in OPERATORS
            ]
        },
        "rights": [
            {
                "name": service,
                "who": {"listener": service},
                "clusters": {"sources": [service]},
                "kubeconfigs": True,
                "issuers": [f"{service}-identity"],
                **(of_dns if service == "dns" else {}),
            }
            for service in OPERATORS
        ],
    }


async def written(client: DiscoveryClient, name: str, directory: Path) -> Path:
    path = directory / f"{name.replace('#', '-')}.issued"
    path.touch(mode=0o600)
    path.write_bytes((await client.issue_kubeconfig(name)).kubeconfig)
    return path


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(platform: RealApi, projects: dict[str, RealApi]) -> AsyncIterator[Api]:
    async with platform.api() as api:
        await api.define(yaml.safe_load((Path(__file__).parent / "crds/members.yaml").read_text()))
        for name, project in projects.items():
            await activate(api, project, name)
        yield api
        for name in projects:
            await api.forget(f"{MEMBERS}/{name}")
            for service in OPERATORS:
                await api.forget(f"/api/v1/namespaces/{NAMESPACE}/secrets/{name}-{service}")


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():
            pass


async def expect_clusters(client: DiscoveryClient, *names: str) -> None:
    seen: list[object] = []

    async def are_listed() -> bool:
        try:
            seen[:] = [cluster.name for cluster in (await client.list()).clusters]
        except Unavailable as error:  # the first list is not complete
            seen[:] = [str(error)]
        return seen == [*names]

    try:
        await eventually(are_listed)
    except (TimeoutError, CallFailed):
        raise AssertionError(f"{seen} is listed instead of {names}") from None


def started(directory: Path, settings: dict[str, Any]) -> DaemonProcess:
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return DaemonProcess(f"unix://{directory}/dns.sock", "--config", str(file))


async def test_operators_of_two_services_have_no_access_to_each_others_projects(
    platform: RealApi, projects: dict[str, RealApi], fleet: Api, directory: Path
) -> None:
    for service, name in OPERATORS.items():
        await Rights(projects[name], user(f"{service}-operator")).give(READ)
    async with started(directory, configuration(platform, directory)) as daemon:
        await daemon.start()
        async with (
            DiscoveryClient(f"unix://{directory}/dns.sock") as dns,
            DiscoveryClient(f"unix://{directory}/mail.sock") as mail,
        ):
            held = {}
            for client, service, other in ((dns, "dns", "mail"), (mail, "mail", "dns")):
                own, foreign = f"{service}#{OPERATORS[service]}", f"{other}#{OPERATORS[other]}"
                await expect_clusters(client, own)
                held[service] = await written(client, own, directory)
                assert await kubectl(held[service], "get", "namespaces", "-o", "name")
                with pytest.raises(ClusterNotFound):
                    await client.issue_kubeconfig(foreign)
                # Even with a credential, the RBAC of the other project denies the service's identity.
                elsewhere = projects[OPERATORS[other]].kubeconfig_as(f"{service}-operator")
                with pytest.raises(AssertionError, match="Forbidden"):
                    await kubectl(elsewhere, "get", "namespaces")

            # Deactivated: the platform withdraws the right, and the daemon issues no more credentials.
            await Rights(projects["shop"], user("dns-operator")).withdraw()
            await fleet.call("PATCH", f"{MEMBERS}/shop", {"metadata": {"labels": {"dns": "ended"}}})
            await expect_clusters(dns)
            with pytest.raises(ClusterNotFound):
                await dns.issue_kubeconfig("dns#shop")
            with pytest.raises(AssertionError, match="Forbidden"):
                await kubectl(held["dns"], "get", "namespaces")
            await expect_clusters(mail, "mail#blog")
            assert await kubectl(await written(mail, "mail#blog", directory), "get", "namespaces", "-o", "name")


def whoami(address: str, name: str) -> dict[str, Any]:
    """Return the user that a cluster sees in requests of the blocking client."""
    with BlockingClient(address) as client, client.sync_api_client(name) as api:
        review = kubernetes.client.AuthenticationV1Api(api).create_self_subject_review({})
        user_info: dict[str, Any] = review.status.user_info.to_dict()
        return user_info


async def reconciled(client: DiscoveryClient) -> str:
    """Return the name of a namespace that a reconciler was called for."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    controllers = Controllers(Fleet(client, include_kubeconfigs=True), registry=CollectorRegistry())

    @controllers.reconcile("v1/namespaces")
    async def reconcile(request: Request) -> None:
        if not seen.done():
            seen.set_result(request.name)

    async with controllers:
        return await asyncio.wait_for(seen, LIMIT_S)


async def test_callers_impersonate_the_user_of_their_rule_if_the_issued_identity_has_permission(
    platform: RealApi, projects: dict[str, RealApi], fleet: Api, directory: Path
) -> None:
    shop = projects["shop"]
    await Rights(shop, user("dns-operator")).withdraw()
    settings = configuration(platform, directory, **{"as": ACTING})
    async with started(directory, settings) as daemon:
        await daemon.start()
        async with DiscoveryClient(f"unix://{directory}/dns.sock") as client:
            await expect_clusters(client, "dns#shop")
            kubeconfig = await written(client, "dns#shop", directory)
            with pytest.raises(AssertionError, match='"dns-operator" cannot impersonate'):
                await kubectl(kubeconfig, "get", "--raw", "/version")

            await Rights(shop, user("dns-operator")).give(MAY_ACT)
            seen = []

            async def may_act() -> bool:
                try:
                    review = json.loads(await kubectl(kubeconfig, "auth", "whoami", "-o", "json"))
                except AssertionError:
                    return False
                seen.append(review["status"]["userInfo"])
                return True

            await eventually(may_act)
            async with client.api_client("dns#shop") as api:
                review = await AuthenticationV1Api(api).create_self_subject_review(V1SelfSubjectReview())
                seen.append(review.status.user_info.to_dict())
            seen.append(await asyncio.to_thread(whoami, f"unix://{directory}/dns.sock", "dns#shop"))
            async with shop.api() as administrator:
                await administrator.ensure(f"{RBAC}/clusterroles", FOLLOW)
                await administrator.ensure(f"{RBAC}/clusterrolebindings", AGENTS_FOLLOW)
            # The reconciler has the rights of the impersonated user: the identity itself may list and watch nothing.
            assert await reconciled(client)
            for found in seen:
                assert found["username"] == "dns-agent"
                assert {"agents", "of-dns"} <= {*found["groups"]}
                assert found["extra"] == {"example.com/why": ["tested", "twice"]}
    issued = [json.loads(line) for line in (directory / "audit.jsonl").read_text().splitlines()]
    [event, *_] = [entry for entry in issued if entry["event"] == "kubeconfig issued"]
    assert (event["issuer"], event["act_as"], event["act_as_groups"]) == (
        "dns-identity",
        "dns-agent",
        ["agents", "of-dns"],
    )
    assert event["rule"] == "dns"
