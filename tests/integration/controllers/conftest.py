from collections.abc import Iterator

import pytest

from milo_discovery.testing import ControlPlane, MiloSandbox
from tests.integration.controllers.widgets import with_widgets


@pytest.fixture(scope="module")
def sandbox() -> Iterator[MiloSandbox]:
    with MiloSandbox.start() as sandbox:
        yield sandbox


@pytest.fixture
def plane(sandbox: MiloSandbox) -> ControlPlane:
    """A control plane that serves widgets."""
    return with_widgets(sandbox)
