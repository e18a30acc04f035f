"""Whether two runs of the same say the same, within the noise that they state."""

from collections.abc import Iterator

from bench.report import Results

NOISE = 0.1
"""Of a figure, at either end of what its rounds gave."""


def shared(one: Results, other: Results) -> list[str]:
    """The keys of which both have a figure."""
    return [key for key, value in one.figures.items() if value is not None and other.figures.get(key) is not None]


def apart(one: Results, other: Results) -> Iterator[str]:
    """The keys whose figures don't agree: their ranges don't meet."""
    for key in shared(one, other):
        (least, most), (other_least, other_most) = _range(one, key), _range(other, key)
        if most < other_least or other_most < least:
            yield key


def _range(of: Results, key: str) -> tuple[float, float]:
    value = of.figures[key]
    assert value is not None
    least, most = of.spread.get(key, (value, value))
    return least - NOISE * abs(value), most + NOISE * abs(value)
