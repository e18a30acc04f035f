"""The figures for people, and for programs."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import msgspec
from rich.table import Table

from bench.bars import Bars, Verdict, bar_of, verdict
from bench.setting import Figures


def table(figures: Figures, bars: Bars) -> Table:
    shown = Table("key", "figure", "bar", "", header_style="bold")
    shown.columns[1].justify = "right"
    for key, value in figures.items():
        bar, judged = bar_of(key, bars), verdict(key, value, bars)
        style = "red" if judged is Verdict.MISSED else None
        shown.add_row(key, rounded(value), "" if bar is None else str(bar), judged.value, style=style)
    return shown


def rounded(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def document(figures: Figures, bars: Bars, scale: str, upstream: str) -> bytes:
    """The figures by key, whether each met its bar, and what else says what they are worth."""
    content = {
        "figures": figures,
        "missed": missed(figures, bars),
        "scale": scale,
        "upstream": upstream,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "grpcio": version("grpcio"),
            "load": os.getloadavg(),
        },
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def missed(figures: Figures, bars: Bars) -> list[str]:
    return [key for key, value in figures.items() if verdict(key, value, bars) is Verdict.MISSED]
