"""Renders a dashboard with recorded data as SVG. Pure."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

Points = Sequence[tuple[float, float]]
Panel = Mapping[str, Any]
"""A panel in Grafana's format."""


@dataclass(frozen=True)
class Series:
    name: str
    points: Points
    """Seconds from the start, and the value."""


@dataclass(frozen=True)
class Recorded:
    lasted_s: float
    series: Mapping[str, Sequence[Series]]
    """Series by panel title."""
    moments: Sequence[tuple[float, str]]
    """Faults and other events during the recording, with their times."""


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


_COLUMN, _ROW, _COLUMNS = 58, 30, 24
_GAP, _PADDING, _LINE = 3, 10, 14
_LEGEND_LINES = 3
_NO_GAP_S = 2.5
"""Maximum seconds between two values of a line; with a larger gap, the line is interrupted."""
_WIDE, _WIDER = 0.58, 0.72
"""Widths of a character and of a capital relative to their height, for any sans-serif font."""
_COLOURS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#c4162a", "#0f8a8a", "#8f6b00", "#7a7a7a")
_NAMED = {"red": "#d44a3a", "green": "#56a64b", "blue": "#3274d9"}
_MISSING = re.compile(r"\{\{\w+\}\}")


def legend(form: str, labels: Mapping[str, str]) -> str:
    """Return the name of a series, from its labels by Grafana's legendFormat."""
    for label, value in labels.items():
        form = form.replace(f"{{{{{label}}}}}", value)
    return _MISSING.sub("", form).strip()


def drawn(panels: Sequence[Panel], recorded: Recorded) -> str:
    below = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * _ROW
    notes = list(_notes(recorded.moments, below + 20))
    width, height = _COLUMN * _COLUMNS, below + 16 + _LINE * len(notes)
    body = [part for panel in panels for part in _panel(panel, recorded)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#f4f5f5"/>', *body, *notes, "</svg>", ""])


def _panel(panel: Panel, recorded: Recorded) -> Iterator[str]:
    at = panel["gridPos"]
    left, top = at["x"] * _COLUMN + _GAP, at["y"] * _ROW + _GAP
    box = _Box(left, top, left + at["w"] * _COLUMN - 2 * _GAP, top + at["h"] * _ROW - 2 * _GAP)
    if panel["type"] == "row":
        yield _text(box.left + 4, box.bottom - 7, panel["title"], box.width, size=15, is_bold=True)
        return
    inside = _Box(box.left + _PADDING, box.top + 28, box.right - _PADDING, box.bottom - 8)
    yield f'<rect {_placed(box)} rx="2" fill="white" stroke="#dcdde0"/>'
    yield _text(inside.left, box.top + 18, panel["title"], inside.width, size=12, is_bold=True)
    series = [each for each in recorded.series[panel["title"]] if each.points]
    if not series:
        middle = (inside.left + inside.right) / 2
        yield _text(middle, (inside.top + inside.bottom) / 2, "No data", inside.width, size=14, anchor="middle")
    elif panel["type"] == "stat":
        yield from _tiles(panel["fieldConfig"]["defaults"], series, inside)
    else:
        yield from _graph(panel["fieldConfig"]["defaults"]["unit"], series, inside, recorded)


def _tiles(field: Mapping[str, Any], series: Sequence[Series], box: _Box) -> Iterator[str]:
    """Draw a tile for each series, with its name and its last value."""
    tall = box.height / len(series)
    for place, each in enumerate(series):
        top = box.top + place * tall
        tile = _Box(box.left, top, box.right, top + tall - (_GAP if place < len(series) - 1 else 0))
        said, colour = _said(field, each.points[-1][1])
        middle, centre = (tile.left + tile.right) / 2, (tile.top + tile.bottom) / 2
        large = min(28, tile.height / 2.5)
        yield f'<rect {_placed(tile)} rx="2" fill="{colour}"/>'
        for y, text, size in ((centre + 4, said, large), (centre + large, each.name, 12)):
            yield _text(middle, y, text, tile.width - 8, size=size, anchor="middle", colour="white")


def _said(field: Mapping[str, Any], value: float) -> tuple[str, str]:
    """Return the text and the color of a value, from a mapping or from the highest threshold below it."""
    mapped = {key: to for mapping in field.get("mappings", ()) for key, to in mapping["options"].items()}
    if to := mapped.get(f"{value:g}"):
        return to["text"], _NAMED[to["color"]]
    reached = [step for step in field["thresholds"]["steps"] if step["value"] is None or step["value"] <= value]
    return _in_unit(value, field["unit"]), _NAMED[reached[-1]["color"]]


def _graph(unit: str, series: Sequence[Series], box: _Box, recorded: Recorded) -> Iterator[str]:
    ranked = sorted(series, key=lambda each: -max(value for _, value in each.points))
    coloured = [(each, _COLOURS[place % len(_COLOURS)]) for place, each in enumerate(ranked)]
    names = list(_legend(coloured, box))
    lines = names[-1][0] + 1
    plot = _Box(box.left + 44, box.top + 4, box.right - 8, box.bottom - 20 - _LINE * lines)
    most = max(value for each in series for _, value in each.points)
    step = _step(most)
    top = step * max(1, math.ceil(most / step - 1e-9))

    def across(at_s: float) -> float:
        return plot.left + plot.width * at_s / recorded.lasted_s

    def up(value: float) -> float:
        return plot.bottom - plot.height * max(value, 0) / top

    for tick in range(round(top / step) + 1):
        at = up(tick * step)
        yield f'<path d="M{plot.left:.1f} {at:.1f}H{plot.right:.1f}" stroke="#e7e8ea"/>'
        yield _text(plot.left - 5, at + 3.5, _in_unit(tick * step, unit), 44, size=10, anchor="end", colour="#666")
    for second in range(0, int(recorded.lasted_s) + 1, 30):
        yield _text(across(second), plot.bottom + 13, f"{second} s", 40, size=10, anchor="middle", colour="#666")
    for moment, _ in recorded.moments:
        yield f'<path d="M{across(moment):.1f} {plot.top:.1f}V{plot.bottom:.1f}" stroke="#aaa" stroke-dasharray="2 3"/>'
    for each, colour in reversed(coloured):  # the highest series last, so that it is above all others
        for run in _runs(each.points):
            if len(run) == 1:
                yield f'<circle cx="{across(run[0][0]):.1f}" cy="{up(run[0][1]):.1f}" r="1.5" fill="{colour}"/>'
                continue
            path = " ".join(f"{across(at_s):.1f},{up(value):.1f}" for at_s, value in _corners(run))
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    for line, at, name, colour in names:
        yield _text(at, plot.bottom + 30 + _LINE * line, name, box.right - at, size=10, colour=colour)


def _legend(coloured: Sequence[tuple[Series, str]], box: _Box) -> Iterator[tuple[int, float, str, str]]:
    """Yield the position and the color of each name, and the number of names without room."""
    line, at = 0, box.left
    for place, (each, colour) in enumerate(coloured):
        name, more = f"■ {each.name}", f"and {len(coloured) - place} more"
        is_last = place == len(coloured) - 1
        needed = _width(name, 10) + (0 if is_last or line < _LEGEND_LINES - 1 else 12 + _width(more, 10))
        if at > box.left and at + needed > box.right:
            if line == _LEGEND_LINES - 1:
                yield line, at, more, "#666"
                return
            line, at = line + 1, box.left
        yield line, at, name, colour
        at += _width(name, 10) + 12


def _runs(points: Points) -> Iterator[Points]:
    """Split a line where values are missing."""
    begin = 0
    for place, (before, after) in enumerate(pairwise(points), 1):
        if after[0] - before[0] > _NO_GAP_S:
            yield points[begin:place]
            begin = place
    yield points[begin:]


def _corners(run: Points) -> Iterator[tuple[float, float]]:
    """Drop each point whose two neighbors have the same value as the point."""
    for place, point in enumerate(run):
        if not 0 < place < len(run) - 1 or {run[place - 1][1], run[place + 1][1]} != {point[1]}:
            yield point


def _step(most: float) -> float:
    """Return the distance between grid lines, of which there are at most five."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most / 5))
    return next(step * power for step in (1, 2, 5, 10) if step * power * 5 >= most * (1 - 1e-9))


def _in_unit(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or not value else f"{value * 1000:.3g} ms"
    return f"{value:.3g}/s" if unit == "ops" else f"{value:.3g}" if value < 1000 else f"{value / 1000:.3g} K"


def _notes(moments: Iterable[tuple[float, str]], top: float) -> Iterator[str]:
    for line, (at_s, what) in enumerate(moments):
        said = f"{at_s:.0f} s: {what}"
        yield _text(_GAP + 4, top + line * _LINE, said, _COLUMN * _COLUMNS - 2 * _GAP, size=12, colour="#444")


def _placed(box: _Box) -> str:
    return f'x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'


def _width(text: str, size: float, *, is_bold: bool = False) -> float:
    wide = sum(_WIDER if character.isupper() else _WIDE for character in text)
    return wide * size * (1.1 if is_bold else 1.0)


def _text(
    x: float,
    y: float,
    text: str,
    room: float,
    *,
    size: float,
    anchor: str = "start",
    colour: str = "#222",
    is_bold: bool = False,
) -> str:
    """Return a text element; a longer text is truncated to the width `room`."""
    while len(text) > 1 and _width(text, size, is_bold=is_bold) > room:
        text = f"{text.removesuffix('…')[:-1]}…"
    weight = ' font-weight="bold"' if is_bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.0f}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{escape(text)}</text>"
    )
