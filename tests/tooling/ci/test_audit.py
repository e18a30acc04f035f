"""`./dev audit` reports known vulnerabilities in the dependencies of every language."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.end_to_end.examples.building import tool
from tests.tooling.deploy.manifests import ROOT

VULNERABLE = {
    "PyPI": ("grpcio", "h2", "click", "aiohttp"),
    "Go": ("google.golang.org/grpc", "sigs.k8s.io/multicluster-runtime"),
    "npm": ("@grpc/grpc-js",),
    "Maven": ("io.grpc:grpc-netty-shaded",),
    "crates.io": ("kube",),
}
"""Dependencies of what is published in each ecosystem, and of the example in Rust."""


def database(directory: Path) -> Path:
    """Write a database in which all versions of these packages have a vulnerability."""
    for ecosystem, packages in VULNERABLE.items():
        archive = directory / "osv-scalibr" / ecosystem / "all.zip"
        archive.parent.mkdir(parents=True)
        with zipfile.ZipFile(archive, "w") as written:
            for number, name in enumerate(packages):
                affected = {
                    "package": {"ecosystem": ecosystem, "name": name},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}],
                }
                advisory = {"id": f"TEST-{number}", "modified": "2026-01-01T00:00:00Z", "affected": [affected]}
                written.writestr(f"TEST-{number}.json", json.dumps(advisory))
    return directory


@pytest.mark.builds
@pytest.mark.timeout(900)  # the first run builds the scanner
def test_audit_reports_vulnerable_packages_of_every_language(tmp_path: Path) -> None:
    tool("go")
    # Without the analysis of Go's calls, which asks the database of Go.
    offline = ("--offline", f"--local-db-path={database(tmp_path)}", "--no-call-analysis=go", "--format=json")
    done = subprocess.run([ROOT / "dev", "audit", *offline], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = {
        (package["package"]["ecosystem"], package["package"]["name"])
        for source in json.loads(done.stdout)["results"]
        for package in source["packages"]
    }
    assert found == {(ecosystem, name) for ecosystem, names in VULNERABLE.items() for name in names}
