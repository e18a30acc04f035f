"""The samples of the controllers' pages and the examples pass `mypy --strict` and pyright, and wrong uses do not."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "mypy-samples"
_SAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


WRONG_USES = Path(__file__).with_name("wrong_uses.txt")
_EXPECTED = re.compile(r"# expect: ([\w-]+)")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a directory with the samples and the examples."""
    for page in ("controllers.md", "tutorial.md"):
        samples = _SAMPLE.findall((ROOT / "docs" / page).read_text())
        assert samples
        for number, sample in enumerate(samples, 1):
            (tmp_path / f"sample_{page.removesuffix('.md')}_{number}.py").write_text(sample)
    shutil.copy(tmp_path / "sample_tutorial_1.py", tmp_path / "my_operator.py")
    for example in (ROOT / "examples" / "python").glob("*.py"):
        shutil.copy(example, tmp_path)
    return tmp_path


def mypy(directory: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(CACHE), *files]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_samples_and_examples_are_typed(written: Path) -> None:
    checked = mypy(written, ".")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(shutil.which("pyright") is None, reason="needs pyright: npm install --global pyright")
def test_samples_and_examples_pass_pyright(written: Path) -> None:
    command = ["pyright", "--pythonpath", sys.executable, "."]
    checked = subprocess.run(command, cwd=written, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_wrong_uses_are_refused_by_mypy(tmp_path: Path) -> None:
    shutil.copy(WRONG_USES, tmp_path / "wrong_uses.py")
    found = re.findall(r"^wrong_uses\.py:(\d+): error: .*\[([\w-]+)\]$", mypy(tmp_path, ".").stdout, re.MULTILINE)
    expected = [
        (str(number), match[1])
        for number, line in enumerate(WRONG_USES.read_text().splitlines(), 1)
        if (match := _EXPECTED.search(line))
    ]
    assert sorted(set(found)) == sorted(expected)
