"""Weighted rendezvous hashing, which determines the member that owns a key.

A member that joins takes keys from all others in proportion to its weight, a member that leaves gives its keys to all
others, and no other key moves.

Programs in other languages can compute the owner too: tests/end_to_end/examples/rendezvous.mjs does so in JavaScript,
and tests/unit/sharding/rendezvous_vectors.json contains test vectors. The hash is the first 8 bytes of BLAKE2b-512 of
the key, a zero byte and the member's name, in UTF-8, as a big-endian number.
"""

from collections.abc import Mapping
from hashlib import blake2b
from math import inf, log


def uniform(key: str, member: str) -> float:
    """Return a number in (0, 1] that is determined by the key and the member."""
    digest = blake2b(f"{key}\0{member}".encode()).digest()
    return ((int.from_bytes(digest[:8]) >> 11) + 0.5) / (1 << 53)


def score(key: str, member: str, weight: float) -> float:
    logarithm = log(uniform(key, member))
    # `uniform` rounds the largest hashes to 1.0: -weight / 0.0 is -Infinity in IEEE 754, but an error in Python.
    return -weight / logarithm if logarithm else -inf


def owner(key: str, weights: Mapping[str, float]) -> str | None:
    """Return the member with the highest score; None without members. A tie goes to the name that sorts last."""
    best = max(((score(key, member, weight), member) for member, weight in weights.items()), default=None)
    return None if best is None else best[1]
