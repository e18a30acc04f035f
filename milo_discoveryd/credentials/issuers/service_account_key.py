"""The JSON key file of a Datum service account, and the assertion signed with it."""

from urllib.parse import urlsplit

import msgspec

from milo_discoveryd.credentials import signed_assertion
from milo_discoveryd.credentials.signed_assertion import SigningKey
from milo_kube.credential import CredentialError

TYPE = "datum_service_account"


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
    """A parsed key file. Its repr does not contain the private key."""

    __slots__ = ("_private_key", "account", "client_id", "key_id", "scope", "token_uri")

    def __init__(self, file: _File, private_key: SigningKey) -> None:
        self._private_key = private_key
        self.token_uri = file.token_uri
        self.scope = file.scope
        self.client_id = file.client_id
        self.key_id = file.private_key_id
        self.account = file.client_email or file.client_id

    def assertion(self, now: float) -> str:
        """Return a JWT, valid for a minute, that authenticates the account to the token endpoint."""
        parts = urlsplit(self.token_uri)
        audience = f"{parts.scheme}://{parts.netloc}"
        return signed_assertion.assertion(
            self._private_key, self.key_id, subject=self.client_id, audience=audience, now=now
        )


def parse(content: bytes, origin: str) -> ServiceAccountKey:
    """Parse a key file. Raises CredentialError, whose message contains no values of the file."""
    try:
        file = _FILE.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # msgspec reports types and paths, and for malformed JSON a position, but no values.
        raise CredentialError(f"{origin} is not the key file of a Datum service account: {error}") from None
    if file.type != TYPE:
        raise CredentialError(f"{origin} is a key file whose type is not {TYPE}")
    _require_https(file.token_uri, origin)
    return ServiceAccountKey(file, signed_assertion.load_key(file.private_key.encode(), f"the private_key of {origin}"))


def _require_https(url: str, origin: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise CredentialError(f"the token_uri of {origin} is not of the form https://HOST[:PORT]/PATH")
