"""Revisions as subscribers see them: opaque to them, and proof to us of what they had read.

Each is sealed for one holder: a caller, and what it is shown. To anybody else, and after any change, it is worth
nothing.
"""

import hmac
import re
from binascii import b2a_base64
from hashlib import blake2b

import msgspec

_FORM = re.compile(r"([0-9a-f]{16})\.([0-9]{1,18})(?:\.part([0-9]{1,9}))?\.([A-Za-z0-9_-]{22})")
_SEAL_BYTES = 16
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class Position(msgspec.Struct, frozen=True):
    """How far a reader came, in which run of the daemon."""

    epoch: str
    revision: int
    part: int | None = None
    """It had read so many parts of a snapshot, which are worth nothing to anybody who comes back."""

    def __str__(self) -> str:
        return f"{self.epoch}.{self.revision}{'' if self.part is None else f'.part{self.part}'}"


class TokenSigner:
    """By keyed BLAKE2: there is one in each message, and HMAC by way of OpenSSL costs far more than what it seals."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def put(self, text: str, holder: str) -> str:
        return f"{text}.{self._mark(text, holder)}"

    def holds(self, sealed: str, holder: str) -> str | None:
        """The text, if it was sealed by us and for this holder."""
        text, _, mark = sealed.rpartition(".")
        whole = hmac.compare_digest(mark.encode(), self._mark(text, holder).encode())
        return text if whole else None

    def _mark(self, text: str, holder: str) -> str:
        # Neither has a NUL in it, as we write them, so no part of the one passes for a part of the other.
        mark = blake2b(f"{text}\0{holder}".encode(), key=self._key, digest_size=_SEAL_BYTES).digest()
        return b2a_base64(mark, newline=False).translate(_URL_SAFE, b"=").decode()


def parse(text: str) -> Position | None:
    """None for anything that this program can't have written: to be answered by a snapshot, never by an error."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    epoch, revision, part, _ = form.groups()
    return Position(epoch, int(revision), None if part is None else int(part))
