"""Reports of the figures, as tables and as JSON."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.table import Table

from bench.bars import Bars, Verdict, bar_of, verdict
from bench.commits import ROOT, commits
from bench.setting import Samples

RESULTS = ROOT / "bench" / "results"

Figures = dict[str, float | None]
"""Figures by key; None if one could not be measured."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run, with its environment."""

    figures: Figures
    """The median of the rounds."""
    spread: dict[str, tuple[float, float]]
    """The minimum and the maximum of the rounds, if there were several."""
    missed: list[str]
    scale: str
    upstream: str
    at: str
    machine: dict[str, Any]
    commits: dict[str, str] = {}
    """The commit of each measured program; empty in results of earlier versions."""


def results(samples: Samples, bars: Bars, scale: str, upstream: str) -> Results:
    figures = medians(samples)
    return Results(
        figures=figures,
        spread={key: (min(values), max(values)) for key, values in samples.items() if len(values) > 1},
        missed=missed(figures, bars),
        scale=scale,
        upstream=upstream,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        commits=commits(),
        machine={
            "cpus": os.cpu_count(),
            "cpu": _cpu(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": f"{platform.system()} {platform.release().partition('-')[0]}",
            "python": platform.python_version(),
            **{package: version(package) for package in ("milo-discoveryd", "grpcio", "kubernetes", "msgspec")},
            "load": os.getloadavg(),
        },
    )


def medians(samples: Samples) -> Figures:
    return {key: median(values) if values else None for key, values in samples.items()}


def table(samples: Samples, bars: Bars) -> Table:
    shown = Table("key", "figure", "rounds", "bar", "", header_style="bold")
    shown.columns[1].justify = "right"
    for key, value in medians(samples).items():
        bar, judged = bar_of(key, bars), verdict(key, value, bars)
        style = "red" if judged is Verdict.MISSED else None
        rounds = spread(min(samples[key]), max(samples[key])) if len(samples[key]) > 1 else ""
        shown.add_row(key, rounded(value), rounds, "" if bar is None else str(bar), judged.value, style=style)
    return shown


def spread(least: float, most: float) -> str:
    return f"{rounded(least)} to {rounded(most)}"


def rounded(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def written(content: Results) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _cpu() -> str:
    """Return the name of the processor on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def missed(figures: Figures, bars: Bars) -> list[str]:
    return [key for key, value in figures.items() if verdict(key, value, bars) is Verdict.MISSED]
