"""`./dev mutants`: mutmut changes a copy of the pure modules, and their unit tests must detect the changes."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.tooling.import_contracts.contracts import PACKAGES, ROOT, modules, unit_tests

MUTMUT = Path(sys.executable).with_name("mutmut")
TESTS = ("tests", "objects/tests", "controllers/tests", "kube/tests")
READ_BY_TESTS = ("clients", "deploy", "designs", "docs")
"""Directories with files that unit tests read."""
SURVIVED = (0, 5, 33)
"""mutmut's exit codes of a mutant whose tests pass, and of one without tests."""
SETTINGS = """
[tool.mutmut]
process_isolation = "forkserver"  # the tests start threads
timeout_multiplier = 5  # of the time that the tests take; a mutant that never ends takes gigabytes of memory in 15
source_paths = {sources}
only_mutate = {files}
also_copy = {others}
pytest_add_cli_args_test_selection = {tests}

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
addopts = ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "tests.support.hypothesis_settings"]
"""


def prepare(directory: Path, chosen: list[str]) -> None:
    """Copy the files that the tests of these modules need, with mutmut's settings for them."""
    ignored = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(package, directory / package.name, ignore=ignored)
    for tests in TESTS:
        shutil.copytree(ROOT / tests, directory / tests, ignore=ignored)
    (directory / "mutants").mkdir()  # in which mutmut runs the tests
    for read in READ_BY_TESTS:
        (directory / "mutants" / read).symlink_to(ROOT / read)
    paths = [module.replace(".", "/") for module in chosen]
    settings = SETTINGS.format(
        sources=json.dumps(sorted({path.partition("/")[0] for path in paths})),
        files=json.dumps([f"{path}{'/*' if (directory / path).is_dir() else '.py'}" for path in paths]),
        others=json.dumps([*(package.name for package in PACKAGES), *TESTS]),
        tests=json.dumps(sorted({str(test.relative_to(ROOT)) for module in chosen for test in unit_tests(module)})),
    )
    (directory / "pyproject.toml").write_text(settings)


def outcomes(directory: Path) -> dict[str, dict[str, int | None]]:
    """Return the exit codes of the tests of each mutant, by module."""
    found = {}
    for path in sorted((directory / "mutants").rglob("*.meta")):
        module = path.relative_to(directory / "mutants").as_posix().removesuffix(".py.meta").replace("/", ".")
        found[module] = json.loads(path.read_text())["exit_code_by_key"]
    return found


def judge(directory: Path, found: dict[str, dict[str, int | None]], *, show: bool) -> Counter[bool]:
    """Print the surviving mutants; return the numbers of detected (True) and of surviving ones (False)."""
    total: Counter[bool] = Counter()
    for module, codes in found.items():
        survivors = [mutant for mutant, code in codes.items() if code in SURVIVED]
        tested = [mutant for mutant, code in codes.items() if code is not None]
        total.update(mutant not in survivors for mutant in tested)
        sys.stdout.write(f"{module}: {len(tested) - len(survivors)} of {len(codes)} detected\n")
        for mutant in survivors:
            sys.stdout.write(mutmut(directory, "show", mutant) if show else f"  survived: {mutant}\n")
    sys.stdout.flush()
    return total


def mutmut(directory: Path, *arguments: str) -> str:
    """Return what a command of mutmut prints."""
    done = subprocess.run([MUTMUT, *arguments], cwd=directory, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev mutants", description=__doc__)
    parser.add_argument("package", nargs="*", help="only pure modules whose name contains one of these")
    parser.add_argument("--at-least", type=float, metavar="PERCENT", help="fail if the tests detect fewer mutants")
    parser.add_argument("--show", action="store_true", help="print the difference of each mutant that survived")
    given = parser.parse_args()
    chosen = [
        module for module in modules("pure") if not given.package or any(part in module for part in given.package)
    ]
    if not chosen:
        parser.error("no pure module, or package of them, has such a name (.importlinter lists them)")
    total: Counter[bool] = Counter()
    unfinished = []
    for package, members in groupby(sorted(chosen), lambda module: ".".join(module.split(".")[:2])):
        # One run per package: mutmut's fork server does not survive a run of all packages.
        with TemporaryDirectory(prefix="mutants-") as name:
            directory = Path(name)
            prepare(directory, list(members))
            report = mutmut(directory, "run", "--max-children", str(os.cpu_count()))
            found = outcomes(directory)
            if not found or any(None in codes.values() for codes in found.values()):
                unfinished.append(package)
                sys.stderr.write(f"{package}: mutmut did not finish:\n{report[-3000:]}\n")
            total += judge(directory, found, show=given.show)
    percent = 100 * total[True] / max(total.total(), 1)
    sys.stdout.write(f"{percent:.1f} % of {total.total()} mutants detected\n")
    sys.exit(bool(unfinished) or (given.at_least is not None and percent < given.at_least))


if __name__ == "__main__":
    main()
