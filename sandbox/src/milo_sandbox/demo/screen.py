"""Draws the demo: a live table on a terminal, and a line per event elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, Protocol

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from milo_discovery import Event, EventType, SourceState, SourceStatus
from milo_discovery_cli.text_output import state
from milo_sandbox.demo.scene import HIGHLIGHTED_S, Row, Scene, describe, describe_source
from milo_sandbox.errors import write, writing

_STYLES = {EventType.ENGAGED: "bold green", EventType.UPDATED: "cyan", EventType.DISENGAGED: "bold red"}
_SIGNS = {EventType.ENGAGED: "+", EventType.UPDATED: "~", EventType.DISENGAGED: "-"}
_STATE_STYLES = {"Ready": "green", "Suspended": "yellow", "Terminating": "magenta"}
_PANEL_FRAME = 4
_MAX_NAME = 30
_MIN_TEXT = 12
"""Minimum width of a column of free text. A narrower column is left out."""


class Screen(Protocol):
    def show(self, event: Event) -> None: ...

    def draw(self, source: SourceStatus | None) -> None: ...


@contextmanager
def open_screen(scene: Scene, introduction: str) -> Iterator[Screen]:
    console = Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        write(introduction)
        yield _Lines()
        return
    live = Live(console=console, screen=True, auto_refresh=False)
    with writing():
        live.start()
    try:
        yield LiveTable(scene, introduction, live, console)
    finally:
        with writing():
            live.stop()


class _Lines:
    def __init__(self) -> None:
        self._source = ""

    def show(self, event: Event) -> None:
        write(f"{_clock()}  {event.type.name:<10}  {event.cluster.name:<24}  {describe(event)}".rstrip() + "\n")

    def draw(self, source: SourceStatus | None) -> None:
        described = describe_source(source)
        if source is not None and described != self._source:
            self._source = described
            write(f"{_clock()}  source {described}\n")


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


class _Column(NamedTuple):
    heading: str
    cells: list[Text]

    @property
    def width(self) -> int:
        return max(len(self.heading), *(cell.cell_len for cell in self.cells)) if self.cells else len(self.heading)


class LiveTable:
    def __init__(self, scene: Scene, introduction: str, live: Live, console: Console) -> None:
        self._scene = scene
        self._introduction = introduction.strip()
        self._live = live
        self._console = console

    def show(self, event: Event) -> None:
        pass  # the next frame shows the event, which is already part of the scene

    def draw(self, source: SourceStatus | None) -> None:
        with writing():
            self._live.update(self.frame(source, time.monotonic()), refresh=True)

    def frame(self, source: SourceStatus | None, now: float) -> RenderableType:
        width = self._console.width
        footer = Text(self._introduction, style="dim", overflow="fold")
        footer_height = len(footer.wrap(self._console, width))
        height = max(1, self._console.height - footer_height - 5)
        left, right = _split(width, [row.cluster.name for row in self._scene.rows(now)])
        body = Layout(name="body")
        panels = [Layout(Panel(self._clusters(now, left, height), title=self._headline(source)), size=left)]
        if right:
            panels.append(Layout(Panel(self._recent(now, right, height), title="recent events"), size=right))
        body.split_row(*panels)
        layout = Layout()
        layout.split_column(body, Layout(footer, size=footer_height + 1))
        return layout

    def _headline(self, source: SourceStatus | None) -> Text:
        is_streaming = source is not None and source.state is SourceState.STREAMING
        words = Text(f"{self._scene.engaged} clusters engaged  ", style="bold")
        return words.append(f"source {describe_source(source)}", style="green" if is_streaming else "yellow")

    def _clusters(self, now: float, width: int, height: int) -> RenderableType:
        rows = self._scene.rows(now)
        shown = _latest(rows, height - 2)
        columns = fitting(_columns(shown, now), width - _PANEL_FRAME)
        table = Table(box=None, expand=True, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            free = column.heading == "LABELS"
            table.add_column(
                column.heading,
                no_wrap=True,
                header_style="dim",
                overflow="ellipsis",
                min_width=None if free else column.width,
                ratio=1 if free else None,
            )
        for cells in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*cells)
        if len(shown) < len(rows):
            return Group(table, Text(f"and {len(rows) - len(shown)} more", style="dim"))
        return table

    def _recent(self, now: float, width: int, height: int) -> RenderableType:
        recent = list(self._scene.recent)[:height]
        ages = [Text(f"{int(now - entry.at)}s", style="dim") for entry in recent]
        names = [
            Text(
                f"{_SIGNS[entry.event.type]} {entry.event.cluster.name}",
                style=_STYLES[entry.event.type] if now - entry.at < HIGHLIGHTED_S else "dim",
            )
            for entry in recent
        ]
        described = [Text(describe(entry.event), style="dim") for entry in recent]
        table = Table(box=None, expand=True, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
        columns = [_Column("", ages), _Column("", names)]
        if width - _PANEL_FRAME - sum(column.width + 1 for column in columns) >= _MIN_TEXT:
            columns.append(_Column("", described))
        for position, column in enumerate(columns):
            free = position == 2
            table.add_column(
                no_wrap=True, overflow="ellipsis", min_width=None if free else column.width, ratio=1 if free else None
            )
        for cells in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*cells)
        return table


def _split(width: int, names: Sequence[str]) -> tuple[int, int]:
    """Return the widths of the panels of clusters and of recent events. The second is 0 if they do not fit."""
    longest = min(_MAX_NAME, max((len(name) for name in names), default=0))
    clusters = _PANEL_FRAME + longest + 2 + 1 + len("Terminating") + 1 + len("ENGAGED")
    recent = _PANEL_FRAME + len("999s") + 1 + longest + 2
    if clusters + recent > width:
        return width, 0
    left = min(max(clusters, width * 3 // 5), width - recent)
    return left, width - left


def fitting(columns: Sequence[_Column], width: int) -> list[_Column]:
    """Return the columns that fit, in their order; the least important are dropped first, but never the name."""
    kept: list[_Column] = []
    left = width
    for heading in ("NAME", "STATE", "ENGAGED", "ORGANIZATION", "LABELS"):
        [column] = (candidate for candidate in columns if candidate.heading == heading)
        needed = _MIN_TEXT if heading == "LABELS" else column.width
        if kept and needed + 1 > left:
            break
        kept.append(column)
        left -= needed + 1
    return [candidate for candidate in columns if candidate in kept]


def _latest(rows: list[Row], height: int) -> list[Row]:
    """Return all rows or, if they do not fit, those that changed last."""
    if len(rows) <= height:
        return rows
    latest = sorted(rows, key=lambda row: row.at, reverse=True)[: max(0, height)]
    return sorted(latest, key=lambda row: row.cluster.name)


def _columns(rows: Sequence[Row], now: float) -> list[_Column]:
    names, organizations, states, labels, ages = [], [], [], [], []
    for row in rows:
        cluster = row.cluster
        is_fresh = now - row.at < HIGHLIGHTED_S
        style = _STYLES[row.last] if is_fresh else ""
        if row.last is EventType.DISENGAGED:
            style = "red strike"
        names.append(Text(f"{_SIGNS[row.last] if is_fresh else ' '} {cluster.name}", style=style))
        organizations.append(Text(cluster.organization, style="dim"))
        shown = "disengaged" if row.last is EventType.DISENGAGED else state(cluster)
        states.append(Text(shown, style=_STATE_STYLES.get(shown, "red")))
        text = " ".join(f"{key}={value}" for key, value in sorted(cluster.labels.items()) if "/" not in key)
        labels.append(Text(text, style="dim"))
        age_s = 0 if cluster.engaged_at is None else max(0, int(time.time() - cluster.engaged_at.timestamp()))
        ages.append(Text(f"{age_s // 60}m{age_s % 60:02}s" if age_s >= 60 else f"{age_s}s", style="dim"))
    return [
        _Column("NAME", names),
        _Column("ORGANIZATION", organizations),
        _Column("STATE", states),
        _Column("LABELS", labels),
        _Column("ENGAGED", ages),
    ]
