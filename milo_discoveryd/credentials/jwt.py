"""What a JWT says of itself. Nothing here is verified: that is for the server it is shown to."""

import base64
import binascii

import msgspec

MAX_LENGTH = 32 * 1024
"""Of any bearer token: servers take headers of about as much."""


class Claims(msgspec.Struct, frozen=True):
    exp: float | None = None
    nbf: float | None = None
    iat: float | None = None
    sub: str = ""
    aud: str | list[str] = ""

    @property
    def audiences(self) -> frozenset[str]:
        return frozenset((self.aud,) if isinstance(self.aud, str) else self.aud) - {""}


class _Header(msgspec.Struct, frozen=True):
    alg: str


def claims(token: str) -> Claims | None:
    """None for a token that is no JWT. Raises ValueError, without its content, for one that says nonsense."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_LENGTH:
        return None
    try:
        msgspec.json.decode(_decoded(parts[0]), type=_Header)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        return None
    try:
        return msgspec.json.decode(_decoded(parts[1]), type=Claims)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        # msgspec's own words may hold what it read.
        raise ValueError("its claims cannot be read: exp, nbf and iat must be numbers, aud and sub text") from None


def _decoded(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
