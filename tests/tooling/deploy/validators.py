"""Validators too heavy for every test environment: `./dev check` puts them into one of their own."""

import shutil
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_FOLDERS = (_ROOT / ".venv-deploy" / "bin", Path(sys.executable).parent)


def validator(name: str) -> Path:
    """Skips the test, and says why, where it isn't installed."""
    for folder in _FOLDERS:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not installed: ./dev check installs it into .venv-deploy")


def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not installed, and it is what builds the manifests")
    return found
