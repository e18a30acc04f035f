"""The encoding of the state file. A file that was truncated, changed, or written for another source is refused."""

import hashlib
import math
from collections.abc import Iterator
from mmap import mmap
from typing import BinaryIO

import msgspec
from msgspec.structs import replace

from milo_discoveryd.model.cluster import Pairs, Target

FORMAT = 3
_MAGIC = b"milo-discoveryd state "
_LONGEST_HEAD = 1 << 20
_PORTION = 100
_MAP, _LIST = 0x80, b"\xdd"
"""The beginnings of a map of up to 15 fields and of a list in MessagePack; the size of the list follows."""


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


class _StoredParts(msgspec.Struct, frozen=True):
    """A `StoredFleet` with undecoded clusters and objects."""

    origin: StateOrigin
    current_at: float
    clusters: tuple[msgspec.Raw, ...]
    highest_version: str = ""
    objects: tuple[msgspec.Raw, ...] = ()
    positions: dict[str, int] = {}


class StateFileError(ValueError):
    """The content cannot be used; the message says why."""


_PARTS = msgspec.msgpack.Decoder(_StoredParts)
_CLUSTER = msgspec.msgpack.Decoder(StoredCluster)
_OBJECT = msgspec.msgpack.Decoder(StoredObject)
_encode = msgspec.msgpack.Encoder().encode


class _SharedTexts:
    """Equal texts of several clusters, which are kept once."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        self._labels: dict[Pairs, Pairs] = {}

    def shared(self, cluster: StoredCluster) -> StoredCluster:
        target, text = cluster.target, self._texts.setdefault
        pairs = [(text(key, key), value) for key, value in target.labels]
        labels = tuple([self._pairs.setdefault(pair, pair) for pair in pairs])
        uid = cluster.uid if cluster.uid != target.uid else target.uid
        organization = text(target.organization, target.organization)
        labels = self._labels.setdefault(labels, labels)
        return StoredCluster(uid, replace(target, organization=organization, labels=labels), cluster.engaged_at)


def write(fleet: StoredFleet, file: BinaryIO) -> None:
    """Write the fleet to an empty file, in portions: as a whole, it can take as much memory as the fleet."""
    checksum = hashlib.sha256()
    file.write(_head(checksum.hexdigest()))
    for portion in _portions(fleet):
        checksum.update(portion)
        file.write(portion)
    file.seek(0)
    file.write(_head(checksum.hexdigest()))


def _head(checksum: str) -> bytes:
    return b"%s%d %s\n" % (_MAGIC, FORMAT, checksum.encode())


def _portions(fleet: StoredFleet) -> Iterator[bytes]:
    """Yield the encoded fleet, with each list in portions."""
    names = fleet.__struct_fields__
    yield bytes((_MAP | len(names),))
    for name in names:
        value = getattr(fleet, name)
        is_list = isinstance(value, tuple)
        yield _encode(name) + (_LIST + len(value).to_bytes(4) if is_list else _encode(value))
        for start in range(0, len(value) if is_list else 0, _PORTION):
            yield b"".join(map(_encode, value[start : start + _PORTION]))


def decode(data: bytes | mmap, origin: StateOrigin | None) -> StoredFleet:
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
        parts, shared = _PARTS.decode(body), _SharedTexts().shared
        # Not `map`: between the turns of a loop, a thread that decodes lets others run.
        fleet = StoredFleet(
            parts.origin,
            parts.current_at,
            tuple([shared(_CLUSTER.decode(cluster)) for cluster in parts.clusters]),
            parts.highest_version,
            tuple([_OBJECT.decode(found) for found in parts.objects]),
            parts.positions,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateFileError(f"invalid content: {error}") from error
    if not all(map(math.isfinite, (fleet.current_at, *(cluster.engaged_at for cluster in fleet.clusters)))):
        raise StateFileError("invalid content: a time is not finite")
    if origin is not None and fleet.origin != origin:
        raise StateFileError(f"written for another source ({fleet.origin}; this daemon's is {origin})")
    return fleet


def _checksum(body: memoryview) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
