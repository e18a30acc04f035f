"""Bearer tokens: JWTs that the sandbox signs and verifies."""

import hmac
import math
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256

import msgspec

from milo_sandbox import refusals

_ISSUER = "https://milo-sandbox.local"
_HEADER = {"alg": "HS256", "typ": "JWT"}


class BoundTo(msgspec.Struct, frozen=True, kw_only=True):
    """The Secret that a token is bound to."""

    namespace: str
    name: str
    uid: str


class Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    iss: str
    sub: str
    aud: tuple[str, ...] = ()
    bound: BoundTo | None = None
    iat: float
    exp: float
    jti: str


class Tokens:
    """The issuer and verifier of tokens. Times are seconds since the epoch."""

    def __init__(self, *, life: float, clock: Callable[[], float]) -> None:
        self.life = life
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self.holds: Callable[[BoundTo], bool] = lambda bound: False
        """Whether the Secret that a token is bound to exists."""

    def issue(
        self,
        subject: str,
        *,
        life: float | None = None,
        audiences: Sequence[str] = (),
        bound: BoundTo | None = None,
    ) -> str:
        now = self._clock()
        claims = Claims(
            iss=_ISSUER,
            sub=subject,
            aud=tuple(audiences),
            bound=bound,
            iat=_milliseconds(now),
            exp=_milliseconds(now + (self.life if life is None else life)),
            jti=secrets.token_hex(8),
        )
        signed = f"{_encoded(msgspec.json.encode(_HEADER))}.{_encoded(msgspec.json.encode(claims))}"
        return f"{signed}.{self._signature(signed)}"

    def subject(self, token: str) -> str:
        """Verify a token and return its subject. Raises RefusalError."""
        signed, _, signature = token.rpartition(".")
        if not token.isascii() or not hmac.compare_digest(signature, self._signature(signed)):
            raise refusals.unauthorized()
        claims = self.claims(token)
        if claims.exp <= self._clock() or (claims.bound is not None and not self.holds(claims.bound)):
            raise refusals.unauthorized()
        return claims.sub

    def claims(self, token: str) -> Claims:
        """Return the claims of a token that `issue` made."""
        return msgspec.json.decode(decoded(token.split(".")[1]), type=Claims)

    def revoke_all(self) -> None:
        """Revoke every issued token."""
        self._secret = secrets.token_bytes(32)

    def _signature(self, signed: str) -> str:
        return _encoded(hmac.digest(self._secret, signed.encode(), sha256))


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _milliseconds(moment: float) -> float:
    """Round down to milliseconds, so that no lifetime is longer than requested and no token begins in the future."""
    return math.floor(moment * 1000) / 1000
