"""The encoding of the state file. A file that was truncated, changed, or written for another source is refused."""

import hashlib
import math

import msgspec

from milo_discoveryd.model.cluster import Target

FORMAT = 3
_MAGIC = b"milo-discoveryd state "
_LONGEST_HEAD = 1 << 20


class StoredCluster(msgspec.Struct, frozen=True, gc=False):
    """The part of an engaged cluster that is kept across restarts."""

    uid: str
    """The object's UID; `target.uid` is the project's."""
    target: Target
    engaged_at: float


class StoredObject(msgspec.Struct, frozen=True, gc=False):
    """An object of a source that computes clusters from the contributions of several objects.

    Sources in which each object describes one cluster store none of these.
    """

    watch: int
    """Position of the resource in the list of resources that the source watches."""
    key: str
    uid: str
    clusters: tuple[str, ...]
    """Names of the clusters that the object contributes to."""


class StateOrigin(msgspec.Struct, frozen=True):
    """The source of the stored clusters. A cluster with the same name in another source is a different cluster."""

    server: str
    mode: str

    def __str__(self) -> str:
        return f"mode {self.mode} at {self.server}"


class StoredFleet(msgspec.Struct, frozen=True):
    origin: StateOrigin
    current_at: float
    """When the source was last followed, in Unix time; for a stale fleet, when it became stale."""
    clusters: tuple[StoredCluster, ...]
    highest_version: str = ""
    """The highest resource version seen, to detect that the API server was restored from a backup."""
    objects: tuple[StoredObject, ...] = ()
    positions: dict[str, int] = {}
    """For each run of the daemon: the revision up to which this file contains everything that subscribers received."""


class StateFileError(ValueError):
    """The content cannot be used; the message says why."""


_DECODER = msgspec.msgpack.Decoder(StoredFleet)


def encode(fleet: StoredFleet) -> bytes:
    body = msgspec.msgpack.encode(fleet)
    return b"%s%d %s\n%s" % (_MAGIC, FORMAT, _checksum(body), body)


def decode(data: bytes, origin: StateOrigin | None) -> StoredFleet:
    """Decode the fleet of the source with this origin; None accepts any source. Raises StateFileError."""
    end = data.find(b"\n", 0, _LONGEST_HEAD)
    head, body = data[: max(0, end)], memoryview(data)[end + 1 :]  # not copied: it can be large
    words = head.removeprefix(_MAGIC).split(b" ")
    if not head.startswith(_MAGIC) or len(words) != 2 or not words[0].isdigit():
        raise StateFileError("not a state file of milo-discoveryd")
    if words[0] != b"%d" % FORMAT:
        raise StateFileError(f"written in format {words[0][:20].decode()}; this version reads format {FORMAT}")
    if words[1] != _checksum(body):
        raise StateFileError("wrong checksum: the file was truncated or changed")
    try:
        fleet = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateFileError(f"invalid content: {error}") from error
    if not all(map(math.isfinite, (fleet.current_at, *(cluster.engaged_at for cluster in fleet.clusters)))):
        raise StateFileError("invalid content: a time is not finite")
    if origin is not None and fleet.origin != origin:
        raise StateFileError(f"written for another source ({fleet.origin}; this daemon's is {origin})")
    return fleet


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
