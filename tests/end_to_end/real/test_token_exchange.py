"""Token exchange at a third-party token endpoint, Keycloak."""

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from milo_discoveryd.credentials import jwt
from milo_discoveryd.credentials.issuers.issuer import MintRequest
from milo_discoveryd.credentials.issuers.token_endpoint import TokenEndpoint
from milo_discoveryd.credentials.issuers.token_exchange import (
    ClientAuthentication,
    ClientKey,
    ClientSecret,
    ExchangeRequest,
    RenewedToken,
    TokenExchangeIssuer,
)
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from tests.end_to_end.real.certificates import Authority
from tests.end_to_end.real.keycloak import Keycloak, keycloak
from tests.end_to_end.real.programs import Programs

pytestmark = [pytest.mark.nightly, pytest.mark.asyncio(loop_scope="module")]

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
TARGET, SECRET = "milo-api", "a secret: with & in it"


def audience(name: str) -> dict[str, Any]:
    """Return a mapper that adds an audience to the tokens of a client."""
    return {
        "name": f"audience {name}",
        "protocol": "openid-connect",
        "protocolMapper": "oidc-audience-mapper",
        "config": {"included.client.audience": name, "access.token.claim": "true"},
    }


def exchanging(name: str, **differing: Any) -> dict[str, Any]:
    """Return a client that may exchange tokens for the target."""
    return {
        "clientId": name,
        "serviceAccountsEnabled": True,
        "standardFlowEnabled": False,
        "protocolMappers": [audience(TARGET)],
        **differing,
        "attributes": {"standard.token.exchange.enabled": "true", **differing.get("attributes", {})},
    }


def public_key(pem: bytes) -> bytes:
    public = serialization.load_pem_private_key(pem, None).public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(public: bytes) -> str:
    """Return the ID that Keycloak gives to a client's key without one."""
    return base64.urlsafe_b64encode(hashlib.sha256(public).digest()).rstrip(b"=").decode()


class Exchange:
    def __init__(self, server: Keycloak, directory: Path, authority: Authority) -> None:
        self.server = server
        self.directory = directory
        self.authorities = FileContent(authority.file)

    def written(self, name: str, content: str) -> FileContent:
        (self.directory / name).write_text(content)
        return FileContent(self.directory / name)

    async def issuer(self, client: ClientAuthentication, target: str = TARGET) -> TokenExchangeIssuer:
        subject = self.written("subject", await self.server.workload_token("workload", "workload-secret"))
        return TokenExchangeIssuer(
            "workload",
            TokenEndpoint(self.authorities, lambda _: None),
            ExchangeRequest(url=self.server.token_url, audiences=(target,)),
            subject=RenewedToken(subject, ACCESS_TOKEN),
            client=client,
            accepted_audiences=[target],
        )

    def by_secret(self, secret: str = SECRET) -> ClientSecret:
        return ClientSecret("daemon", self.written("secret", secret))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exchange(built: Programs, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Exchange]:
    directory = tmp_path_factory.mktemp("keycloak")
    authority = Authority(directory)
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "client.key").write_bytes(key)
    signing = {
        "clientAuthenticatorType": "client-jwt",
        "attributes": {
            "jwt.credential.public.key": base64.b64encode(public_key(key)).decode(),
            "token.endpoint.auth.signing.alg": "RS256",
        },
    }
    workload = {
        "clientId": "workload",
        "secret": "workload-secret",
        "serviceAccountsEnabled": True,
        "standardFlowEnabled": False,
        "protocolMappers": [audience("daemon"), audience("daemon-with-key")],
    }
    async with keycloak(directory, authority) as server:
        await server.configure(
            [
                {"clientId": TARGET, "secret": "unused"},
                workload,
                exchanging("daemon", secret=SECRET),
                exchanging("daemon-with-key", **signing),
            ]
        )
        yield Exchange(server, directory, authority)


async def test_workload_token_is_exchanged_for_a_token_with_the_target_audience(exchange: Exchange) -> None:
    minted = await (await exchange.issuer(exchange.by_secret())).mint(MintRequest(ttl_s=600))
    assert minted.credential.token is not None
    claims = jwt.claims(minted.credential.token.reveal())
    assert claims is not None
    assert TARGET in claims.audiences
    assert 250 < minted.life_s <= 301


async def test_client_authenticates_by_signed_assertion(exchange: Exchange) -> None:
    file = FileContent(exchange.directory / "client.key")
    client = ClientKey("daemon-with-key", file, key_id(public_key(file.read())))
    minted = await (await exchange.issuer(client)).mint(MintRequest(ttl_s=600))
    assert minted.credential.token is not None


async def test_errors_for_keycloak_rejections_explain_what_to_do(exchange: Exchange) -> None:
    unknown = await exchange.issuer(exchange.by_secret(), target="nobody")
    with pytest.raises(CredentialError, match="change the settings `client_id` and `audience`"):
        await unknown.mint(MintRequest(ttl_s=600))
    wrong = await exchange.issuer(exchange.by_secret("not the secret"))
    with pytest.raises(CredentialError, match="renew the secret"):
        await wrong.mint(MintRequest(ttl_s=600))
    forged = await exchange.issuer(exchange.by_secret())
    exchange.written("subject", "not-a-token")
    with pytest.raises(CredentialError, match="does not accept this subject token"):
        await forged.mint(MintRequest(ttl_s=600))
