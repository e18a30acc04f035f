from collections.abc import Iterator

import pytest

from milo_discovery.testing import ControlPlane, MiloSandbox

from .running import names


@pytest.fixture(scope="session")
def sandbox() -> Iterator[MiloSandbox]:
    with MiloSandbox.start() as sandbox:
        yield sandbox


@pytest.fixture
def planes(sandbox: MiloSandbox) -> list[ControlPlane]:
    """Two control planes, each with the namespaces of a new project."""
    return sandbox.create_control_planes(next(names), next(names))


@pytest.fixture
def alpha(planes: list[ControlPlane]) -> ControlPlane:
    return planes[0]


@pytest.fixture
def beta(planes: list[ControlPlane]) -> ControlPlane:
    return planes[1]
