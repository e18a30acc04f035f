"""The pytest fixture `milo_sandbox`: an empty sandbox and a daemon, for one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from milo_discovery.testing import MiloSandbox


@pytest.fixture
def milo_sandbox() -> Iterator[MiloSandbox]:
    """Start a MiloSandbox in project mode. For another mode or scope use `with MiloSandbox.start(mode)`."""
    from milo_discovery.testing import MiloSandbox, SandboxError  # noqa: PLC0415  (loaded only by tests that use it)

    with ExitStack() as stack:
        try:
            sandbox = stack.enter_context(MiloSandbox.start())
        except SandboxError as error:
            failure = str(error)
        else:
            yield sandbox
            return
    pytest.fail(failure, pytrace=False)
