"""One Kubernetes node in namespaces and cgroups of its own. All its processes terminate with its PID 1."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.end_to_end.cluster import parts
from tests.end_to_end.real import kubeconfig
from tests.end_to_end.real.builds import Say, go_command
from tests.end_to_end.real.certificates import Authority
from tests.end_to_end.real.process import Process, ProcessError, birth_of, start

_HERE = Path(__file__).parent
ADDRESS = "10.199.0.1"
"""The node's IP address, which files in `etc` contain too."""
_SERVICES = "10.96.0.1"
_STARTED_WITHIN_S = 180
_SHARES = {"cpu.shares": "16384", "cpu.weight": "1600"}
"""High, since the cgroup of the whole node, with more than a dozen processes, competes for CPU time with single
processes of the host.
"""
_COMPONENTS = {
    "admin": ("admin", ["system:masters"]),
    "kubelet": ("system:node:node", ["system:nodes"]),
    "kube-controller-manager": ("system:kube-controller-manager", []),
    "kube-scheduler": ("system:kube-scheduler", []),
    "kube-proxy": ("system:kube-proxy", []),
    "coredns": ("system:kube-dns", ["system:masters"]),
    "discovery": ("milo-discoveryd", []),
}


class MissingError(Exception):
    """A node cannot be started: this machine lacks something, or the node is running already."""


def missing() -> str:
    """Return what this machine lacks, as the end of a sentence; empty if it lacks nothing."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root: its containers have namespaces, mounts and cgroups of their own"
    if shutil.which("go") is None:
        return "needs Go, which builds the programs of Kubernetes"
    if shutil.which("mmdebstrap") is None and shutil.which("apt-get") is None:
        return "needs mmdebstrap, or apt-get to fetch it"
    return ""


class Node:
    def __init__(self, name: str = "default") -> None:
        self.name = name
        self._state = parts.directory() / "nodes" / name
        self._record = self._state / "process.json"

    @property
    def process(self) -> Process | None:
        """The first process, if it runs."""
        try:
            found = msgspec.json.decode(self._record.read_bytes(), type=Process)
        except FileNotFoundError:
            return None
        return found if found.running() else None

    @property
    def files(self) -> Path:
        """The writable layer of the node's root file system."""
        return self._state / "upper"

    def up(self, say: Say) -> None:
        """Start the node, and wait until it is ready."""
        if (lacking := missing()) or self.process is not None:
            raise MissingError(lacking or f"{self.name} is running already")
        go_command()
        programs, tree = parts.programs(say), parts.node_tree(say)
        self._clean()
        self._write_files()
        binds = {self._state: "/state", **{program: f"/programs/{program.name}" for program in programs}}
        argv = parts.in_copy(tree, self._state, binds, (_HERE / "node.sh", ADDRESS), "--net", "--uts", "--ipc")
        made = self._make_cgroups()
        # The root of a cgroup namespace is the cgroup of the process that creates the namespace. In v2 a cgroup with
        # processes cannot enable controllers for its children, so the node's processes are in the child `init`.
        inner = [cgroup / "init" for cgroup in made if (cgroup / "init").exists()]
        argv = [*_joined(made), "unshare", "--cgroup", *_joined(inner), *argv]
        parent = start("node", argv, log=self._state / "log", tied=False)
        self._wait(lambda: _child(parent.pid) is not None or not parent.running(), "its first process to start")
        if (pid := _child(parent.pid)) is None:
            raise ProcessError(f"{self.name} exited during its start: {parent.last_words()}")
        self._record.write_bytes(msgspec.json.encode(Process(name="node", pid=pid, born=birth_of(pid) or 0, log="")))
        try:
            self._wait(self._is_ready, "the node to be ready")
        except ProcessError as error:
            raise ProcessError(f"{error}\n{(self._state / 'log').read_text()[-2000:]}") from None

    def down(self) -> None:
        """End every process of the node, and remove what is left of it."""
        if (found := self.process) is not None:
            os.kill(found.pid, signal.SIGKILL)
        self._wait(lambda: not (self.process or any(map(_has_processes, self.cgroups()))), "its processes to end")
        self._clean()

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """Run kubectl in the node's namespaces, and return what it prints. Raises ProcessError."""
        return self._run("kubectl", *arguments, given=given.encode())

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def load(self, archive: Path) -> None:
        """Import the images of an archive."""
        self._run("ctr", "--namespace", "k8s.io", "images", "import", "--digests", "-", given=archive.read_bytes())

    def enter(self, *command: str) -> list[str]:
        """Return the command line that runs a command in the node."""
        found = self.process
        if found is None:
            raise ProcessError(f"{self.name} is not running: start it with ./dev cluster up")
        inside = ["env", "PATH=/programs:/usr/sbin:/usr/bin:/sbin:/bin", "KUBECONFIG=/etc/kubernetes/admin.conf"]
        return ["nsenter", "--target", str(found.pid), "--all", "--", *inside, *command]

    def memory_mib(self) -> int | None:
        """Return the memory in use by all processes of the node, without caches."""
        for file in (cgroup / "memory.stat" for cgroup in self.cgroups() if (cgroup / "memory.stat").exists()):
            stat = dict(line.split() for line in file.read_text().splitlines())
            return int(stat.get("total_rss") or stat["anon"]) >> 20
        return None

    def _run(self, *command: str, given: bytes = b"") -> str:
        done = subprocess.run(self.enter(*command), input=given, capture_output=True, check=False)
        if done.returncode:
            raise ProcessError(f"{' '.join(command)}: {done.stderr.decode().strip()}")
        return done.stdout.decode()

    def _is_ready(self) -> bool:
        try:
            return "True" in self.kubectl("get", "node", "node", "-o", _READY)
        except ProcessError:
            return False

    def _write_files(self) -> None:
        (self._state / "containerd").mkdir(parents=True)
        shutil.copytree(_HERE / "etc", self.files / "etc")
        pki = self.files / "etc" / "kubernetes"
        pki.chmod(0o700)
        authority = Authority(pki)
        authority.server("server", ADDRESS, _SERVICES, "node", "kubernetes.default.svc", "kubernetes.default")
        authority.signing_key("tokens")
        for name, (user_name, groups) in _COMPONENTS.items():
            user = kubeconfig.with_certificate(*authority.client(user_name, groups))
            server = f"https://{ADDRESS}:6443"
            kubeconfig.write(pki / f"{name}.conf", server=server, authority=authority.pem, user=user)

    def _make_cgroups(self) -> list[Path]:
        mine = own_cgroups(*(Path("/proc/self", file).read_text() for file in ("mountinfo", "cgroup")))
        made = [cgroup / f"milo-discoveryd-{self.name}" for cgroup in mine]
        (self._state / "cgroups").write_text("\n".join(map(str, made)))
        for cgroup in made:
            cgroup.mkdir(exist_ok=True)
            if (cgroup / "cgroup.controllers").exists():
                if "memory" not in (cgroup / "cgroup.controllers").read_text().split():
                    raise MissingError(f"needs the memory controller in {cgroup.parent}/cgroup.subtree_control")
                (cgroup / "init").mkdir()
            elif (cgroup / "cpuset.cpus").exists():  # in v1, no process can join a cgroup where it is empty
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (cgroup / name).write_text((cgroup.parent / name).read_text())
            for name, share in _SHARES.items():
                if (cgroup / name).exists():
                    (cgroup / name).write_text(share)
        return made

    def cgroups(self) -> list[Path]:
        """Return the node's top-level cgroup in each hierarchy, as recorded when it was started."""
        made = self._state / "cgroups"
        return [*map(Path, made.read_text().splitlines())] if made.exists() else []

    def _clean(self) -> None:
        for cgroup in self.cgroups():
            for below in sorted(cgroup.rglob("*/"), reverse=True):
                below.rmdir()
            if cgroup.exists():
                cgroup.rmdir()
        shutil.rmtree(self._state, ignore_errors=True)

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + _STARTED_WITHIN_S
        while not holds():
            if time.monotonic() > ends:
                raise ProcessError(f"{self.name}: waited {_STARTED_WITHIN_S} s for {what}; logs are in {self._state}")
            time.sleep(0.1)


_READY = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"


def _joined(cgroups: Sequence[Path]) -> list[str]:
    """Return the prefix of a command line that runs the rest of it in these cgroups."""
    join = 'for each in $1; do echo $$ >"$each/cgroup.procs"; done; shift; exec "$@"'
    return ["/bin/sh", "-c", join, "sh", " ".join(map(str, cgroups))]


def _child(pid: int) -> int | None:
    """Return the first process in the namespaces that `unshare` made."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def own_cgroups(mounts: str, memberships: str) -> Iterator[Path]:
    """Yield the directory of a process' cgroup in each hierarchy, by its `mountinfo` and `cgroup` of /proc.

    On a host with only v2, yield the root of the hierarchy, since any other cgroup with processes cannot enable
    controllers for its children.
    """
    mounted: dict[str, list[str]] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            mounted |= dict.fromkeys(options.split(",") if kind == "cgroup" else [""], before.split(" ")[3:5])
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers:
            root, directory = mounted[controllers.split(",")[0]]
            yield Path(directory, os.path.relpath(path, root))
        elif line == memberships.rstrip():
            yield Path(mounted[""][1])


def _has_processes(cgroup: Path) -> bool:
    return any(file.read_text().strip() for file in cgroup.rglob("cgroup.procs"))
