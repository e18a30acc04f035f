"""Installs from the directory of a release as a user would, with nothing else of this repository: release DIRECTORY

    packages   pip install from a local index, then the demo
    image      demo and daemon in their images, as uid 65532 on a read-only root (needs root, buildah and unshare)
    manifests  bundle and chart: equal objects, valid, and within the pod security profile `restricted` (needs kubectl;
               the chart needs helm, or Go to build it)
    go         go get of the modules from a proxy that is a directory (needs Go)

A step whose tool is not installed is reported as skipped. The exit status is 1 if a step fails.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.tooling.deploy.pod_security import violations

HELM = "helm.sh/helm/v3/cmd/helm@v3.19.0"
NAMESPACE = "milo-system"
OLDEST, NEWEST = "1.29", "1.37"
FOREIGN_KINDS = {"PodMonitor", "PrometheusRule"}


class Skipped(Exception):  # noqa: N818 - not an error
    """Raised if the machine or the release lacks what a step needs."""


def run(*command: object, within_s: int = 900, cwd: Path | None = None, **variables: str) -> str:
    done = subprocess.run(
        [str(argument) for argument in command], cwd=cwd, env={**os.environ, **variables}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=within_s,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(
            f"{' '.join(map(str, command))} exited with status {done.returncode}:\n{done.stdout[-3000:]}"
        )
    return done.stdout


def needs(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise Skipped(f"{', '.join(missing)} not installed")


def part(release: Path, name: str) -> Path:
    if not (release / name).exists():
        raise Skipped(f"the release has no {name}/: it was made without the tools for it")
    return release / name


def checksums(release: Path, _: Path) -> str:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest, name
    listed = {subject["name"] for subject in json.loads((release / "provenance.json").read_text())["subject"]}
    assert listed == {line.partition("  ")[2] for line in lines} - {"provenance.json"}
    return f"{len(lines)} files, each with its provenance"


def packages(release: Path, scratch: Path) -> str:
    venv.create(scratch / "venv", with_pip=True)
    commands = scratch / "venv" / "bin"
    local = ("--quiet", "--disable-pip-version-check", "--find-links", release / "python")
    run(commands / "pip", "install", *local, "milo-discoveryd", "milo-sandbox", "milo-discovery-conformance")
    pages = {page.stem for page in (scratch / "venv" / "share" / "man" / "man1").iterdir()}
    assert pages == {"milo-discovery", "milo-discoveryd"}
    shown = run(commands / "milo-discoveryd", "demo", "--seconds", "8", cwd=scratch)
    assert "ENGAGED" in shown, shown
    return run(commands / "milo-discoveryd", "--version").strip() + "; demo engages clusters"


# A read-only root with /tmp, and a volume that the containers share, as in the manifests.
_CONTAINER = """
    set -eu
    mount --rbind "$1" "$1"; mount -o remount,bind,ro "$1"
    mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
    mount -t tmpfs -o mode=0755 tmpfs "$1/run"; mkdir "$1/run/milo"; mount --bind "$2" "$1/run/milo"
    ! touch "$1/opt/x" 2>/dev/null
    root=$1; shift 2
    exec chroot --userspec=65532:65532 --groups= "$root" "$@"
"""


@dataclass(frozen=True)
class Container:
    """A container of an image, run without a container engine."""

    command: tuple[object, ...]
    environment: dict[str, str]

    def run(self, *arguments: str) -> str:
        return run(*self.command, *arguments, **self.environment)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        command = [str(argument) for argument in (*self.command, *arguments)]
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
        ) as process:
            try:
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def container(layout: Path, volume: Path) -> Iterator[Container]:
    [index] = json.loads((layout / "index.json").read_text())["manifests"]
    source = f"oci:{layout}:{index['annotations']['org.opencontainers.image.ref.name']}"
    name = run("buildah", "from", "--quiet", source).split()[-1]
    try:
        root = run("buildah", "mount", name).strip()
        configured = json.loads(run("buildah", "inspect", name))["OCIv1"]["config"]
        assert configured["User"] == "65532:65532"
        assert configured["Entrypoint"] == ["milo-discoveryd"]
        isolated = ("unshare", "--mount", "--pid", "--fork", "sh", "-c", _CONTAINER, "sh")
        yield Container((*isolated, root, volume), dict(variable.split("=", 1) for variable in configured["Env"]))
    finally:
        run("buildah", "rm", name)


def image(release: Path, scratch: Path) -> str:
    needs("buildah", "unshare", "chroot")
    layouts = part(release, "images")
    if os.geteuid():
        raise Skipped("mounting a root filesystem needs root")
    volume = scratch / "volume"
    volume.mkdir(mode=0o700)
    os.chown(volume, 65532, 65532)
    socket, kubeconfig = "unix:///run/milo/d/discovery.sock", "/run/milo/kubeconfig"
    settings = ("--discovery-kubeconfig", kubeconfig, "--listen", socket, "--http-listen", "127.0.0.1:0")
    with (
        container(layouts / "milo-discoveryd", volume) as daemon,
        container(layouts / "milo-discoveryd-sandbox", volume) as sandbox,
    ):
        version = daemon.run("milo-discoveryd", "--version").strip()
        assert "ENGAGED" in sandbox.run("milo-discoveryd", "demo", "--seconds", "8")
        with sandbox.running("milo-discoveryd", "sandbox", "--projects", "3", "--kubeconfig-out", kubeconfig):
            while not (volume / "kubeconfig").exists():
                time.sleep(0.1)
            checked = daemon.run("milo-discoveryd", "check", *settings)
            assert f"ok    listen {socket}: free" in checked, checked
            with daemon.running("milo-discoveryd", "run", *settings):
                shown = daemon.run("milo-discovery", "watch", "--once", "--address", socket, "--timeout", "60s")
                assert shown.count("ENGAGED") == 3, shown
    return f"{version} as uid 65532 on a read-only root: demo, check, run, watch"


def manifests(release: Path, scratch: Path) -> str:
    needs("kubectl")
    bundle = release / "kustomize" / "milo-discoveryd"
    names = re.findall(r"image: (\S+)", "".join(path.read_text() for path in bundle.rglob("*.yaml")))
    ours = {name for name in names if "milo-discoveryd" in name}
    digests = [layout.name for layout in (release / "images").glob("*")]
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)+:[\w.]+@sha256:[0-9a-f]{64}", name) for name in ours) or not digests, (
        ours
    )
    count = 0
    for overlay in sorted((*bundle.glob("overlays/*"), *bundle.glob("examples/*"))):
        rendered = run("kubectl", "kustomize", overlay)
        count += accepted(rendered, scratch)
    return f"{count} objects of the bundle are valid and restricted; images {', '.join(sorted(ours))}"


def chart(release: Path, scratch: Path) -> str:
    needs("kubectl")
    command = helm()
    [archive] = part(release, "chart").glob("*.tgz")
    given = ("template", "milo-discoveryd", archive, "--namespace", NAMESPACE, "--kube-version", NEWEST)
    rendered = run(command, *given)
    accepted(rendered, scratch)
    ours = objects(run("kubectl", "kustomize", release / "kustomize" / "milo-discoveryd" / "overlays" / "standalone"))
    charted = objects(rendered)
    different = sorted(name for name in charted.keys() | ours.keys() if charted.get(name) != ours.get(name))
    assert not different, f"these objects are not those of Kustomize: {different}"
    bare = objects(run(command, *given, "--set", "monitoring.enabled=false", "--set", "rbac.create=false"))
    assert {kind for kind, _ in bare}.isdisjoint({*FOREIGN_KINDS, "ClusterRole"})
    configured = run(command, *given, "--values", Path(__file__).parent / "deploy" / "chart_values.yaml")
    accepted(configured, scratch)
    _follows_projects([document for document in yaml.safe_load_all(configured) if document])
    _publishes_objects(run(command, *given, "--set", "objects.enabled=true"), release, scratch)
    return f"{len(ours)} objects, equal to those of Kustomize, and valid with every value"


def _follows_projects(charted: list[dict[str, Any]]) -> None:
    """Check that the values of tests/tooling/deploy/chart_values.yaml are in the objects."""
    kinds = {document["kind"]: document for document in charted}
    assert "ClusterRole" not in kinds, "the rights are those of the kubeconfig's user"
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    [daemon] = pod["initContainers"]
    variables = {variable["name"]: variable.get("value") for variable in daemon["env"]}
    assert variables["MILO_DISCOVERYD_MODE"] == "project"
    assert variables["MILO_DISCOVERYD_LISTEN"] is None, "the file has the listeners"
    mounts = {mount["name"]: mount["mountPath"] for mount in daemon["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    kubeconfig = f"{mounts['milo-discoveryd-kubeconfig']}/kubeconfig"
    assert {variables[f"MILO_DISCOVERYD_{name}_KUBECONFIG"] for name in ("DISCOVERY", "PROJECT")} == {kubeconfig}
    assert variables["MILO_DISCOVERYD_CONFIG"] == f"{mounts['milo-discoveryd-config']}/config.yaml"
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "milo-discoveryd-config"]
    [config] = [document for document in charted if document["metadata"]["name"] == volume["configMap"]["name"]]
    assert yaml.safe_load(config["data"]["config.yaml"])["rights"][0]["name"] == "pod"
    assert (pod["tolerations"], pod["imagePullSecrets"]) == ([{"operator": "Exists"}], [{"name": "registry"}])
    assert daemon["resources"]["limits"] == {"memory": "1Gi"}


def _publishes_objects(rendered: str, release: Path, scratch: Path) -> None:
    """Check that the publisher of objects is that of the component."""
    accepted(rendered, scratch)
    documents = [document for document in yaml.safe_load_all(rendered) if document]
    [pod] = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]
    component = release / "kustomize" / "milo-discoveryd" / "components" / "objects"
    [ours] = yaml.safe_load((component / "publisher.yaml").read_text())["spec"]["template"]["spec"]["containers"]
    [charted] = [container for container in pod["containers"] if container["name"] == ours["name"]]
    assert {*charted.pop("command"), *charted.pop("args")} == {*ours.pop("command")}
    assert charted == ours
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "milo-objects"]
    [declaration] = [
        document["data"]["objects.yaml"]
        for document in documents
        if document["metadata"]["name"] == volume["configMap"]["name"]
    ]
    assert yaml.safe_load(declaration) == yaml.safe_load((component / "objects.yaml").read_text())


def helm() -> Path:
    found = shutil.which("helm")
    if found is not None:
        return Path(found)
    needs("go")
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "helm-v3.19.0"
    if not (directory / "helm").exists():
        run("go", "install", HELM, GOBIN=str(directory), within_s=1800)
    return directory / "helm"


def objects(rendered: str) -> dict[tuple[str, str], Any]:
    """Return the rendered objects by kind and name.

    Placeholders replace what differs between Helm and Kustomize by design: the hash in the names of ConfigMaps, and the
    value of the label `managed-by`.
    """
    text = re.sub(r"milo-discoveryd-[0-9a-z]{10}\b", "milo-discoveryd-HASH", rendered)
    text = re.sub(r"managed-by: \w+", "managed-by: X", text)
    found = [document for document in yaml.safe_load_all(text) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def accepted(rendered: str, scratch: Path) -> int:
    """Validate objects against the schemas of Kubernetes and the profile `restricted`. Return their number."""
    path = scratch / "rendered.yaml"
    path.write_text(rendered)
    for release in (OLDEST, NEWEST):
        run(Path(sys.executable).with_name("kubernetes-validate"), "--strict", "-k", release, path)
    found = [document for document in yaml.safe_load_all(rendered) if document]
    for document in found:
        if document["kind"] in {"Deployment", "StatefulSet"}:
            assert list(violations(document["spec"]["template"]["spec"])) == []
    return len(found)


def go_modules(release: Path, scratch: Path) -> str:
    needs("go")
    project = scratch / "go"
    project.mkdir()
    cached = f"file://{run('go', 'env', 'GOMODCACHE').strip()}/cache/download"
    # A cache of its own, and no checksum database, which lacks versions that were never published.
    given = {
        "GOPROXY": f"file://{release / 'go'},{cached},{run('go', 'env', 'GOPROXY').strip()}",
        "GONOSUMDB": "go.miloapis.com", "GOFLAGS": "-modcacherw", "GOMODCACHE": str(scratch / "mod"),
    }  # fmt: skip
    run("go", "mod", "init", "example.com/operator", cwd=project, **given)
    run(
        "go",
        "get",
        "go.miloapis.com/discovery@latest",
        "go.miloapis.com/discovery/multicluster@latest",
        "go.miloapis.com/discovery/objects@latest",
        "go.miloapis.com/discovery/objects/natssource@latest",
        cwd=project,
        **given,
    )
    (project / "main.go").write_text('package main\n\nimport _ "go.miloapis.com/discovery"\n\nfunc main() {}\n')
    run("go", "build", "./...", cwd=project, **given)
    return ", ".join(re.findall(r"go\.miloapis\.com/\S+ v\S+", (project / "go.mod").read_text()))


STEPS: tuple[Callable[[Path, Path], str], ...] = (checksums, packages, image, manifests, chart, go_modules)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    release = arguments.parse_args().directory.resolve()
    failed = 0
    for step in STEPS:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                outcome = f"ok       {step(release, Path(scratch))}"
            except Skipped as missing:
                outcome = f"SKIPPED  {missing}"
            except (AssertionError, subprocess.SubprocessError, OSError, LookupError, ValueError) as error:
                outcome, failed = f"FAILED   {error}", failed + 1
        print(f"{step.__name__:<11} {outcome}", flush=True)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
