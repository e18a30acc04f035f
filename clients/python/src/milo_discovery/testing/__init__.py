"""The sandbox (an embedded Milo API) and a daemon, for an operator's tests.

    with MiloSandbox.start() as milo:
        alpha = milo.create_control_plane("alpha")
        alpha.install("config/crd/widgets.yaml")
        async with DiscoveryClient(milo.address) as client:
            ...

It needs the packages milo-discoveryd and milo-sandbox in the same environment.
"""

from milo_discovery.testing.control_plane import (
    ControlPlane,
    KindNotServedError,
    ObjectNotFoundError,
    RefusedError,
)
from milo_discovery.testing.fake_discovery import FakeDiscovery
from milo_discovery.testing.milo_sandbox import MiloSandbox, Mode, SandboxError
from milo_discovery.testing.waiting import FakeClock, eventually, eventually_blocking, fake_clock

__all__ = [
    "ControlPlane",
    "FakeClock",
    "FakeDiscovery",
    "KindNotServedError",
    "MiloSandbox",
    "Mode",
    "ObjectNotFoundError",
    "RefusedError",
    "SandboxError",
    "eventually",
    "eventually_blocking",
    "fake_clock",
]
