"""A local issuer of JWTs, with its discovery documents and an OAuth token endpoint.

It replaces the identity service of an installation: service accounts get access tokens from it, which an API server
accepts by structured authentication configuration.
"""

import base64
import json
import secrets
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.end_to_end.real.certificates import Authority

AUDIENCE = "milo"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_KEY_ID = "the-only-one"


class Issuer:
    def __init__(self, directory: Path, *, life_s: int = 600) -> None:
        self.life_s = life_s
        self.given = 0
        """The number of access tokens issued at the token endpoint."""
        self.url = ""
        self._authority = Authority(directory)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(*self._authority.server("issuer"))
        self._key = _new_key()
        self._accounts: dict[str, tuple[str, rsa.RSAPublicKey]] = {}

    @property
    def ca_file(self) -> Path:
        return self._authority.file

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.add_routes(
            [
                web.get("/.well-known/openid-configuration", self._configuration),
                web.get("/keys", self._keys),
                web.post("/token", self._token),
            ]
        )
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def trusted(self) -> dict[str, Any]:
        """Return the entry for an API server's authentication configuration."""
        return {
            "issuer": {
                "url": self.url,
                "audiences": [AUDIENCE],
                "certificateAuthority": self._authority.pem.decode(),
            },
            "claimMappings": {"username": {"claim": "sub", "prefix": "account:"}},
        }

    def register(self, subject: str) -> dict[str, str]:
        """Create a service account; return the content of its key file."""
        key = _new_key()
        client_id = secrets.token_hex(9)
        self._accounts[client_id] = (subject, key.public_key())
        return {
            "type": "datum_service_account",
            "api_endpoint": self.url,
            "token_uri": f"{self.url}/token",
            "scope": "openid",
            "project_id": "test",
            "client_email": f"{subject}@example.com",
            "client_id": client_id,
            "private_key_id": secrets.token_hex(9),
            "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        }

    def token(self, subject: str, *, audience: str = AUDIENCE, ends_in_s: float | None = None) -> str:
        now = int(time.time())
        end = now + (self.life_s if ends_in_s is None else ends_in_s)
        claims = {"iss": self.url, "sub": subject, "aud": audience, "iat": now, "exp": int(end)}
        signed = f"{_json({'alg': 'RS256', 'typ': 'JWT', 'kid': _KEY_ID})}.{_json(claims)}"
        return f"{signed}.{_text(self._key.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"

    async def _configuration(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    async def _keys(self, request: web.Request) -> web.Response:
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": _KEY_ID}
        return web.json_response({"keys": [{**key, "n": _number(numbers.n), "e": _number(numbers.e)}]})

    async def _token(self, request: web.Request) -> web.Response:
        form = {name: values[0] for name, values in parse_qs(await request.text()).items()}
        signed, _, signature = form["assertion"].rpartition(".")
        claims = json.loads(_bytes(signed.split(".")[1]))
        subject, key = self._accounts[claims["iss"]]
        try:
            key.verify(_bytes(signature), signed.encode(), padding.PKCS1v15(), SHA256())
        except InvalidSignature:
            return web.json_response({"error": "invalid_grant"}, status=400)
        if form["grant_type"] != _GRANT or claims["aud"] != self.url:
            return web.json_response({"error": "invalid_request"}, status=400)
        self.given += 1
        answer = {"access_token": self.token(subject), "token_type": "Bearer", "expires_in": self.life_s}
        return web.json_response(answer)


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _json(content: Mapping[str, object]) -> str:
    return _text(json.dumps(content).encode())


def _number(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
