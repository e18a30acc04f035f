"""`tools/diagrams.py [--check]`: draws docs/images/NAME.svg from the text of docs/images/NAME.txt.

The first line is the title. In a sequence diagram, the second line is `sequence: NAME, NAME, ...`, followed by lines
`A -> B: text`, `note A: text` and `== text`. In other diagrams, `box NAME COLUMN,ROW: text` places a box on a grid,
`group NAME, NAME: text` surrounds boxes, and `A -> B: text` connects them. `|` in a text breaks the line.
"""

import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_INK, _ACCENT, _FILL, _NOTE = "#222", "#0b6e99", "#eef5f8", "#fdf6e3"
_LINE = 15
"""Height of a line of text."""
_ARROW = re.compile(r"(.+?) (-->|->) (.+?)(?:: (.*))?")

Point = tuple[float, float]


def main(arguments: list[str]) -> int:
    stale = False
    for source in sorted(IMAGES.glob("*.txt")):
        target, content = source.with_suffix(".svg"), drawn(source.read_text())
        if not target.exists() or target.read_text() != content:
            stale = True
            if "--check" not in arguments:
                target.write_text(content)
    if stale and "--check" in arguments:
        print("docs/images/*.svg is stale: run ./dev gen", file=sys.stderr)
        return 1
    return 0


def drawn(text: str) -> str:
    """Return the SVG of a diagram."""
    title, *lines = [line for line in text.splitlines() if line.strip()]
    is_sequence = lines[0].startswith("sequence: ")
    return _sequence(title, lines) if is_sequence else _boxes(title, lines)


def _sequence(title: str, lines: list[str]) -> str:
    names = [name.strip() for name in lines[0].removeprefix("sequence: ").split(",")]
    wide = max(220, 800 // len(names))
    place = {name: wide * (number + 0.5) for number, name in enumerate(names)}
    width, y = wide * len(names), 100.0
    body: list[str] = []
    for line in lines[1:]:
        if line.startswith("== "):
            y += 8
            body.append(f'<path d="M10 {y}H{width - 10}" stroke="#999" stroke-dasharray="4 4"/>')
            body += _text((width / 2, y + 18), line[3:], bold=True)
            y += 34
        elif line.startswith("note "):
            name, _, label = line.removeprefix("note ").partition(": ")
            body += _box((place[name], y + _height(label) / 2), (_width(label) + 20, _height(label) + 8), label, _NOTE)
            y += _height(label) + 22
        else:
            begin, style, end, label = _arrow(line)
            y += _height(label)
            body += _text(((place[begin] + place[end]) / 2, y - _height(label) / 2 - 3), label)
            body += _connection((place[begin], y + 2), (place[end], y + 2), style)
            y += 20
    lifelines = [f'<path d="M{place[name]} 60V{y}" stroke="#bbb"/>' for name in names]
    heads = [part for name in names for part in _box((place[name], 52), (wide - 40, 34), name, _FILL)]
    return _svg(title, (width, y + 10), [*lifelines, *heads, *body])


def _boxes(title: str, lines: list[str]) -> str:
    texts: dict[str, str] = {}
    cells: dict[str, Point] = {}
    for line in lines:
        if found := re.fullmatch(r"box (\w+) ([\d.]+),([\d.]+): (.*)", line):
            cells[found[1]], texts[found[1]] = (float(found[2]), float(found[3])), found[4]
    sizes = {name: (max(120, _width(text) + 24), _height(text) + 22) for name, text in texts.items()}
    top = min(row for _, row in cells.values())
    places = {name: (110 + 250 * column, 100 + 100 * (row - top)) for name, (column, row) in cells.items()}
    groups: list[str] = []
    arrows: list[str] = []
    for line in lines:
        if line.startswith("group "):
            members, _, label = line.removeprefix("group ").partition(": ")
            groups += _group([(places[name], sizes[name]) for name in members.split(", ")], label)
        elif not line.startswith("box "):
            begin, _, end, _ = _arrow(line)
            back = any(_arrow(other)[:3:2] == (end, begin) for other in lines if re.match(r"(?!box|group)", other))
            shift = (9 if begin < end else -9) if back else 0.0
            arrows += _between((places[begin], sizes[begin]), (places[end], sizes[end]), line, shift)
    boxes = [part for name, text in texts.items() for part in _box(places[name], sizes[name], text, _FILL)]
    right = max(place[0] + sizes[name][0] / 2 for name, place in places.items()) + 30
    bottom = max(place[1] + sizes[name][1] / 2 for name, place in places.items()) + 30
    return _svg(title, (right, bottom), [*groups, *boxes, *arrows])


def _between(begin_box: tuple[Point, Point], end_box: tuple[Point, Point], line: str, shift: float) -> Iterator[str]:
    """Connect two boxes, beside the connection of the opposite direction."""
    (x, y), (to_x, to_y) = begin_box[0], end_box[0]
    _, style, _, label = _arrow(line)
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    across, down = (to_x - x) / length, (to_y - y) / length
    off = (-down * shift, across * shift)
    start, stop = (_edge(box[1], across, down) for box in (begin_box, end_box))
    begin = (x + across * start + off[0], y + down * start + off[1])
    end = (to_x - across * stop + off[0], to_y - down * stop + off[1])
    yield from _connection(begin, end, style)
    middle = ((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2)
    lift = -_height(label) / 2 - 2 if shift >= 0 else _height(label) / 2 + 4
    beside = (middle[0] + shift * 0.5, middle[1]) if abs(across) < 0.3 else (middle[0], middle[1] + lift)
    yield from _text(beside, label)


def _edge(size: Point, across: float, down: float) -> float:
    """Return the distance from the center of a box to its border, in a direction."""
    ratios = (size[0] / 2 / abs(across) if across else 1e9, size[1] / 2 / abs(down) if down else 1e9)
    return min(ratios) + 2


def _group(members: list[tuple[Point, Point]], label: str) -> Iterator[str]:
    left = min(x - wide / 2 for (x, _), (wide, _) in members) - 16
    top = min(y - high / 2 for (_, y), (_, high) in members) - 34
    right = max(*(x + wide / 2 for (x, _), (wide, _) in members), left + 1.1 * _width(label)) + 16
    bottom = max(y + high / 2 for (_, y), (_, high) in members) + 14
    size = f'width="{right - left}" height="{bottom - top}"'
    yield f'<rect x="{left}" y="{top}" {size} rx="8" fill="none" stroke="#999"/>'
    yield from _text(((left + right) / 2, top + 12), label, bold=True)


def _box(center: Point, size: Point, label: str, fill: str) -> Iterator[str]:
    x, y = center[0] - size[0] / 2, center[1] - size[1] / 2
    yield (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}" rx="5" fill="{fill}" '
        f'stroke="{_ACCENT}"/>'
    )
    yield from _text(center, label)


def _connection(begin: Point, end: Point, style: str) -> Iterator[str]:
    dashed = ' stroke-dasharray="5 4"' if style == "-->" else ""
    path = f"M{begin[0]:.1f} {begin[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"
    yield f'<path d="{path}" stroke="{_ACCENT}" stroke-width="1.5"{dashed} marker-end="url(#head)"/>'


def _text(center: Point, label: str, *, bold: bool = False) -> Iterator[str]:
    lines = label.split("|") if label else []
    first = center[1] - _LINE * (len(lines) - 1) / 2 + 4
    style = 'text-anchor="middle" stroke="white" stroke-width="3" paint-order="stroke"'
    weight = "bold" if bold else "normal"
    for number, line in enumerate(lines):
        place = f'x="{center[0]:.1f}" y="{first + number * _LINE:.1f}"'
        yield f'<text {place} {style} fill="{_INK}" font-weight="{weight}">{escape(line.strip())}</text>'


def _arrow(line: str) -> tuple[str, str, str, str]:
    found = _ARROW.fullmatch(line)
    if found is None:
        raise SystemExit(f"invalid line in a diagram: {line!r}")
    return found[1], found[2], found[3], found[4] or ""


def _width(label: str) -> float:
    return 6.6 * max(len(line.strip()) for line in label.split("|"))


def _height(label: str) -> float:
    return _LINE * (label.count("|") + 1)


def _svg(title: str, size: Point, body: list[str]) -> str:
    width, height = round(size[0]), round(size[1])
    head = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="12"'
    marker = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {head} role="img" aria-label="{escape(title)}">',
            f'<defs><marker id="head" {marker}><path d="M0 0L8 4L0 8z" fill="{_ACCENT}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="12" y="22" font-size="14" font-weight="bold" fill="{_INK}">{escape(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
