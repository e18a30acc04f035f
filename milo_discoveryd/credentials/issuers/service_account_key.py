"""The JSON key file of a Datum service account, and the assertion signed with it."""

import base64
import secrets
from urllib.parse import urlsplit

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from milo_discoveryd.daemon_errors import CredentialError
from milo_kube import addresses

TYPE = "datum_service_account"
ASSERTION_LIFE_S = 60
_KEY_BITS = 2048


class _File(msgspec.Struct, frozen=True):
    type: str
    token_uri: str
    client_id: str
    private_key_id: str
    private_key: str
    scope: str = ""
    client_email: str = ""
    project_id: str = ""
    api_endpoint: str = ""


_FILE = msgspec.json.Decoder(_File)


class ServiceAccountKey:
    """A parsed key file. The private key is never shown."""

    __slots__ = ("_private_key", "account", "client_id", "key_id", "scope", "token_uri")

    def __init__(self, file: _File, private_key: rsa.RSAPrivateKey) -> None:
        self._private_key = private_key
        self.token_uri = file.token_uri
        self.scope = file.scope
        self.client_id = file.client_id
        self.key_id = file.private_key_id
        self.account = file.client_email or file.client_id

    @property
    def is_local(self) -> bool:
        """Whether its token endpoint is on this machine."""
        return addresses.is_loopback(urlsplit(self.token_uri).hostname or "")

    def assertion(self, now: float) -> str:
        """Return a JWT, valid for a minute, that authenticates the account to the token endpoint."""
        parts = urlsplit(self.token_uri)
        header = {"alg": "RS256", "typ": "JWT", "kid": self.key_id}
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": f"{parts.scheme}://{parts.netloc}",
            "iat": int(now),
            "exp": int(now) + ASSERTION_LIFE_S,
            "jti": secrets.token_hex(16),
        }
        signed = f"{_encoded(msgspec.json.encode(header))}.{_encoded(msgspec.json.encode(claims))}"
        return f"{signed}.{_encoded(self._private_key.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"


def parse(content: bytes, origin: str) -> ServiceAccountKey:
    """Parse a key file. Raises CredentialError without its content."""
    try:
        file = _FILE.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # msgspec reports types and paths, and for malformed JSON a position, but no values.
        raise CredentialError(f"{origin} is not the key file of a Datum service account: {error}") from None
    if file.type != TYPE:
        raise CredentialError(f"{origin} is a key file whose type is not {TYPE}")
    _require_https(file.token_uri, origin)
    try:
        key = load_pem_private_key(file.private_key.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CredentialError(f"the private_key of {origin} is not an unencrypted PEM key") from None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < _KEY_BITS:
        raise CredentialError(f"the private_key of {origin} is not an RSA key of at least {_KEY_BITS} bits")
    return ServiceAccountKey(file, key)


def _require_https(url: str, origin: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise CredentialError(f"the token_uri of {origin} is not of the form https://HOST[:PORT]/PATH")


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
