"""Alternating measurements of the working tree and of an earlier commit: `./dev bench --against REF`.

Each run is `./dev bench NAME… --json FILE` in one of the trees, with the environment of that tree. A change in the
machine's speed affects both sides of a pair of runs, so the ratio is taken pair by pair. A figure counts as worse if
the median of its ratios is worse by more than `TOLERANCE`, and the ranges of the two trees' rounds do not overlap.
"""

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
from rich.table import Table

from bench.bars import FULL, bar_of
from bench.report import Results, rounded, spread

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.15
_HIGHER_IS_BETTER = ("_per_s", "caught_up_ratio")
"""Suffixes of keys without a bar whose figure is better if it is higher."""
_OF_PEERS = ("bare_", "client_go_", "curl_", "go_kib", "kopf_", "kubernetes_aio_", "python_", "raw_watch_", "write_")
"""Prefixes of the last part of a key whose figure is a peer's, not the daemon's."""

Pair = tuple[Results, Results]
"""The results of the earlier commit, and of the working tree."""


def measured(tree: Path, names: Sequence[str], options: Sequence[str]) -> Results:
    """Return the results of one run in a tree."""
    with tempfile.TemporaryDirectory(prefix="milo-bench-") as directory:
        file = Path(directory, "figures.json")
        command = [str(tree / "dev"), "bench", *names, *options, "--json", str(file)]
        # Without check=True, since a run with a missed bar can exit with 1 too.
        done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, check=False)
        if not file.exists():
            raise SystemExit(f"{' '.join(command)} wrote no figures; its output:\n{done.stdout}")
        return msgspec.json.decode(file.read_bytes(), type=Results)


def checkout(ref: str) -> Path:
    """Return a checkout of the commit in the cache directory, where later runs reuse its environment."""
    asked = ["git", "rev-parse", "--verify", f"{ref}^{{commit}}"]
    commit = subprocess.check_output(asked, cwd=ROOT, text=True).strip()
    tree = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "against" / commit
    if not tree.exists():
        tree.mkdir(parents=True)
        with subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE) as archive:
            assert archive.stdout is not None
            with tarfile.open(fileobj=archive.stdout, mode="r|") as files:
                files.extractall(tree, filter="data")
    return tree


def compare(ref: str, names: Sequence[str], options: Sequence[str], pairs: int) -> list[Pair]:
    """Return the results of both trees."""
    earlier = checkout(ref)
    runs: list[Pair] = []
    for number in range(pairs):
        # The trees take turns in being measured first.
        if number % 2:
            now = measured(ROOT, names, options)
            runs.append((measured(earlier, names, options), now))
        else:
            runs.append((measured(earlier, names, options), measured(ROOT, names, options)))
    return runs


def table(ref: str, runs: Sequence[Pair]) -> Table:
    """Return a table of the figures of both trees and of their ratios."""
    shown = Table("key", ref, "working tree", "ratio", "ratios of pairs", header_style="bold")
    for column in shown.columns[1:4]:
        column.justify = "right"
    for key in runs[0][0].figures:
        if pairs := _figures(key, runs):
            ratios = [now / before for before, now in pairs]
            before, now = (median(side) for side in zip(*pairs, strict=True))
            shown.add_row(key, rounded(before), rounded(now), f"{median(ratios):.2f}", spread(min(ratios), max(ratios)))
    return shown


def worse(runs: Sequence[Pair]) -> list[str]:
    """Return the keys of figures that are worse in the working tree, beyond the noise."""
    return [key for key in runs[0][0].figures if _is_worse(key, runs)]


def _is_worse(key: str, runs: Sequence[Pair]) -> bool:
    pairs = _figures(key, runs)
    if not pairs or key.rpartition(".")[2].startswith(_OF_PEERS):
        return False
    ratio = median([now / before for before, now in pairs])
    before, now = ([_rounds(key, pair[side]) for pair in runs if pair[side].figures.get(key)] for side in (0, 1))
    bar = bar_of(key, FULL)
    if bar.is_floor if bar is not None else key.endswith(_HIGHER_IS_BETTER):
        return ratio < 1 - TOLERANCE and max(most for _, most in now) < min(least for least, _ in before)
    return ratio > 1 + TOLERANCE and min(least for least, _ in now) > max(most for _, most in before)


def _figures(key: str, runs: Sequence[Pair]) -> list[tuple[float, float]]:
    """Return the figure of each pair of runs in which both trees have it."""
    pairs = ((earlier.figures.get(key), here.figures.get(key)) for earlier, here in runs)
    return [(before, now) for before, now in pairs if before and now]


def _rounds(key: str, results: Results) -> tuple[float, float]:
    """Return the minimum and the maximum of a figure over its rounds."""
    figure = results.figures[key]
    assert figure is not None
    return results.spread.get(key, (figure, figure))
