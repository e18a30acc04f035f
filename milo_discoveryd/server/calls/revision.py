"""Revisions in the form that subscribers receive: opaque, and signed for one holder.

The holder is a caller together with its view. For any other caller or view a revision is invalid.
"""

import hmac
import re
from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b

import msgspec

_COUNT = r"[0-9a-f]{4}-[0-9]{1,9}(?:-[0-9]{1,18})?"
_FORM = re.compile(
    rf"([0-9a-f]{{16}})\.([0-9]{{1,18}})(?:\.known({_COUNT}(?:_{_COUNT})*))?(?:\.part([0-9]{{1,9}}))?\.([A-Za-z0-9_-]{{22}})"
)
_SIGNATURE_BYTES = 16
_WITHOUT_COUNTS = len("0123456789abcdef.") + 18 + len(".known.part") + 9 + len(".") + 22
_COUNT_LENGTH = len("0123--_") + 9 + 18
_FORMER_SOURCES = 64
"""Maximum number of sources whose counts a revision may contain, even if fewer are configured: the revision may be from
before a restart that removed sources."""
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class KnownClusters(msgspec.Struct, frozen=True):
    """The number of clusters that a subscriber has of each source, keyed by a digest of the source's name."""

    counts: Mapping[str, int] = msgspec.field(default_factory=dict)
    versions: Mapping[str, int] = msgspec.field(default_factory=dict)
    """The resourceVersion up to which the subscriber has received a source's changes, for each source whose versions
    can be compared."""

    def grown(self, by: Mapping[str, int]) -> "KnownClusters":
        """Return the counts after the subscriber's view has grown by these numbers of clusters."""
        if not by:
            return self
        counts = dict(self.counts)
        for source, count in by.items():
            digest = _digest(source)
            counts[digest] = counts.get(digest, 0) + count
        return KnownClusters(counts, self.versions)

    def seen_at(self, versions: Mapping[str, int]) -> "KnownClusters":
        """Return the same counts with `versions` as the resourceVersions of these sources; 0 is an unknown version."""
        merged = {**self.versions, **{_digest(source): version for source, version in versions.items() if version}}
        return self if merged == self.versions else KnownClusters(self.counts, merged)

    def within(self, sources: Iterable[str]) -> "KnownClusters":
        digests = set(map(_digest, sources))
        counts, versions = (
            {digest: number for digest, number in numbers.items() if digest in digests}
            for numbers in (self.counts, self.versions)
        )
        return KnownClusters(counts, versions)

    def count_of(self, source: str) -> int:
        return self.counts.get(_digest(source), 0)

    def version_of(self, source: str) -> int:
        return self.versions.get(_digest(source), 0)

    def __str__(self) -> str:
        versions = self.versions
        return "_".join(
            f"{digest}-{count}-{versions[digest]}" if digest in versions else f"{digest}-{count}"
            for digest, count in self.counts.items()
            if count > 0
        )


NOTHING = KnownClusters()


class Position(msgspec.Struct, frozen=True):
    """A subscriber's position in the log of one run of the daemon."""

    epoch: str
    revision: int
    part: int | None = None
    """The number of parts of the snapshot that the subscriber has received. After an interruption within a snapshot, a
    new snapshot begins."""
    known: KnownClusters = NOTHING
    """How many clusters the subscriber has of each source. Another run of the daemon compares this with its lists."""

    def is_complete_in(self, run: str) -> bool:
        """Return whether everything that the subscriber has is from that run of the daemon.

        Until a snapshot is complete, the subscriber keeps the clusters that it had before.
        """
        return self.part is None and self.epoch == run

    def is_contained_in(self, positions: Mapping[str, int]) -> bool:
        """Return whether a state file with these positions contains everything that the subscriber has received."""
        return self.part is None and self.revision <= positions.get(self.epoch, -1)

    def __str__(self) -> str:
        known_part = str(self.known)
        known_part = known_part and f".known{known_part}"
        return f"{self.epoch}.{self.revision}{known_part}{'' if self.part is None else f'.part{self.part}'}"


def wire_incarnation(epoch: str, number: int) -> str:
    """Return a cluster's incarnation in the form that subscribers see."""
    return f"{epoch}.{number}"


class TokenSigner:
    """Signs revisions and page tokens for their holders.

    The signature is keyed BLAKE2: nearly every batch contains one, and HMAC in OpenSSL takes several times as long.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, text: str, holder: str) -> str:
        return f"{text}.{self._signature(text, holder)}"

    def verify(self, signed: str, holder: str) -> str | None:
        """Return the text if it was signed for this holder, otherwise None."""
        text, _, signature = signed.rpartition(".")
        is_valid = hmac.compare_digest(signature.encode(), self._signature(text, holder).encode())
        return text if is_valid else None

    def _signature(self, text: str, holder: str) -> str:
        # The holder does not contain NUL, so the boundary between it and the text is unambiguous.
        digest = blake2b(f"{text}\0{holder}".encode(), key=self._key, digest_size=_SIGNATURE_BYTES).digest()
        return b2a_base64(digest, newline=False).translate(_URL_SAFE, b"=").decode()


class StreamRevisions:
    """The revisions of one stream's batches."""

    def __init__(self, epoch: str, signer: TokenSigner) -> None:
        self.epoch = epoch
        self.last = ""
        """The revision of the last batch, or the one from which the subscriber resumed."""
        self.known = NOTHING
        """The counts of the clusters that the subscriber has once it has received the next batch."""
        self._signer = signer
        self._versions: Mapping[str, int] | None = None
        self._parts = 0
        """The number of parts of the current snapshot that were sent."""

    def resume(self, revision: str, known_clusters: KnownClusters) -> None:
        self.last, self.known = revision, known_clusters

    def seen_at(self, known_clusters: KnownClusters, versions: Mapping[str, int]) -> KnownClusters:
        """Return `KnownClusters.seen_at`, computed only if a mapping of versions was replaced since the last call: each
        change of a version replaces the mapping."""
        if versions is self._versions and known_clusters.versions is self.known.versions:
            return known_clusters
        self._versions = versions
        return known_clusters.seen_at(versions)

    def is_own(self, revision: str, holder: str) -> bool:
        """Return whether the daemon signed a revision for this holder."""
        return self._signer.verify(revision, holder) is not None

    def sign_next(self, revision: int, holder: str, *, is_whole: bool) -> str:
        """Return the revision of the next batch. The parts of a snapshot are numbered, so that a client detects a
        missing part."""
        self._parts = 0 if is_whole else self._parts + 1
        position = Position(self.epoch, revision, known=self.known, part=self._parts or None)
        return self._signer.sign(str(position), holder)


def longest(sources: int) -> int:
    """Return the length of the longest revision that a daemon with this number of sources can have written."""
    return _WITHOUT_COUNTS + _COUNT_LENGTH * max(sources, _FORMER_SOURCES)


def parse(text: str, sources: Iterable[str] | None = None) -> Position | None:
    """Parse a revision, including the cluster counts of `sources`, or of all sources if it is None. The signature is
    not verified. Return None for text in any other form: the subscriber then receives a snapshot."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    epoch, revision, known_part, part, _ = form.groups()
    counts = [part.split("-") for part in known_part.split("_")] if known_part else []
    known_clusters = KnownClusters(
        {digest: int(count) for digest, count, *_ in counts},
        {digest: int(version) for digest, _, *versions_of_source in counts for version in versions_of_source},
    )
    if sources is not None:
        known_clusters = known_clusters.within(sources)
    return Position(epoch, int(revision), part=None if part is None else int(part), known=known_clusters)


@lru_cache(maxsize=256)
def _digest(source: str) -> str:
    return blake2b(source.encode(), digest_size=2).hexdigest()
