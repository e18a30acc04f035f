"""The bars that the figures are held against."""

import enum
from fnmatch import fnmatchcase

import msgspec


class Verdict(enum.Enum):
    MET = "met"
    MISSED = "MISSED"
    NO_BAR = ""


class Bar(msgspec.Struct, frozen=True):
    limit: float
    is_floor: bool = False
    """At least the limit; otherwise at most."""

    def __str__(self) -> str:
        return f"{'≥' if self.is_floor else '≤'} {self.limit:g}"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.is_floor else value <= self.limit


Bars = dict[str, Bar]
"""By key; a `*` stands for anything."""

FULL: Bars = {
    "sync_10k.seconds": Bar(1.5),
    "sync_10k.rss_mib": Bar(110),
    "sync_100k.rss_mib": Bar(320),
    "bytes_per_cluster": Bar(2_000),
    "latency.over_raw_watch_ms": Bar(1.0),
    "latency.p99_over_raw_watch_ms": Bar(4.0),
    "fanout.*.ratio_to_bare": Bar(0.8, is_floor=True),
    "fanout.slow_reader_effect": Bar(1.1),
    "herd_500.seconds": Bar(10),
    "idle.cpu_percent": Bar(0.5),
    "idle.probed.cpu_percent": Bar(5),
    "startup.import_ms": Bar(150),
    "cli.list_ms": Bar(300),
}

REAL: Bars = {**FULL, "sync_100k.ratio_to_curl": Bar(1.5)}
"""The sandbox has its bytes ready: beside it, curl is quicker than it could be beside any API server."""

QUICK: Bars = {
    # A machine that others use as well can be held to ratios only, and to generous ones.
    "sync_1k.ratio_to_curl": Bar(100),
    "latency.over_raw_watch_ms": Bar(25),
    "fanout.*.ratio_to_bare": Bar(0.005, is_floor=True),
    "fanout.slow_reader_effect": Bar(20),
    "startup.ratio_to_python": Bar(40),
}


def bar_of(key: str, bars: Bars) -> Bar | None:
    return next((bar for pattern, bar in bars.items() if fnmatchcase(key, pattern)), None)


def verdict(key: str, value: float | None, bars: Bars) -> Verdict:
    bar = bar_of(key, bars)
    if bar is None or value is None:
        return Verdict.NO_BAR
    return Verdict.MET if bar.holds(value) else Verdict.MISSED
