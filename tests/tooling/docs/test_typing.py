"""The samples of the controllers' pages and the examples pass `mypy --strict` and pyright, and wrong uses do not."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.examples.building import alone

ROOT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd"
pytestmark = pytest.mark.builds
_PYRIGHT_VERSION = "1.1.414"
_SAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


WRONG_USES = Path(__file__).with_name("wrong_uses.txt")
_EXPECTED = re.compile(r"# expect: (.*)")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a directory with the samples and the examples."""
    for page in ("controllers.md", "objects.md", "tutorial.md"):
        samples = _SAMPLE.findall((ROOT / "docs" / page).read_text())
        assert samples
        for number, sample in enumerate(samples, 1):
            (tmp_path / f"sample_{page.removesuffix('.md')}_{number}.py").write_text(sample)
    shutil.copy(tmp_path / "sample_tutorial_1.py", tmp_path / "my_operator.py")
    for example in (ROOT / "examples" / "python").glob("*.py"):
        shutil.copy(example, tmp_path)
    return tmp_path


def mypy(directory: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--cache-dir",
        str(CACHE / "mypy-samples"),
        *files,
    ]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_samples_and_examples_pass_mypy(written: Path) -> None:
    checked = mypy(written, ".")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture(scope="module")
def pyright() -> Path:
    """Return the program, from a cache of its npm package; skip the test where that cannot be installed."""
    cache = CACHE / f"pyright-{_PYRIGHT_VERSION}"
    program = cache / "node_modules" / ".bin" / "pyright"
    with alone(cache):
        if program.exists():
            return program
        if (npm := shutil.which("npm")) is None:
            pytest.skip("no npm on this machine: pyright is an npm package")
        command = [npm, "install", "--silent", "--no-save", "--prefix", str(cache), f"pyright@{_PYRIGHT_VERSION}"]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"npm cannot install pyright {_PYRIGHT_VERSION}: {installed.stderr[-500:]}")
    return program


def test_samples_and_examples_pass_pyright(written: Path, pyright: Path) -> None:
    checked = run_pyright(pyright, written)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def run_pyright(pyright: Path, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [pyright, "--pythonpath", sys.executable, *options, "."]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def expected(checker: Callable[[str], bool]) -> set[tuple[int, str]]:
    """Return the line and the code of each expected error whose code `checker` accepts as its own."""
    return {
        (number, code)
        for number, line in enumerate(WRONG_USES.read_text().splitlines(), 1)
        if (match := _EXPECTED.search(line))
        for code in match[1].split(", ")
        if checker(code)
    }


def test_mypy_refuses_wrong_uses_of_controllers(tmp_path: Path) -> None:
    shutil.copy(WRONG_USES, tmp_path / "wrong_uses.py")
    found = re.findall(r"^wrong_uses\.py:(\d+): error: .*\[([\w-]+)\]$", mypy(tmp_path, ".").stdout, re.MULTILINE)
    assert {(int(line), code) for line, code in found} == expected(lambda code: code.islower())


def test_pyright_refuses_wrong_uses_of_controllers(tmp_path: Path, pyright: Path) -> None:
    shutil.copy(WRONG_USES, tmp_path / "wrong_uses.py")
    found = json.loads(run_pyright(pyright, tmp_path, "--outputjson").stdout)["generalDiagnostics"]
    lines = {(diagnostic["range"]["start"]["line"] + 1, diagnostic["rule"]) for diagnostic in found}
    assert lines == expected(lambda code: code.startswith("report"))
