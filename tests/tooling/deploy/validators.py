"""Validators of manifests and workflows, which `./dev test` installs into an environment of their own."""

import shutil
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_DIRECTORIES = (_ROOT / ".venv-manifests" / "bin", Path(sys.executable).parent)


def validator(name: str) -> Path:
    """Return the path of a validator; skip the test if it is not installed."""
    for directory in _DIRECTORIES:
        if (directory / name).exists():
            return directory / name
    pytest.skip(f"{name} is not installed: ./dev test without a path installs it into .venv-manifests")


def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl, which builds the manifests, is not installed")
    return found
