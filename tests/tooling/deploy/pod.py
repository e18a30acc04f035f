"""Runs a pod in namespaces of its own, as a kubelet does.

    unshare --mount --net --pid --fork --kill-child python pod.py < POD

POD is JSON: `spec` is the pod's, with variables expanded; `tree` lists paths of this machine that are in the image;
`root` is an empty directory. Each container is chrooted into a read-only tree, as its user and without capabilities;
only its volumes are writable, for everybody and with the pod's group. Sidecars start one after the other, each once the
startup probe of the previous one has succeeded. Each line of output begins with the container's name. The pod ends when
standard input is closed.
"""

import fcntl
import http.client
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = struct.pack("16sh14x", b"lo", _IFF_UP | _IFF_RUNNING)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, flags)


def make_image(root: Path, tree: list[str]) -> None:
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    for path in tree:
        source, target = Path(path), root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.mkdir(parents=True, exist_ok=True)
            mount("--bind", source, target)
            mount("-o", "remount,ro,bind", target)
    (root / "proc").mkdir()
    mount("-t", "proc", "proc", root / "proc")
    (root / "dev").mkdir()
    mount("--rbind", "/dev", root / "dev")


def mount_volumes(root: Path, spec: dict[str, Any]) -> None:
    """Mount the volumes at the same paths for all containers."""
    group = spec["securityContext"]["fsGroup"]
    made: set[str] = set()
    for container in (*spec["initContainers"], *spec["containers"]):
        for volume_mount in container["volumeMounts"]:
            if volume_mount["name"] not in made:
                made.add(volume_mount["name"])
                directory = root / volume_mount["mountPath"].lstrip("/")
                directory.mkdir(parents=True)
                mount("-t", "tmpfs", "-o", f"mode=2777,gid={group}", "tmpfs", directory)
    mount("-o", "remount,ro", root)


def say(who: str, line: str) -> None:
    sys.stdout.write(f"{who} {line}\n")
    sys.stdout.flush()


class Container:
    def __init__(self, spec: dict[str, Any], root: Path, group: int, path: str) -> None:
        self._spec = spec
        security = spec["securityContext"]
        self._restricted = [
            str(shutil.which("chroot")), str(root), "setpriv",
            f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}", f"--groups={group}",
            "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
        ]  # fmt: skip
        self._environment = {
            "PATH": path,
            "HOME": "/",
            **{variable["name"]: variable.get("value", "") for variable in spec["env"]},
        }
        command = [*spec.get("command", ["milo-discoveryd"]), *spec.get("args", [])]
        self._process = subprocess.Popen(
            [*self._restricted, *command], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        threading.Thread(target=self._tell, daemon=True).start()

    def await_startup(self) -> None:
        while (probe := self._spec.get("startupProbe")) and not self._succeeds(probe):
            if self._process.poll() is not None:
                sys.exit(f"{self._spec['name']} exited with status {self._process.returncode}")
            time.sleep(0.1)

    def end(self) -> int:
        self._process.terminate()
        return self._process.wait()

    def _succeeds(self, probe: dict[str, Any]) -> bool:
        if "exec" in probe:
            command = [*self._restricted, *probe["exec"]["command"]]
            return subprocess.run(command, env=self._environment, check=False).returncode == 0
        port = {entry["name"]: entry["containerPort"] for entry in self._spec["ports"]}[probe["httpGet"]["port"]]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", probe["httpGet"]["path"])
            return connection.getresponse().status < 400
        except OSError:
            return False
        finally:
            connection.close()

    def _tell(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            say(self._spec["name"], line.decode(errors="replace").rstrip())


def run(given: dict[str, Any]) -> None:
    spec, root = given["spec"], Path(given["root"])
    mount("--make-rprivate", "/")
    raise_loopback()
    make_image(root, given["tree"])
    mount_volumes(root, spec)
    running: list[Container] = []
    for container_spec in (*spec["initContainers"], *spec["containers"]):
        running.append(Container(container_spec, root, spec["securityContext"]["fsGroup"], given["path"]))
        running[-1].await_startup()
        say("pod", f"{container_spec['name']} started")
    sys.stdin.read()
    for container, container_spec in zip(
        reversed(running), reversed([*spec["initContainers"], *spec["containers"]]), strict=True
    ):
        say("pod", f"{container_spec['name']} exited with status {container.end()}")


if __name__ == "__main__":
    run(json.loads(sys.stdin.readline()))
