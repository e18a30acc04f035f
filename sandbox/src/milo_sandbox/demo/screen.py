"""The scene, drawn: a live table on a terminal, a line for each event elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from milo_discovery import Event, EventType, SourceStatus
from milo_sandbox.demo.scene import FADES_AFTER_S, Row, Scene, about, state

_STYLES = {EventType.ENGAGED: "bold green", EventType.UPDATED: "cyan", EventType.DISENGAGED: "bold red"}
_SIGNS = {EventType.ENGAGED: "+", EventType.UPDATED: "~", EventType.DISENGAGED: "-"}
_STATES = {"ready": "green", "suspended": "yellow", "terminating": "magenta"}


class Screen(Protocol):
    def happened(self, event: Event) -> None: ...

    def draw(self, source: SourceStatus | None) -> None: ...


@contextmanager
def opened(scene: Scene, introduction: str) -> Iterator[Screen]:
    console = Console(highlight=False)
    if not console.is_terminal:
        sys.stdout.write(introduction)
        sys.stdout.flush()
        yield _Lines()
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield _Table(scene, introduction, live, console)


class _Lines:
    def happened(self, event: Event) -> None:
        clock = datetime.now().astimezone().strftime("%H:%M:%S")
        sys.stdout.write(f"{clock}  {event.type.name:<10}  {event.cluster.name:<24}  {about(event)}".rstrip() + "\n")
        sys.stdout.flush()

    def draw(self, source: SourceStatus | None) -> None:
        pass


class _Table:
    def __init__(self, scene: Scene, introduction: str, live: Live, console: Console) -> None:
        self._scene = scene
        self._introduction = introduction
        self._live = live
        self._console = console
        self._shows_all = True

    def happened(self, event: Event) -> None:
        pass  # drawn with the rest

    def draw(self, source: SourceStatus | None) -> None:
        now = time.monotonic()
        footer = Text(self._introduction.strip(), style="dim")
        footer_height = self._introduction.strip().count("\n") + 1
        height = self._console.height - footer_height - 5
        layout = Layout()
        body = Layout(name="body")
        body.split_row(
            Layout(Panel(self._clusters(now, height), title=self._headline(source), border_style="dim"), ratio=3),
            Layout(Panel(self._feed(now, height), title="what happened", border_style="dim"), ratio=2),
        )
        layout.split_column(body, Layout(footer, size=footer_height + 1))
        self._live.update(layout, refresh=True)

    def _headline(self, source: SourceStatus | None) -> Text:
        words = Text(f"{self._scene.engaged} clusters engaged", style="bold")
        if source is not None:
            words.append("  ")
            name = source.state.name
            words.append(f"source {name}", style="green" if name == "STREAMING" else "yellow")
        return words

    def _clusters(self, now: float, height: int) -> RenderableType:
        table = Table(box=None, expand=True, show_edge=False, pad_edge=False)
        for heading, width in (("NAME", 18), ("ORGANIZATION", 13), ("STATE", 11), ("LABELS", None), ("AGE", 6)):
            table.add_column(
                heading,
                no_wrap=True,
                overflow="ellipsis",
                header_style="dim",
                min_width=width,
                ratio=1 if width is None else None,
            )
        rows = self._scene.rows(now)
        shown = _that_fit(rows, height - 2)
        for row in shown:
            table.add_row(*_cells(row, now))
        if len(shown) < len(rows):
            return Group(table, Text(f"and {len(rows) - len(shown)} more", style="dim"))
        return table

    def _feed(self, now: float, height: int) -> RenderableType:
        table = Table(box=None, expand=True, show_header=False, pad_edge=False)
        for ratio in (None, 2, 3):
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
        for happening in list(self._scene.feed)[:height]:
            event = happening.event
            style = _STYLES[event.type] if now - happening.at < FADES_AFTER_S else "dim"
            words = Text(f"{_SIGNS[event.type]} {event.cluster.name}", style=style)
            table.add_row(Text(f"{int(now - happening.at)}s", style="dim"), words, Text(about(event), style="dim"))
        return table


def _that_fit(rows: list[Row], height: int) -> list[Row]:
    """All, or else those that changed last: where there is no room for everything, life is what to look at."""
    if len(rows) <= height:
        return rows
    latest = sorted(rows, key=lambda row: row.at, reverse=True)[: max(0, height)]
    return sorted(latest, key=lambda row: row.cluster.name)


def _cells(row: Row, now: float) -> list[Text]:
    cluster = row.cluster
    is_fresh = now - row.at < FADES_AFTER_S
    style = _STYLES[row.last] if is_fresh else ""
    if row.last is EventType.DISENGAGED:
        style = "red strike"
    labels = " ".join(f"{key}={value}" for key, value in cluster.labels.items() if "/" not in key)
    age_s = 0 if cluster.engaged_at is None else max(0, int(time.time() - cluster.engaged_at.timestamp()))
    standing = "gone" if row.last is EventType.DISENGAGED else state(cluster)
    return [
        Text(f"{_SIGNS[row.last] if is_fresh else ' '} {cluster.name}", style=style),
        Text(cluster.organization, style="dim"),
        Text(standing, style=_STATES.get(standing, "red")),
        Text(labels, style="dim"),
        Text(f"{age_s // 60}m{age_s % 60:02}s" if age_s >= 60 else f"{age_s}s", style="dim"),
    ]
