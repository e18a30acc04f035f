"""Runs the sandbox and a daemon as processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from milo_discovery.errors import DiscoveryError
from milo_discovery.testing.control_plane import ControlPlane
from milo_discovery.testing.http import ObjectNotFoundError, SandboxHttp
from milo_kube.rfc3339 import rfc3339

Mode = Literal["project", "project-control-plane"]

_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 10.0
_POLL_INTERVAL_S = 0.02


class SandboxError(Exception):
    """The sandbox or the daemon cannot be started. If its process failed, the message includes the end of its log."""


@dataclass(frozen=True, slots=True)
class _Resource:
    """The resource that the daemon watches in a mode."""

    path: str
    api_version: str
    kind: str
    condition: str


_RESOURCES: dict[Mode, _Resource] = {
    "project": _Resource(
        path="/apis/resourcemanager.miloapis.com/v1alpha1/projects",
        api_version="resourcemanager.miloapis.com/v1alpha1",
        kind="Project",
        condition="Ready",
    ),
    "project-control-plane": _Resource(
        path="/apis/infrastructure.miloapis.com/v1alpha1/projectcontrolplanes",
        api_version="infrastructure.miloapis.com/v1alpha1",
        kind="ProjectControlPlane",
        condition="ControlPlaneReady",
    ),
}

_FAULTS = "/sandbox/faults"
_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "*")
_STATUSES = (403, 404, 409, 429, 500, 503, "hang")
_SUSPENSIONS = "/apis/resourcemanager.miloapis.com/v1alpha1/projectsuspensions"

# The sandbox has one user: the daemon issues kubeconfigs with its own identity.
_DAEMON_CONFIG = """\
kubeconfigs:
  issuers:
    - {name: sandbox, type: project-kubeconfig, share_discovery_identity: true}
"""


class MiloSandbox:
    """A running sandbox and daemon. Both stop at the end of the `with` block."""

    def __init__(self, directory: Path, mode: Mode) -> None:
        self.mode: Mode = mode
        self.kubeconfig = directory / "kubeconfig"
        """A kubeconfig for the sandbox's API. kubectl can use it too."""
        self.address = f"unix://{directory}/discovery.sock"
        """The daemon's address, for DiscoveryClient or MILO_DISCOVERY_ADDRESS."""
        self._resource = _RESOURCES[mode]
        self._directory = directory
        self._http = SandboxHttp(self.kubeconfig)
        self._daemon: _Process | None = None

    @classmethod
    @contextmanager
    def start(cls, mode: Mode = "project") -> Iterator[Self]:
        """Start an empty sandbox and a synced daemon."""
        missing = [name for name in ("milo_discoveryd", "milo_sandbox") if importlib.util.find_spec(name) is None]
        if missing:
            raise SandboxError(
                f"the package {missing[0].replace('_', '-')} is not installed; in a clone of the repository, run "
                f"{sys.executable} -m pip install ./kube ./clients/python ./clients/cli . ./sandbox"
            )
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="milo-")))
            milo = cls(directory, mode)
            command = ["sandbox", "--listen", "127.0.0.1:0", "--projects", "0"]
            command += ["--kubeconfig-out", str(milo.kubeconfig)]
            api = _Process(command, directory / "sandbox.log")
            stack.callback(api.end)
            api.wait_for(milo.kubeconfig.exists, "wrote its kubeconfig")
            stack.callback(milo.stop_daemon)
            milo.start_daemon()
            yield milo

    def start_daemon(self) -> None:
        """Start the daemon again after `stop_daemon`, and wait until it is synced."""
        if self._daemon is not None:
            raise SandboxError("the daemon is already running")
        config = self._directory / "daemon.yaml"
        config.write_text(_DAEMON_CONFIG)
        command = ["run", "--config", str(config), "--mode", self.mode]
        command += ["--listen", self.address, "--http-listen", "127.0.0.1:0"]
        command += ["--discovery-kubeconfig", str(self.kubeconfig), "--project-kubeconfig", str(self.kubeconfig)]
        self._daemon = _Process(command, self._directory / "daemon.log")
        self._daemon.wait_for(self._is_synced, "was synced")

    def stop_daemon(self, *, kill: bool = False) -> None:
        """Stop the daemon by SIGTERM, or SIGKILL with `kill`. Subscribers keep their clusters and reconnect."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.end(kill=kill)

    def create_project(
        self,
        name: str,
        *,
        organization: str = "acme",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        finalizers: Collection[str] = (),
        ready: bool = True,
    ) -> dict[str, Any]:
        """Create a Project or ProjectControlPlane, depending on the mode; ready by default.

        In mode `project`, Milo's controllers make each new project ready: with `ready=False`, it may be engaged for a
        moment.
        """
        metadata: dict[str, Any] = {
            "name": name,
            "labels": dict(labels or {}),
            "annotations": dict(annotations or {}),
            "finalizers": list(finalizers),
        }
        spec: dict[str, Any] = {}
        if self.mode == "project":
            spec = {"ownerRef": {"kind": "Organization", "name": organization}}
            metadata["labels"].setdefault("resourcemanager.miloapis.com/organization-name", organization)
        else:
            metadata["annotations"].setdefault("resourcemanager.miloapis.com/owner-name", organization)
        document = {
            "apiVersion": self._resource.api_version,
            "kind": self._resource.kind,
            "metadata": metadata,
            "spec": spec,
        }
        created: dict[str, Any] = self._http.request("POST", self._resource.path, document)
        return self.set_ready(name, ready) if ready or self.mode == "project" else created

    def control_plane(self, name: str) -> ControlPlane:
        """Return the control plane of a project, to read and write its objects."""
        return ControlPlane(self._http, name, f"{_RESOURCES['project'].path}/{name}/control-plane")

    def core(self) -> ControlPlane:
        """Return Milo's core API."""
        return ControlPlane(self._http, "core", "")

    def create_control_planes(self, *names: str, **options: Any) -> list[ControlPlane]:
        """Create ready projects with the options of `create_project`, and return their control planes."""
        for name in names:
            self.create_project(name, **options)
        return [self.control_plane(name) for name in names]

    def set_ready(self, name: str, ready: bool = True, *, reason: str = "Test", message: str = "") -> dict[str, Any]:
        """Set the readiness condition: the cluster is engaged while the condition is True."""
        condition = {
            "type": self._resource.condition,
            "status": "True" if ready else "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339(datetime.now(UTC)),
        }
        return self.patch_project(name, {"status": {"conditions": [condition]}}, subresource="status")

    def patch_project(self, name: str, patch: Mapping[str, Any], *, subresource: str = "") -> dict[str, Any]:
        """Apply a JSON merge patch: None removes a field."""
        path = f"{self._resource.path}/{name}"
        patched: dict[str, Any] = self._http.request("PATCH", f"{path}/{subresource}" if subresource else path, patch)
        return patched

    def suspend_project(self, name: str, *, reason: str = "Billing") -> None:
        """Suspend a project, which then refuses to create objects, and to change those that are not terminating."""
        spec = {
            "projectRef": {"name": name},
            "reason": reason,
            "reinstateAuthority": "Consumer",
            "requestedBy": "a test",
        }
        document = {
            "apiVersion": "resourcemanager.miloapis.com/v1alpha1",
            "kind": "ProjectSuspension",
            "metadata": {"name": name},
            "spec": spec,
        }
        self._http.request("POST", _SUSPENSIONS, document)

    def lift_suspension(self, name: str) -> None:
        self._http.request("PATCH", f"{_SUSPENSIONS}/{name}/status", {"status": {"phase": "Lifted"}})

    def fail(
        self, project: str, verb: str, kind: str, *, status: int | Literal["hang"], times: int | None = None
    ) -> None:
        """Fail requests to a project's control plane: the first `times` requests, or all until `stop_failing`.

        `verb` is a verb of Kubernetes (get, list, watch, create, update, patch, delete, deletecollection), or `*`.
        "create" includes an apply that creates the object, and "list" a watch that begins with a list.
        `status` is 403, 404, 409, 429, 500 or 503; with `hang`, responses are delayed until `stop_failing`. Open
        watches are not affected.
        """
        if verb not in _VERBS:
            raise ValueError(f"verb {verb!r} is not one of {', '.join(_VERBS)}")
        if status not in _STATUSES:
            raise ValueError(f"status {status!r} is not one of {', '.join(map(str, _STATUSES))}")
        if times is not None and (type(times) is not int or times < 1):
            raise ValueError(f"times {times!r} is not an integer of at least 1; leave it out to fail all requests")
        try:
            self._http.request("GET", f"{self._resource.path}/{project}")
        except ObjectNotFoundError:
            raise ValueError(f"project {project!r} does not exist; create it before you call fail()") from None
        self.control_plane(project).require_served(kind)
        fault = {"project": project, "verb": verb, "kind": kind, "status": status, "times": times}
        self._http.request("POST", _FAULTS, fault)

    def stop_failing(self) -> None:
        """Remove all faults that `fail` added."""
        self._http.request("DELETE", _FAULTS)

    @property
    def hanging(self) -> int:
        """The number of requests that are hanging because of `fail(status="hang")`."""
        return int(self._http.request("GET", _FAULTS)["hanging"])

    def delete_project(self, name: str) -> None:
        """Delete the object. It stays until its finalizers are removed by a patch."""
        self._http.request("DELETE", f"{self._resource.path}/{name}")

    def _is_synced(self) -> bool:
        from milo_discovery.sync import SyncDiscoveryClient  # noqa: PLC0415  (loads gRPC)

        with SyncDiscoveryClient(self.address) as client:
            try:
                return client.server_info().synced
            except DiscoveryError:
                return False  # for example, the daemon does not listen yet


# A test process that is killed cannot stop its child processes, but the kernel closes its end of the pipe.
_UNTIL_ABANDONED = """\
import os, runpy, shutil, signal, sys, threading

def wait(directory):
    os.read(0, 1)
    shutil.rmtree(directory, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)

directory, sys.argv = sys.argv[1], ["milo-discoveryd", *sys.argv[2:]]
threading.Thread(target=wait, args=(directory,), daemon=True).start()
runpy.run_module("milo_discoveryd", run_name="__main__")
"""


class _Process:
    """A `milo-discoveryd` process that logs to a file, and exits when its parent process exits or is killed."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._name = f"milo-discoveryd {arguments[0]}"
        self._log = log
        # Variables for another daemon must not configure this one.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MILO_DISCOVERYD_")}
        # Otherwise, events with probe results could arrive between the events that a test expects.
        environment["MILO_DISCOVERYD_CONNECTIVITY__INTERVAL"] = "off"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  (a fixed program, no shell)
                [sys.executable, "-c", _UNTIL_ABANDONED, str(log.parent), *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait_for(self, predicate: Callable[[], bool], expected: str) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        while not predicate():
            status = self._process.poll()
            if status is not None:
                self.end()
                raise SandboxError(
                    f"{self._name} exited with status {status} before it {expected}:\n{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                self.end(kill=True)
                raise SandboxError(
                    f"timeout of {_START_LIMIT_S:g} s exceeded before {self._name} {expected}:\n{self._log_tail()}"
                )
            time.sleep(_POLL_INTERVAL_S)

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
