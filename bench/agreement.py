"""Comparison of two runs, within the noise of their rounds."""

from collections.abc import Iterator

from bench.report import Results

NOISE = 0.1
"""The share of a figure by which the range of its rounds is widened at both ends."""


def shared(one: Results, other: Results) -> list[str]:
    """Return the keys that both runs have."""
    return [key for key, value in one.figures.items() if value is not None and other.figures.get(key) is not None]


def apart(one: Results, other: Results) -> Iterator[str]:
    """Yield the keys whose ranges do not overlap."""
    for key in shared(one, other):
        (least, most), (other_least, other_most) = _range(one, key), _range(other, key)
        if most < other_least or other_most < least:
            yield key


def _range(of: Results, key: str) -> tuple[float, float]:
    value = of.figures[key]
    assert value is not None
    least, most = of.spread.get(key, (value, value))
    return least - NOISE * abs(value), most + NOISE * abs(value)
