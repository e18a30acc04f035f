"""Fixtures: sandboxes with daemons, and kubectl."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from tests.end_to_end.kubeconfigs.workspace import Workspace, open_workspace


class Start(Protocol):
    def __call__(self, *, token_life: float = 600.0) -> AbstractAsyncContextManager[Workspace]: ...


@pytest.fixture
def directory() -> Iterator[Path]:
    """A temporary directory with a short path, since a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="milo-") as name:
        yield Path(name)


@pytest.fixture
def start(directory: Path) -> Start:
    """A function that starts a workspace in which the project alpha is engaged: `async with start(token_life=…)`."""
    return partial(open_workspace, directory)


@pytest.fixture
def kubectl() -> str:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not on PATH: kubeconfigs are not tested with it")
    return program


def token_in(kubeconfig: str) -> str:
    user: dict[str, str] = json.loads(kubeconfig)["users"][0]["user"]
    return user["token"]
