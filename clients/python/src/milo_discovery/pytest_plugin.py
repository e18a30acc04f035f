"""The fixture `milo_sandbox`: an empty Milo and a daemon that follows it, for one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from milo_discovery.testing import MiloSandbox


@pytest.fixture
def milo_sandbox() -> Iterator[MiloSandbox]:
    """A MiloSandbox in project mode. For another mode or scope: `with MiloSandbox.start(mode) as milo`."""
    from milo_discovery.testing import MiloSandbox, SandboxError  # noqa: PLC0415  (for the tests that use it)

    with ExitStack() as stack:
        try:
            sandbox = stack.enter_context(MiloSandbox.start())
        except SandboxError as error:
            refusal = str(error)
        else:
            yield sandbox
            return
    pytest.fail(refusal, pytrace=False)
