"""Builds all artifacts of a release: release.py DIRECTORY [--registry R] [--base IMAGE] [--platform P,...]

    python/           wheels and sdists: pip install --find-links DIRECTORY/python milo-discoveryd
    images/NAME/      OCI layouts of the Dockerfile's images
    kustomize/        the manifests with the images' full names and digests, and as an OCI artifact
    chart/            a Helm chart of the standalone daemon
    go/               the Go modules, as the module proxy serves them: GOPROXY=file://DIRECTORY/go
    npm/, maven/      the packages for Node and Java
    *.cdx.json, THIRD-PARTY-NOTICES.txt, provenance.json, SHA256SUMS

An artifact whose tool is missing or excluded is skipped. The last line of the output lists these tools.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
REGISTRY = "ghcr.io/milo-os"
SOURCE = "https://github.com/milo-os/milo-discoveryd"
PACKAGES = (
    "kube",
    "clients/python",
    "clients/cli",
    "objects",
    "controllers",
    "publishing",
    ".",
    "sandbox",
    "conformance",
)
IMAGES = {"daemon": "milo-discoveryd", "sandbox": "milo-discoveryd-sandbox"}
GO_MODULES = {
    "go.miloapis.com/discovery": "clients/go",
    "go.miloapis.com/discovery/multicluster": "clients/go/multicluster",
    "go.miloapis.com/discovery/objects": "clients/go/objects",
    "go.miloapis.com/discovery/objects/natssource": "clients/go/objects/natssource",
}
MAVEN_DEPLOY = "org.apache.maven.plugins:maven-deploy-plugin:3.1.4"
TOOLS = ("buildah", "kubectl", "go", "npm", "mvn")
GO_BILL_OF_MATERIALS = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0"
MAVEN_BILL_OF_MATERIALS = "org.cyclonedx:cyclonedx-maven-plugin:2.9.1:makeBom"
CHART_OF = "overlays/standalone"
NAMESPACE = "milo-system"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def run(*command: object, cwd: Path = ROOT, **variables: str) -> None:
    subprocess.run([str(word) for word in command], cwd=cwd, env={**os.environ, **variables}, check=True)


def output(*command: object) -> str:
    return subprocess.check_output([str(word) for word in command], cwd=ROOT, text=True).strip()


def version() -> str:
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "milo_discoveryd" / "__init__.py").read_text())
    assert found is not None
    return found[1]


class Commit:
    """The released commit, whose time is the timestamp in the artifacts, so that builds are reproducible."""

    def __init__(self) -> None:
        self.revision = output("git", "rev-parse", "HEAD")
        self.epoch = int(output("git", "show", "--no-patch", "--format=%ct", "HEAD"))
        self.time = datetime.fromtimestamp(self.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def python_packages(out: Path, commit: Commit) -> None:
    for package in PACKAGES:
        run(
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "-d",
            out / "python",
            cwd=ROOT / package,
            SOURCE_DATE_EPOCH=str(commit.epoch),
        )


def image_contents(out: Path) -> None:
    """Write the SBOM of each image's packages, and the licenses of those that are not ours."""
    notices: dict[str, str] = {}
    for target, name in IMAGES.items():
        with tempfile.TemporaryDirectory() as scratch:
            run("sh", "deploy/image/install.sh", ".", f"{scratch}/venv", target)
            run(
                Path(sys.executable).with_name("cyclonedx-py"), "environment", "--pyproject", "pyproject.toml",
                "--output-reproducible", "--output-file", out / f"{name}.cdx.json", f"{scratch}/venv",
            )  # fmt: skip
            notices |= dict(_notices(Path(scratch) / "venv"))
    (out / "THIRD-PARTY-NOTICES.txt").write_text("\n".join(notices[package] for package in sorted(notices)))


def _notices(environment: Path) -> Iterator[tuple[str, str]]:
    """Yield each package of others, and its license: the SPDX expression or the name, and the texts."""
    for found in distributions(path=[str(path) for path in environment.glob("lib/*/site-packages")]):
        metadata, package = found.metadata, f"{found.name} {found.version}"
        if found.name.startswith("milo-"):
            continue
        texts = [
            path.read_text().strip()
            for path in sorted(found.files or ())
            if path.parts[0].endswith(".dist-info") and path.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))
        ]
        classifiers = [one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier", []) if "License ::" in one]
        license_name = metadata["License-Expression"] or ", ".join(classifiers) or metadata["License"]
        if not texts and not license_name:
            sys.exit(f"release: {package} states no license: its notice is missing")
        rule = "=" * 80
        yield package, "\n\n".join([f"{rule}\n{package}: {license_name or 'see below'}\n{rule}", *texts, ""])


def images(
    out: Path, commit: Commit, base: str | None, platforms: str | None, volumes: Sequence[str]
) -> dict[str, str]:
    """Build the Dockerfile's images without a container engine. Return their digests."""
    digests: dict[str, str] = {}
    for target, name in IMAGES.items():
        tag, layout = f"{name}:{version()}", out / "images" / name
        subprocess.run(["buildah", "manifest", "rm", tag], capture_output=True, check=False)  # of an earlier run
        run(
            "buildah", "build", "--isolation", "chroot", "--layers", "--target", target, "--manifest", tag,
            "--timestamp", commit.epoch,
            *(["--from", base] if base else ()), *(["--platform", platforms] if platforms else ()),
            *(part for volume in volumes for part in ("--volume", volume)),
            "--build-arg", f"VERSION={version()}", "--build-arg", f"GIT_COMMIT={commit.revision}",
            "--build-arg", f"BUILD_DATE={commit.time}", ".",
        )  # fmt: skip
        layout.parent.mkdir(exist_ok=True)
        run("buildah", "manifest", "push", "--all", "--format", "oci", tag, f"oci:{layout}:{version()}")
        [found] = json.loads((layout / "index.json").read_text())["manifests"]
        digests[name] = found["digest"]
    return digests


def kustomize_bundle(out: Path, commit: Commit, registry: str, digests: dict[str, str]) -> Path:
    """Write the manifests with the images' full names, as a directory and as an OCI artifact for Flux."""
    bundle = out / "kustomize" / "milo-discoveryd"
    shutil.copytree(ROOT / "deploy", bundle, ignore=shutil.ignore_patterns("image"))
    for path in bundle.rglob("*.yaml"):
        text = path.read_text()
        for name in IMAGES.values():
            at_digest = f"@{digests[name]}" if name in digests else ""
            text = re.sub(rf"image: {name}:(\S+)", rf"image: {registry}/{name}:\1{at_digest}", text)
        path.write_text(text)
    example = bundle / "examples" / "operator" / "kustomization.yaml"
    example.write_text(re.sub(r"(?ms)^images:\n.*?(?=^\S|\Z)", "", example.read_text()))
    artifact(out / "kustomize" / "oci", _tar(bundle, commit.epoch), commit)
    return bundle


def artifact(layout: Path, content: bytes, commit: Commit) -> None:
    """Write an OCI layout of an artifact as `flux push artifact` makes it."""

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (layout / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(b"{}", "application/vnd.cncf.flux.config.v1+json"),
        "layers": [blob(content, "application/vnd.cncf.flux.content.v1.tar+gzip")],
        "annotations": {
            "org.opencontainers.image.created": commit.time,
            "org.opencontainers.image.source": SOURCE,
            "org.opencontainers.image.revision": f"v{version()}@sha1:{commit.revision}",
        },
    }
    named = {**blob(_json(manifest), OCI_MANIFEST), "annotations": {"org.opencontainers.image.ref.name": version()}}
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [named]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


VALUES = """\
# The image of the daemon and of the container that prints the changes.
image: {image}
imagePullSecrets: []
# Name of a Secret whose key `kubeconfig` is for Milo's core API. With it, the mode is `project`.
kubeconfigSecret: ""
# The daemon's configuration file (docs/settings.md), for `sources`, `rights`, issuers and listeners.
config: {{}}
# Environment variables of the daemon that select what it watches. An empty one has the default of the mode.
environment:
{environment}
# Further settings of the daemon (docs/settings.md), by the names of their environment variables.
settings:
{settings}
# Further volumes of the pod, such as Secrets with keys, and their mounts in the daemon's container.
volumes: []
volumeMounts: []
resources:
{resources}
nodeSelector: {{}}
tolerations: []
affinity: {{}}
# A publisher of objects of all engaged clusters into the NATS stream `milo` (docs/objects-nats.md). It needs issuers of
# kubeconfigs in `config`. `environment` and `arguments` are those of `milo-objects publish`, and `volumeMounts` mounts
# `volumes`, such as a Secret with credentials of NATS, in its container.
objects:
  enabled: false
  kinds:
{kinds}
  environment:
    NATS_URL: {nats}
  arguments: [--create-stream]
  volumeMounts: []
  resources:
{objects_resources}
rbac:
  create: true
networkPolicy:
  enabled: true
# PodMonitor, recording rules, alerts and a Grafana dashboard; needs the CRDs of the Prometheus operator.
monitoring:
  enabled: true
"""
PARTS = {
    "rbac": ("and .Values.rbac.create (not .Values.kubeconfigSecret)", {"ClusterRole", "ClusterRoleBinding"}),
    "network-policy": (".Values.networkPolicy.enabled", {"NetworkPolicy"}),
    "monitoring": (".Values.monitoring.enabled", {"PodMonitor", "PrometheusRule"}),
}
VALUE_UNLESS_EMPTY = r'\n{{- with include "variable" (list . "\2") }}\n\1value: {{ quote . }}\n{{- end }}'
"""The API server drops empty values of variables, so that each upgrade would patch them."""
CONFIG = """\
{{- with .Values.config }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: milo-discoveryd-config-{{ toJson . | sha256sum | trunc 10 }}
  namespace: {{ $.Release.Namespace }}
data:
  config.yaml: |
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- if .Values.objects.enabled }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: milo-objects-{{ toJson .Values.objects.kinds | sha256sum | trunc 10 }}
  namespace: {{ $.Release.Namespace }}
data:
  objects.yaml: |
    objects:
    {{- toYaml .Values.objects.kinds | nindent 4 }}
{{- end }}
"""
PUBLISHER = "components/objects"
PUBLISHER_VARIABLES = """\
{{- range $name, $value := .Values.objects.environment }}
  - name: {{ $name }}
    value: {{ quote $value }}
{{- end }}"""
OF_POD = {
    "@variables@": """
{{- if .Values.config }}
- name: MILO_DISCOVERYD_CONFIG
  value: /etc/milo-discoveryd/config/config.yaml
{{- end }}""",
    "@mounts@": """
{{- if .Values.kubeconfigSecret }}
- name: milo-discoveryd-kubeconfig
  mountPath: /etc/milo-discoveryd/kubeconfig
  readOnly: true
{{- end }}
{{- if .Values.config }}
- name: milo-discoveryd-config
  mountPath: /etc/milo-discoveryd/config
  readOnly: true
{{- end }}
{{- with .Values.volumeMounts }}{{ toYaml . | nindent INDENT }}{{- end }}""",
    "@volumes@": """
{{- if .Values.kubeconfigSecret }}
- name: milo-discoveryd-kubeconfig
  secret:
    secretName: {{ .Values.kubeconfigSecret }}
    defaultMode: 0440
{{- end }}
{{- with .Values.config }}
- name: milo-discoveryd-config
  configMap:
    name: milo-discoveryd-config-{{ toJson . | sha256sum | trunc 10 }}
{{- end }}
{{- if .Values.objects.enabled }}
- name: milo-objects
  configMap:
    name: milo-objects-{{ toJson .Values.objects.kinds | sha256sum | trunc 10 }}
{{- end }}
{{- with .Values.volumes }}{{ toYaml . | nindent INDENT }}{{- end }}""",
}
"""What the values add to lists of the pod."""
PASSED_ON = ("imagePullSecrets", "nodeSelector", "tolerations", "affinity")
"""Fields of the pod that have the names of values."""


def chart(out: Path, bundle: Path, commit: Commit) -> None:
    """Write a Helm chart whose objects are those that Kustomize renders of the standalone daemon."""
    rendered = list(yaml.safe_load_all(output("kubectl", "kustomize", bundle / CHART_OF)))
    [deployment] = [document for document in rendered if document["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [image] = {container["image"] for container in (*pod["initContainers"], *pod["containers"])}
    [settings] = [
        document
        for document in rendered
        if document["kind"] == "ConfigMap" and "milo-discoveryd.json" not in document["data"]
    ]
    hashed = settings["metadata"]["name"]
    environment = {
        variable["name"]: variable.get("value", "")
        for variable in pod["initContainers"][0]["env"]
        if "MILO_DISCOVERYD" in variable["name"]
    }
    daemon = pod["initContainers"][0]
    for name in ("MODE", "LISTEN"):  # the defaults of the helper
        environment[f"MILO_DISCOVERYD_{name}"] = ""
    objects = bundle / PUBLISHER
    declared = yaml.safe_load((objects / "objects.yaml").read_text())
    [publisher] = yaml.safe_load((objects / "publisher.yaml").read_text())["spec"]["template"]["spec"]["containers"]
    [nats] = [variable["value"] for variable in publisher["env"] if variable["name"] == "NATS_URL"]
    values = VALUES.format(
        image=image,
        kinds=textwrap.indent(yaml.safe_dump(declared["objects"], sort_keys=False).rstrip(), "    "),
        nats=nats,
        objects_resources=textwrap.indent(yaml.safe_dump(publisher["resources"]).rstrip(), "    "),
        environment=_indented(environment),
        settings=_indented(settings["data"]),
        resources=textwrap.indent(yaml.safe_dump(daemon["resources"]).rstrip(), "  "),
    )
    daemon["resources"] = "@resources@"
    settings["data"] = "@settings@"
    for variable in pod["initContainers"][0]["env"]:
        if variable["name"] in environment:
            variable["value"] = f"@{variable['name']}@"
    for items, placeholder in zip((daemon["env"], daemon["volumeMounts"], pod["volumes"]), OF_POD, strict=True):
        items.append(placeholder)
    pod["containers"].append("@containers@")
    of_pod = {**OF_POD, "@containers@": _publisher(publisher)}
    pod.update({name: f"@{name}@" for name in PASSED_ON})
    parts: dict[str, list[str]] = {}
    for document in rendered:
        is_dashboard = document["kind"] == "ConfigMap" and document is not settings
        part = next(
            (name for name, (_, kinds) in PARTS.items() if document["kind"] in kinds),
            "monitoring" if is_dashboard else "daemon",
        )
        text = yaml.safe_dump(document, sort_keys=False, width=10_000).replace("{{", '{{ "{{" }}')
        text = text.replace(image, "{{ .Values.image }}").replace(
            f"namespace: {NAMESPACE}", "namespace: {{ .Release.Namespace }}"
        )
        text = text.replace(f"-{NAMESPACE}\n", "-{{ .Release.Namespace }}\n")  # names of objects without a namespace
        text = text.replace(hashed, "milo-discoveryd-{{ .Values.settings | toJson | sha256sum | trunc 10 }}")
        text = text.replace("managed-by: kustomize", "managed-by: {{ .Release.Service }}")
        text = text.replace("data: '@settings@'", "data: {{- toYaml .Values.settings | nindent 2 }}")
        text = re.sub(r"\n( *)value: '@(MILO_\w+)@'", VALUE_UNLESS_EMPTY, text)
        text = re.sub(r"\n( *)- '(@\w+@)'", lambda place: _added(place, of_pod), text)
        text = re.sub(r"\n( *)(\w+): '@(\w+)@'", _passed_on, text)
        parts.setdefault(part, []).append(text)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "milo-discoveryd"
        (root / "templates").mkdir(parents=True)
        (root / "values.yaml").write_text(values)
        shutil.copy(ROOT / "deploy" / "chart" / "values.schema.json", root)
        shutil.copy(ROOT / "deploy" / "chart" / "_helpers.tpl", root / "templates")
        (root / "templates" / "config.yaml").write_text(CONFIG)
        (root / "Chart.yaml").write_text(
            f"apiVersion: v2\nname: milo-discoveryd\nversion: {version()}\nappVersion: {version()}\n"
            "kubeVersion: '>=1.29.0-0'\nsources:\n- " + SOURCE + "\n"
            "description: milo-discoveryd in a pod of its own; operators run it as a sidecar, by Kustomize.\n"
        )
        for part, texts in parts.items():
            text = "---\n".join(texts)
            if part in PARTS:
                text = f"{{{{- if {PARTS[part][0]} }}}}\n{text}{{{{- end }}}}\n"
            (root / "templates" / f"{part}.yaml").write_text(text)
        (out / "chart").mkdir()
        (out / "chart" / f"milo-discoveryd-{version()}.tgz").write_bytes(
            _tar(root, commit.epoch, under="milo-discoveryd/")
        )


def _publisher(container: dict[str, Any]) -> str:
    """Return the template of the publisher of objects, from the container of its component."""
    container = {
        **container,
        "image": "{{ .Values.image }}",
        "command": [word for word in container["command"] if word != "--create-stream"],
        "args": "{{ toJson .Values.objects.arguments }}",
        "env": ["@variables@" if variable["name"] == "NATS_URL" else variable for variable in container["env"]],
        "resources": "{{ toJson .Values.objects.resources }}",
        "volumeMounts": [*container["volumeMounts"], "@mounts@"],
    }
    text = yaml.safe_dump([container], sort_keys=False, width=10_000).rstrip()
    text = re.sub(r"'(\{\{.*\}\})'", r"\1", text)
    mounts = "{{- with .Values.objects.volumeMounts }}{{ toYaml . | nindent (int (add INDENT 2)) }}{{- end }}"
    text = text.replace("  - '@variables@'", PUBLISHER_VARIABLES).replace("  - '@mounts@'", mounts)
    return f"\n{{{{- if .Values.objects.enabled }}}}\n{text}\n{{{{- end }}}}"


def _added(place: re.Match[str], of_pod: dict[str, str]) -> str:
    """Return the template of the items that values add to a list."""
    indent = place[1]
    lines = of_pod[place[2]].replace("INDENT", str(len(indent))).splitlines()
    return "\n".join(line if line.startswith("{{") or not line else indent + line for line in lines)


def _passed_on(place: re.Match[str]) -> str:
    """Return the template of a field whose content is a value of the same name; without content, there is no field."""
    indent, name = place[1], place[3]
    inside = f"{{{{- toYaml . | nindent {len(indent) + 2} }}}}"
    return f"\n{{{{- with .Values.{name} }}}}\n{indent}{name}: {inside}\n{{{{- end }}}}"


def _indented(mapping: dict[str, str]) -> str:
    return "\n".join(f"  {name}: {json.dumps(value)}" for name, value in mapping.items())


def go_modules(out: Path, commit: Commit) -> None:
    """Write the modules in the layout of a Go module proxy, with the content that their tags will have."""
    for module, directory in GO_MODULES.items():
        at = out / "go" / module / "@v"
        at.mkdir(parents=True)
        tag = f"v{version()}"
        listed = output("git", "ls-files", directory).splitlines()
        modules = [file.removesuffix("go.mod") for file in listed if file.endswith("/go.mod")]
        nested = tuple(other for other in modules if other != f"{directory}/")
        files = [file for file in listed if not file.startswith(nested)]
        with zipfile.ZipFile(at / f"{tag}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in [*files, "LICENSE"]:
                inside = name.removeprefix(f"{directory}/")
                entry = zipfile.ZipInfo(f"{module}@{tag}/{inside}", time_of(commit))
                archive.writestr(entry, (ROOT / name).read_bytes(), zipfile.ZIP_DEFLATED)
        shutil.copy(ROOT / directory / "go.mod", at / f"{tag}.mod")
        (at / f"{tag}.info").write_text(json.dumps({"Version": tag, "Time": commit.time}))
        (at / "list").write_text(f"{tag}\n")


def time_of(commit: Commit) -> tuple[int, int, int, int, int, int]:
    made = datetime.fromtimestamp(commit.epoch, UTC)
    return made.year, made.month, made.day, made.hour, made.minute, made.second


def go_bills_of_materials(out: Path) -> None:
    for module, directory in GO_MODULES.items():
        name = module.partition("/")[2].replace("/", "-")
        run(
            "go", "run", GO_BILL_OF_MATERIALS, "mod", "-json", "-licenses", "-noserial",
            "-output", out / f"{name}-go.cdx.json", directory,
        )  # fmt: skip


def npm_package(out: Path) -> None:
    (out / "npm").mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "node"
        shutil.copytree(ROOT / "clients" / "node", source, ignore=shutil.ignore_patterns("node_modules", "dist"))
        run("npm", "install", "--silent", "--no-save", cwd=source)
        run("npm", "run", "--silent", "build", cwd=source)
        sbom = subprocess.check_output(["npm", "sbom", "--sbom-format", "cyclonedx", "--omit", "dev"], cwd=source)
        (out / "discovery-npm.cdx.json").write_bytes(sbom)
        run("npm", "pack", "--silent", "--pack-destination", out / "npm", cwd=source)


def maven_artifact(out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "clients" / "java"
        shutil.copytree(ROOT / "clients" / "java", source, ignore=shutil.ignore_patterns("target"))
        shutil.copytree(ROOT / "proto", Path(scratch) / "proto")
        # The profile adds sources and Javadoc. The signatures need the owner's key, which no job that builds has.
        run(
            "mvn", "--quiet", "--batch-mode", "-Prelease", "-Dgpg.skip", "-DskipTests", "package",
            f"{MAVEN_DEPLOY}:deploy", f"-DaltDeploymentRepository=release::file:{out / 'maven'}",
            MAVEN_BILL_OF_MATERIALS, "-DoutputFormat=json", "-DincludeTestScope=false", cwd=source,
        )  # fmt: skip
        shutil.copy(source / "target" / "bom.json", out / "discovery-maven.cdx.json")


def files(out: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(candidate for candidate in out.rglob("*") if candidate.is_file()):
        yield hashlib.sha256(path.read_bytes()).hexdigest(), str(path.relative_to(out))


def provenance(out: Path, commit: Commit, parameters: dict[str, Any]) -> None:
    """Write an in-toto statement with SLSA provenance of each file. The release workflow signs it."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for digest, name in files(out)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{SOURCE}/blob/main/tools/release.py",
                "externalParameters": parameters,
                "resolvedDependencies": [
                    {"uri": f"git+{SOURCE}@refs/tags/v{version()}", "digest": {"gitCommit": commit.revision}}
                ],
            },
            "runDetails": {
                "builder": {"id": os.environ.get("GITHUB_WORKFLOW_REF", "local")},
                "metadata": {"startedOn": commit.time},
            },
        },
    }
    (out / "provenance.json").write_bytes(_json(statement))


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _tar(directory: Path, epoch: int, under: str = "") -> bytes:
    """Return a gzipped archive that depends only on the files' names and contents, and on `epoch`."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(candidate for candidate in directory.rglob("*") if candidate.is_file()):
            entry = tarfile.TarInfo(under + str(path.relative_to(directory)))
            entry.size, entry.mtime, entry.mode = path.stat().st_size, epoch, 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return buffer.getvalue()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--registry", default=REGISTRY, help="where the images will be: HOST/PATH")
    arguments.add_argument("--base", help="the base image, instead of the Dockerfile's: such as oci:DIRECTORY:TAG")
    arguments.add_argument(
        "--platform", help="platforms of the images, such as linux/amd64,linux/arm64; default: this machine's"
    )
    arguments.add_argument(
        "--build-volume", action="append", default=[], help="HOST-PATH:PATH[:ro] for the images' build"
    )
    arguments.add_argument(
        "--without",
        action="append",
        default=[],
        choices=TOOLS,
        help="skip the artifacts that need this tool; may be repeated",
    )
    given = arguments.parse_args()
    out, commit = given.directory.resolve(), Commit()
    if out.exists() and any(out.iterdir()):
        sys.exit(f"release: {out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    missing = [tool for tool in TOOLS if tool in given.without or shutil.which(tool) is None]

    python_packages(out, commit)
    image_contents(out)
    go_modules(out, commit)
    if "go" not in missing:
        go_bills_of_materials(out)
    digests: dict[str, str] = {}
    if "buildah" not in missing:
        digests = images(out, commit, given.base, given.platform, given.build_volume)
    bundle = kustomize_bundle(out, commit, given.registry, digests)
    if "kubectl" not in missing:
        chart(out, bundle, commit)
    if "npm" not in missing:
        npm_package(out)
    if "mvn" not in missing:
        maven_artifact(out)
    provenance(out, commit, {"registry": given.registry, "base": given.base, "platform": given.platform})
    (out / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for digest, name in files(out)))
    for name, digest in digests.items():
        print(f"release: {given.registry}/{name}:{version()}@{digest}")
    print(
        f"release: {out}"
        + (f"; skipped artifacts of missing or excluded tools: {', '.join(missing)}" if missing else "")
    )


if __name__ == "__main__":
    main()
