"""Resource versions: opaque before Kubernetes 1.35, comparable as numbers since then."""

from collections.abc import Iterable

_LONGEST = 39
"""Digits of a 128-bit number. A longer version is treated as opaque."""


def is_number(version: str) -> bool:
    return version.isascii() and version.isdecimal() and len(version) <= _LONGEST


def is_older(one: str, other: str) -> bool:
    """Return whether `one` is older; False if they cannot be compared, so that the order of arrival decides."""
    if len(one) > _LONGEST or len(other) > _LONGEST or not (one.isascii() and other.isascii()):
        return False
    # Does not call `is_number`: this function is called for each event, and the calls would dominate its cost.
    return one.isdecimal() and other.isdecimal() and int(one) < int(other)


def comparable(version: str) -> int:
    """Return the version as a number; 0 if it cannot be compared: not a decimal number, or more than 18 digits."""
    return int(version) if len(version) <= 18 and version.isascii() and version.isdecimal() else 0


def oldest(versions: Iterable[str]) -> str:
    """Return the oldest version, or an empty string if they cannot all be compared."""
    known = list(versions)
    return min(known, key=int) if known and all(map(is_number, known)) else ""
