"""`python -m bench.age`: exits with 1 if bench/results has a stale file, or an entry of `KNOWN_STALE` is outdated.

Files in `KNOWN_STALE` may be stale, until they are measured again.
A file is stale if it does not name the measured commit, if that commit had uncommitted changes or is not in the
history, or if many later commits changed the code of the measured packages. Commits that changed only comments,
docstrings and texts do not count.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import msgspec

from bench.commits import ROOT
from bench.report import RESULTS, Results

MOST_COMMITS = 30
"""Maximum number of commits since the measurement that may have changed the measured packages."""
_MANUAL_PAGES = ".1"
_DAEMON = ("milo_discoveryd", "kube/src")
_MORE = {
    "controllers": ("controllers/src", "clients/python/src"),
    "go": ("clients/go",),
    "go_memory": ("clients/go",),
    "milo_groups": ("clients/go",),
}
"""The packages that a file measures besides the daemon."""

CommitsSince = Callable[[str, tuple[str, ...]], int | None]
"""Returns how many commits changed the packages' code since a commit; None if the history lacks that commit."""

KNOWN_STALE: dict[str, str] = {
    "again": "2026-11-27T19:39:59+00:00",
    "capacity": "2026-11-27T19:49:53+00:00",
    "churn": "2026-11-26T17:34:19+00:00",
    "cluster_memory": "2026-11-27T19:40:48+00:00",
    "controllers": "2026-11-27T08:53:09+00:00",
    "fleet": "2026-11-26T19:54:32+00:00",
    "floods": "2026-11-27T19:56:58+00:00",
    "go": "2026-11-27T08:33:16+00:00",
    "go_memory": "2026-11-27T12:04:04+00:00",
    "hostile_clients": "2026-11-27T19:55:22+00:00",
    "log_caches": "2026-11-27T19:40:43+00:00",
    "loop_blocking": "2026-11-27T19:40:41+00:00",
    "milo": "2026-11-26T20:14:30+00:00",
    "milo_cost": "2026-11-26T20:29:31+00:00",
    "milo_groups": "2026-11-26T20:28:34+00:00",
    "real": "2026-11-27T20:07:36+00:00",
    "sandbox": "2026-11-27T19:34:51+00:00",
    "sharding": "2026-11-27T20:15:18+00:00",
    "status_page": "2026-11-27T19:42:21+00:00",
}
"""Files that are stale while what surrounds the core is rewritten, with the time of their run. Only remove entries."""


def main() -> int:
    results = {path.stem: msgspec.json.decode(path.read_bytes(), type=Results) for path in RESULTS.glob("*.json")}
    found = [*problems(results, KNOWN_STALE, _commits_since)]
    sys.stdout.writelines(f"{problem}\n" for problem in found)
    return 1 if found else 0


def problems(
    results: Mapping[str, Results],
    known_stale: Mapping[str, str],
    commits_since: CommitsSince,
) -> Iterator[str]:
    """Yield a message for each stale file and for each outdated entry of `known_stale`."""
    for name, result in sorted(results.items()):
        packages = (*_DAEMON, *_MORE.get(name, ()))
        reason = _staleness(result, packages, commits_since)
        if reason and known_stale.get(name) != result.at:
            yield f"bench/results/{name}.json {reason}: measure it again (docs/reviewers/performance.md)"
        if not reason and name in known_stale:
            yield f"bench/results/{name}.json is not stale: remove it from KNOWN_STALE in bench/age.py"
    for name in sorted(known_stale.keys() - results.keys()):
        yield f"bench/results/{name}.json does not exist: remove it from KNOWN_STALE in bench/age.py"


def _staleness(result: Results, packages: tuple[str, ...], commits_since: CommitsSince) -> str:
    commit = result.commits.get("milo-discoveryd")
    if commit is None:
        return "does not name the commit that it measured"
    if commit.endswith("-dirty"):
        return f"measured {commit}: a working tree with uncommitted changes"
    later = commits_since(commit, packages)
    if later is None:
        return f"measured {commit}, which is not in the history of this checkout (it may be shallow)"
    if later > MOST_COMMITS:
        return f"measured {commit}, and {later} later commits changed what it measures (at most {MOST_COMMITS} may)"
    return ""


def _commits_since(commit: str, packages: tuple[str, ...]) -> int | None:
    commits = _git("rev-list", f"{commit}..HEAD", "--", *packages)
    return None if commits is None else sum(_changes_code(later, packages) for later in commits.split())


@cache
def _changes_code(commit: str, packages: tuple[str, ...]) -> bool:
    changed = _git("diff-tree", "-r", "--no-commit-id", "--name-only", "--no-renames", commit, "--", *packages) or ""
    return any(_code_of(f"{commit}^", path) != _code_of(commit, path) for path in changed.splitlines())


def _code_of(commit: str, path: str) -> str | None:
    """Return the file's code for comparison; None if it has none, or if the commit lacks the file."""
    content = _git("show", f"{commit}:{path}")
    if content is None or path.endswith(_MANUAL_PAGES):
        return None
    return without_texts(content) if path.endswith(".py") else content


def without_texts(source: str) -> str:
    """Return the syntax tree of Python code, without docstrings and without the contents of strings with spaces."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, field, None), list):
                setattr(node, field, [statement for statement in body if not _is_text(statement)])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            node.value = ""
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
