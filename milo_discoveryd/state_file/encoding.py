"""The fleet as bytes and back. What was torn, changed, or written by others or for another source is refused whole."""

import hashlib
import math

import msgspec

from milo_discoveryd.model.cluster import Target

FORMAT = 2
_MAGIC = b"milo-discoveryd state "


class StoredCluster(msgspec.Struct, frozen=True, gc=False):
    """An engaged cluster, as far as it is worth remembering."""

    uid: str
    """Of the object; `target.uid` is the project's."""
    target: Target
    engaged_at: float


class StateOrigin(msgspec.Struct, frozen=True):
    """Whose clusters these are. Another origin's would be another's clusters under our names."""

    server: str
    mode: str

    def __str__(self) -> str:
        return f"mode {self.mode} at {self.server}"


class StoredFleet(msgspec.Struct, frozen=True):
    origin: StateOrigin
    written_at: float
    clusters: tuple[StoredCluster, ...]


class StateFileError(ValueError):
    """These bytes can't be relied on; the message says why."""


_DECODER = msgspec.msgpack.Decoder(StoredFleet)


def encode(image: StoredFleet) -> bytes:
    body = msgspec.msgpack.encode(image)
    return b"%s%d %s\n%s" % (_MAGIC, FORMAT, _checksum(body), body)


def decode(data: bytes, origin: StateOrigin) -> StoredFleet:
    head, newline, body = data.partition(b"\n")
    words = head.removeprefix(_MAGIC).split(b" ")
    if not newline or not head.startswith(_MAGIC) or len(words) != 2 or not words[0].isdigit():
        raise StateFileError("it is not a state file of milo-discoveryd")
    if words[0] != b"%d" % FORMAT:
        raise StateFileError(f"it has format {words[0][:20].decode()}, and this version reads format {FORMAT}")
    if words[1] != _checksum(body):
        raise StateFileError("its checksum is wrong: it was torn or changed")
    try:
        image = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateFileError(f"its content is not what it should be: {error}") from error
    if not all(map(math.isfinite, (image.written_at, *(each.engaged_at for each in image.clusters)))):
        raise StateFileError("its content is not what it should be: it has times that are none")
    if image.origin != origin:
        raise StateFileError(f"it is of another source ({image.origin}; this daemon's is {origin})")
    return image


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
