"""The sandbox's token endpoint validates assertions as a real one does."""

import base64
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from milo_sandbox import Sandbox
from tests.integration.sandbox.client import PROJECTS, Answer, Client

TOKEN = "/oauth/v2/token"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class Account:
    def __init__(self, sandbox: Sandbox, directory: Path) -> None:
        self._url = sandbox.url
        self.file = json.loads(sandbox.write_service_account_key(directory / "key.json").read_text())

    def assertion(self, **differing: Any) -> str:
        key = load_pem_private_key(self.file["private_key"].encode(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        now = int(time.time())
        head = {"alg": "RS256", "kid": self.file["private_key_id"]}
        who = self.file["client_id"]
        claims = {"iss": who, "sub": who, "aud": self._url, "iat": now, "exp": now + 60, "jti": "1"} | differing
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
        return f"{signed}.{encoded(key.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def response_to(client: Client, assertion: str, grant: str = GRANT) -> Answer:
    form = urlencode({"grant_type": grant, "assertion": assertion}).encode()
    return await client.call("POST", TOKEN, form, headers={"Content-Type": "application/x-www-form-urlencoded"})


async def test_token_endpoint_exchanges_an_assertion_for_a_token(
    client: Client, sandbox: Sandbox, tmp_path: Path
) -> None:
    account = Account(sandbox, tmp_path)
    client.token = None
    assertion = account.assertion()
    answer = await response_to(client, assertion)
    assert (answer.status, answer.json["token_type"], answer.json["expires_in"]) == (200, "Bearer", 600)
    client.token = answer.json["access_token"]
    assert (await client.get(PROJECTS)).status == 200
    assert (await response_to(client, assertion)).json["error"] == "invalid_grant"
    assert sandbox.token_endpoint.answered == ["ok", "invalid_grant"]


@pytest.mark.parametrize(
    "differing",
    [
        {"aud": "https://elsewhere"},
        {"sub": "somebody else"},
        {"iss": "somebody else", "sub": "somebody else"},
        {"exp": 1},
        {"exp": time.time() // 1 + 1e9},
        {"iat": int(time.time()) + 3600},
        {"jti": 5},
    ],
)
async def test_token_endpoint_refuses_wrong_claims(
    client: Client, sandbox: Sandbox, tmp_path: Path, differing: dict[str, Any]
) -> None:
    answer = await response_to(client, Account(sandbox, tmp_path).assertion(**differing))
    assert (answer.status, answer.json["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize("assertion", ["", "a.b.c", "e30.e30.", "ü"])
async def test_token_endpoint_refuses_malformed_assertions(client: Client, assertion: str) -> None:
    assert (await response_to(client, assertion)).json["error"] == "invalid_grant"


async def test_token_endpoint_refuses_unsupported_grant_types_and_revoked_keys(
    client: Client, sandbox: Sandbox, tmp_path: Path
) -> None:
    account = Account(sandbox, tmp_path)
    assert (await response_to(client, account.assertion(), "password")).json["error"] == "unsupported_grant_type"
    sandbox.token_endpoint.revoke_keys()
    assert (await response_to(client, account.assertion())).json["error"] == "invalid_grant"


async def test_token_request_succeeds_only_for_existing_service_accounts_and_bound_objects(
    client: Client, sandbox: Sandbox
) -> None:
    sandbox.add_service_account("milo", "operators")
    sandbox.add_service_account("milo", "others")
    path = "/infrastructure/api/v1/namespaces/milo/serviceaccounts/{}/token"
    answer = await client.call("POST", path.format("operators"), {"spec": {"audiences": ["a"]}})
    token = answer.json["status"]["token"]
    assert (answer.status, sandbox.tokens.claims(token).aud) == (201, ("a",))
    assert sandbox.tokens.subject(token) == "system:serviceaccount:milo:operators"
    assert sandbox.infrastructure.requested == 1
    assert (await client.call("POST", path.format("nobody"), {"spec": {}})).status == 404
    assert (await client.call("POST", path.format("operators"), {"spec": {"expirationSeconds": 60}})).status == 400
    gone = {"kind": "Secret", "name": "x", "uid": "y"}
    assert (await client.call("POST", path.format("operators"), {"spec": {"boundObjectRef": gone}})).status == 404
    client.token = token
    assert (await client.get("/infrastructure/api/v1/namespaces/milo/secrets")).json["items"] == []
