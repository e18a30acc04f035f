"""Each measurement, at a size at which it takes a second or two: that it works, not what comes of it."""

import shutil

import pytest

from bench import bars
from bench.__main__ import MEASURES, QUICK_ONES
from bench.scale import TINY
from bench.setting import Setting

KEYS = {
    "startup": {"startup.import_ms", "startup.python_ms", "startup.ratio_to_python"},
    "cli": {"cli.list_ms"},
    "sync_1k": {"sync_1k.seconds", "sync_1k.ratio_to_curl", "sync_1k.rss_mib"},
    "sync_10k": {"sync_10k.seconds", "sync_10k.ratio_to_curl", "sync_10k.rss_mib"},
    "sync_100k": {"sync_100k.seconds", "sync_100k.ratio_to_curl", "sync_100k.rss_mib", "bytes_per_cluster"},
    "latency": {"latency.p50_ms", "latency.p99_ms", "latency.over_raw_watch_ms", "latency.cpu_s_per_1000"},
    "fanout": {f"fanout.{count}.{key}" for count in TINY.subscribers for key in ("events_per_s", "ratio_to_bare")},
    "slow_reader": {"fanout.slow_reader_effect"},
    "herd": {"herd_500.seconds"},
    "idle": {"idle.cpu_percent", "idle.probed.cpu_percent"},
}


@pytest.mark.parametrize("name", sorted(MEASURES))
async def test_it_gives_the_figures_that_it_promises(name: str, setting: Setting) -> None:
    figures = await MEASURES[name](setting)

    assert KEYS[name] <= figures.keys()
    without_curl = {key for key in figures if "curl" in key} if shutil.which("curl") is None else set()
    assert {key for key, value in figures.items() if value is None} == without_curl


def test_every_bar_is_for_a_figure() -> None:
    keys = {key for keys in KEYS.values() for key in keys} | {"latency.p99_over_raw_watch_ms"}
    for patterns in (bars.FULL, bars.REAL, bars.QUICK):
        assert all(any(bars.bar_of(key, {pattern: bar}) for key in keys) for pattern, bar in patterns.items())


def test_the_quick_form_runs_measurements_that_there_are() -> None:
    assert set(QUICK_ONES) <= MEASURES.keys()
