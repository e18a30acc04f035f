"""The claims of a JWT, unverified: verification is up to the server that receives it."""

import base64
import binascii
from typing import Annotated

import msgspec

MAX_LENGTH = 32 * 1024
"""The longest bearer token accepted; servers limit headers to about this size."""


NumericDate = Annotated[float, msgspec.Meta(ge=0)]


class JwtClaims(msgspec.Struct, frozen=True):
    exp: NumericDate | None = None
    nbf: NumericDate | None = None
    iat: float | None = None
    """Not used unless it is a time before now."""
    sub: str = ""
    aud: str | list[str] = ""

    @property
    def audiences(self) -> frozenset[str]:
        return frozenset((self.aud,) if isinstance(self.aud, str) else self.aud) - {""}


_CLAIMS = msgspec.json.Decoder(JwtClaims)


class _JwtHeader(msgspec.Struct, frozen=True):
    alg: str


_HEADER = msgspec.json.Decoder(_JwtHeader)


def claims(token: str) -> JwtClaims | None:
    """Return the claims, or None if the token is not a JWT or is too long.

    Raises ValueError if the claims are malformed. The message does not quote the token.
    """
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_LENGTH:
        return None
    try:
        _HEADER.decode(_decoded(parts[0]))
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        return None
    try:
        return _CLAIMS.decode(_decoded(parts[1]))
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        # The original error is not quoted: for invalid UTF-8, it contains a byte of the token.
        raise ValueError(
            "malformed claims: exp and nbf must be positive numbers, iat a number, sub a string, and aud a string or a "
            "list of strings"
        ) from None


def _decoded(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
