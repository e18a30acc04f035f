"""Measurements of the working tree and of an earlier commit, in turns: `./dev bench --against REF`.

Each run is `./dev bench NAME… --json FILE` in one of the trees, with the environment of that tree. A change of speed of
the machine affects both sides of a pair of runs, so the ratio is taken pair by pair.
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

from bench.report import Figures, Results, rounded, spread

ROOT = Path(__file__).parents[1]


def figures(tree: Path, names: Sequence[str], options: Sequence[str]) -> Figures:
    """Return what one run in a tree measures."""
    with tempfile.TemporaryDirectory(prefix="milo-bench-") as directory:
        file = Path(directory, "figures.json")
        command = [str(tree / "dev"), "bench", *names, *options, "--json", str(file)]
        # Without --check: a missed bar is a status too.
        done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, check=False)
        if not file.exists():
            raise SystemExit(f"{' '.join(command)} printed no figures:\n{done.stdout}")
        return msgspec.json.decode(file.read_bytes(), type=Results).figures


def checkout(ref: str) -> Path:
    """Return the tree of a commit, in the cache directory, where its environment is kept for the next time."""
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


def compare(ref: str, names: Sequence[str], options: Sequence[str], pairs: int) -> Table:
    """Return the figures of both trees, and their ratio."""
    earlier = checkout(ref)
    runs: list[tuple[Figures, Figures]] = []
    for number in range(pairs):
        # Each of them goes first in half of the pairs.
        if number % 2:
            now = figures(ROOT, names, options)
            runs.append((figures(earlier, names, options), now))
        else:
            runs.append((figures(earlier, names, options), figures(ROOT, names, options)))
    return table(ref, runs)


def table(ref: str, runs: Sequence[tuple[Figures, Figures]]) -> Table:
    shown = Table("key", ref, "working tree", "ratio", "ratios of pairs", header_style="bold")
    for column in shown.columns[1:4]:
        column.justify = "right"
    for key in runs[0][0]:
        pairs = [(before, now) for one, other in runs if (before := one[key]) and (now := other.get(key))]
        if pairs:
            ratios = [now / before for before, now in pairs]
            before, now = (median(side) for side in zip(*pairs, strict=True))
            shown.add_row(key, rounded(before), rounded(now), f"{median(ratios):.2f}", spread(min(ratios), max(ratios)))
    return shown
