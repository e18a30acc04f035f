"""Operators that `milo_controllers.main` runs, as processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from milo_discovery.testing import MiloSandbox, eventually_blocking

pytestmark = pytest.mark.timeout(600)

eventually = partial(eventually_blocking, within_s=120)
PROXY = "127.0.0.6"
"""The loopback address from which Istio's sidecar forwards requests of other hosts."""
PROGRAM = """\
import asyncio, logging, os, time
from datetime import timedelta
from milo_controllers import Controllers, Kind, Permanent, Request, main

controllers = Controllers()
log = logging.getLogger("operator")

@controllers.reconcile(Kind("v1/configmaps", selector="work"))
async def reconcile(request: Request) -> None:
    work = (await request.get() or {{"data": {{}}}})["data"].get("work")
    log.info("began %s", work)
    try:
        if work == "hang":
            await asyncio.Event().wait()
        if work == "thread":
            await asyncio.to_thread(time.sleep, 600)
        if work == "short":
            await asyncio.sleep(0.5)
        if work == "invalid":
            raise Permanent("it is not valid")
        if work == "missing":
            await request.read("v1/secrets", "missing")
        if work == "block":
            time.sleep(12)
        if work == "events":
            async with asyncio.TaskGroup() as tasks:
                for number in range(20):
                    tasks.create_task(request.event(f"Seen{{number}}", "note"))
                    await asyncio.sleep(0.001)  # shorter than a request takes
    finally:
        log.info("ended %s", work)

@controllers.reconcile(Kind("v1/configmaps", selector="plain"), name="plain")
def reconcile_in_a_thread(request: Request) -> None:
    log.info("began plain")
    begun.append(request.name)
    time.sleep(600)

begun = []

@controllers.background()
async def fail_beside_a_thread() -> None:
    while not (begun and "FAILS" in os.environ):
        await asyncio.sleep(0.1)
    raise OSError("the queue is gone")

main(controllers, grace=timedelta(seconds={grace}), lease={lease!r})
"""


class Operator:
    """A running operator, with the lines that it has logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def logged(self, text: str) -> list[str]:
        return [line for line in tuple(self.lines) if text in line]

    def ended(self) -> int:
        """Terminate the operator with SIGTERM, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.status()

    def status(self) -> int:
        """Wait until the operator has exited and its last line is read, and return its exit status."""
        status = self.process.wait(60)
        self._reader.join()
        return status

    @property
    def pages(self) -> str:
        [line] = eventually(lambda: self.logged("serving probes"))
        return line.split()[-1]

    def page(self, path: str, *, peer: str = "127.0.0.1", **headers: str) -> tuple[int, bytes]:
        """Read a page, from an address of this machine."""
        server = urlsplit(self.pages).netloc
        connection = HTTPConnection(server, timeout=10, source_address=(peer, 0))
        with closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()


@pytest.fixture
def operator(milo_sandbox: MiloSandbox, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Return a function that starts an operator."""
    started: list[Operator] = []

    def start(
        *, grace: float = 20.0, lease: str | None = None, within: tuple[str, ...] = (), **environ: str
    ) -> Operator:
        program = tmp_path / "my_operator.py"
        program.write_text(PROGRAM.format(grace=grace, lease=lease))
        defaults = {"MILO_DISCOVERY_ADDRESS": milo_sandbox.address, "MILO_OPERATOR_LISTEN": "127.0.0.1:0"}
        process = subprocess.Popen(
            [*within, sys.executable, str(program)],
            env={**os.environ, **defaults, **environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(Operator(process))
        return started[-1]

    yield start
    for running in started:
        running.close()


def config_map(name: str, work: str, *, label: str = "work") -> dict[str, Any]:
    metadata = {"name": name, "labels": {label: "yes"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"work": work}}


def test_sigterm_cancels_reconciles_after_the_grace_period(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator]
) -> None:
    [alpha] = milo_sandbox.create_control_planes("alpha")
    running = operator(grace=3.0)
    eventually(lambda: running.page("/readyz")[0] == 200)
    for name in ("hang", "short"):
        alpha.create(config_map(name, name))
    eventually(lambda: running.logged("began hang") and running.logged("began short"))
    assert running.ended() == 0
    order = [line.split()[-1] for line in running.lines if "operator: " in line and "ended" in line]
    assert order == ["short", "hang"]
    hung = [line for line in running.lines if "ended hang" in line]
    assert "[alpha default/hang " in hung[0]


def test_sigterm_terminates_an_operator_that_is_pid_1_of_a_container(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator]
) -> None:
    container = ("unshare", "--pid", "--fork")
    try:
        subprocess.run([*container, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no PID namespaces here: {error}")
    [alpha] = milo_sandbox.create_control_planes("alpha")
    running = operator(within=container)
    alpha.create(config_map("any", "any"))
    eventually(lambda: running.logged("ended any"))
    outside = running.process.pid
    [first] = Path(f"/proc/{outside}/task/{outside}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    assert running.status() == 0
    assert running.logged("controllers: stopped")


def test_second_signal_cancels_reconciles_at_once(milo_sandbox: MiloSandbox, operator: Callable[..., Operator]) -> None:
    [alpha] = milo_sandbox.create_control_planes("alpha")
    running = operator(grace=300.0)
    alpha.create(config_map("hang", "hang"))
    eventually(lambda: running.logged("began hang"))
    running.process.send_signal(signal.SIGTERM)
    eventually(lambda: running.logged("stopping"))
    assert running.ended() == 0
    assert running.logged("ended hang")


def test_operator_pages_show_readiness_metrics_and_failing_objects(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator]
) -> None:
    milo_sandbox.stop_daemon()
    running = operator()
    assert running.page("/livez") == (200, b"ok\n")
    assert running.page("/readyz")[0] == 503
    health = json.loads(running.page("/debug/health")[1])
    assert (health["ready"], health["discovery"]["connected"]) == (False, False)
    milo_sandbox.start_daemon()
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    alpha.create(config_map("invalid", "invalid"))
    beta.create(config_map("missing", "missing"))
    eventually(lambda: running.page("/readyz")[0] == 200)

    def failing() -> dict[str, dict[str, Any]]:
        return {obj["name"]: obj for obj in json.loads(running.page("/debug/objects")[1])}

    eventually(lambda: failing().keys() == {"invalid", "missing"} and failing()["missing"]["attempts"] > 1)
    assert failing()["invalid"]["error"] == "it is not valid"
    assert failing()["invalid"]["next_try"] is None
    missing = failing()["missing"]
    assert missing["error"].startswith("GET /api/v1/namespaces/default/secrets/missing: 404 ")
    assert json.loads(running.page("/debug/objects?cluster=alpha")[1])[0]["cluster"] == "alpha"
    assert (
        b'controller_runtime_terminal_reconcile_errors_total{controller="configmaps"} 1.0'
        in running.page("/metrics")[1]
    )
    assert running.page("/unknown")[0] == 404
    for page in ("/debug/objects", "/debug/health", "/metrics", "/livez", "/readyz"):
        shown = {PROXY: running.page(page, peer=PROXY), "Host": running.page(page, Host="attacker.example")}
        is_probe, has_names = page in ("/livez", "/readyz"), page.startswith("/debug")
        assert shown[PROXY][0] == (403 if has_names else 200)
        assert shown["Host"][0] == (200 if is_probe else 421)
        assert not any(b"it is not valid" in text for _, text in shown.values())
    # Beta's failure is logged although alpha has one too.
    assert running.logged("beta: reconciling default/missing failed")
    listed = subprocess.run(
        [
            Path(sys.executable).with_name("milo-discovery"),
            "objects",
            "--operator",
            running.pages.removeprefix("http://"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = {line.split()[2]: line for line in listed.splitlines()}
    assert "when it changes" in rows["default/invalid"]
    assert "404" in rows["default/missing"]


def test_concurrent_events_are_recorded_in_the_core_group_if_events_k8s_io_is_not_served(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator]
) -> None:
    """The sandbox, like Milo, answers 404 to requests for events.k8s.io."""
    planes = milo_sandbox.create_control_planes("alpha", "beta")
    for plane in planes:
        plane.create(config_map("one", "events"))
        plane.create(config_map("two", "events"))
    running = operator()
    eventually(lambda: len(running.logged("ended events")) == 4)
    # At its end, an operator writes what is pending for a short time, which a busy machine may exceed.
    eventually(lambda: all(len(plane.list("v1/events")) == 40 for plane in planes))
    assert running.ended() == 0
    assert not running.logged("not recorded")
    for plane in planes:
        recorded = [(event["involvedObject"]["name"], event["reason"]) for event in plane.list("v1/events")]
        assert sorted(recorded) == sorted((name, f"Seen{number}") for name in ("one", "two") for number in range(20))


def test_replica_takes_over_with_synced_caches_within_two_seconds_of_sigterm(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator], tmp_path: Path
) -> None:
    alpha, own = milo_sandbox.create_control_planes("alpha", "own")
    environ = {"KUBECONFIG": str(own.write_kubeconfig(tmp_path / "kubeconfig"))}
    first = operator(lease="operator", **environ)
    eventually(lambda: first.logged("leading"))
    second = operator(lease="operator", **environ)
    eventually(lambda: second.logged("waiting") and second.page("/readyz")[0] == 200)
    alpha.create(config_map("any", "any"))
    eventually(lambda: first.logged("began any"))
    assert not second.logged("began any")
    began = time.monotonic()
    assert first.ended() == 0
    eventually(lambda: second.logged("began any"))
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("is_stopping", [False, True])
def test_replica_that_loses_the_lease_cancels_its_reconciles_and_exits(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator], tmp_path: Path, is_stopping: bool
) -> None:
    alpha, own = milo_sandbox.create_control_planes("alpha", "own")
    running = operator(lease="operator", KUBECONFIG=str(own.write_kubeconfig(tmp_path / "kubeconfig")))
    alpha.create(config_map("hang", "hang"))
    eventually(lambda: running.logged("began hang"))
    if is_stopping:
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: running.logged("stopping: reconciles may run"))
    own.patch("coordination.k8s.io/v1/leases", "operator", {"spec": {"holderIdentity": "another"}})
    assert running.status() == 1
    assert running.logged("ended hang")
    assert eventually(lambda: running.logged("lost the lease default/operator"))


def test_replica_that_loses_the_lease_exits_although_a_thread_does_not_end(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator], tmp_path: Path
) -> None:
    alpha, own = milo_sandbox.create_control_planes("alpha", "own")
    environ = {"KUBECONFIG": str(own.write_kubeconfig(tmp_path / "kubeconfig"))}
    first = operator(lease="operator", **environ)
    for number in range(6):  # two more than may run in one cluster
        alpha.create(config_map(f"plain-{number}", "", label="plain"))
    eventually(lambda: len(first.logged("began plain")) == 4)
    second = operator(lease="operator", **environ)
    eventually(lambda: second.logged("waiting"))
    own.patch("coordination.k8s.io/v1/leases", "operator", {"spec": {"holderIdentity": "another"}})
    assert first.status() == 1
    assert first.logged("did not finish after they were canceled")
    assert len(first.logged("began plain")) == 4
    own.patch("coordination.k8s.io/v1/leases", "operator", {"spec": {"holderIdentity": ""}})
    eventually(lambda: len(second.logged("began plain")) == 4)


def test_calls_that_block_the_event_loop_and_the_threads_do_not_lose_the_lease(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator], tmp_path: Path
) -> None:
    alpha, own = milo_sandbox.create_control_planes("alpha", "own")
    environ = {"KUBECONFIG": str(own.write_kubeconfig(tmp_path / "kubeconfig"))}
    running = operator(lease="operator", **environ)
    eventually(lambda: running.logged("leading"))
    for number in range(8):
        alpha.create(config_map(f"plain-{number}", "", label="plain"))
    eventually(lambda: len(running.logged("began plain")) == 4)
    alpha.create(config_map("block", "block"))  # for longer than the renew deadline
    eventually(lambda: running.logged("ended block"))
    assert eventually(lambda: running.logged("the event loop was blocked"))
    alpha.create(config_map("short", "short"))
    eventually(lambda: running.logged("ended short"))
    assert not running.logged("stopped")


def test_operator_exits_with_status_1_if_a_thread_does_not_return_in_time(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator]
) -> None:
    [alpha] = milo_sandbox.create_control_planes("alpha")
    running = operator(grace=1.0)
    alpha.create(config_map("plain", "", label="plain"))
    eventually(lambda: running.logged("began plain"))
    assert running.ended() == 1
    assert running.logged("did not finish after they were canceled")
    assert any("time.sleep(600)" in line for line in running.lines)


def test_operator_exits_although_a_thread_of_a_canceled_reconcile_does_not_return(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator]
) -> None:
    """Found by a reader: the event loop waited for the thread when it was closed."""
    running = operator(grace=0.5)
    [alpha] = milo_sandbox.create_control_planes("alpha")
    alpha.create(config_map("thread", "thread"))
    eventually(lambda: running.logged("began thread"))
    assert running.ended() == 0
    assert running.logged("ended thread")
    assert running.logged("threads did not finish")


def test_replica_that_an_error_ends_gives_the_lease_up_although_a_thread_does_not_end(
    milo_sandbox: MiloSandbox, operator: Callable[..., Operator], tmp_path: Path
) -> None:
    """Found by a reader: it waited for the thread, reconciled nothing, and renewed the Lease."""
    alpha, own = milo_sandbox.create_control_planes("alpha", "own")
    environ = {"KUBECONFIG": str(own.write_kubeconfig(tmp_path / "kubeconfig"))}
    first = operator(lease="operator", FAILS="1", **environ)
    eventually(lambda: first.logged("leading"))
    second = operator(lease="operator", **environ)
    eventually(lambda: second.logged("waiting"))
    alpha.create(config_map("plain", "", label="plain"))
    assert first.status() == 1
    assert first.logged("stopped: the queue is gone")
    assert first.logged("did not finish after they were canceled")
    eventually(lambda: second.logged("began plain"))


def test_operator_in_a_pod_logs_json(milo_sandbox: MiloSandbox, operator: Callable[..., Operator]) -> None:
    [alpha] = milo_sandbox.create_control_planes("alpha")
    alpha.create(config_map("any", "any"))
    running = operator(KUBERNETES_SERVICE_HOST="10.0.0.1", MILO_OPERATOR_LISTEN="off")
    [line] = eventually(lambda: running.logged("began any"))
    found = json.loads(line)
    assert (found["message"], found["cluster"], found["object"]) == ("began any", "alpha", "default/any")
    assert len(found["reconcile"]) == 16
    assert (found["level"], found["logger"]) == ("info", "operator")


@pytest.mark.parametrize(
    ("listen", "why"),
    [("nonsense", "write HOST:PORT, :PORT or off"), ("192.0.2.1:80", "cannot listen on 192.0.2.1:80")],
)
def test_operator_exits_if_the_listen_address_of_its_pages_is_invalid(
    operator: Callable[..., Operator], listen: str, why: str
) -> None:
    running = operator(MILO_OPERATOR_LISTEN=listen)
    assert running.status() == 1
    assert eventually(lambda: running.logged(why))
