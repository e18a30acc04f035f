"""Plots as SVG, drawn from figures: lines over logarithmic axes, and bars beside each other."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 20, 44, 48
_COLOURS = ("#0b6e99", "#c44e2b", "#6a8f3c", "#8a5a9e", "#8c8c8c")
_TICKS = (1, 2, 5)
_FINE_TICKS = (1, 1.5, 2, 3, 4, 5, 6, 8)


def lines(title: str, series: Mapping[str, Points], *, x: str, y: str) -> str:
    """Draw a line plot with two logarithmic axes, on which proportional growth has slope one."""
    xs = [point[0] for points in series.values() for point in points]
    ys = [point[1] for points in series.values() for point in points]
    across = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(min(ys), max(ys), _HEIGHT - _BOTTOM, _TOP)
    body = [*_frame(title, x, y)]
    body += [
        _text(across.at(value), _HEIGHT - _BOTTOM + 16, _short(value), anchor="middle") for value in across.ticks()
    ]
    for value in up.ticks():
        body.append(_rule(up.at(value)))
        body.append(_text(_LEFT - 6, up.at(value) + 4, _short(value), anchor="end"))
    for points, colour in zip(series.values(), _COLOURS, strict=False):
        path = " ".join(f"{across.at(a):.1f},{up.at(b):.1f}" for a, b in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{across.at(a):.1f}" cy="{up.at(b):.1f}" r="3" fill="{colour}"/>' for a, b in points]
    return _drawing([*body, *_legend(series)])


def bars(title: str, groups: Mapping[str, Mapping[str, float]], *, y: str) -> str:
    """Draw groups of bars on a logarithmic axis, with a color per name."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    values = [value for group in groups.values() for value in group.values()]
    up = _Axis(min(values) / 2, max(values), _HEIGHT - _BOTTOM, _TOP + 16)
    body = [*_frame(title, "", y)]
    for value in up.ticks():
        body.append(_rule(up.at(value)))
        body.append(_text(_LEFT - 6, up.at(value) + 4, _short(value), anchor="end"))
    room = (_WIDTH - _LEFT - _RIGHT) / len(groups)
    wide = room * 0.8 / len(names)
    for place, (title_of, group) in enumerate(groups.items()):
        begin = _LEFT + room * (place + 0.1)
        for name, value in group.items():
            at, top = begin + wide * names.index(name), up.at(value)
            colour = _COLOURS[names.index(name)]
            body.append(
                f'<rect x="{at:.1f}" y="{top:.1f}" width="{wide * 0.9:.1f}" height="{_HEIGHT - _BOTTOM - top:.1f}" '
                f'fill="{colour}"/>'
            )
            body.append(_text(at + wide * 0.45, top - 4, _short(value), anchor="middle", size=10))
        body.append(_text(begin + room * 0.4, _HEIGHT - _BOTTOM + 16, title_of, anchor="middle"))
    return _drawing([*body, *_legend(names)])


class _Axis:
    def __init__(self, least: float, most: float, begin: float, end: float) -> None:
        self._least, self._most = math.log10(least), math.log10(most)
        if self._most - self._least < 0.5:
            self._least -= 0.25
            self._most += 0.25
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        part = (math.log10(value) - self._least) / (self._most - self._least)
        return self._begin + part * (self._end - self._begin)

    def ticks(self) -> Iterator[float]:
        decades = self._most - self._least
        steps: Sequence[float] = _FINE_TICKS if decades < 1 else _TICKS if decades < 2 else _TICKS[:1]
        for power in range(math.floor(self._least), math.ceil(self._most) + 1):
            for step in steps:
                if self._least <= math.log10(step * 10.0**power) <= self._most:
                    yield step * 10.0**power


def _frame(title: str, x: str, y: str) -> Iterator[str]:
    yield _text(_LEFT, 20, title, size=14)
    yield _text(_LEFT, 36, y, colour="#666")
    yield _text(_WIDTH - _RIGHT, 36, x, anchor="end", colour="#666")
    bottom = _HEIGHT - _BOTTOM
    yield f'<line x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}" stroke="#333"/>'


def _legend(names: Iterable[str]) -> Iterator[str]:
    at = float(_LEFT)
    for name, colour in zip(names, _COLOURS, strict=False):
        yield _text(at, _HEIGHT - 8, f"■ {name}", colour=colour)
        at += 30 + 7 * len(name)


def _rule(at: float) -> str:
    return f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
    )


def _short(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _drawing(body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *body, "</svg>", ""])
