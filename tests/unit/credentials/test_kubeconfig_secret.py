"""The kubeconfig in a Secret of each project's namespace."""

import base64
import json
import math
import time
from typing import Any

import pytest
import yaml

from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.kubeconfig_secret import CredentialPaths, KubeconfigSecretIssuer, SecretPlace
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.sources.field_path import FieldPath
from milo_kube.credential import Credential, CredentialError, Secret
from milo_kube.http.errors import TransportCause, TransportError
from tests.support.certificates import CA
from tests.support.giant_keys import GiantPair
from tests.unit.credentials.backend import Answer, ScriptedApi, answering, engaged
from tests.unit.credentials.tokens import CANARY, certificate, jwt

WANTED = MintRequest(ttl_s=600, cluster=engaged())
NOW = time.time()


def kubeconfig(user: dict[str, Any]) -> str:
    return yaml.safe_dump(
        {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "users": [{"name": "other", "user": {"token": "no"}}, {"name": "u", "user": user}],
        }
    )


def secret(content: str | bytes, key: str = "kubeconfig") -> Answer:
    data = content if isinstance(content, bytes) else content.encode()
    return answering(200, {"data": {key: base64.b64encode(data).decode()}})


def pair(ends: float) -> dict[str, str]:
    return {
        "client-certificate-data": base64.b64encode(certificate(NOW - 60, ends)).decode(),
        "client-key-data": base64.b64encode(CANARY.encode()).decode(),
    }


def a_source(
    api: ScriptedApi, *, namespace: str = "project-{uid}", secret: str = "kubeconfig", **differing: Any
) -> KubeconfigSecretIssuer:
    given: dict[str, Any] = {"place": SecretPlace(namespace, secret), "reading": "kubeconfig"} | differing
    return KubeconfigSecretIssuer("secret", api, origin="test", clock=lambda: NOW, **given)


async def test_certificate_from_kubeconfig_secret_is_issued_with_the_certificate_expiry() -> None:
    api = ScriptedApi(secret(kubeconfig(pair(NOW + 3600))))
    minted = await a_source(api).mint(WANTED)
    assert api.asked == [("GET", "/api/v1/namespaces/project-uid-alpha/secrets/kubeconfig")]
    assert minted.credential.certificate is not None
    assert minted.credential.certificate.key == Secret(CANARY)
    assert minted.expires_at == math.floor(NOW + 3600)
    assert KubeconfigSecretIssuer.scope is Scope.CLUSTER


async def test_token_of_a_kubeconfig_secret_is_preferred_to_its_certificate() -> None:
    token = jwt(exp=NOW + 600)
    minted = await a_source(ScriptedApi(secret(kubeconfig({"token": token} | pair(NOW + 1e8))))).mint(WANTED)
    assert minted.credential == Credential(token=Secret(token))


async def test_kubeconfig_secret_path_follows_configured_namespace_name_and_key() -> None:
    api = ScriptedApi(secret(kubeconfig(pair(NOW + 600)), key="value"))
    await a_source(api, namespace="p-{name}", secret="access", reading="value").mint(WANTED)
    assert api.asked == [("GET", "/api/v1/namespaces/p-alpha/secrets/access")]


async def test_secret_with_long_lived_certificate_requires_allow_long_lived_setting() -> None:
    answer = secret(kubeconfig(pair(NOW + 90 * 86400)))
    with pytest.raises(UnfitError, match=r"is valid for 90 days.*allow_long_lived"):
        await a_source(ScriptedApi(answer)).mint(WANTED)
    minted = await a_source(ScriptedApi(answer), allow_long_lived=True).mint(WANTED)
    assert minted.expires_at == math.floor(NOW + 90 * 86400)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (TransportError("connect", "milo cannot be reached"), "cannot be reached"),
        (answering(404, {"message": CANARY}), "(404)"),
        (answering(403, {"message": CANARY}), "get secrets, resourceNames [kubeconfig]"),
        (Answer(200, f"<html>{CANARY}".encode()), "is not a Kubernetes object"),
        (answering(200, {"data": {"other": CANARY}}), "has no key 'kubeconfig'"),
        (answering(200, {}), "has no key 'kubeconfig'"),
        (answering(200, {"data": {"kubeconfig": "!!" + CANARY}}), "does not contain a base64-encoded kubeconfig"),
        (answering(200, {"data": {"kubeconfig": "é" + CANARY}}), "does not contain a base64-encoded kubeconfig"),
        (secret(f"token: {CANARY}: {{"), "does not contain a kubeconfig"),
        (secret(b"\xff\xfe"), "does not contain a kubeconfig"),
        (secret(f"users: {CANARY}"), "does not contain a kubeconfig"),
        (secret("current-context: c"), "has no context"),
        (secret(kubeconfig({})), "has no credential"),
        (secret(kubeconfig({"token": CANARY})), "without an expiry"),
        (secret(kubeconfig({"token": CANARY + "\n x"})), "not a bearer token"),
        (
            secret(kubeconfig({"tokenFile": "/etc/passwd"})),
            "only token, or client-cert",
        ),
        (
            secret(kubeconfig({"client-certificate": "/a", "client-key": "/b"})),
            "only token, or client-cert",
        ),
        (
            secret(kubeconfig({"exec": {"apiVersion": "v1", "command": "/bin/sh"}})),
            "only token, or client-cert",
        ),
        (secret(kubeconfig(pair(NOW + 600) | {"client-key-data": "!"})), "not valid base64"),
        (secret(kubeconfig(pair(NOW + 600) | {"client-key-data": ""})), "only one of a client certificate and its key"),
        (secret(kubeconfig(pair(NOW - 1))), "an expired credential"),
    ],
)
async def test_unusable_kubeconfig_secret_is_reported_without_quoting_it(
    answer: Answer | TransportError, expected: str
) -> None:
    with pytest.raises(CredentialError) as raised:
        await a_source(ScriptedApi(answer)).mint(WANTED)
    assert expected in str(raised.value)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("uid", ["../../x", "A", "a/b", "", "u" * 80])
async def test_invalid_project_uid_cannot_change_the_path_of_the_kubeconfig_secret(uid: str) -> None:
    api = ScriptedApi()
    target = Target(name="alpha", uid=uid, place=("https://a",))
    with pytest.raises(BackendError, match="is not a valid Secret name"):
        await a_source(api, namespace="{uid}").mint(MintRequest(ttl_s=600, cluster=engaged(target)))
    assert not api.asked


async def test_kubeconfig_secret_of_declared_cluster_is_found_by_object_namespace_and_name() -> None:
    content = yaml.safe_load(kubeconfig(pair(NOW + 600)))
    content["clusters"] = [{"name": "k", "cluster": {"certificate-authority-data": base64.b64encode(b"CA").decode()}}]
    api = ScriptedApi(secret(yaml.safe_dump(content), key="value"))
    target = DeclaredTarget(name="n.a", uid="u", place=("https://a",), object_namespace="n", object_name="a")
    source = a_source(api, namespace="{namespace}", secret="{object}-kubeconfig", reading="value")
    issued = await source.mint(MintRequest(ttl_s=600, cluster=engaged(target)))
    assert api.asked == [("GET", "/api/v1/namespaces/n/secrets/a-kubeconfig")]
    assert issued.authorities == b"CA"


async def test_kubeconfig_secret_named_in_the_object_is_used() -> None:
    api = ScriptedApi(secret(kubeconfig(pair(NOW + 600))))
    target = DeclaredTarget(
        name="n.a", uid="u", place=("https://a",), object_namespace="n", object_name="a", secret=("fleet", "a-admin")
    )
    source = a_source(api, namespace="{secret_namespace}", secret="{secret}")
    await source.mint(MintRequest(ttl_s=600, cluster=engaged(target)))
    assert api.asked == [("GET", "/api/v1/namespaces/fleet/secrets/a-admin")]


@pytest.mark.parametrize("name", ["{object}", "{object}-kubeconfig", "{secret}"])
async def test_no_credential_is_issued_of_a_secret_that_an_object_of_the_same_name_leads_to(name: str) -> None:
    target = DeclaredTarget(
        name="n.a", uid="first", place=("https://a",), object_namespace="n", object_name="a", secret=("n", "s")
    )
    wanted = MintRequest(ttl_s=600, cluster=engaged(target, object_uid="first"))
    objects = ScriptedApi(*(answering(200, {"metadata": {"uid": uid}}) for uid in ("first", "second")))
    source = a_source(
        ScriptedApi(*[secret(kubeconfig(pair(NOW + 600)))] * 2),
        place=SecretPlace(
            "{namespace}", name, ClusterObjects(objects, "test", Resource("", "v1", "secrets", namespaced=True))
        ),
    )
    await source.mint(wanted)
    with pytest.raises(BackendError, match=r"the object of n\.a in secrets was deleted"):
        await source.mint(wanted)


@pytest.mark.parametrize(("cause", "is_of_cluster"), [("connect", False), ("too_large", True)])
async def test_secret_that_is_too_large_to_read_is_no_failure_of_the_issuer(
    cause: TransportCause, *, is_of_cluster: bool
) -> None:
    with pytest.raises(BackendError) as raised:
        await a_source(ScriptedApi(TransportError(cause, "no response"))).mint(WANTED)
    assert raised.value.of_cluster is is_of_cluster


async def test_kubeconfig_secret_of_restored_cluster_is_not_read_before_its_object_is_seen() -> None:
    source = a_source(api := ScriptedApi(), namespace="{namespace}")
    with pytest.raises(BackendError, match="has not been received"):
        await source.mint(WANTED)
    assert not api.asked


async def test_kubeconfig_secret_with_invalid_ca_is_rejected() -> None:
    content = yaml.safe_load(kubeconfig(pair(NOW + 600)))
    content["clusters"] = [{"name": "k", "cluster": {"certificate-authority-data": "!"}}]
    with pytest.raises(CredentialError, match="certificate-authority-data that is not valid base64"):
        await a_source(ScriptedApi(secret(yaml.safe_dump(content)))).mint(WANTED)


def fields(**values: str) -> Answer:
    return answering(200, {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}})


TOKEN_AND_CA = CredentialPaths(token=FieldPath.parse("stringData[token]"), ca=FieldPath.parse("stringData[caBundle]"))


@pytest.mark.parametrize("authorities", [CA, base64.b64encode(CA.encode()).decode()])
async def test_token_and_ca_are_read_from_keys_of_a_secret(authorities: str) -> None:
    token = jwt(exp=NOW + 600)
    api = ScriptedApi(fields(token=token, caBundle=authorities))
    minted = await a_source(api, reading=TOKEN_AND_CA).mint(WANTED)
    assert (minted.credential, minted.authorities) == (Credential(token=Secret(token)), CA.encode())


async def test_certificate_is_read_from_json_in_a_secret() -> None:
    encoded = pair(NOW + 600)
    tls = {"certData": encoded["client-certificate-data"], "keyData": encoded["client-key-data"]}
    reading = CredentialPaths(
        certificate=FieldPath.parse("stringData[config].tlsClientConfig.certData"),
        private_key=FieldPath.parse("stringData[config].tlsClientConfig.keyData"),
    )
    api = ScriptedApi(fields(config=json.dumps({"tlsClientConfig": tls})))
    minted = await a_source(api, reading=reading).mint(WANTED)
    assert minted.credential.certificate is not None
    assert minted.credential.certificate.key == Secret(CANARY)
    assert minted.authorities is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token": "t t", "caBundle": CA}, "is not a bearer token"),
        ({"caBundle": CA}, r"the field stringData\[token\] is not set"),
        ({"token": CANARY, "caBundle": CANARY}, r"stringData\[caBundle\] does not contain CA certificates"),
    ],
)
async def test_secret_with_unusable_fields_is_refused_without_quoting_them(values: dict[str, str], words: str) -> None:
    with pytest.raises(BackendError, match=words) as refused:
        await a_source(ScriptedApi(fields(**values)), reading=TOKEN_AND_CA, allow_long_lived=True).mint(WANTED)
    assert CANARY not in str(refused.value)
    assert refused.value.of_cluster


async def test_certificate_that_is_not_pem_is_refused() -> None:
    paths = {"certificate": FieldPath.parse("stringData[c]"), "private_key": FieldPath.parse("stringData[c]")}
    with pytest.raises(BackendError, match="is neither PEM nor base64-encoded PEM"):
        await a_source(ScriptedApi(fields(c="!")), reading=CredentialPaths(**paths)).mint(WANTED)


GIANT = GiantPair(20_000)


@pytest.mark.parametrize("certificate", [GIANT.certificate, certificate(NOW - 60, NOW + 600)], ids=["giant", "small"])
@pytest.mark.parametrize("key", [GIANT.key, GIANT.key_in_pkcs8], ids=["PKCS#1", "PKCS#8"])
async def test_giant_rsa_key_of_a_tenant_is_refused(certificate: bytes, key: bytes) -> None:
    """OpenSSL would need seconds for each signature, for which the event loop stops."""
    fields = {"c": base64.b64encode(certificate).decode(), "k": base64.b64encode(key).decode()}
    user = {"client-certificate-data": fields["c"], "client-key-data": fields["k"]}
    paths = CredentialPaths(certificate=FieldPath.parse("stringData[c]"), private_key=FieldPath.parse("stringData[k]"))
    for api, reading in ((secret(kubeconfig(user)), "kubeconfig"), (answering(200, {"data": fields}), paths)):
        with pytest.raises(BackendError, match="has an RSA key with numbers of 20000 bits"):
            await a_source(ScriptedApi(api), reading=reading).mint(WANTED)


async def test_certificate_chain_of_a_tenant_that_is_too_long_is_refused() -> None:
    """OpenSSL would load all of it for each connection."""
    paths = CredentialPaths(certificate=FieldPath.parse("stringData[c]"), private_key=FieldPath.parse("stringData[k]"))
    chain = certificate(NOW - 60, NOW + 600)
    for content, problem in (
        (chain * 51, "has 51 certificates and keys"),
        (chain + b" " * (64 << 10), "longer than 65536 bytes"),
    ):
        fields = {
            name: base64.b64encode(value).decode() for name, value in (("c", content), ("k", GiantPair(1024).key))
        }
        with pytest.raises(BackendError, match=problem):
            await a_source(ScriptedApi(answering(200, {"data": fields})), reading=paths).mint(WANTED)


async def test_ca_with_giant_rsa_key_in_a_kubeconfig_is_refused() -> None:
    cluster = {"certificate-authority-data": base64.b64encode(GIANT.certificate).decode()}
    with pytest.raises(BackendError, match="certificate-authority-data that has an RSA key with numbers of 20000 bits"):
        await a_source(ScriptedApi(kubeconfig_of(**cluster))).mint(WANTED)


async def test_secret_key_that_the_object_references_is_used() -> None:
    target = DeclaredTarget(
        name="n.a", uid="u", place=("https://a",), object_namespace="n", object_name="a", secret_key="admin"
    )
    api = ScriptedApi(secret(kubeconfig(pair(NOW + 600)), key="admin"))
    await a_source(api, reading="{secret_key}").mint(MintRequest(ttl_s=600, cluster=engaged(target)))


async def test_token_without_expiry_requires_allow_long_lived_setting_and_is_issued_for_an_hour() -> None:
    answer = secret(kubeconfig({"token": "kubeconfig-u-1:opaque"}))
    with pytest.raises(UnfitError, match=r"without an expiry.*allow_long_lived"):
        await a_source(ScriptedApi(answer)).mint(WANTED)
    minted = await a_source(ScriptedApi(answer), allow_long_lived=True).mint(WANTED)
    assert minted.expires_at == NOW + 3600


def kubeconfig_of(**cluster: Any) -> Answer:
    content = yaml.safe_load(kubeconfig(pair(NOW + 600)))
    return secret(yaml.safe_dump(content | {"clusters": [{"name": "k", "cluster": cluster}]}))


async def test_kubeconfig_secret_in_a_dedicated_namespace_determines_the_server() -> None:
    authorities = base64.b64encode(CA.encode()).decode()
    stated = {"server": "https://10.0.0.7:6443/", "certificate-authority-data": authorities, "tls-server-name": "own"}
    minted = await a_source(ScriptedApi(kubeconfig_of(**stated)), states_server=True).mint(WANTED)
    assert (minted.server, minted.authorities, minted.tls_server_name) == ("https://10.0.0.7:6443", CA.encode(), "own")
    for other in (
        a_source(ScriptedApi(kubeconfig_of(**stated))),
        a_source(ScriptedApi(kubeconfig_of()), states_server=True),
    ):
        assert (await other.mint(WANTED)).server == ""


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"server": "http://10.0.0.7"}, "is not of the form https://HOST"),
        ({"server": "https://a b"}, "has a space or a control character"),
        ({"server": "https://a_b"}, "is not of the form https://HOST"),
        ({"server": "https://a", "tls-server-name": "a..b"}, "has a tls-server-name that is not a hostname"),
        ({"server": "https://a", "insecure-skip-tls-verify": True}, "set certificate-authority-data"),
        ({"server": "https://a", "proxy-url": "http://p:1"}, "can have only server, certificate-authority-data"),
        (
            {"server": "https://a", "certificate-authority": "/etc/ca"},
            "can have only server, certificate-authority-data",
        ),
        (
            {"server": "https://a", "certificate-authority-data": base64.b64encode(b"CA").decode()},
            "does not contain CA certificates",
        ),
    ],
)
async def test_kubeconfig_secret_with_an_unacceptable_server_is_refused(cluster: dict[str, Any], expected: str) -> None:
    with pytest.raises(CredentialError, match="refused") as raised:
        await a_source(ScriptedApi(kubeconfig_of(**cluster)), states_server=True).mint(WANTED)
    assert expected in str(raised.value)
