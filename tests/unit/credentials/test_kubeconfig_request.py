"""Kubeconfigs requested through a subresource of a cluster's object, such as Gardener's adminkubeconfig."""

import base64
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import MintRequest
from milo_discoveryd.credentials.issuers.kubeconfig_request import KubeconfigRequestIssuer
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.model.cluster import DeclaredTarget
from milo_discoveryd.model.resource import Resource
from milo_kube.credential import CredentialError
from milo_kube.http.errors import TransportError
from tests.unit.credentials.backend import Answer, ScriptedApi, answering, engaged
from tests.unit.credentials.tokens import CANARY, certificate

NOW = int(time.time())
SHOOTS = Resource("core.gardener.cloud", "v1beta1", "shoots", namespaced=True)
SHOOT = DeclaredTarget(
    name="garden.alpha", uid="u", place=("https://a",), object_namespace="garden", object_name="alpha"
)


def a_source(api: ScriptedApi, *uids: str) -> KubeconfigRequestIssuer:
    """`uids`: those that the object has in turn, each time that it is read."""
    objects = ScriptedApi(*(answering(200, {"metadata": {"uid": uid}}) for uid in uids or ("object-of-u",)))
    return KubeconfigRequestIssuer(
        "gardener",
        api,
        origin="test",
        clock=lambda: NOW,
        objects=ClusterObjects(objects, "test", SHOOTS),
        subresource="adminkubeconfig",
        api_version="authentication.gardener.cloud/v1alpha1",
        kind="AdminKubeconfigRequest",
    )


def wanted(ttl_s: float = 1800, target: Any = SHOOT) -> MintRequest:
    return MintRequest(ttl_s=ttl_s, cluster=engaged(target))


def answer(ends: float = NOW + 900, **status: Any) -> Answer:
    user = {
        "client-certificate-data": base64.b64encode(certificate(NOW - 60, NOW + 1800)).decode(),
        "client-key-data": base64.b64encode(CANARY.encode()).decode(),
    }
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"certificate-authority-data": base64.b64encode(b"CA").decode()}}],
        "users": [{"name": "u", "user": user}],
    }
    content = base64.b64encode(yaml.safe_dump(document).encode()).decode()
    expires = datetime.fromtimestamp(ends, UTC).isoformat().replace("+00:00", "Z")
    return answering(201, {"status": {"kubeconfig": content, "expirationTimestamp": expires} | status})


async def test_kubeconfig_request_posts_lifetime_to_subresource_of_the_object() -> None:
    api = ScriptedApi(answer())
    issued = await a_source(api).mint(wanted())
    path = "/apis/core.gardener.cloud/v1beta1/namespaces/garden/shoots/alpha/adminkubeconfig"
    assert api.asked == [("POST", path)]
    assert json.loads(api.bodies[0]) == {
        "apiVersion": "authentication.gardener.cloud/v1alpha1",
        "kind": "AdminKubeconfigRequest",
        "spec": {"expirationSeconds": 1800},
    }
    assert (issued.expires_at, issued.authorities) == (NOW + 900, b"CA")


async def test_kubeconfig_requested_of_another_object_with_the_name_is_not_issued() -> None:
    source = a_source(ScriptedApi(answer(), answer()), "object-of-u", "of-another")
    await source.mint(wanted())
    with pytest.raises(BackendError, match=r"the object of garden\.alpha in shoots was deleted"):
        await source.mint(wanted())


async def test_kubeconfig_request_lifetime_is_at_least_ten_minutes() -> None:
    api = ScriptedApi(answer())
    await a_source(api).mint(wanted(ttl_s=1))
    assert json.loads(api.bodies[0])["spec"] == {"expirationSeconds": 600}


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (TransportError("connect", "the server is down"), "the server is down"),
        (answering(403, {}), "create shoots/adminkubeconfig"),
        (answering(404, {}), "does not exist"),
        (answering(201, {}), "does not contain a kubeconfig"),
        (answering(201, []), "not a Kubernetes object"),
        (answer(kubeconfig="!"), "does not contain a base64-encoded kubeconfig"),
        (answer(NOW - 1), "an expired credential"),
    ],
)
async def test_kubeconfig_request_error_does_not_quote_the_credential(
    received: Answer | TransportError, expected: str
) -> None:
    with pytest.raises(CredentialError) as raised:
        await a_source(ScriptedApi(received)).mint(wanted())
    assert expected in str(raised.value)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    ("received", "of_cluster", "may_be_of_issuer"),
    [
        (TransportError("timeout", "the server did not answer"), True, True),
        (TransportError("closed", "the server closed the connection"), True, True),
        (TransportError("too_large", "the response is too large"), True, False),
        (TransportError("connect", "the server is down"), False, False),
        (answering(404, {}), True, False),
        (answering(422, {}), True, False),
        (answering(429, {}), True, True),
        (answering(500, {}), True, True),
        (answering(503, {}), True, True),
        (answering(401, {}), False, False),
        (answering(403, {}), True, True),
    ],
)
async def test_what_one_object_can_cause_is_a_failure_of_its_cluster(
    received: Answer | TransportError, *, of_cluster: bool, may_be_of_issuer: bool
) -> None:
    with pytest.raises(BackendError) as raised:
        await a_source(ScriptedApi(received)).mint(wanted())
    assert (raised.value.of_cluster, raised.value.may_be_of_issuer) == (of_cluster, may_be_of_issuer)


async def test_response_that_cannot_be_read_is_a_failure_of_its_cluster_alone() -> None:
    answered = answering(201, {"status": {"kubeconfig": "", "expirationTimestamp": "soon"}})
    with pytest.raises(BackendError) as raised:
        await a_source(ScriptedApi(answered)).mint(wanted())
    assert raised.value.of_cluster


async def test_kubeconfig_request_response_without_a_credential_is_rejected() -> None:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }
    content = base64.b64encode(yaml.safe_dump(document).encode()).decode()
    with pytest.raises(UnfitError):
        await a_source(ScriptedApi(answer(kubeconfig=content))).mint(wanted())


async def test_kubeconfig_request_for_restored_cluster_fails_until_its_object_is_received() -> None:
    api = ScriptedApi()
    with pytest.raises(BackendError, match="has not been received"):
        await a_source(api).mint(MintRequest(ttl_s=600, cluster=engaged()))
    assert not api.asked


@pytest.mark.parametrize("content", ["é", "クラスタ", "\N{NO-BREAK SPACE}", "\U0001f511", "!", "YQ=", "\0"])
async def test_kubeconfig_request_without_a_base64_encoded_kubeconfig_fails(content: str) -> None:
    with pytest.raises(BackendError, match=r"alpha does not contain a (base64-encoded )?kubeconfig") as refused:
        await a_source(ScriptedApi(answer(kubeconfig=content))).mint(wanted())
    assert refused.value.of_cluster
