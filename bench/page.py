"""`python -m bench.page [--check]`: writes figures of bench/results into documents, and draws their plots.

The text is written by hand. The text between `<!-- figures: KIND -->` and `<!-- end -->` is generated: headline and
tables of bench/figures.py, the capacity, bars that are missed, the files of results with their commands and commits,
and the noise. `--print NAME` prints all figures of one file.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from bench import agreement, plots
from bench import bars as limits
from bench.age import KNOWN_STALE
from bench.commits import ROOT
from bench.figures import COMMANDS, HEADLINE, PERFORMANCE, REASONS, SIZING, Row
from bench.report import RESULTS, Figures, Results, rounded, spread
from tools.documents import wrapped

PAGES = (ROOT / "README.md", ROOT / "docs" / "sizing.md", ROOT / "docs" / "reviewers" / "performance.md")
IMAGES = ROOT / "docs" / "images"

_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FIGURE = re.compile(r"\{(\w+) ([\w.]+)\}")
_AGAIN = "again"
"""A second run, which shows the noise of the figures; it has no plots."""
_OLD = " †"
"""Marks figures of files that bench/age.py lists as stale."""

Files = Mapping[str, Results]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev python -m bench.page")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if anything would change")
    parser.add_argument("--print", metavar="NAME", choices=sorted(COMMANDS), help="print the figures of a file")
    asked = parser.parse_args(argv)
    files = {path.stem: msgspec.json.decode(path.read_bytes(), type=Results) for path in RESULTS.glob("*.json")}
    if asked.print:
        print(table(files[asked.print]), end="")
        return 0
    problems = [*missing(files), *unexplained(files)]
    written = generated(files)
    changed = [path for path, content in written.items() if not path.exists() or path.read_text() != content]
    if asked.check:
        problems += [f"{path.relative_to(ROOT)} does not match bench/results" for path in changed]
    else:
        for path in changed:
            path.write_text(written[path])
            print(f"wrote {path.relative_to(ROOT)}")
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


def generated(files: Files) -> dict[Path, str]:
    """Return each generated file with its contents."""
    contents = {path: filled(path.read_text(), files) for path in PAGES}
    figures: Figures = {}
    for name, result in files.items():
        if result.upstream == "sandbox" and name != _AGAIN:
            figures |= result.figures
    for name, draw in _PLOTS.items():
        contents[IMAGES / f"performance-{name}.svg"] = draw(figures)
    return contents


def filled(text: str, files: Files) -> str:
    def fill(block: "re.Match[str]") -> str:
        begin, kind, end = block.groups()
        return begin + "".join(f"{line}\n" for line in _KINDS[kind](files)) + end

    return _BLOCK.sub(fill, text)


def missing(files: Files) -> Iterator[str]:
    """Yield a message for each shown figure that the files lack, and for each file without a command or vice versa."""
    for row in (*PERFORMANCE, *SIZING):
        for key in (row.key, *row.peers.values()):
            if _figure(files, row.name, key) is None:
                yield f"bench/results/{row.name}.json lacks {key}, which bench/figures.py shows"
    for name, key in _FIGURE.findall(HEADLINE):
        if _figure(files, name, key) is None:
            yield f"bench/results/{name}.json lacks {key}, which bench/figures.py shows"
    for name in sorted(files.keys() ^ COMMANDS.keys()):
        yield f"bench/results/{name}.json and COMMANDS in bench/figures.py do not match"


def unexplained(files: Files) -> Iterator[str]:
    """Yield a message for each missed bar without a reason."""
    for name, key in _missed(files):
        if key not in REASONS:
            yield f"{key} of bench/results/{name}.json misses its bar: give the reason in bench/figures.py"


def table(result: Results) -> str:
    """Return all figures of a file as a table."""
    bars = _bars(result)
    rows = ["| key | figure | rounds | bar | |", "|---|--:|---|---|---|"]
    for key, value in result.figures.items():
        between = spread(*result.spread[key]) if key in result.spread else ""
        judged = limits.verdict(key, value, bars).value
        rows.append(f"| `{key}` | {rounded(value)} | {between} | {limits.bar_of(key, bars) or ''} | {judged} |")
    return "\n".join(rows) + "\n"


def _headline(files: Files) -> Iterator[str]:
    names = list(dict.fromkeys(name for name, _ in _FIGURE.findall(HEADLINE)))
    text = _FIGURE.sub(lambda found: rounded(_figure(files, found[1], found[2])), HEADLINE)
    origin = ", ".join(f"`{_command(name)}` at {_commit(files, name)}" for name in names)
    yield from textwrap.wrap(f"- {text} ({origin})", 120, subsequent_indent="  ", break_on_hyphens=False)
    yield from _note(files, names)


def _rows(rows: Sequence[Row]) -> Callable[[Files], Iterator[str]]:
    def lines(files: Files) -> Iterator[str]:
        with_peers = any(row.peers for row in rows)
        yield f"| | figure |{' beside it |' if with_peers else ''} bar | file, commit |"
        yield f"|---|--:|{'---|' if with_peers else ''}---|---|"
        for row in rows:
            value, bars = _figure(files, row.name, row.key), _bars(files[row.name])
            peers = (f"{name} {_number(_figure(files, row.name, key), row)}" for name, key in row.peers.items())
            cells = [
                row.text,
                _number(value, row),
                *([", ".join(peers)] if with_peers else []),
                f"{limits.bar_of(row.key, bars) or ''} {limits.verdict(row.key, value, bars).value}".strip(),
                f"`{row.name}`, {_commit(files, row.name)}",
            ]
            yield f"| {' | '.join(cells)} |"
        yield from _note(files, (row.name for row in rows))

    return lines


def _capacity(files: Files) -> Iterator[str]:
    figures = files["capacity"].figures
    loads = [(int(parts[1]), int(parts[2]), float(parts[3])) for key in figures if len(parts := key.split(".", 4)) == 5]
    changes = sorted({load[2] for load in loads})
    rates = " | ".join(f"CPU at {rate:g} changes/s" for rate in changes)
    yield f"| clusters | subscribers | {rates} | memory, MiB | requests/s |"
    yield f"|--:|--:|{'--:|' * (len(changes) + 2)}"
    for projects, subscribers in sorted({load[:2] for load in loads}):
        key = f"capacity.{projects}.{subscribers}"
        cpu = (f"{rounded(figures[f'{key}.{rate:g}.cpu_percent'])} %" for rate in changes)
        most = (
            max(figures[f"{key}.{rate:g}.{kind}"] or 0 for rate in changes) for kind in ("rss_mib", "requests_per_s")
        )
        cells = (f"{projects:,}", str(subscribers), *cpu, *(rounded(value) for value in most))
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"`{_command('capacity')}`, {_commit(files, 'capacity')}, {_machine(files['capacity'])}."


def _missed_bars(files: Files) -> Iterator[str]:
    missed = [*_missed(files)]
    if not missed:
        yield "None."
        return
    for name, key in missed:
        value, bar = _figure(files, name, key), limits.bar_of(key, _bars(files[name]))
        yield wrapped(f"- `{key}` of `{name}`: {rounded(value)}, bar {bar}. {REASONS.get(key, '')}".rstrip())


def _files(files: Files) -> Iterator[str]:
    for name, result in sorted(files.items()):
        built = "".join(f", {what} `{commit}`" for what, commit in result.commits.items() if what.isupper())
        link = f"[{name}](../../bench/results/{name}.json)"
        day = f", {result.at[:10]}" if result.commits else ""
        commit = f"{_commit(files, name)}{built}{day}"
        machine = f"{result.machine['cpu']}, load {result.machine['load'][0]:.1f}"
        yield wrapped(f"- {link}: `{_command(name)}`, {commit}, {machine}.")
    yield from _note(files, files)


def _noise(files: Files) -> Iterator[str]:
    one, other = files["sandbox"], files[_AGAIN]
    keys, apart = agreement.shared(one, other), list(agreement.apart(one, other))
    yield f"Of {len(keys)} figures of `sandbox` and `{_AGAIN}`, {len(keys) - len(apart)} agree."
    if apart:
        yield from ("", "| figures that differ | one run | rounds | other run | rounds |", "|---|--:|---|--:|---|")
    for key in apart:
        figures = (
            f"{rounded(run.figures[key])} | {spread(*run.spread[key]) if key in run.spread else ''}"
            for run in (one, other)
        )
        yield f"| `{key}` | {' | '.join(figures)} |"


_KINDS: dict[str, Callable[[Files], Iterable[str]]] = {
    "headline": _headline,
    "performance": _rows(PERFORMANCE),
    "sizing": _rows(SIZING),
    "capacity": _capacity,
    "missed": _missed_bars,
    "files": _files,
    "noise": _noise,
}


def _figure(files: Files, name: str, key: str) -> float | None:
    return files[name].figures.get(key) if name in files else None


def _number(value: float | None, row: Row) -> str:
    return f"{rounded(value)} {row.unit}".strip()


def _bars(result: Results) -> limits.Bars:
    return limits.REAL if result.upstream == "real" else limits.FULL


def _missed(files: Files) -> Iterator[tuple[str, str]]:
    for name, result in sorted(files.items()):
        for key, value in result.figures.items():
            if name != _AGAIN and limits.verdict(key, value, _bars(result)) is limits.Verdict.MISSED:
                yield name, key


def _command(name: str) -> str:
    return f"./dev bench {COMMANDS[name]}".strip()


def _commit(files: Files, name: str) -> str:
    """Return what a file measured: the commit, or the day of the run in results of earlier versions."""
    commit = files[name].commits.get("milo-discoveryd")
    return (f"`{commit}`" if commit else files[name].at[:10]) + (_OLD if _is_old(files[name], name) else "")


def _is_old(result: Results, name: str) -> bool:
    return KNOWN_STALE.get(name) == result.at


def _note(files: Files, names: Iterable[str]) -> Iterator[str]:
    if any(_is_old(files[name], name) for name in names):
        yield from ("", "† The measured code has changed since.")


def _machine(result: Results) -> str:
    machine = result.machine
    return f"{machine['cpus']} cores ({machine['cpu']}), Python {machine['python']}, load {machine['load'][0]:.1f}"


_READERS = {
    "": "milo-discoveryd",
    "client_go_": "client-go informer",
    "kubernetes_aio_": "kubernetes.aio",
    "curl_": "curl",
}


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
        "live_events_per_s": "live, including the API server's time",
    }
    for key, value in figures.items():
        if (found := re.fullmatch(r"fanout\.(\d+)\.(\w+)", key)) and found[2] in names and value is not None:
            series.setdefault(names[found[2]], []).append((float(found[1]), value))
    return plots.lines("Fan-out by subscribers", series, x="by subscribers", y="events a second, to all together")


def _sizing_memory(figures: Figures) -> str:
    return plots.lines(
        "Memory by clusters", _capacity_series(figures, "rss_mib", 0), x="by clusters", y="MiB resident, at most"
    )


def _sizing_cpu(figures: Figures) -> str:
    return plots.lines(
        "CPU by changes", _capacity_series(figures, "cpu_percent", 2), x="by changes a second", y="% of a core, at most"
    )


def _capacity_series(figures: Figures, kind: str, by: int) -> dict[str, list[tuple[float, float]]]:
    """Return the maximum by number of subscribers, as points over projects (`by` is 0) or changes (2)."""
    greatest: dict[int, dict[float, float]] = {}
    for key, value in figures.items():
        if (found := re.fullmatch(rf"capacity\.(\d+)\.(\d+)\.([\d.]+)\.{kind}", key)) and value is not None:
            points = greatest.setdefault(int(found[2]), {})
            points[float(found[by + 1])] = max(value, points.get(float(found[by + 1]), 0))
    names = {1: "1 subscriber"}
    return {
        names.get(count, f"{count} subscribers"): sorted(points.items()) for count, points in sorted(greatest.items())
    }


_PLOTS: dict[str, Callable[[Figures], str]] = {
    "memory": _memory,
    "sync": _sync,
    "latency": _latency,
    "fanout": _fanout,
    "sizing-memory": _sizing_memory,
    "sizing-cpu": _sizing_cpu,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
