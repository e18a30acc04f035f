from collections.abc import Iterator

import pytest

from milo_discovery.testing import ControlPlane, MiloSandbox

from .widgets import with_widgets


@pytest.fixture(scope="session")
def sandbox() -> Iterator[MiloSandbox]:
    with MiloSandbox.start() as sandbox:
        yield sandbox


@pytest.fixture
def plane(sandbox: MiloSandbox) -> ControlPlane:
    """A control plane that serves widgets."""
    return with_widgets(sandbox)


@pytest.fixture
def bare() -> Iterator[ControlPlane]:
    """A control plane without widgets, on its own server, because definitions apply to all projects of a server."""
    with MiloSandbox.start() as another:
        [made] = another.create_control_planes("bare")
        yield made
