"""The samples of the controllers' page and the examples pass `mypy --strict`, as their readers run it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "mypy-samples"
_SAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_samples_and_examples_are_typed(tmp_path: Path) -> None:
    samples = _SAMPLE.findall((ROOT / "docs" / "controllers.md").read_text())
    for number, sample in enumerate(samples, 1):
        (tmp_path / f"sample_{number}.py").write_text(sample)
    for example in (ROOT / "examples" / "python").glob("*.py"):
        shutil.copy(example, tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(CACHE), "."]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert samples
    assert checked.returncode == 0, checked.stdout + checked.stderr
