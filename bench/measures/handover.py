"""A rolling update of the example operator: two replicas with a Lease, while objects are created.

`handover.seconds` is the time from SIGTERM to the leader until the next replica has reconciled an object that was
created after the signal. `handover.unreconciled` counts objects that no replica has reconciled at the end.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGTERM

from bench.process import Process
from bench.setting import Samples, Setting
from milo_discovery.testing import ControlPlane, MiloSandbox, eventually_blocking

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_DEFINITION = _EXAMPLES / "go-operator" / "config" / "crd" / "greetings.yaml"
_CLUSTERS = 5
_PER_S = 20.0
_POLL_S = 0.02
_WITHIN_S = 120.0
_REPLICAS = 2


async def measure(setting: Setting) -> Samples:
    return await asyncio.to_thread(_measured, setting.directory, setting.scale.rounds)


def _measured(directory: Path, updates: int) -> Samples:
    seconds: list[float] = []
    with ExitStack() as stack:
        milo = stack.enter_context(MiloSandbox.start())
        *planes, own = milo.create_control_planes(*(f"project-{number}" for number in range(_CLUSTERS)), "own")
        for plane in planes:
            plane.install(_DEFINITION)
        kubeconfig = own.write_kubeconfig(directory / "own.kubeconfig")
        environ = {"MILO_DISCOVERY_ADDRESS": milo.address, "KUBECONFIG": str(kubeconfig), "LEASE": "greeter"}
        replicas = [_Replica(directory / f"replica-{number}.log", environ) for number in range(_REPLICAS)]
        try:
            with _load(planes) as load:
                for number in range(_REPLICAS, _REPLICAS + updates):
                    eventually_blocking(lambda: all(replica.is_standing_by for replica in replicas), within_s=_WITHIN_S)
                    # As a Deployment with maxSurge 1 does: start a new replica, then terminate an old one.
                    replicas.append(_Replica(directory / f"replica-{number}.log", environ))
                    eventually_blocking(lambda: all(replica.is_standing_by for replica in replicas), within_s=_WITHIN_S)
                    eventually_blocking(lambda: any(replica.is_leading for replica in replicas), within_s=_WITHIN_S)
                    leader = next(replica for replica in replicas if replica.is_leading)
                    replicas.remove(leader)
                    seconds.append(_handover_s(leader, load))
            created = load.created
            unreconciled = _settled(created)
        finally:
            for replica in replicas:
                replica.kill()
    return {
        "handover.seconds": seconds,
        "handover.objects": [float(len(created))],
        "handover.unreconciled": [float(unreconciled)],
    }


class _Replica(Process):
    def __init__(self, log: Path, environ: dict[str, str]) -> None:
        super().__init__(
            [sys.executable, str(_EXAMPLES / "python" / "greeter.py")], log, environ={**os.environ, **environ}
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def is_leading(self) -> bool:
        return "leading: lease" in self.output

    @property
    def is_standing_by(self) -> bool:
        self.check()
        return self.is_leading or "waiting: lease" in self.output


def _handover_s(leader: _Replica, load: "_Load") -> float:
    """Terminate the leader; return the time until an object that was created afterwards is reconciled."""
    began = time.perf_counter()
    before = len(load.created)
    leader.signal(SIGTERM)
    eventually_blocking(lambda: len(load.created) > before, within_s=_WITHIN_S)
    while not _is_greeted(*load.created[before]):
        time.sleep(_POLL_S)
        if time.perf_counter() - began > _WITHIN_S:
            raise TimeoutError(f"no replica has taken over within {_WITHIN_S:g} s")
    took = time.perf_counter() - began
    leader.kill()
    return took


def _settled(created: list[tuple[ControlPlane, str]]) -> int:
    """Return how many objects are not reconciled within `_WITHIN_S`."""
    left = created
    deadline = time.monotonic() + _WITHIN_S
    while left and time.monotonic() < deadline:
        left = [pair for pair in left if not _is_greeted(*pair)]
        time.sleep(_POLL_S)
    return len(left)


def _is_greeted(plane: ControlPlane, name: str) -> bool:
    return plane.find("v1/configmaps", name) is not None


class _Load:
    def __init__(self) -> None:
        self.created: list[tuple[ControlPlane, str]] = []


@contextmanager
def _load(planes: list[ControlPlane]) -> Iterator[_Load]:
    """Create objects at an even rate within the context."""
    load, ending = _Load(), threading.Event()

    def create() -> None:
        while not ending.wait(1 / _PER_S):
            plane, name = planes[len(load.created) % len(planes)], f"greeting-{len(load.created)}"
            plane.create(
                {
                    "apiVersion": "example.miloapis.com/v1alpha1",
                    "kind": "Greeting",
                    "metadata": {"name": name},
                    "spec": {"text": "hello"},
                }
            )
            load.created.append((plane, name))

    creating = threading.Thread(target=create)
    creating.start()
    try:
        yield load
    finally:
        ending.set()
        creating.join()
