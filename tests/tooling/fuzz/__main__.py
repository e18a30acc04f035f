"""`./dev fuzz [TARGET...] [--executions N]`: runs the targets with a total number of executions.

Findings are stored in tests/tooling/fuzz/corpus, which `./dev test` runs. The exit status is 1 if anything was found.
"""

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.tooling.fuzz.seeds import CORPUS, begun_with
from tests.tooling.fuzz.targets import TARGETS

_LONGEST_INPUT = 2048
_HANGS_AFTER_S = 20
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_SLOW = {
    "deletions": 0.01,
    "yaml-documents": 0.1,
    "kubeconfigs": 0.1,
    "kubeconfig-secrets": 0.1,
    "kubeconfig-requests": 0.1,
    "selectors": 0.2,
}
"""The weights of slow targets, by which executions are divided; the weight of other targets is 1. A run of the daemon
takes several milliseconds, a YAML document takes one, and long selectors take several.
"""


@dataclass(frozen=True)
class Outcome:
    target: str
    executed: int
    seconds: float
    found: tuple[str, ...]
    last_words: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all of them by default")
    parser.add_argument("--executions", type=int, default=200_000)
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    targets = asked.targets or list(TARGETS)
    shares = {target: _SLOW.get(target, 1.0) for target in targets}
    outcomes = []
    for target, share in shares.items():
        outcome = fuzz(target, max(1, round(asked.executions * share / sum(shares.values()))))
        outcomes.append(outcome)
        rate = outcome.executed / outcome.seconds
        click.echo(f"{target:24} {outcome.executed:>10} executions {rate:>8.0f}/s, {len(outcome.found)} found")
        if outcome.found:
            click.echo(f"{outcome.last_words}\nkept: {', '.join(outcome.found)}")
    click.echo(f"{'total':24} {sum(outcome.executed for outcome in outcomes):>10} executions")
    return 1 if any(outcome.found for outcome in outcomes) else 0


def fuzz(target: str, executions: int) -> Outcome:
    with TemporaryDirectory(prefix=f"milo-fuzz-{target}-") as name:
        directory = Path(name)
        corpus, broken = directory / "corpus", directory / "broken"
        for path in (corpus, broken):
            path.mkdir()
        for number, seed in enumerate(begun_with(target)):
            (corpus / f"seed-{number}").write_bytes(seed)
        flags = [
            f"-runs={executions}",
            f"-max_len={_LONGEST_INPUT}",
            f"-timeout={_HANGS_AFTER_S}",
            f"-artifact_prefix={broken}/",
            "-print_final_stats=1",
        ]
        began = time.monotonic()
        run = subprocess.run(
            [sys.executable, "-m", "tests.tooling.fuzz.run", target, str(corpus), *flags],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        executed = _EXECUTED.search(run.stderr)
        if executed is None:
            raise RuntimeError(f"{target} did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        return Outcome(
            target,
            int(executed[1]),
            time.monotonic() - began,
            tuple(_kept(target, path) for path in sorted(broken.iterdir())),
            run.stdout[-3000:],
        )


def _kept(target: str, path: Path) -> str:
    kept = CORPUS / target / path.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(path.read_bytes())
    return str(kept)


if __name__ == "__main__":
    sys.exit(main())
