"""`python -m bench.page [--check]`: writes figures of bench/results into the page on performance, and draws its plots.

The text is written by hand. From `<!-- figures: NAME KEY... -->` to `<!-- end -->` is a table: the figures of
bench/results/NAME.json whose keys match. `<!-- run: NAME -->` is followed by the environment of a run,
`<!-- twice: NAME OTHER -->` by how far two runs agree, and `<!-- capacity: NAME -->` by what a daemon needs.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from bench import agreement, plots
from bench import bars as limits
from bench.report import Figures, Results, rounded, spread

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "reviewers" / "performance.md"
IMAGES = ROOT / "docs" / "images"

_BLOCK = re.compile(r"(<!-- (figures|run|twice|capacity): (\S+)([^>]*) -->\n).*?(<!-- end -->)", re.DOTALL)
_MUCH = 2.5
"""Load per core: the bench itself keeps all cores busy for much of its time."""
_BUSY = " The machine was busy: figures of time are unreliable."
_AGAIN = "again"
"""A second run, which shows the noise; it has no plots."""
_READERS = {
    "": "milo-discoveryd",
    "client_go_": "client-go informer",
    "kubernetes_aio_": "kubernetes.aio",
    "curl_": "curl",
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev python -m bench.page")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if anything would be changed")
    asked = parser.parse_args(argv)
    stale = [path for path, content in made().items() if not path.exists() or path.read_text() != content]
    if asked.check:
        print(
            "\n".join(
                f"{path.relative_to(ROOT)} differs from bench/results: run ./dev python -m bench.page" for path in stale
            )
        )
        return 1 if stale else 0
    for path in stale:
        path.write_text(made()[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def made() -> dict[Path, str]:
    """Return each generated file with its contents."""
    results = {path.stem: msgspec.json.decode(path.read_bytes(), type=Results) for path in RESULTS.glob("*.json")}
    found = {PAGE: filled(PAGE.read_text(), results)}
    figures: Figures = {}
    for name, each in results.items():
        if each.upstream == "sandbox" and name != _AGAIN:
            figures |= each.figures
    for name, draw in _PLOTS.items():
        found[IMAGES / f"performance-{name}.svg"] = draw(figures)
    return found


def filled(text: str, results: dict[str, Results]) -> str:
    def fill(block: "re.Match[str]") -> str:
        begin, kind, name, keys, end = block.groups()
        match kind:
            case "run":
                filling = _run(of(name), name)
            case "capacity":
                filling = _capacity(of(name).figures)
            case "twice":
                filling = _twice(of(name), of(keys.strip()))
            case _:
                filling = _table(of(name), keys.split())
        return begin + filling + end

    def of(name: str) -> Results:
        if name not in results:
            raise SystemExit(f"there is no bench/results/{name}.json, which ./dev bench --json writes")
        return results[name]

    return _BLOCK.sub(fill, text)


def _run(of: Results, name: str) -> str:
    machine = of.machine
    what = {"sandbox": "the sandbox", "real": "a real API server"}[of.upstream]
    load = ", ".join(f"{each:.1f}" for each in machine["load"])
    return (
        f"`bench/results/{name}.json`: {of.at}, on {what}. {machine['cpus']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}; Python {machine['python']}, grpcio {machine['grpcio']}, "
        f"kubernetes {machine['kubernetes']}, msgspec {machine['msgspec']}. Load at the end: {load}."
        f"{_BUSY if machine['load'][0] > _MUCH * machine['cpus'] else ''}{_built(of)}\n"
    )


def _built(of: Results) -> str:
    if not of.commits:
        return ""
    return f" Built from {', '.join(f'`{commit}` ({what})' for what, commit in of.commits.items())}."


def _table(of: Results, keys: list[str]) -> str:
    held_to = limits.REAL if of.upstream == "real" else limits.FULL
    rows = ["| key | figure | rounds | bar | |", "|---|--:|---|---|---|"]
    for pattern in keys:
        for key, value in of.figures.items():
            if fnmatchcase(key, pattern):
                bar = limits.bar_of(key, held_to)
                between = spread(*of.spread[key]) if key in of.spread else ""
                judged = limits.verdict(key, value, held_to).value
                rows.append(f"| `{key}` | {rounded(value)} | {between} | {bar or ''} | {judged} |")
    return "\n".join(rows) + "\n"


def _capacity(figures: Figures) -> str:
    loads = sorted(
        {(int(each[1]), int(each[2]), float(each[3])) for key in figures if len(each := key.split(".", 4)) == 5}
    )
    rows = [
        "| projects | subscribers | changes/s | CPU, % of a core | memory, MiB | requests to Milo/s |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for projects, subscribers, changes in loads:
        key = f"capacity.{projects}.{subscribers}.{changes:g}"
        found = (figures[f"{key}.{each}"] for each in ("cpu_percent", "rss_mib", "requests_per_s"))
        rows.append(f"| {projects:,} | {subscribers} | {changes:g} | {' | '.join(rounded(each) for each in found)} |")
    return "\n".join(rows) + "\n"


def _twice(one: Results, other: Results) -> str:
    keys, apart = agreement.shared(one, other), list(agreement.apart(one, other))
    rows = [f"Of {len(keys)} figures, {len(keys) - len(apart)} agree."]
    if apart:
        rows += ["", "| those that don't | one run | rounds | the other | rounds |", "|---|--:|---|--:|---|"]
    for key in apart:
        figures = (
            f"{rounded(run.figures[key])} | {spread(*run.spread[key]) if key in run.spread else ''}"
            for run in (one, other)
        )
        rows.append(f"| `{key}` | {' | '.join(figures)} |")
    return "\n".join(rows) + "\n"


def _readers(figures: Figures, key: str, of: str) -> dict[str, float]:
    found = {name: figures.get(f"{key}.{prefix}{of}") for prefix, name in _READERS.items()}
    return {name: value for name, value in found.items() if value is not None}


_SIZES = {"sync_1k": 1_000, "sync_10k": 10_000, "sync_100k": 100_000}


def _memory(figures: Figures) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    for key, clusters in _SIZES.items():
        for name, value in _readers(figures, key, "rss_mib").items():
            series.setdefault(name, []).append((clusters, value))
    return plots.lines("Memory by size of the fleet", series, x="by projects", y="MiB resident, with all of them read")


def _sync(figures: Figures) -> str:
    groups = {key.removeprefix("sync_"): _readers(figures, key, "seconds") for key in _SIZES}
    return plots.bars("From the start of a process until it has all projects", groups, y="seconds")


def _latency(figures: Figures) -> str:
    names = {**_READERS, "raw_watch_": "raw watch"}
    groups: dict[str, dict[str, float]] = {}
    for percentile in ("p50", "p99"):
        found = {name: figures.get(f"latency.{prefix}{percentile}_ms") for prefix, name in names.items()}
        groups[percentile] = {name: value for name, value in found.items() if value is not None}
    return plots.bars("From a write to the reader", groups, y="milliseconds, at 50 writes a second")


def _fanout(figures: Figures) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    names = {
        "events_per_s": "catching up",
        "bare_events_per_s": "bare gRPC, bytes ready",
        "live_events_per_s": "live, with the API server's part",
    }
    for key, value in figures.items():
        if (found := re.fullmatch(r"fanout\.(\d+)\.(\w+)", key)) and found[2] in names and value is not None:
            series.setdefault(names[found[2]], []).append((float(found[1]), value))
    return plots.lines("Fan-out by subscribers", series, x="by subscribers", y="events a second, to all together")


_PLOTS: dict[str, Callable[[Figures], str]] = {
    "memory": _memory,
    "sync": _sync,
    "latency": _latency,
    "fanout": _fanout,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
