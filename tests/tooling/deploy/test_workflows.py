"""The workflows of the forge: valid, least privileged, pinned, and in the right order."""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tooling.deploy.manifests import ROOT
from tools.release import IMAGES

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
RELEASE = ROOT / ".github" / "workflows" / "release.yaml"
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text())
    return workflow


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(path)["jobs"]
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in jobs(path).values():
        yield from job.get("steps", ())


@every_workflow
def test_workflow_permissions_are_read_only_and_jobs_have_a_timeout(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}
    for job in jobs(path).values():
        assert "uses" in job or job["timeout-minutes"] <= 60


@every_workflow
def test_workflow_pins_actions_by_commit_and_names_their_version(path: Path) -> None:
    used = re.findall(r"^\s*(?:- )?uses: (.+)$", path.read_text(), re.MULTILINE)
    foreign = [action for action in used if not action.startswith("./")]
    assert [action for action in foreign if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


def test_workflows_use_one_commit_of_each_action() -> None:
    used = {
        tuple(action.split("@"))
        for path in WORKFLOWS
        for action in re.findall(r"uses: ([\w./-]+@\w+)", path.read_text())
    }
    assert len({name for name, _ in used}) == len(used)


@every_workflow
def test_checkout_leaves_no_credentials_behind(path: Path) -> None:
    checkouts = [step for step in steps(path) if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@every_workflow
def test_workflow_expands_no_expression_inside_a_script(path: Path) -> None:
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


@every_workflow
def test_workflow_runs_commands_that_exist(path: Path) -> None:
    text = path.read_text()
    commands = set(re.findall(r"^(\w+)\) ", (ROOT / "dev").read_text(), re.MULTILINE))
    assert set(re.findall(r"\./dev (\w+)", text)) <= commands
    for script in re.findall(r"(\.ci/\w+) ", text):
        assert (ROOT / script).exists()
    for argument in re.findall(r"^\s+(\w+)=\$\{\{", text, re.MULTILINE):
        assert f"ARG {argument}=" in (ROOT / "Dockerfile").read_text()


def test_pip_installs_dependencies_only_by_locked_hashes() -> None:
    for path in (ROOT / "dev", ROOT / "deploy" / "image" / "install.sh"):
        script = path.read_text().replace("\\\n", " ")
        installs = re.findall(r"^.*\bpip\b.* install .*$", script, re.MULTILINE)
        assert installs
        assert [line for line in installs if not re.search(r"--require-hashes|--no-deps", line)] == []


# --- release ---


def ancestors(name: str) -> set[str]:
    """Return the jobs of the release that have to succeed before this one starts."""
    needs = jobs(RELEASE)[name].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct.union(*map(ancestors, direct))


def test_release_builds_nothing_before_all_tests_passed() -> None:
    assert jobs(RELEASE)["test"] == {"uses": "./.github/workflows/test.yaml"}
    assert "workflow_call" in read(ROOT / ".github" / "workflows" / "test.yaml")[True]  # YAML 1.1 reads `on` as true
    assert [name for name in jobs(RELEASE) if name != "test" and "test" not in ancestors(name)] == []


def scripts(job: str) -> str:
    return "\n".join(step.get("run", "") for step in jobs(RELEASE)[job]["steps"])


def test_release_signs_files_and_images_keylessly() -> None:
    script = scripts("release")
    assert 'cosign sign-blob --yes --bundle "$file.sigstore.json" "$file"' in script
    assert 'cosign sign --yes --recursive "$REGISTRY/$2@sha256:$digest"' in script
    assert jobs(RELEASE)["release"]["permissions"]["id-token"] == "write"
    assert "secrets." not in RELEASE.read_text()


def test_release_attests_the_provenance_of_everything_that_it_built() -> None:
    [attest] = [
        step["with"]
        for step in jobs(RELEASE)["release"]["steps"]
        if step.get("uses", "").startswith("actions/attest-build-provenance@")
    ]
    assert attest == {"subject-checksums": "dist/SHA256SUMS"}
    assert jobs(RELEASE)["release"]["permissions"]["attestations"] == "write"


def test_release_is_checked_and_signed_before_anything_is_published() -> None:
    built, script = scripts("build"), scripts("release")
    published = ("skopeo copy", "helm push", "gh release upload", "gh api", "./dev publish", "npm publish")
    first = min(script.index(command) for command in published)
    assert built.index("./dev release dist") < built.index("./dev verify dist") < built.index("tar -cf dist.tar")
    assert script.index("sha256sum --check") < script.index("cosign sign-blob") < first


@pytest.mark.parametrize(("builds", "publishes"), [("build", "release"), ("site-build", "site")])
def test_release_builds_third_party_code_without_permissions_and_publishes_in_another_job(
    builds: str, publishes: str
) -> None:
    """Otherwise the built code could sign, push and publish anything."""
    assert "permissions" not in jobs(RELEASE)[builds], "the job has only the permissions of the workflow: read contents"
    assert builds in ancestors(publishes)


def test_release_runs_no_third_party_code_in_jobs_with_permissions() -> None:
    assert {name for name, job in jobs(RELEASE).items() if "permissions" in job} == {"release", "site"}
    for name in ("release", "site"):
        assert set(re.findall(r"\./dev (\w+)", scripts(name))) <= {"publish"}
        builds = r"^\s*(npm (ci|install|run|pack)|helm package|buildah|docker|make|mvn|go|python3?|pip) "
        assert not re.search(builds, scripts(name), re.MULTILINE)
    assert "--ignore-scripts" in scripts("release")


def test_release_builds_with_no_cache_of_other_runs() -> None:
    """A build cache has no checksums: a run with other code could put its own into a release."""
    caches = {"actions/setup-go": "cache", "docker/setup-qemu-action": "cache-image"}  # by default
    for step in steps(RELEASE):
        action, options = step.get("uses", "").partition("@")[0], step.get("with", {})
        assert not action.startswith("actions/cache")
        cached = {name: value for name, value in options.items() if name.startswith("cache")}
        assert cached == ({caches[action]: False} if action in caches else {})


def test_release_signs_each_file_that_it_uploads() -> None:
    script = scripts("release")
    [signed] = re.findall(r"for file in (.+); do", script)
    [uploaded] = re.findall(r'gh release upload "\$VERSION" (.+)', script)
    assert {file.removesuffix("*") for file in uploaded.split()} == {file.removesuffix("*") for file in signed.split()}
    assert "tar.gz" in scripts("build").split(">> SHA256SUMS")[0].splitlines()[-1], "the archives have checksums"


def test_release_publishes_only_signed_files_and_creates_no_files_after_signing() -> None:
    script = scripts("release")
    [signed] = re.findall(r"for file in (.+); do", script)
    _, after = script.split("cosign sign-blob")
    pushed = set(re.findall(r"^\s*push (dist/\S+)", script, re.MULTILINE))  # images, which are signed by digest
    published = set(re.findall(r'dist/[^\s"]+', after)) - pushed
    unsigned = {file for file in published if not any(fnmatchcase(file, pattern) for pattern in signed.split())}
    assert {file.removesuffix("*") for file in unsigned} <= {"dist/*.tar.gz", "dist/SHA256SUMS"}, "others are signed"
    makes_archive = r"\btar\b.* (-\w*c|--create)|\b(zip|gzip)\b|> *dist/"
    assert [name for name in ("release", "site") if re.search(makes_archive, scripts(name))] == []


def test_release_pushes_an_image_of_each_runtime_stage_of_the_dockerfile() -> None:
    stages = re.findall(r"^FROM runtime AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(IMAGES) == set(stages)
    named = set(
        re.findall(r"image: (milo-discoveryd[\w-]*):", "".join(p.read_text() for p in ROOT.glob("deploy/**/*.yaml")))
    )
    assert named == set(IMAGES.values())
    assert all(f"push dist/images/{name} {name}" in scripts("release") for name in named)


def test_documented_helm_chart_address_matches_where_the_release_pushes_it() -> None:
    document = (ROOT / "docs" / "deploying.md").read_text()
    assert 'helm push dist/chart/milo-discoveryd-*.tgz "oci://$REGISTRY/charts"' in scripts("release")
    assert "helm install milo-discoveryd oci://ghcr.io/milo-os/charts/milo-discoveryd" in document


def test_documented_signature_verification_names_the_workflow_and_the_released_files() -> None:
    document = (ROOT / "docs" / "deploying.md").read_text()
    assert "/.github/workflows/release.yaml@refs/tags/v" in document
    assert "--certificate-oidc-issuer https://token.actions.githubusercontent.com" in document
    for product in ("milo-discoveryd:", "milo_discoveryd-", ".sigstore.json"):
        assert product in document
